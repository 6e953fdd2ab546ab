"""The emulator: Debian trixie's QEMU, compiled from Debian's source with the patches in recipe/emulator."""

from . import artifacts, paths
from .mmdebstrap import make_root
from .report import Step

_RECIPE = paths.RECIPE / "emulator"


def emulator(build):
    """The path of qemu-system-x86_64, whose libraries are those of the tool root.

    If it has not been built, it is built now, or without `build` it is the one of Debian in the tool root.
    """
    key = artifacts.key_of("emulator 1", _RECIPE)
    folder = artifacts.ensure("emulator", key, _build) if build else artifacts.find("emulator", key)
    return folder / "qemu-system-x86_64" if folder else "usr/bin/qemu-system-x86_64"


def _build(folder):
    with Step("compiling QEMU with our patches (about 5 minutes, once)"):
        make_root(None, "trixie", paths.read_list(_RECIPE / "packages"), log=folder / "mmdebstrap.log", sources=True,
                  options=[f"--customize-hook={_RECIPE / 'build-in'}",
                           f"--customize-hook=copy-out /build/qemu-system-x86_64 {folder}"])
