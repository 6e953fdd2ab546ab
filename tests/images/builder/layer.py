"""Layers: a root's archive as an image layer, whole or as what it adds to, changes in and takes from a base."""

import hashlib
import os
import tarfile


def whole_layer(root, layer):
    """Write the root's archive as a layer."""
    with tarfile.open(root) as source, tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in source:
            if _belongs(member):
                _copy(source, member, archive)


def delta_layer(base, root, layer):
    """Write a layer that makes `root` out of `base`."""
    before, after = _fingerprints(base), _fingerprints(root)
    chosen = {name for name, mark in after.items() if before.get(name) != mark}
    gone = {name for name in before if name not in after}
    chosen |= _parents(chosen | gone)
    with tarfile.open(root) as source, tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as archive:
        # A hard link needs the file that it names in the same layer.
        chosen |= {member.linkname for member in source if member.islnk() and member.name in chosen}
        for member in source:
            if member.name in chosen and _belongs(member):
                _copy(source, member, archive)
        for name in sorted(gone):
            folder, _, last = name.rpartition("/")
            if folder not in gone:
                archive.addfile(tarfile.TarInfo(f"{folder}/.wh.{last}"))


def _parents(names):
    """Every folder above the names: an engine makes those that a layer lacks anew, with rights that are not theirs."""
    found = set()
    for name in names:
        while (name := os.path.dirname(name)) and name not in found:
            found.add(name)
    return found


def _belongs(member):
    return not member.name.startswith("./dev/")


def _fingerprints(root):
    """What tells each entry of an archive from another of the same name; times do not count."""
    marks = {}
    with tarfile.open(root) as archive:
        for member in archive:
            if not _belongs(member):
                continue
            content = hashlib.sha256(archive.extractfile(member).read()).digest() if member.isreg() else None
            extended = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr")}
            marks[member.name] = (member.type, member.mode, member.uid, member.gid, member.linkname, extended, content)
    return marks


def _copy(source, member, archive):
    archive.addfile(member, source.extractfile(member) if member.isreg() else None)
