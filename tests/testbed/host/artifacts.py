"""Folders in the cache that are made once from known inputs, and named by a hash of those inputs.

An artifact appears by rename when it is complete, so whatever is there is whole, whoever was killed in between.
"""

import hashlib
import os
import shutil

from .locks import locked
from .paths import cache_folder


def key_of(*inputs):
    """A short hash over strings and files (a folder counts with everything in it)."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, str):
            digest.update(f"text {len(item)}\n{item}".encode())
            continue
        files = sorted(item.rglob("*")) if item.is_dir() else [item]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                content = file.read_bytes()
                name = file.relative_to(item.parent)
                digest.update(f"file {name} {os.access(file, os.X_OK)} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:16]


def ensure(kind, key, build):
    """The folder of artifact `kind` with `key`; `build(folder)` fills it if it is not there yet."""
    root = cache_folder()
    final = root / f"{kind}-{key}"
    if final.is_dir():
        return final
    with locked(root / "locks" / f"{kind}.lock", f"it builds {kind}", seconds=3600):
        if final.is_dir():
            return final
        # Holding the lock, nobody builds this kind: what is half done is left from a builder that died.
        for left in root.glob(f"{kind}-*.building"):
            shutil.rmtree(left)
        building = root / f"{kind}-{key}.building"
        building.mkdir(mode=0o700)
        build(building)  # What a failure leaves, its logs above all, stays for a look inside until the next try.
        os.rename(building, final)
        return final
