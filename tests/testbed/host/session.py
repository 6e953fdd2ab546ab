"""Requests to execd in a testbed: connecting, small requests, and a command with its streams, signals and window."""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
import tty

from .paths import GUEST_SOURCES
from .report import TestbedError, say

sys.path.insert(0, str(GUEST_SOURCES))
import protocol  # noqa: E402  pylint: disable=wrong-import-position  # One file for both sides.

# After a first SIGTERM or SIGINT is passed on, the command has this long to end before we leave it to execd to kill it.
PATIENCE_AFTER_SIGNAL = 10
# How long a command may be silent until the testbed is woken: see "The emulator" in README.md.
WAKE_SECONDS = 10
# Starting a command takes a tenth of a second, and on a busy machine a few. A testbed that needs this long hangs.
START_SECONDS = 60


class NoAnswer(TestbedError):
    """Nobody answers in the testbed."""


def open_request(port, token, request):
    """Connect to execd and send one request."""
    try:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError as error:
        raise NoAnswer(f"cannot connect to the testbed: {error}") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(token.encode("ascii") + protocol.pack_json(protocol.REQUEST, request))
    return sock


def ask(port, token, request, seconds, content=()):
    """Send a small request (then the chunks of `content`) and wait for its answer."""
    try:
        with open_request(port, token, request) as sock:
            sock.settimeout(seconds)
            for chunk in content:
                sock.sendall(chunk)
            kind, payload = protocol.receive_frame(sock)
    except TimeoutError:
        raise NoAnswer(f"the testbed gave no answer in {seconds} s") from None
    except OSError as error:
        raise NoAnswer(f"the testbed closed the connection: {error}") from None
    if kind != protocol.DONE:
        raise TestbedError(json.loads(payload)["message"])


def run_to_log(port, token, argv, env, log, seconds):
    """Run a command for the builder: its output goes to the file `log`; raises if it fails."""
    with open_request(port, token, {"do": "run", "argv": argv, "env": env, "cwd": "/"}) as sock, open(log, "ab") as output:
        sock.settimeout(seconds)  # Between two frames; the commands that are run so say something now and then.
        sock.sendall(protocol.pack(protocol.INPUT))
        while True:
            try:
                kind, payload = protocol.receive_frame(sock)
            except OSError as error:
                raise NoAnswer(f"{argv[0]} in the testbed: {error}") from None
            if kind in (protocol.OUT, protocol.ERR):
                output.write(payload)
                output.flush()
            elif kind in (protocol.EXIT, protocol.FAILED):
                if kind == protocol.FAILED or json.loads(payload)["status"]:
                    raise TestbedError(f"{argv[0]} in the testbed failed: {payload.decode()}; see {log}")
                return


class Session:
    """Runs one command in a testbed on this process's streams."""

    def __init__(self, port, token, argv, env, cwd, terminal, make_cwd=False, wake=True):
        self._terminal = terminal
        self._port = port if wake else None
        request = {"do": "run", "argv": argv, "env": env, "cwd": cwd, "make_cwd": make_cwd}
        if terminal:
            request["terminal"] = _window()
            request["env"] = {"TERM": os.environ.get("TERM", "xterm"), **env}
        self._sock = open_request(port, token, request)
        self._reader = protocol.FrameReader()
        self._outgoing = bytearray()
        self._credit = protocol.INPUT_WINDOW
        self._input_open = True
        self._deadline = None
        self._status = None
        self._await_start()

    def _await_start(self):
        """Wait for the first frame, before any input is read: if none comes, the command can be tried elsewhere."""
        self._sock.settimeout(START_SECONDS)
        try:
            kind, payload = protocol.receive_frame(self._sock)
        except OSError as error:
            self._sock.close()
            raise NoAnswer(f"the testbed did not start the command: {error}") from None
        if kind != protocol.STARTED:
            self._take(kind, payload)

    def run(self):
        """Relay until the command has ended; return the exit status for this process."""
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH]
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        old_wake = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        saved = self._make_raw()
        try:
            return self._relay(wake)
        finally:
            if saved:
                termios.tcsetattr(0, termios.TCSADRAIN, saved)
            signal.set_wakeup_fd(old_wake)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(wake_write)
            self._sock.close()

    def _make_raw(self):
        if not self._terminal or not os.isatty(0):
            return None
        saved = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)  # What was typed ahead is for the command: not to be flushed.
        return saved

    def _relay(self, wake):
        self._sock.setblocking(False)
        while self._status is None:
            poll = select.poll()
            poll.register(wake, select.POLLIN)
            poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
            if self._input_open and self._credit > 0 and len(self._outgoing) < protocol.CHUNK:
                poll.register(0, select.POLLIN)
            ready = dict(poll.poll(1000 * (1 if self._deadline else WAKE_SECONDS)))
            if not ready:
                self._wake_testbed()
            if wake in ready:
                self._pass_signals(os.read(wake, 64))
            if 0 in ready:
                self._read_input()
            self._send()
            if ready.get(self._sock.fileno(), 0) & ~select.POLLOUT:
                self._receive()
            if self._deadline and time.monotonic() > self._deadline:
                raise TestbedError("the command does not end after the signal; it will be killed")
        return self._status

    def _wake_testbed(self):
        if self._port:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()

    def _read_input(self):
        try:
            data = os.read(0, min(protocol.CHUNK, self._credit))
        except OSError:
            data = b""  # A terminal that was hung up, or a closed standard input.
        self._credit -= len(data)
        self._input_open = bool(data)
        self._outgoing += protocol.pack(protocol.INPUT, data)

    def _pass_signals(self, numbers):
        for number in numbers:
            if number == signal.SIGWINCH:
                if self._terminal:
                    self._outgoing += protocol.pack_json(protocol.RESIZE, _window())
                continue
            self._outgoing += protocol.pack(protocol.SIGNAL, bytes([number]))
            if number != signal.SIGQUIT:
                self._deadline = self._deadline or time.monotonic() + PATIENCE_AFTER_SIGNAL

    def _send(self):
        try:
            while self._outgoing:
                sent = self._sock.send(self._outgoing[:protocol.CHUNK])
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()  # The reason, if there is one, comes from reading.

    def _receive(self):
        try:
            data = self._sock.recv(2 * protocol.CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise NoAnswer(f"the connection to the testbed broke: {error}") from None
        if not data:
            raise NoAnswer("the testbed ended while the command ran")
        for kind, payload in self._reader.feed(data):
            self._take(kind, payload)

    def _take(self, kind, payload):
        if kind == protocol.OUT:
            _write_all(1, payload)
        elif kind == protocol.ERR:
            _write_all(2, payload)
        elif kind == protocol.TOOK:
            self._credit += struct.unpack(">I", payload)[0]
        elif kind == protocol.EXIT:
            status = json.loads(payload)["status"]
            self._status = status if status >= 0 else 128 - status
        elif kind == protocol.FAILED:
            answer = json.loads(payload)
            say(answer["message"])
            self._status = answer["code"]


def _write_all(fd, data):
    """Write to one of our own streams, whether it is blocking or not; if nobody reads it, end as a program would."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            select.select([], [fd], [])
        except BrokenPipeError:
            raise SystemExit(128 + signal.SIGPIPE) from None


def _window():
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
            if rows and columns:
                return {"rows": rows, "columns": columns}
        except OSError:
            pass
    return {"rows": 24, "columns": 80}
