"""Root file systems as tar archives: busybox by hand, Debian ones by mmdebstrap."""

import io
import os
import subprocess
import tarfile

from host import artifacts
from host.mmdebstrap import make_root

# What no test reads: a third of a small image.
_WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
            "/usr/share/bug/*", "/usr/share/zoneinfo/*", "/usr/share/common-licenses/*")
_WITH = ("/usr/share/zoneinfo/UTC", "/usr/share/zoneinfo/Etc/*", "/usr/share/zoneinfo/Europe/*")
_CLEAN_UP = "rm -rf $1/var/log/*.log $1/var/log/apt $1/var/cache/ldconfig/* $1/var/cache/debconf/*-old $1/var/lib/dpkg/*-old"

# One time for all files, so that what did not change between two roots is the same to the byte.
_EPOCH = "1750000000"


def build_root(recipe):
    """The artifact that holds root.tar of the image."""
    build = _build_busybox if recipe.name == "busybox" else _build_debian
    key = artifacts.key_of("image 1", *recipe.packages, *_WITHOUT, *_WITH, _CLEAN_UP, _EPOCH, recipe.folder)
    return artifacts.ensure(f"image-{recipe.name}", key, lambda folder: build(recipe, folder))


def _build_debian(recipe, folder):
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _WITHOUT]
    options += [f"--dpkgopt=path-include={pattern}" for pattern in _WITH]
    if recipe.hook("prepare"):
        options.append(f"--essential-hook={recipe.hook('prepare')}")
    if recipe.hook("setup"):
        options.append(f"--customize-hook={recipe.hook('setup')}")
    if (recipe.folder / "files").is_dir():
        options.append(f"--customize-hook=sync-in {recipe.folder / 'files'} /")
    options.append(f"--customize-hook={_CLEAN_UP}")
    make_root(folder / "root.tar", "trixie", recipe.packages, log=folder / "mmdebstrap.log", options=options,
              environment={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH})


def _build_busybox(recipe, folder):
    unpacked = folder / "package.tar"
    make_root(unpacked, "trixie", recipe.packages, log=folder / "mmdebstrap.log", variant="extract")
    with tarfile.open(unpacked) as archive:
        busybox = archive.extractfile("./usr/bin/busybox").read()
    unpacked.unlink()
    program = folder / "busybox"
    program.write_bytes(busybox)
    program.chmod(0o755)
    applets = subprocess.run([program, "--list"], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    program.unlink()
    with tarfile.open(folder / "root.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        def add(name, kind=tarfile.REGTYPE, mode=0o644, content=b"", target=""):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.size, member.linkname = kind, mode, len(content), target
            member.mtime = int(_EPOCH)
            archive.addfile(member, io.BytesIO(content))

        for name, mode in (("", 0o755), ("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o555),
                           ("root", 0o700), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777), ("usr", 0o755), ("var", 0o755),
                           ("var/tmp", 0o1777), ("var/spool", 0o755)):
            add(f"./{name}", tarfile.DIRTYPE, mode)
        add("./bin/busybox", mode=0o755, content=busybox)
        for applet in applets:
            if applet != "busybox":
                add(f"./bin/{applet}", tarfile.SYMTYPE, 0o777, target="busybox")
        for name, target in (("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin")):
            add(f"./{name}", tarfile.SYMTYPE, 0o777, target=target)
        add("./etc/passwd", content=b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
                                    b"nobody:x:65534:65534:nobody:/home:/bin/false\n")
        add("./etc/group", content=b"root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n")
        add("./etc/shadow", mode=0o600, content=b"root:*:::::::\n")
        add("./etc/nsswitch.conf", content=b"passwd: files\ngroup: files\nhosts: files dns\n")
