"""Puts files of the host into a testbed: the tree of the current build, and test binaries.

What an instance holds already is recorded in its folder, so an unchanged tree costs a look at each file's size and time.
"""

import hashlib
import json
import os
import pathlib
import stat

from .locks import locked
from .paths import REPOSITORY
from .report import TestbedError

# A push of this many bytes takes some seconds; a testbed that needs longer than this for one does not take it at all.
PUSH_SECONDS = 300


def install_tree():
    """The build's tree to be laid over the testbed's root, or None if nothing is built."""
    chosen = os.environ.get("POUCH_INSTALL_DIR")
    if chosen:
        tree = pathlib.Path(chosen).absolute()
        if not tree.is_dir():
            raise TestbedError(f"POUCH_INSTALL_DIR names {tree}, which is no folder; `make` makes it")
        return tree
    tree = REPOSITORY / "target" / "install"
    return tree if tree.is_dir() else None


def push_install_tree(instance):
    """Make the testbed hold exactly the build's tree: new and changed files go in, files it no longer has go away."""
    tree = install_tree()
    if tree:
        _push(instance, "install", [(path, f"/{path.relative_to(tree)}") for path in _walk(tree)], remove=True)


def push_binary(instance, path):
    """Put the program `path` into the testbed under its own path; returns that."""
    path = pathlib.Path(path).absolute()
    _push(instance, "binaries", [(path, str(path))], remove=False)
    return str(path)


def _walk(folder):
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(pathlib.Path(entry.path))
        else:
            yield pathlib.Path(entry.path)


def _push(instance, group, files, remove):
    record_path = instance.folder / f"pushed-{group}.json"
    # Most often nothing has changed, and then nobody need wait for anybody.
    wanted = {target: _facts(source) for source, target in files}
    if _is_current(_load(record_path), wanted, remove):
        return
    with locked(instance.folder / f"pushed-{group}.lock", f"it copies files into testbed {instance.name}"):
        record = _load(record_path)
        entries, contents = [], []
        for source, target in files:
            facts, known = wanted[target], record.get(target)
            if known and _same(known, facts):
                continue
            content = b""
            if facts["kind"] == "file":
                content = source.read_bytes()
                facts["digest"] = hashlib.sha256(content).hexdigest()
                if known and known.get("digest") == facts["digest"] and known["mode"] == facts["mode"]:
                    continue  # Written anew with the same content.
            entries.append({"path": target, "kind": facts["kind"], "mode": facts["mode"], "size": len(content),
                            "target": facts.get("target")})
            contents.append(content)
        gone = [target for target in record if target not in wanted] if remove else []
        if entries or gone:
            # Until this push is through, nobody may believe the record.
            for target in [entry["path"] for entry in entries] + gone:
                record.pop(target, None)
            _store(record_path, record)
            instance.ask({"do": "files", "remove": gone, "entries": entries}, PUSH_SECONDS, contents)
        for target, facts in wanted.items():
            facts.setdefault("digest", record.get(target, {}).get("digest"))
        _store(record_path, wanted if remove else {**record, **wanted})


def _facts(source):
    status = os.lstat(source)
    facts = {"source": str(source), "size": status.st_size, "time": status.st_mtime_ns, "inode": status.st_ino,
             "mode": stat.S_IMODE(status.st_mode)}
    if stat.S_ISLNK(status.st_mode):
        return {**facts, "kind": "link", "target": os.readlink(source)}
    if not stat.S_ISREG(status.st_mode):
        raise TestbedError(f"{source} is neither a file nor a link: it cannot be copied into the testbed")
    return {**facts, "kind": "file"}


def _same(known, facts):
    return all(known.get(name) == value for name, value in facts.items())


def _is_current(record, wanted, remove):
    return (not remove or record.keys() == wanted.keys()) and all(
        target in record and _same(record[target], facts) for target, facts in wanted.items())


def _load(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _store(path, record):
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.rename(path)
