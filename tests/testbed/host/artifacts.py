"""Folders in the cache that are made once from known inputs, and named by a hash of those inputs.

An artifact appears by rename when it is complete, so whatever is there is whole, whoever was killed in between.
"""

import hashlib
import os
import pathlib
import re
import shutil
import tempfile
import time

from .locks import locked
from .paths import cache_folder

# An artifact that is not of the current sources stays this long, for going back and forth between branches.
KEPT_SECONDS = 3 * 24 * 3600


def key_of(*inputs):
    """A short hash over strings and files (a folder counts with everything in it but its documents)."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, str):
            digest.update(f"text {len(item)}\n{item}".encode())
            continue
        files = sorted(item.rglob("*")) if item.is_dir() else [item]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md":
                content = file.read_bytes()
                name = file.relative_to(item.parent)
                digest.update(f"file {name} {os.access(file, os.X_OK)} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:16]


def _clear_away(root, kind):
    """Remove what no sources have asked for lately. Call with the kind's lock held."""
    ours = re.compile(re.escape(kind) + r"-[0-9a-f]{16}(\.\w+\.building)?")  # Not "image-debian-systemd-…" for "image-debian".
    for folder in [folder for folder in root.iterdir() if ours.fullmatch(folder.name)]:
        # Nobody builds this kind now: what is half done is left from a builder that died or failed.
        if folder.name.endswith(".building") or time.time() - folder.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def find(kind, key):
    """The folder of artifact `kind` with `key`; None if it has not been built."""
    folder = cache_folder() / f"{kind}-{key}"
    if not folder.is_dir():
        return None
    os.utime(folder)  # In use: not to be cleared away.
    return folder


def ensure(kind, key, build):
    """The folder of artifact `kind` with `key`; `build(folder)` fills it if it is not there yet."""
    found = find(kind, key)
    if found:
        return found
    root = cache_folder()
    final = root / f"{kind}-{key}"
    with locked(root / "locks" / f"{kind}.lock", f"it builds {kind}", seconds=3600):
        if final.is_dir():
            return final
        _clear_away(root, kind)
        # A name of its own: some child of a builder that was killed may still write where that one built.
        building = pathlib.Path(tempfile.mkdtemp(prefix=f"{kind}-{key}.", suffix=".building", dir=root))
        build(building)  # What a failure leaves, its logs above all, stays for a look inside until the next try.
        os.rename(building, final)
        return final
