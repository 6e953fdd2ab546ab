"""Processes by an identity that cannot be mistaken: a pid alone may by now belong to somebody else."""

import ctypes
import dataclasses
import os
import select
import signal

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _start_time(pid):
    """When `pid` started, in clock ticks since boot, or None if there is no such process (or only its zombie)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _boot_id():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of this machine, past or present."""

    pid: int
    started: int
    boot: str

    @classmethod
    def current(cls):
        """The calling process. It stays the same through exec."""
        return cls(os.getpid(), _start_time(os.getpid()), _boot_id())

    @classmethod
    def read(cls, path):
        """The process recorded in the file `path`, or None."""
        try:
            pid, started, boot = path.read_text(encoding="ascii").split()
            return cls(int(pid), int(started), boot)
        except (FileNotFoundError, ValueError):
            return None  # A file cut short: its writer died before it became what the file was to name.

    def write(self, path):
        """Record the process in the file `path`, all at once."""
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{self.pid} {self.started} {self.boot}\n")
        os.rename(temporary, path)

    def is_alive(self):
        """Whether this very process still runs."""
        return self.boot == _boot_id() and _start_time(self.pid) == self.started

    def kill(self, seconds=10):
        """SIGKILL it and wait for its end; nothing else can be hit. False if it would not end."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            # The pidfd is of whoever has the pid now: only after this check is it known to be ours.
            if not self.is_alive():
                return True
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            return bool(select.select([fd], [], [], seconds)[0])
        finally:
            os.close(fd)


def die_with_parent(parent):
    """In a child before exec: be killed when the thread that made us ends. `parent` is its pid."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # It ended before the line above.
