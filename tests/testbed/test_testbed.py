#!/usr/bin/python3
"""Tests of the testbed itself, on instances of their own: `tests/testbed/test_testbed.py [-v] [TestClass.test_name]`."""

import fcntl
import hashlib
import json
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
NAME = f"selftest-{os.getpid()}"


def environment(name=NAME, **more):
    """This process's environment, with the instance chosen and nothing of a build pushed unless a test says so."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("POUCH_TESTBED", "POUCH_INSTALL"))}
    return {**kept, "POUCH_TESTBED_INSTANCE": name, "POUCH_INSTALL_DIR": str(EMPTY.name), **more}


def run(*command, options=(), name=NAME, program="run", seconds=240, env=None, **keywords):
    """Run a command in the testbed and return what became of it."""
    return subprocess.run([HERE / program, *options, *command], capture_output="stdout" not in keywords, check=False,
                          timeout=seconds, env=environment(name, **(env or {})),
                          **({"stdin": subprocess.DEVNULL} if "input" not in keywords else {}), **keywords)


def start(*command, options=(), **keywords):
    """Start a command in the testbed."""
    return subprocess.Popen([HERE / "run", *options, *command], env=environment(), **keywords)


def qemu_pid(name=NAME):
    """The pid of an instance's QEMU, as `status` gives it."""
    listing = subprocess.run([HERE / "status"], capture_output=True, check=True, text=True).stdout
    return int(re.search(rf"^{name}\t.*\tpid (\d+)", listing, re.MULTILINE)[1])


def eventually(condition, seconds=20):
    """Whether the condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def setUpModule():  # pylint: disable=invalid-name
    """Have one testbed up for most tests."""
    global EMPTY  # pylint: disable=global-statement
    EMPTY = tempfile.TemporaryDirectory()
    subprocess.run([HERE / "up"], env=environment(), check=True, timeout=1800)


def tearDownModule():  # pylint: disable=invalid-name
    """Stop what the tests started."""
    subprocess.run([HERE / "down", NAME, f"{NAME}-b", f"{NAME}-c"], check=True)
    EMPTY.cleanup()


class Streams(unittest.TestCase):
    """Bytes in, bytes out, and how a command ended."""

    def test_five_megabytes_come_back_unchanged(self):
        data = os.urandom(5 << 20)
        result = run("cat", input=data)
        self.assertEqual(result.returncode, 0)
        self.assertTrue(result.stdout == data)

    def test_output_and_errors_stay_apart(self):
        result = run("sh", "-c", "echo out; echo err >&2")
        self.assertEqual((result.stdout, result.stderr), (b"out\n", b"err\n"))

    def test_all_of_a_quick_commands_output_arrives(self):
        self.assertEqual(len(run("head", "-c", "3000000", "/dev/zero").stdout), 3000000)

    def test_exit_status(self):
        self.assertEqual(run("sh", "-c", "exit 42").returncode, 42)

    def test_death_by_signal(self):
        self.assertEqual(run("sh", "-c", "kill -KILL $$").returncode, 128 + signal.SIGKILL)

    def test_no_such_command(self):
        result = run("no-such-command")
        self.assertEqual(result.returncode, 127)
        self.assertIn(b"no-such-command: not found", result.stderr)

    def test_not_a_program(self):
        self.assertEqual(run("/etc/passwd").returncode, 126)

    def test_arguments_are_passed_as_they_are(self):
        self.assertEqual(run("printf", "%s|", "a b", "", "$HOME", "*", b"\xff").stdout, b"a b||$HOME|*|\xff|")

    def test_environment(self):
        self.assertEqual(run("sh", "-c", "echo $A", options=["--env", "A=b c"]).stdout, b"b c\n")

    def test_a_command_that_ignores_its_input(self):
        self.assertEqual(run("true", input=bytes(5 << 20)).returncode, 0)

    def test_a_background_child_does_not_hold_the_command(self):
        began = time.monotonic()
        self.assertEqual(run("sh", "-c", "sleep 1000 & echo done").stdout, b"done\n")
        self.assertLess(time.monotonic() - began, 900)

    def test_a_reader_that_stops_early(self):
        with start("yes", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            process.stdout.read(10)
            process.stdout.close()
            self.assertNotEqual(process.wait(120), 0)
        self.assertTrue(eventually(lambda: run("pgrep", "-x", "yes").returncode == 1))

    def test_concurrent_commands(self):
        processes = [start("sh", "-c", f"sleep 1; echo {number}", stdout=subprocess.PIPE) for number in range(12)]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        self.assertEqual(outputs, [b"%d\n" % number for number in range(12)])


class Terminal(unittest.TestCase):
    """A command on a terminal."""

    def test_size_and_name(self):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        with start("sh", "-c", "stty size; tty; read line; echo got $line", stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            os.write(ours, b"hello\r")
            if not eventually(lambda: process.poll() is not None, 60):
                process.kill()
            output = os.read(ours, 65536)
        os.close(ours)
        self.assertIn(b"33 77\r\n/dev/pts/", output)
        self.assertIn(b"got hello", output)

    def test_none_when_told_so(self):
        self.assertEqual(run("tty", options=["--no-tty"]).stdout, b"not a tty\n")


class Endings(unittest.TestCase):
    """Clients that are interrupted or killed."""

    def interrupted(self, number, mark):
        """Start a command, hit its client with a signal, and see that the command ends; returns the client's status."""
        with start("sh", "-c", f"sleep {mark}; true", stdin=subprocess.DEVNULL) as process:
            self.assertTrue(eventually(lambda: run("pgrep", "-f", f"^sleep {mark}").returncode == 0))
            process.send_signal(number)
            status = process.wait(120)
        self.assertTrue(eventually(lambda: run("pgrep", "-f", f"^sleep {mark}").returncode == 1))
        return status

    def test_interrupt(self):
        self.assertEqual(self.interrupted(signal.SIGINT, 70001), 128 + signal.SIGINT)

    def test_terminate(self):
        self.assertEqual(self.interrupted(signal.SIGTERM, 70002), 128 + signal.SIGTERM)

    def test_kill(self):
        self.assertEqual(self.interrupted(signal.SIGKILL, 70003), -signal.SIGKILL)


class Machine(unittest.TestCase):
    """What the testbed is."""

    def test_kvm_runs_a_kernel(self):
        # The host's own kernel gets as far as looking for a root disk, on KVM inside the emulator.
        result = run("sh", "-c", "timeout 200 qemu-system-x86_64 -M microvm -accel kvm -cpu host -m 256 -kernel "
                     "/boot/vmlinuz-* -append 'console=ttyS0 panic=-1' -nodefaults -no-user-config -nographic "
                     "-serial stdio -no-reboot")
        self.assertIn(b"Unable to mount root fs", result.stdout, result.stderr)

    def test_the_clock_is_right(self):
        before = time.time()
        there = float(run("date", "+%s.%N").stdout)
        self.assertGreater(there, before - 5)
        self.assertLess(there, time.time() + 5)

    def test_images_are_there(self):
        for command in ("docker run --rm", "podman run --rm"):
            result = run(*command.split(), "pouch-test/busybox", "echo", "hello")
            self.assertEqual(result.stdout, b"hello\n", result.stderr)

    def test_cgroup_controllers(self):
        controllers = run("cat", "/sys/fs/cgroup/cgroup.subtree_control").stdout.split()
        self.assertLessEqual({b"cpu", b"memory", b"pids", b"io", b"cpuset"}, set(controllers))


class Files(unittest.TestCase):
    """The build's tree and test binaries in the testbed."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.tree = pathlib.Path(self.folder.name) / "tree"
        (self.tree / "opt/selftest").mkdir(parents=True)

    def test_the_tree_follows_the_build(self):
        chosen = {"POUCH_INSTALL_DIR": str(self.tree)}
        (self.tree / "opt/selftest/a").write_text("one")
        (self.tree / "opt/selftest/b").symlink_to("a")
        self.assertEqual(run("cat", "/opt/selftest/b", env=chosen).stdout, b"one")
        (self.tree / "opt/selftest/a").write_text("two")
        self.assertEqual(run("cat", "/opt/selftest/b", env=chosen).stdout, b"two")
        (self.tree / "opt/selftest/b").unlink()
        self.assertEqual(run("ls", "/opt/selftest", env=chosen).stdout, b"a\n")

    def test_forty_megabytes_arrive_unchanged(self):
        content = os.urandom(40 << 20)
        (self.tree / "opt/selftest/large").write_bytes(content)
        there = run("sha256sum", "/opt/selftest/large", env={"POUCH_INSTALL_DIR": str(self.tree)}).stdout
        self.assertEqual(there.split()[0].decode(), hashlib.sha256(content).hexdigest())

    def test_runner(self):
        binary = pathlib.Path(self.folder.name) / "test-binary"
        binary.write_text("#!/bin/sh\necho $0 $1 $RUST_SELFTEST; pwd; exit 9\n")
        binary.chmod(0o755)
        result = run(binary, "argument", program="runner", env={"RUST_SELFTEST": "passed"}, cwd=self.folder.name)
        self.assertEqual(result.returncode, 9)
        self.assertEqual(result.stdout.decode(), f"{binary} argument passed\n{self.folder.name}\n")

    def test_listing_needs_no_testbed(self):
        binary = pathlib.Path(self.folder.name) / "test-binary"
        binary.write_text("#!/bin/sh\necho on $(hostname)\n")
        binary.chmod(0o755)
        listed = run(binary, "--list", "--format", "terse", program="runner").stdout
        self.assertNotEqual(listed, b"on testbed\n")


class Instances(unittest.TestCase):
    """Testbeds beside one another, and after accidents."""

    def test_two_side_by_side(self):
        run("touch", "/only-in-one")
        self.assertEqual(run("test", "-e", "/only-in-one", name=f"{NAME}-b").returncode, 1)
        self.assertEqual(run("test", "-e", "/only-in-one").returncode, 0)

    def setUp(self):
        run("true")  # An earlier test may have killed it.

    def test_a_killed_qemu_is_replaced(self):
        os.kill(qemu_pid(), signal.SIGKILL)
        self.assertEqual(run("uname", "-n").stdout, b"testbed\n")

    def test_a_command_notices_that_its_qemu_died(self):
        with start("sleep", "100", stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            self.assertTrue(eventually(lambda: run("pgrep", "-f", "^sleep 100").returncode == 0))
            os.kill(qemu_pid(), signal.SIGKILL)
            self.assertEqual(process.wait(120), 125)

    def test_a_killed_starter_is_in_nobodys_way(self):
        for delay in (0.2, 0.5, 1.0):
            subprocess.run([HERE / "down", f"{NAME}-b"], check=True)
            with subprocess.Popen([HERE / "up"], env=environment(f"{NAME}-b"), stderr=subprocess.DEVNULL) as process:
                time.sleep(delay)
                process.kill()
            self.assertEqual(run("uname", "-n", name=f"{NAME}-b").stdout, b"testbed\n")

    def test_fresh_leaves_nothing(self):
        self.assertEqual(run("uname", "-n", options=["--fresh"]).stdout, b"testbed\n")
        self.assertNotIn("fresh-for-", subprocess.run([HERE / "status"], capture_output=True, check=True, text=True).stdout)

    def test_a_small_host_has_one_image_and_no_engines(self):
        result = run("sh", "-c", "ls /var/lib/pouch-test/images; command -v docker podman", options=["--image", "busybox"],
                     name=f"{NAME}-c", seconds=1200)
        self.assertEqual((result.stdout, result.returncode), (b"busybox\n", 127), result.stderr)
        unknown = run("true", options=["--image", "no-such-image"], name=f"{NAME}-c")
        self.assertEqual(unknown.returncode, 2)
        self.assertIn(b"no-such-image", unknown.stderr)

    def test_instruction_time_repeats(self):
        # After a first round that fills the caches, user and system time of the same work agree.
        script = ("import os, time, json\nwork = lambda: sum(i * i for i in range(200000))\nwork()\n"
                  "began = time.clock_gettime_ns(time.CLOCK_MONOTONIC)\nwork()\n"
                  "print(json.dumps(time.clock_gettime_ns(time.CLOCK_MONOTONIC) - began))")
        first, second = (json.loads(run("python3", "-c", script, options=["--icount"], name="").stdout) for _ in range(2))
        self.assertLess(abs(first - second) / first, 0.03, (first, second))


if __name__ == "__main__":
    unittest.main()
