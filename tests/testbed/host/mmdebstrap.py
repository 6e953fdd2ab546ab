"""Debian roots as tar archives, made by mmdebstrap."""

import shutil
import subprocess

from .paths import TESTBED, debian_mirror
from .report import TestbedError


def make_root(archive, suite, packages, log, variant="minbase", options=(), environment=None, sources=False):
    """Write a root of `suite` with `packages` to `archive`; mmdebstrap's words go to the file `log`.

    Without an `archive` the root is thrown away when the hooks among the options have run. With `sources` they can
    fetch source packages too.
    """
    if not shutil.which("mmdebstrap"):
        raise TestbedError(f"mmdebstrap is not installed; `{TESTBED}/prerequisites --install` installs what is missing")
    command = ["mmdebstrap", f"--variant={variant}", f"--include={','.join(packages)}",
               f"--format={'tar' if archive else 'null'}", *options, suite, str(archive or "-"), debian_mirror()]
    if sources:
        command.append(f"deb-src {debian_mirror()} {suite} main")
    with open(log, "wb") as output:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
                                env=environment).returncode
    if status:
        tail = b"\n".join(log.read_bytes().splitlines()[-15:]).decode(errors="replace")
        raise TestbedError(f"mmdebstrap of {suite} failed with status {status}; is {debian_mirror()} reachable? "
                           f"Its last words (all of them are in {log}):\n{tail}")
