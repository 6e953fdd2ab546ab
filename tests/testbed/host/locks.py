"""Locks that the kernel drops when their holder dies, however it dies, so that none is ever stale."""

import contextlib
import fcntl
import os
import time

from .report import TestbedError, say


@contextlib.contextmanager
def locked(path, what, seconds=1800):
    """Hold the lock `path` exclusively; says so when another process makes us wait for `what`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        began, told = time.monotonic(), False
        while not try_lock(fd):
            waited = time.monotonic() - began
            if waited > seconds:
                raise TestbedError(f"waited {seconds} s for another process that holds {path} ({what})")
            if waited > 2 and not told:
                say(f"waiting for another process: {what}")
                told = True
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def try_lock(fd, shared=False):
    """Lock the open file `fd` now, or return False."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path):
    """Whether any process holds the lock `path`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)
