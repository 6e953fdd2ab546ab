"""execd: runs commands in the testbed for the host, one TCP connection a request, one thread a connection.

It is started before the state is saved, so that starting Python (slow under emulation) costs a restored testbed nothing.
See protocol.py for the wire format.
"""

import fcntl
import hmac
import json
import os
import socket
import struct
import sys
import threading
import time

import protocol
from command import CommandRequest
from files import receive_files

PORT = 7000
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207


def set_up(request):
    """Give a restored machine the right time and fresh randomness: all restores wake with the same of both."""
    time.clock_settime(time.CLOCK_REALTIME, request["time"])
    seed = bytes.fromhex(request["entropy"])
    with open("/dev/random", "wb", buffering=0) as device:
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(device, RNDRESEEDCRNG)


def serve(connection, token):
    """Handle one connection from token to last frame."""
    with connection:
        connection.settimeout(60)
        try:
            given = protocol.receive_exactly(connection, protocol.TOKEN_BYTES)
            if not hmac.compare_digest(given, token):
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kind, payload = protocol.receive_frame(connection)
            if kind != protocol.REQUEST:
                raise ValueError(f"expected a request, got frame kind {kind}")
            request = json.loads(payload)
            connection.settimeout(None)
            if request["do"] == "run":
                CommandRequest(connection, request).serve()
            elif request["do"] == "files":
                receive_files(connection, request)
                connection.sendall(protocol.pack(protocol.DONE))
            elif request["do"] == "setup":
                set_up(request)
                connection.sendall(protocol.pack(protocol.DONE))
            elif request["do"] == "settle":
                os.sync()
                connection.sendall(protocol.pack(protocol.DONE))
            elif request["do"] == "ping":
                connection.sendall(protocol.pack(protocol.DONE))
            else:
                raise ValueError(f"unknown request {request['do']!r}")
        except ConnectionError:
            pass  # The client went away: nobody is left to be told.
        except Exception as error:  # pylint: disable=broad-except  # The client is told, and execd goes on.
            try:
                connection.sendall(protocol.pack_json(protocol.FAILED, {"code": 125, "message": f"execd: {error}"}))
            except OSError:
                pass


def main():
    with open(os.path.join(os.path.dirname(__file__), "token"), encoding="ascii") as file:
        token = file.read().strip().encode("ascii")
    assert len(token) == protocol.TOKEN_BYTES
    listener = socket.create_server(("0.0.0.0", PORT), backlog=128)
    threading.stack_size(512 * 1024)
    print("execd: ready", file=sys.stderr, flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, token), daemon=True).start()


if __name__ == "__main__":
    main()
