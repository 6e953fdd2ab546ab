"""How the programs in this folder start: compiled Python goes to the cache, not into the clone."""

import os
import pathlib
import sys

sys.pycache_prefix = os.path.join(
    os.environ.get("POUCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pouch-vm"), "testbed", "python")
sys.dont_write_bytecode = False  # Compiling a thousand lines anew would cost each start more than all the rest.
# The test images' builder is a package beside this folder.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "images"))


def start(name):
    """Run the program `name`."""
    # pylint: disable=import-outside-toplevel  # Only now is the cache's place known.
    from host import commands, runner
    commands.main(runner.runner if name == "runner" else getattr(commands, name))
