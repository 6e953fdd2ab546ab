"""The web service of compose.yaml: keeps what it is given in redis and in postgres, and reads it back from both.

    PUT /items/KEY   keeps the body; the answer is what both hold then
    GET /items/KEY   what both hold
    GET /count       how many items postgres holds
    GET /health      "fine" if both answer

Connections are made by name, kept, and made anew when a database was away. With the standard library only.
"""

import contextlib
import http.server
import json
import re
import socket
import struct

TIMEOUT = 60


class Failure(Exception):
    """A server answered with an error."""


class Connection:
    """A connection to a server, and what it sends."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=TIMEOUT)
        self.received = self.socket.makefile("rb")

    def close(self):
        self.received.close()
        self.socket.close()

    def read(self, size):
        data = self.received.read(size)
        if len(data) < size:
            raise Failure("the connection ended early")
        return data


class Redis(Connection):
    """What is needed of redis's protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/"""

    def __init__(self):
        super().__init__("redis", 6379)

    def ask(self, *words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            parts.append(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
        self.socket.sendall(b"".join(parts))
        line = self.received.readline()
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"$":
            return None if rest == "-1" else self.read(int(rest) + 2)[:-2].decode()
        if kind in (b"+", b":"):
            return rest
        raise Failure(f"redis answers {line!r}")


class Postgres(Connection):
    """What is needed of postgres's protocol: https://www.postgresql.org/docs/current/protocol-message-formats.html"""

    def __init__(self):
        super().__init__("postgres", 5432)
        body = struct.pack(">I", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        self.socket.sendall(struct.pack(">I", len(body) + 4) + body)
        for kind, body in self.until_ready():
            # Anything but trust would want a password.
            if kind == b"R" and body != b"\0\0\0\0":
                raise Failure(f"postgres wants authentication {body!r}")

    def until_ready(self):
        messages = []
        while not messages or messages[-1][0] != b"Z":
            kind, size = struct.unpack(">cI", self.read(5))
            body = self.read(size - 4)
            if kind == b"E":
                raise Failure(f"postgres answers {body!r}")
            messages.append((kind, body))
        return messages

    def ask(self, statement):
        """The rows, as lists of strings."""
        body = statement.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack(">I", len(body) + 4) + body)
        return [self.row(body) for kind, body in self.until_ready() if kind == b"D"]

    @staticmethod
    def row(body):
        (count,), at, values = struct.unpack(">H", body[:2]), 2, []
        for _ in range(count):
            (size,) = struct.unpack(">i", body[at:at + 4])
            at += 4
            values.append(None if size < 0 else body[at:at + size].decode())
            at += max(size, 0)
        return values


def literal(text):
    return "'" + text.replace("'", "''") + "'"


class Databases:
    """A connection to each."""

    # Those that no request uses now.
    idle = []

    def __init__(self):
        with contextlib.ExitStack() as opened:
            self.redis = opened.enter_context(contextlib.closing(Redis()))
            self.postgres = opened.enter_context(contextlib.closing(Postgres()))
            self.opened = opened.pop_all()

    @classmethod
    def do(cls, work):
        """What `work` returns: with kept connections, and if those are of no use any more, with new ones."""
        with contextlib.suppress(IndexError):
            kept = cls.idle.pop()
            with contextlib.suppress(OSError, Failure):
                return kept.keep_after(work)
            cls.idle.clear()
        return cls().keep_after(work)

    def keep_after(self, work):
        with self.opened as opened:
            result = work(self)
            self.opened = opened.pop_all()
        self.idle.append(self)
        return result

    def put(self, key, value):
        self.redis.ask("SET", key, value)
        self.postgres.ask(f"INSERT INTO items VALUES ({literal(key)}, {literal(value)}) "
                          "ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        return self.get(key)

    def get(self, key):
        rows = self.postgres.ask(f"SELECT value FROM items WHERE key = {literal(key)}")
        return json.dumps({"redis": self.redis.ask("GET", key), "postgres": rows[0][0] if rows else None})

    def count(self):
        return self.postgres.ask("SELECT count(*) FROM items")[0][0]

    def health(self):
        if self.redis.ask("PING") != "PONG" or self.postgres.ask("SELECT 1") != [["1"]]:
            raise Failure("a database is not well")
        return "fine\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests."""

    def do_PUT(self):
        self.answer(True)

    def do_GET(self):
        self.answer(False)

    def answer(self, put):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        try:
            status, content = self.content(body if put else None)
        except (OSError, Failure) as error:
            self.log_error("%s: %s", self.path, error)
            status, content = 503, str(error)
        content = content.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def content(self, value):
        item = re.fullmatch(r"/items/([a-z0-9-]+)", self.path)
        if item and value is not None:
            return 200, Databases.do(lambda both: both.put(item[1], value))
        if item:
            return 200, Databases.do(lambda both: both.get(item[1]))
        if self.path == "/count":
            return 200, Databases.do(Databases.count)
        if self.path == "/health":
            return 200, Databases.do(Databases.health)
        return 404, "there is nothing here"

    def log_request(self, *_):
        """Says nothing of a request that went well."""


class Server(http.server.ThreadingHTTPServer):
    """Takes many connections at once."""

    request_queue_size = 128


with contextlib.closing(Postgres()) as database:
    database.ask("CREATE TABLE IF NOT EXISTS items (key text PRIMARY KEY, value text NOT NULL)")
print("ready", flush=True)
with contextlib.suppress(KeyboardInterrupt):
    Server(("", 8000), Handler).serve_forever()
