"""Saved states: a booted testbed on disk, from which an instance starts in a second or two.

A state is a folder with disk.qcow2 (what boot wrote, over the base disk), vmstate (memory and devices), guest.tar (the
second disk) and token (which execd, already running in there, expects).
"""

import secrets
import tarfile
import time

from . import artifacts, paths
from .qemu import Qemu, command_line
from .report import Step, TestbedError, say
from .session import NoAnswer, ask

BOOT_SECONDS = 300
# TCG hangs once in many boots, and a loaded machine is slow: a boot is given up after BOOT_SECONDS, and tried again once.
BOOT_TRIES = 2


class State:
    """What an instance is started from: the machine, its disk, and (unless it boots anew) the saved state."""

    def __init__(self, tools, disk, shape):
        self.tools, self.disk, self.shape = tools, disk, shape
        self.key = artifacts.key_of("state 1", disk.name, shape.label(), " ".join(command_line(tools, shape, disk, "")),
                                    paths.GUEST_SOURCES)

    def folder(self):
        """The saved state's folder, made now if need be."""
        return artifacts.ensure(f"state-{self.shape.label()}", self.key, self._build)

    def _build(self, folder):
        with Step(f"booting the test host ({self.shape.label()}) to save its state (about a minute, once)"):
            prepare_guest_files(folder)
            for attempt in range(BOOT_TRIES):
                make_overlay(self.tools, self.disk / "disk.qcow2", folder / "overlay.qcow2")
                try:
                    self._boot_and_save(folder)
                    break
                except NoAnswer as error:
                    if attempt + 1 == BOOT_TRIES:
                        raise TestbedError(f"the test host does not boot: {error}\n{console_tail(folder)}") from None
                    say(f"the test host does not boot ({error}); trying once more")
            (folder / "overlay.qcow2").rename(folder / "disk.qcow2")

    def _boot_and_save(self, folder):
        qemu = Qemu.start(folder, command_line(self.tools, self.shape, self.disk, folder / "guest.tar"), dies_with_us=True)
        try:
            port, token = qemu.port(), (folder / "token").read_text(encoding="ascii")
            await_answer(qemu, port, token, BOOT_SECONDS)
            # What boot left unwritten goes to the disk, so that no restored instance has to write it again.
            ask(port, token, {"do": "settle"}, 120)
            time.sleep(0.5)  # Let the connection's end pass through QEMU's network, whose state is saved too.
            qemu.monitor().save(folder / "vmstate")
            qemu.monitor().run("quit")
        finally:
            qemu.stop()


def prepare_guest_files(folder):
    """Write token and guest.tar into `folder`."""
    token = secrets.token_hex(16)
    (folder / "token").write_text(token, encoding="ascii")
    (folder / "token").chmod(0o600)

    def clean(member):
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return None if "__pycache__" in member.name else member

    with tarfile.open(folder / "guest.tar", "w") as archive:
        archive.add(paths.GUEST_SOURCES, ".", filter=clean)
        archive.add(folder / "token", "token", filter=clean)
    (folder / "guest.tar").chmod(0o600)


def make_overlay(tools, base, overlay):
    """Make a qcow2 image that holds only what differs from `base`."""
    tools.run("usr/bin/qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay)


def await_answer(qemu, port, token, seconds):
    """Wait until execd answers; NoAnswer if QEMU ends or the time is over."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ask(port, token, {"do": "ping"}, min(10, max(1, until - time.monotonic())))
        except NoAnswer:
            if not qemu.process.is_alive():
                raise NoAnswer(f"QEMU ended: {qemu.words() or 'the kernel stopped or panicked'}") from None
            if time.monotonic() > until:
                raise NoAnswer(f"no answer in {seconds} s") from None
            time.sleep(0.1)


def console_tail(folder, lines=20):
    """The end of the console log in `folder`."""
    try:
        text = (folder / "console.log").read_text(errors="replace")
    except FileNotFoundError:
        return "(no console log)"
    return f"the end of {folder}/console.log:\n" + "\n".join(text.splitlines()[-lines:])
