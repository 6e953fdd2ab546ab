"""What the testbed says to its user: progress on long work, and errors with what to do about them."""

import sys
import time


class TestbedError(Exception):
    """Something failed; the message says what, and what to do."""


def say(message):
    """One line to the user, on standard error so that a command's output stays its own."""
    print(f"testbed: {message}", file=sys.stderr, flush=True)


class Step:
    """A long step: announced when it begins, with the time that it took when it ends."""

    def __init__(self, what):
        self._what = what

    def __enter__(self):
        say(f"{self._what}…")
        self._began = time.monotonic()
        return self

    def __exit__(self, kind, _value, _traceback):
        if kind is None:
            say(f"{self._what}: done in {time.monotonic() - self._began:.0f} s")
