"""Instances: running testbeds, each with a name, a folder of its own, and a lock that its users share."""

import contextlib
import json
import os
import secrets
import shutil
import time

from . import paths
from .locks import is_locked, locked, try_lock
from .process import Process
from .qemu import Qemu, command_line
from .report import TestbedError, say
from .session import NoAnswer, ask
from .state import BOOT_SECONDS, await_answer, console_tail, make_overlay, prepare_guest_files

# A restored testbed answers in a second or two; on a busy machine in ten. One that took this long hangs.
RESTORE_SECONDS = 60
# A testbed that runs already and gives no answer to a ping for this long is taken for hung.
PING_SECONDS = 60
# In the names of instances that are made for one command.
_ALONE = "-for-"


def run_folder():
    """The folder that holds the instances' folders."""
    return paths.cache_folder() / "run"


class Instance:
    """One named testbed, running or not."""

    def __init__(self, name):
        if not name or "/" in name or name.startswith("."):
            raise TestbedError(f"{name!r} cannot name an instance")
        self.name = name
        self.folder = run_folder() / name
        self._locks = paths.cache_folder() / "locks"
        self._users = None
        self.facts = {}

    @classmethod
    def all(cls):
        """Every instance that has a folder."""
        try:
            return [cls(entry.name) for entry in sorted(run_folder().iterdir()) if entry.is_dir()]
        except FileNotFoundError:
            return []

    def starting(self):
        """The lock under which the instance is started or stopped."""
        return locked(self._start_lock(), f"it starts or stops testbed {self.name}", seconds=900)

    @contextlib.contextmanager
    def used(self):
        """Mark the instance as used by this process, until the block ends or the process does."""
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._users = os.open(self._users_lock(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._share_users_lock()
            yield
        finally:
            os.close(self._users)
            self._users = None

    def _start_lock(self):
        return self._locks / f"instance-{self.name}.lock"

    def _users_lock(self):
        return self._locks / f"users-{self.name}.lock"

    def _share_users_lock(self):
        while not try_lock(self._users, shared=True):  # Held exclusively only for the moment of somebody's test.
            time.sleep(0.01)

    @classmethod
    def for_one_command(cls, kind):
        """An instance for this process alone, after clearing away those whose processes were killed."""
        for instance in cls.all():
            if _ALONE in instance.name and not instance.in_use():
                with instance.starting():
                    instance.take_down()
        return cls(f"{kind}{_ALONE}{os.getpid()}")

    def forget(self):
        """Remove the locks too, when the name will not be used again."""
        for lock in (self._users_lock(), self._start_lock()):
            lock.unlink(missing_ok=True)

    def in_use(self):
        """Whether some other process runs a command in it now."""
        if self._users is None:
            return is_locked(self._users_lock())
        try:
            return not try_lock(self._users)  # Our own share becomes exclusive if it is the only one.
        finally:
            self._share_users_lock()

    def process(self):
        """QEMU's process, if it runs."""
        process = Process.read(self.folder / "qemu.pid")
        return process if process and process.is_alive() else None

    def is_up(self):
        """Whether the instance runs and was started completely; reads its facts."""
        try:
            self.facts = json.loads((self.folder / "instance.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return self.process() is not None

    def ask(self, request, seconds, content=()):
        """Send a small request to execd."""
        ask(self.facts["port"], self.facts["token"], request, seconds, content)

    def bring_up(self, state, fresh=False, dies_with_us=False):
        """Start the instance from `state`, from nothing or from whatever an earlier one left. Call under `starting()`."""
        self.take_down()
        self.folder.mkdir(mode=0o700, parents=True)
        if not fresh:
            try:
                self._start(state, state.folder(), dies_with_us)
                return
            except (NoAnswer, TestbedError) as error:
                say(f"the testbed did not come back from its saved state ({error}); booting it anew")
                self.take_down()
                self.folder.mkdir(mode=0o700, parents=True)
        try:
            self._start(state, None, dies_with_us)
        except NoAnswer as error:
            raise TestbedError(f"the testbed does not boot: {error}\n{console_tail(self.folder)}") from None

    def _start(self, state, saved, dies_with_us):
        if saved:
            source, base = saved, saved / "disk.qcow2"
        else:
            prepare_guest_files(self.folder)
            source, base = self.folder, state.disk / "disk.qcow2"
        make_overlay(state.tools, base, self.folder / "overlay.qcow2")
        command = command_line(state.tools, state.shape, state.kernel, source / "guest.tar")
        qemu = Qemu.start(self.folder, command + (["-incoming", "defer"] if saved else []), dies_with_us)
        if saved:
            qemu.monitor().load(saved / "vmstate")
        self.facts = {"key": state.key, "port": qemu.port(), "token": (source / "token").read_text(encoding="ascii"),
                      "shape": state.shape.label(), "restored": bool(saved), "up": time.time()}
        await_answer(qemu, self.facts["port"], self.facts["token"], RESTORE_SECONDS if saved else BOOT_SECONDS)
        self.ask({"do": "setup", "time": time.time(), "entropy": secrets.token_hex(64)}, 30)
        temporary = self.folder / "instance.json.new"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(self.facts), encoding="utf-8")
        temporary.rename(self.folder / "instance.json")

    def take_down(self):
        """Stop the instance and remove what it leaves. Call under `starting()`."""
        process = self.process()
        if process:
            Qemu(self.folder, process).stop()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def answers(self):
        """Whether execd answers, given the time of a busy machine."""
        try:
            self.ask({"do": "ping"}, PING_SECONDS)
        except NoAnswer:
            return False
        return True
