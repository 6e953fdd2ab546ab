"""The tool root: QEMU and the file system makers from Debian trixie, run without touching the machine's own packages."""

import subprocess

from . import artifacts, paths
from .emulator import emulator
from .mmdebstrap import make_root
from .report import Step, TestbedError


class Tools:
    """The programs of the tool root, each run by that root's own dynamic linker and libraries."""

    def __init__(self):
        packages = paths.read_list(paths.RECIPE / "tools")
        key = artifacts.key_of("tools 1", *packages)
        self.key = key
        self.root = artifacts.ensure("tools", key, lambda folder: _build(folder, packages)) / "root"

    def command(self, program):
        """The words that start `program` (a path in the root, as usr/bin/qemu-img, or an absolute one)."""
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        return [
            str(self.root / "usr/lib64/ld-linux-x86-64.so.2"),
            "--library-path", f"{libraries}:{libraries}/pulseaudio",
            str(self.root / program),
        ]

    def qemu(self, build):
        """The words that start QEMU, with its libraries and firmware found in the root; see `emulator` for `build`."""
        return [*self.command(emulator(build)),
                "-L", str(self.root / "usr/share/qemu"), "-L", str(self.root / "usr/share/seabios")]

    def run(self, program, *arguments, **options):
        """Run `program` to its end; an error carries what it wrote."""
        result = subprocess.run([*self.command(program), *map(str, arguments)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options)
        if result.returncode:
            output = result.stdout.decode(errors="replace").strip()
            raise TestbedError(f"{program} failed with status {result.returncode}:\n{output}")
        return result.stdout


def _build(folder, packages):
    with Step("fetching QEMU and file system tools from Debian trixie (once)"):
        make_root(folder / "root.tar", "trixie", packages, log=folder / "mmdebstrap.log", variant="extract")
        (folder / "root").mkdir()
        subprocess.run(["tar", "-xf", folder / "root.tar", "-C", folder / "root", "--no-same-owner", "--exclude=./dev/*"],
                       check=True)
        (folder / "root.tar").unlink()
