"""QEMU: the command line of a testbed, its start as a process of ours, and its control socket (QMP)."""

import dataclasses
import json
import os
import socket
import subprocess
import time

from .process import Process, die_with_parent
from .report import TestbedError

GUEST_PORT = 7000


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a saved state is bound to, besides the disk: it restores only into the same machine."""

    cpus: int = 1
    memory_mib: int = 6144
    icount: bool = False
    older: bool = False
    # The one test image of a host without engines, which is made sooner; none for all of them.
    image: str = ""

    def label(self):
        """A short name, for folders and messages."""
        options = ("-icount" if self.icount else "") + ("-older" if self.older else "") + (f"-{self.image}" if self.image else "")
        return f"{self.cpus}cpu-{self.memory_mib}m" + options

    def accelerator(self):
        """QEMU's words for how instructions are run."""
        if self.icount:
            # Time is executed instructions, 1 ns each: what is measured repeats, whatever else the machine does.
            return ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-rtc", "base=utc,clock=vm"]
        # With a thread for each CPU the test host's kernel has panicked; see "The emulator" in README.md.
        return ["-accel", "tcg,thread=single", "-rtc", "base=utc"]


def command_line(tools, shape, kernel, extra):
    """The words that start a testbed in the current folder, which holds overlay.qcow2 and gets the sockets and logs.

    `kernel` is an artifact with kernel and initrd, and modules that are not on the disk; `extra` is the archive of
    guest files.
    """
    append = ["root=/dev/vda", "rootfstype=ext4", "ro", "init=/sbin/testbed-init", "console=ttyS0", "quiet",
              "net.ifnames=0", "reboot=t", "panic=1", "mitigations=off"]
    if shape.icount or shape.image:
        append.append("testbed.engines=no")
    modules = []
    if shape.older:
        append.append("testbed.cgroup=v1")
        modules = ["-drive", f"file={kernel / 'modules.ext4'},format=raw,if=virtio,readonly=on"]
    # One container is run sooner with Debian's QEMU than ours is compiled.
    return [
        *tools.qemu(build=not shape.image), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "pouch-testbed",
        "-M", "q35", "-cpu", "max", "-smp", str(shape.cpus), "-m", str(shape.memory_mib), *shape.accelerator(),
        "-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initrd"), "-append", " ".join(append),
        "-drive", "file=overlay.qcow2,format=qcow2,if=virtio,cache=unsafe,discard=unmap,detect-zeroes=unmap",
        "-drive", f"file={extra},format=raw,if=virtio,readonly=on", *modules,
        "-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:0-:{GUEST_PORT}", "-device", "virtio-net-pci,netdev=net0,romfile=",
        "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci",
        "-chardev", "file,id=console,path=console.log", "-serial", "chardev:console",
        "-qmp", "unix:qmp.sock,server=on,wait=off",
    ]


class Qemu:
    """One QEMU process that runs in `folder`."""

    def __init__(self, folder, process):
        self.folder = folder
        self.process = process
        self._monitor = None

    @classmethod
    def start(cls, folder, command, dies_with_us):
        """Start QEMU in `folder`. The child records itself in qemu.pid before it becomes QEMU, so none goes unknown."""
        parent = os.getpid()

        def prepare():
            Process.current().write(folder / "qemu.pid")
            if dies_with_us:
                die_with_parent(parent)

        with open(folder / "qemu.log", "wb") as log:
            child = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     start_new_session=True, preexec_fn=prepare)
        qemu = cls(folder, Process.read(folder / "qemu.pid"))
        qemu.child = child  # Kept, so that Python does not complain of a process left running: it shall be.
        child.returncode = 0
        return qemu

    def monitor(self, seconds=30):
        """The control socket, waiting for QEMU to make it."""
        if self._monitor is None:
            until = time.monotonic() + seconds
            while True:
                try:
                    self._monitor = Monitor(self.folder)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    if not self.process.is_alive():
                        raise TestbedError(f"QEMU ended at once:\n{self.words()}") from None
                    if time.monotonic() > until:
                        raise TestbedError(f"QEMU made no control socket in {seconds} s; see {self.folder}/qemu.log") from None
                    time.sleep(0.01)
        return self._monitor

    def words(self):
        """What QEMU itself wrote."""
        return (self.folder / "qemu.log").read_text(errors="replace").strip()

    def port(self):
        """The port on 127.0.0.1 that QEMU chose for execd."""
        table = self.monitor().human("info usernet")
        for line in table.splitlines():
            words = line.split()  # TCP[HOST_FORWARD] 12 127.0.0.1 40123 10.0.2.15 7000 …
            if words and words[0] == "TCP[HOST_FORWARD]" and words[5] == str(GUEST_PORT):
                return int(words[3])
        raise TestbedError(f"QEMU does not forward a port to execd:\n{table}")

    def stop(self):
        """End it. There is nothing in it to be saved."""
        if not self.process.kill():
            raise TestbedError(f"QEMU (pid {self.process.pid}) does not end although it was killed")
        child = getattr(self, "child", None)
        if child:
            child.returncode = None
            child.wait()


class Monitor:
    """A QMP connection."""

    def __init__(self, folder, seconds=120):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(seconds)
        # A socket's path may have 107 bytes; by way of the open folder it is short, however deep the cache is.
        directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/qmp.sock")
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(directory)
        self._lines = self._socket.makefile("rb")
        self._next()  # The greeting.
        self.run("qmp_capabilities")

    def _next(self):
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise TestbedError("QEMU's control socket gives no answer") from None
        if not line:
            raise TestbedError("QEMU ended while it was spoken to")
        return json.loads(line)

    def run(self, command, **arguments):
        """Run one command and return its result."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._next()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise TestbedError(f"QEMU refused {command}: {answer['error'].get('desc')}")

    def human(self, line):
        """Run a command of the human monitor, for what QMP has not."""
        return self.run("human-monitor-command", **{"command-line": line})

    def _prepare_migration(self):
        # mapped-ram gives every page a fixed place in the file, zero pages take none, and several threads work on it.
        self.run("migrate-set-capabilities", capabilities=[
            {"capability": "mapped-ram", "state": True}, {"capability": "multifd", "state": True}])
        self.run("migrate-set-parameters", **{"multifd-channels": 2, "max-bandwidth": 1 << 40})

    def save(self, path, seconds=300):
        """Write the machine's state to the file `path`; the machine is paused afterwards."""
        self.run("stop")
        self._prepare_migration()
        self.run("migrate", uri=f"file:{path}")
        self._await_migration("saving", seconds)

    def load(self, path, seconds=120):
        """Read the state that `save` wrote into a machine started with `-incoming defer`, and let it run."""
        self._prepare_migration()
        self.run("migrate-incoming", uri=f"file:{path}")
        self._await_migration("restoring", seconds)
        self.run("cont")

    def _await_migration(self, what, seconds):
        until = time.monotonic() + seconds
        while True:
            state = self.run("query-migrate")
            if state.get("status") == "completed":
                return
            if state.get("status") in ("failed", "cancelled"):
                raise TestbedError(f"{what} the testbed's state failed: {state.get('error-desc', 'no reason given')}")
            if time.monotonic() > until:
                raise TestbedError(f"{what} the testbed's state took more than {seconds} s")
            time.sleep(0.02)
