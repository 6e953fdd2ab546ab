"""Runs one container of a root file system in its own VM, and ends with its status.

`container.py ROOTFS NAME COMMAND`. The root file system stays as it is: the container writes to an
overlay over it. `make run` starts this, on this machine or in the testbed, where only its text is.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile


def write_spec(bundle, hostname, command):
    """What `pouch-vm spec` writes, with this command and this host name."""
    subprocess.run(["pouch-vm", "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec["hostname"] = hostname
    spec["root"] = {"path": "rootfs", "readonly": False}
    spec["process"]["args"] = ["/bin/sh", "-c", command]
    spec["process"]["terminal"] = os.isatty(0)
    if spec["process"]["terminal"]:
        spec["process"].setdefault("env", []).append("TERM=" + os.environ.get("TERM", "xterm"))
    path.write_text(json.dumps(spec, indent=2), encoding="utf-8")


def run(bundle, container):
    """Run the bundle's container; the status is that of the container.

    A guest that does not boot is tried once more: with Debian's QEMU, one in several hundred hangs (see "The emulator"
    in tests/testbed/README.md).
    """
    pid_file = bundle / "pid"
    for last in (False, True):
        # A signal that ends a process group reaches pouch-vm itself; what is left to do here is to wait for it.
        command = ["pouch-vm", "run", "--bundle", bundle, "--pid-file", pid_file, container]
        status = subprocess.run(command, check=False).returncode
        if last or status == 0 or pid_file.exists():
            return status
        print("make run: no container was made; trying once more", file=sys.stderr)


def main(rootfs, name, command):
    """Run it; the status is that of the container."""
    with tempfile.TemporaryDirectory(prefix="pouch-run-", ignore_cleanup_errors=True) as folder:
        bundle = pathlib.Path(folder)
        for part in ("rootfs", "upper", "work"):
            (bundle / part).mkdir()
        # The upper folder needs a file system that keeps extended attributes, and that is no overlay itself.
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                        f"lowerdir={rootfs},upperdir={bundle}/upper,workdir={bundle}/work", bundle / "rootfs"], check=True)
        try:
            write_spec(bundle, name, command)
            return run(bundle, f"{name}-{os.getpid()}")
        finally:
            subprocess.run(["umount", "--lazy", bundle / "rootfs"], check=True)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"make run: {error}")
