"""Saved states: a booted testbed on disk, from which an instance starts in a second or two.

A state is a folder with disk.qcow2 (what boot wrote, over the loaded disk), vmstate (memory and devices), guest.tar (the
second disk) and token (which execd, already running in there, expects).
"""

import secrets
import tarfile
import time

from . import artifacts, paths
from .disk import base_disk, older_kernel, small_disk
from .qemu import Qemu, Shape, command_line
from .report import Step, TestbedError, say
from .session import NoAnswer, ask, run_to_log

BOOT_SECONDS = 300
# A loaded machine is slow: a boot is given up after BOOT_SECONDS, and tried again once.
BOOT_TRIES = 2
# Loading one image into one engine takes some ten seconds; after this long without a word it hangs.
LOAD_SECONDS = 600


def loaded_disk(tools):
    """The artifact that holds the test host's disk with the test images loaded into the engines.

    Its disk.qcow2 is over the base disk's; the kernel and the initrd stand beside it.
    """
    base = base_disk(tools)
    key = artifacts.key_of("loaded 1", base.name, paths.GUEST_SOURCES / "load-images", paths.GUEST_SOURCES / "engines")
    return artifacts.ensure("loaded", key, lambda folder: _load_images(folder, tools, base))


def _load_images(folder, tools, base):
    def load(qemu, port, token):
        run_to_log(port, token, ["/run/testbed/load-images"], {"PATH": "/usr/sbin:/usr/bin", "HOME": "/root"},
                   folder / "load-images.log", LOAD_SECONDS)
        run_to_log(port, token, ["/run/testbed/engines", "stop"], {"PATH": "/usr/sbin:/usr/bin"},
                   folder / "load-images.log", 120)
        ask(port, token, {"do": "settle"}, 300)

    with Step("loading the test images into the engines (about 3 minutes, once)"):
        for name in ("vmlinuz", "initrd"):
            (folder / name).hardlink_to(base / name)
        _boot_and(load, folder, tools, base, base, Shape())


class State:
    """What an instance is started from: the machine, its disk, and (unless it boots anew) the saved state."""

    def __init__(self, tools, shape):
        self.tools, self.shape = tools, shape
        self.disk = small_disk(tools, shape.image) if shape.image else loaded_disk(tools)
        self.kernel = older_kernel(tools) if shape.older else self.disk
        self.key = artifacts.key_of("state 1", self.disk.name, " ".join(command_line(tools, shape, self.kernel, "")),
                                    paths.GUEST_SOURCES)

    def folder(self):
        """The saved state's folder, made now if need be."""
        return artifacts.ensure(f"state-{self.shape.label()}", self.key, self._build)

    def _build(self, folder):
        def save(qemu, port, token):
            # What boot left unwritten goes to the disk, so that no restored instance has to write it again.
            ask(port, token, {"do": "settle"}, 120)
            time.sleep(0.5)  # Let the connection's end pass through QEMU's network, whose state is saved too.
            qemu.monitor().save(folder / "vmstate")

        with Step(f"booting the test host ({self.shape.label()}) to save its state (about a minute, once)"):
            _boot_and(save, folder, self.tools, self.disk, self.kernel, self.shape)


def _boot_and(act, folder, tools, disk, kernel, shape):
    """Boot a machine in `folder` over `disk` with `kernel`, let `act` do its work in it, and keep what it wrote as disk.qcow2."""
    prepare_guest_files(folder)
    token = (folder / "token").read_text(encoding="ascii")
    for attempt in range(BOOT_TRIES):
        make_overlay(tools, disk / "disk.qcow2", folder / "overlay.qcow2")
        qemu = Qemu.start(folder, command_line(tools, shape, kernel, folder / "guest.tar"), dies_with_us=True)
        try:
            port = qemu.port()
            await_answer(qemu, port, token, BOOT_SECONDS)
            act(qemu, port, token)
            qemu.monitor().run("quit")
            break
        except NoAnswer as error:
            if attempt + 1 == BOOT_TRIES:
                raise TestbedError(f"the test host does not work: {error}\n{console_tail(folder)}") from None
            say(f"the test host does not work ({error}); trying once more")
        finally:
            qemu.stop()
    (folder / "overlay.qcow2").rename(folder / "disk.qcow2")


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
    """What QEMU wrote and the end of the console log in `folder`."""
    tails = []
    for name in ("qemu.log", "console.log"):
        try:
            text = (folder / name).read_text(errors="replace").strip()
        except FileNotFoundError:
            continue
        if text:
            tails.append(f"the end of {folder}/{name}:\n" + "\n".join(text.splitlines()[-lines:]))
    return "\n".join(tails) or "(no logs)"
