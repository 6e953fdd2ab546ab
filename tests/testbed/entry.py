"""How the programs in this folder start: compiled Python goes to the cache, not into the clone."""

import os
import sys

sys.pycache_prefix = os.path.join(
    os.environ.get("POUCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pouch-vm"), "testbed", "python")
sys.dont_write_bytecode = False  # Compiling a thousand lines anew would cost each start more than all the rest.


def start(name):
    """Run the program `name`."""
    # pylint: disable=import-outside-toplevel  # Only now is the cache's place known.
    from host import commands, runner
    commands.main(runner.runner if name == "runner" else getattr(commands, name))
