"""Files sent from the host: each replaces its old self by rename, so that a running program or a reader is not disturbed."""

import os

import protocol


def receive_files(connection, request):
    """Take what `request` lists: "remove" (paths) first, then "entries" in order, whose contents follow as raw bytes."""
    for path in request["remove"]:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except IsADirectoryError:
            pass  # Folders stay: other things may live in them.
    for entry in request["entries"]:
        path = entry["path"]
        if entry["kind"] == "folder":
            os.makedirs(path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.testbed-new"
        if entry["kind"] == "link":
            if os.path.lexists(temporary):
                os.unlink(temporary)
            os.symlink(entry["target"], temporary)
        else:
            _receive_file(connection, temporary, entry["size"], entry["mode"])
        os.rename(temporary, path)


def _receive_file(connection, path, size, mode):
    buffer = memoryview(bytearray(protocol.CHUNK))
    with open(path, "wb", buffering=0) as file:
        while size:
            received = connection.recv_into(buffer[:min(size, len(buffer))])
            if not received:
                raise ConnectionError("the connection ended within a file")
            file.write(buffer[:received])
            size -= received
        os.fchmod(file.fileno(), mode)
