"""The program runner: what cargo and cargo-nextest start test binaries with, to have them run in a testbed."""

import argparse
import os
import pathlib

from .commands import BASE_ENVIRONMENT, run_command
from .qemu import Shape
from .report import TestbedError

# Variables that go along: what the tests and their harness read.
PASSED = ("RUST_", "RUSTC_", "POUCH_", "NEXTEST", "CARGO_", "PROPTEST_", "INSTA_", "__RUST")
# These speak of folders and programs of the host.
KEPT_BACK = ("POUCH_CACHE", "POUCH_INSTALL_DIR", "POUCH_TESTBED_INSTANCE", "POUCH_DEBIAN_MIRROR")
# How the name of the test binary begins that wants a testbed with an older kernel and cgroup v1.
OLDER_HOST = "older_host-"


def runner(arguments):
    """Run a test binary in the testbed; merely listing its tests needs no testbed."""
    parser = argparse.ArgumentParser(
        usage="runner TEST-BINARY [ARGUMENT]…",
        description="Run a statically linked test binary in a testbed: a target runner for cargo and cargo-nextest.")
    parser.add_argument("binary")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    binary = pathlib.Path(options.binary).absolute()
    if not os.access(binary, os.X_OK):
        raise TestbedError(f"{binary} is not a program")
    if "--list" in options.arguments:
        os.execv(binary, [str(binary), *options.arguments])
    environment = {name: value for name, value in os.environ.items()
                   if name.startswith(PASSED) and name not in KEPT_BACK}
    settings = argparse.Namespace(instance=os.environ.get("POUCH_TESTBED_INSTANCE"), fresh=False)
    shape = Shape(older=binary.name.startswith(OLDER_HOST))
    return run_command(settings, shape, [str(binary), *options.arguments], {**BASE_ENVIRONMENT, **environment},
                       cwd=os.getcwd(), terminal=False, binary=binary)
