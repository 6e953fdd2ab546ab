"""One command run for the host: its process, its pipes or terminal, and the connection, tied together by one poll loop."""

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import termios
import time

import protocol

# Output waits in the command's pipes, not here, once this much is on its way to a slow client.
OUTPUT_LIMIT = 4 * protocol.CHUNK
# What a client that has gone leaves running gets SIGTERM, and this long to end.
GRACE_SECONDS = 2.0


class CommandRequest:
    """Serves one "run" request."""

    def __init__(self, connection, request):
        self.connection = connection
        self.request = request
        self.reader = protocol.FrameReader()
        self.outgoing = bytearray()
        self.input = bytearray()
        self.input_ended = False
        self.input_fd = None
        self.outputs = {}  # file descriptor: frame kind
        self.terminal = None
        self.process = None

    def serve(self):
        """Start the command, relay until it has ended, report how."""
        try:
            self._start()
        except FileNotFoundError as error:
            self._fail(127, f"{error.filename}: not found in the testbed")
            return
        except OSError as error:
            self._fail(126, f"{error.filename or self.request['argv'][0]}: {error.strerror}")
            return
        try:
            self.connection.sendall(protocol.pack(protocol.STARTED))
            self.connection.setblocking(False)
            self._relay()
            self._drain()
            self._queue(protocol.pack_json(protocol.EXIT, {"status": self.process.wait()}))
            self.connection.setblocking(True)
            self.connection.sendall(self.outgoing)
        except OSError:
            self._end_group()  # The connection broke: the client is gone, and its command must not outlive it.
        finally:
            for fd in {self.input_fd, self.terminal, *self.outputs} - {None}:
                os.close(fd)

    def _fail(self, code, message):
        self.connection.sendall(protocol.pack_json(protocol.FAILED, {"code": code, "message": message}))

    def _start(self):
        argv, env, cwd = self.request["argv"], self.request["env"], self.request["cwd"]
        if self.request.get("make_cwd"):
            os.makedirs(cwd, exist_ok=True)
        if self.request.get("terminal"):
            self._start_on_terminal(argv, env, cwd)
        else:
            self.process = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, bufsize=0, start_new_session=True)
            self.input_fd = os.dup(self.process.stdin.fileno())
            out, err = os.dup(self.process.stdout.fileno()), os.dup(self.process.stderr.fileno())
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                stream.close()
            self.outputs = {out: protocol.OUT, err: protocol.ERR}
        for fd in {self.input_fd, *self.outputs}:
            os.set_blocking(fd, False)
        # The death of the process wakes the poll loop, also when a background child keeps the pipes open.
        self.exit_fd = os.pidfd_open(self.process.pid)

    def _start_on_terminal(self, argv, env, cwd):
        self.terminal, slave = os.openpty()
        try:
            self._resize(self.request["terminal"])

            def take_terminal():
                os.setsid()
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

            self.process = subprocess.Popen(argv, env=env, cwd=cwd, stdin=slave, stdout=slave, stderr=slave,
                                            preexec_fn=take_terminal)
        finally:
            os.close(slave)
        self.input_fd = os.dup(self.terminal)
        self.outputs = {os.dup(self.terminal): protocol.OUT}

    def _resize(self, size):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size["rows"], size["columns"], 0, 0))

    def _queue(self, frame):
        self.outgoing += frame

    def _relay(self):
        """Move bytes until the command has exited."""
        try:
            while True:
                poll = select.poll()
                poll.register(self.exit_fd, select.POLLIN)
                poll.register(self.connection, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
                if self.input_fd is not None and self.input:
                    poll.register(self.input_fd, select.POLLOUT)
                if len(self.outgoing) < OUTPUT_LIMIT:
                    for fd in self.outputs:
                        poll.register(fd, select.POLLIN)
                ready = dict(poll.poll())
                for fd in [fd for fd in self.outputs if fd in ready]:
                    self._read_output(fd)
                if self.input_fd in ready:
                    self._write_input()
                if ready.get(self.connection.fileno(), 0) & ~select.POLLOUT:
                    self._read_connection()
                self._send()
                if self.exit_fd in ready:
                    return
        finally:
            os.close(self.exit_fd)

    def _send(self):
        try:
            while self.outgoing:
                sent = self.connection.send(memoryview(self.outgoing)[:protocol.CHUNK])
                del self.outgoing[:sent]
        except BlockingIOError:
            pass

    def _read_connection(self):
        data = self.connection.recv(protocol.CHUNK)
        if not data:
            raise ConnectionError("the client has gone")
        for kind, payload in self.reader.feed(data):
            if kind == protocol.INPUT and payload:
                if self.input_fd is None:
                    self._took(len(payload))
                else:
                    self.input += payload
            elif kind == protocol.INPUT:
                self.input_ended = True
                self._end_input_when_written()
            elif kind == protocol.SIGNAL:
                self._signal(payload[0])
            elif kind == protocol.RESIZE and self.terminal is not None:
                self._resize(json.loads(payload))
        if self.input:
            self._write_input()

    def _took(self, count):
        self._queue(protocol.pack(protocol.TOOK, struct.pack(">I", count)))

    def _write_input(self):
        try:
            written = os.write(self.input_fd, memoryview(self.input)[:protocol.CHUNK])
        except BlockingIOError:
            return
        except OSError:  # The command closed its end, as `head` does: take what else comes, and throw it away.
            written = len(self.input)
            self._close_input()
        del self.input[:written]
        self._took(written)
        self._end_input_when_written()

    def _end_input_when_written(self):
        if not self.input_ended or self.input or self.input_fd is None:
            return
        if self.terminal is not None:
            os.write(self.input_fd, b"\x04")  # A terminal has no end of file, only the character that means it.
            self.input_ended = False
        else:
            self._close_input()

    def _close_input(self):
        os.close(self.input_fd)
        self.input_fd = None

    def _read_output(self, fd):
        """Read once; False at the end of what is there now."""
        try:
            data = os.read(fd, protocol.CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # EIO: the last process on the terminal has closed it.
        if not data:
            os.close(fd)
            del self.outputs[fd]
            return False
        self._queue(protocol.pack(self.outputs[fd], data))
        return True

    def _drain(self):
        """Take what the command wrote before it exited; do not wait for background children that hold the pipes."""
        self.connection.setblocking(True)
        for fd in list(self.outputs):
            while fd in self.outputs and self._read_output(fd):
                self.connection.sendall(self.outgoing)
                self.outgoing.clear()

    def _signal(self, number):
        group = self.process.pid
        if self.terminal is not None:
            try:
                group = os.tcgetpgrp(self.terminal)
            except OSError:
                pass
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            pass

    def _end_group(self):
        """End the command and its process group, politely and then surely."""
        group = self.process.pid
        for number, patience in ((signal.SIGHUP, 0), (signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                break
            until = time.monotonic() + patience
            while time.monotonic() < until and self._group_lives(group):
                time.sleep(0.05)
        self.process.wait()

    def _group_lives(self, group):
        self.process.poll()  # Reap the leader: a zombie still counts as a member.
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True
