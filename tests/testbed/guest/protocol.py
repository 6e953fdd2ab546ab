"""The wire format between a command on the host (the client) and execd in the testbed (the server).

One TCP connection is one request. The client sends the token, then a request frame; after that both sides send frames
until the server sends EXIT or DONE or FAILED, and closes. A connection that the client closes early means that the
client is gone: the server then ends what it started for it.

Input is credited: the client has at most INPUT_WINDOW bytes on the way that the server has not acknowledged with TOOK.
So the server always reads its socket, and a signal is never stuck behind input that the command does not read.

This file is used on both sides: it goes into the testbed with the other files of this folder.
"""

import json
import struct

HEADER = struct.Struct(">BI")
TOKEN_BYTES = 32
CHUNK = 256 * 1024
INPUT_WINDOW = 1024 * 1024

# Client to server.
REQUEST, INPUT, SIGNAL, RESIZE = 1, 2, 3, 4
# Server to client.
OUT, ERR, TOOK, EXIT, FAILED, DONE, STARTED = 16, 17, 18, 19, 20, 21, 22


def pack(kind, payload=b""):
    """One frame as bytes."""
    return HEADER.pack(kind, len(payload)) + payload


def pack_json(kind, value):
    """One frame whose payload is JSON. Surrogate escapes carry bytes that are not UTF-8."""
    return pack(kind, json.dumps(value).encode("ascii"))


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self):
        self._buffer = bytearray()

    def feed(self, data):
        """Take bytes; return the frames complete by now, as (kind, payload) pairs."""
        buffer = self._buffer
        buffer += data
        frames, at = [], 0
        while len(buffer) - at >= HEADER.size:
            kind, length = HEADER.unpack_from(buffer, at)
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((kind, bytes(buffer[at + HEADER.size:end])))
            at = end
        del buffer[:at]
        return frames


def receive_exactly(sock, count):
    """Read `count` bytes from a blocking socket; raises ConnectionError at an early end."""
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        received = sock.recv_into(view[got:])
        if not received:
            raise ConnectionError("the connection ended early")
        got += received
    return bytes(data)


def receive_frame(sock):
    """Read one whole frame from a blocking socket."""
    kind, length = HEADER.unpack(receive_exactly(sock, HEADER.size))
    return kind, receive_exactly(sock, length)
