"""Where things are: the sources beside this file, and the cache outside the clone."""

import os
import pathlib

TESTBED = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = TESTBED.parent.parent
IMAGE_SOURCES = REPOSITORY / "tests" / "images"
GUEST_SOURCES = TESTBED / "guest"
RECIPE = TESTBED / "recipe"


def cache_folder():
    """The folder that holds everything the testbed keeps; made if need be, for this user alone."""
    chosen = os.environ.get("POUCH_CACHE")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pouch-vm")
    folder = pathlib.Path(chosen).absolute() / "testbed"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def debian_mirror():
    """The Debian mirror that all roots are made from."""
    return os.environ.get("POUCH_DEBIAN_MIRROR") or "http://deb.debian.org/debian"


def read_list(path):
    """The words of a recipe file: one a line, `#` begins a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]
