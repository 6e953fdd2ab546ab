"""Serves a FUSE file system with one file, locks it from another process, and prints what the server was asked for."""

import ctypes
import errno
import fcntl
import os
import struct
import threading
import time

INIT, LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FLUSH = 26, 1, 2, 3, 14, 15, 16, 17, 18, 25
GETLK, SETLK, SETLKW, INTERRUPT = 31, 32, 33, 36
POSIX_LOCKS, FLOCK_LOCKS, INIT_EXT = 1 << 1, 1 << 10, 1 << 30
NAMES = {FLUSH: "flush", GETLK: "getlk", SETLK: "setlk", SETLKW: "setlkw", RELEASE: "release"}
ROOT, FILE = 1, 2

asked = []
granted = threading.Event()
libc = ctypes.CDLL(None, use_errno=True)


def attributes(node):
    mode = 0o40755 if node == ROOT else 0o100644
    return struct.pack("=6Q10I", node, 8 if node == FILE else 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(device, unique, error=0, data=b""):
    os.write(device, struct.pack("=IiQ", 16 + len(data), -error, unique) + data)


def serve(device):
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        length, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        body = request[40:length]
        if opcode in NAMES:
            asked.append(NAMES[opcode])
        if opcode == INIT:
            _, minor, ahead, flags = struct.unpack_from("=4I", body)
            # Like a library that answers with every flag that it knows of those it was offered.
            flags &= POSIX_LOCKS | FLOCK_LOCKS | INIT_EXT
            answer(device, unique, data=struct.pack("=4IHHIIHHII24x", 7, min(minor, 41), ahead, flags, 12, 9, 4096, 1, 1, 0, 0, 0))
        elif opcode == LOOKUP:
            if body.rstrip(b"\0") == b"file":
                answer(device, unique, data=struct.pack("=4QII", FILE, 0, 3600, 3600, 0, 0) + attributes(FILE))
            else:
                answer(device, unique, errno.ENOENT)
        elif opcode == GETATTR:
            answer(device, unique, data=struct.pack("=QII", 3600, 0, 0) + attributes(node))
        elif opcode == OPEN:
            answer(device, unique, data=struct.pack("=QII", 7, 0, 0))
        elif opcode == READ:
            answer(device, unique, data=b"content\n")
        elif opcode == GETLK:
            # Another owner has it, on a host that this kernel knows nothing of.
            answer(device, unique, data=struct.pack("=QQII", 0, 99, fcntl.F_WRLCK, 4711))
        elif opcode == SETLKW:
            # It waits here, for as long as the server likes.
            def later(unique=unique):
                granted.wait(300)
                answer(device, unique)
            threading.Thread(target=later, daemon=True).start()
        elif opcode in (SETLK, FLUSH, RELEASE):
            answer(device, unique)
        elif opcode in (FORGET, INTERRUPT):
            pass
        else:
            answer(device, unique, errno.ENOSYS)


def client():
    """A reader that waits for a lock, and closes the file with it."""
    file = os.open("/mnt/file", os.O_RDWR)
    # struct flock: type, whence, start, length, pid.
    got = struct.unpack("hhqqixxxx", fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqixxxx", fcntl.F_WRLCK, 0, 0, 0, 0)))
    print("held by others:", got[0] == fcntl.F_WRLCK and got[3] == 100, flush=True)
    fcntl.lockf(file, fcntl.LOCK_EX)
    # Validities of an hour, which a lock of this server does not cut short.
    print("read:", os.read(file, 8).decode().strip(), flush=True)
    os.close(file)
    file = os.open("/mnt/file", os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_SH)
    os.close(file)


device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"test", b"/mnt", b"fuse", 0, options) != 0:
    raise OSError(ctypes.get_errno(), "mount")
threading.Thread(target=serve, args=(device,), daemon=True).start()
child = os.fork()
if child == 0:
    os.close(device)
    client()
    os._exit(0)
while "setlkw" not in asked:
    time.sleep(0.05)
print("asked so far:", *asked, flush=True)
granted.set()
print("client:", os.waitpid(child, 0)[1], flush=True)
while asked.count("release") < 2:
    time.sleep(0.05)
print("asked:", *asked, flush=True)
os._exit(0)
