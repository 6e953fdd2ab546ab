"""The emulator: Debian trixie's QEMU, compiled from Debian's source with the patches in recipe/emulator."""

from . import artifacts, paths
from .mmdebstrap import make_root
from .report import Step

_RECIPE = paths.RECIPE / "emulator"


def emulator():
    """The path of qemu-system-x86_64, built now if need be. Its libraries are those of the tool root."""
    return artifacts.ensure("emulator", artifacts.key_of("emulator 1", _RECIPE), _build) / "qemu-system-x86_64"


def _build(folder):
    with Step("compiling QEMU with our patches (about 5 minutes, once)"):
        make_root(None, "trixie", paths.read_list(_RECIPE / "packages"), log=folder / "mmdebstrap.log", sources=True,
                  options=[f"--customize-hook={_RECIPE / 'build-in'}",
                           f"--customize-hook=copy-out /build/qemu-system-x86_64 {folder}"])
