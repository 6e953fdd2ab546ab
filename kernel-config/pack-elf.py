#!/usr/bin/env python3
"""Packs an ELF kernel: the program segments only, each at the next page of the file.

    pack-elf.py VMLINUX OUTPUT

The linker aligns the segments of an x86-64 vmlinux to 2 MiB in the file too, which leaves
megabytes of zeros between them. File offset and physical address stay congruent modulo
4,096, so that the segments can still be mapped from the file.
"""

import struct
import sys

PAGE = 4096
PT_LOAD, PT_NOTE = 1, 4
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")


def round_up(value):
    return (value + PAGE - 1) // PAGE * PAGE


def pack(image):
    """The packed image of the ELF file `image` (bytes)."""
    ehdr = list(EHDR.unpack_from(image))
    phoff, phnum = ehdr[5], ehdr[10]
    headers = [list(PHDR.unpack_from(image, phoff + i * PHDR.size)) for i in range(phnum)]
    out = bytearray(round_up(EHDR.size + PHDR.size * phnum))
    moved = []
    for header in headers:
        kind, offset, paddr, filesz = header[0], header[2], header[4], header[5]
        if kind == PT_LOAD and filesz:
            start = round_up(len(out)) + paddr % PAGE
            out.extend(bytes(start - len(out)))
            out.extend(image[offset : offset + filesz])
            moved.append((offset, filesz, start))
            header[2] = start
    for header in headers:
        if header[0] == PT_NOTE:
            # A note lies inside a loaded segment: point into its new place.
            header[2] = next(new + header[2] - old for old, size, new in moved if old <= header[2] < old + size)
    ehdr[5] = EHDR.size
    ehdr[6] = ehdr[11] = ehdr[12] = ehdr[13] = 0  # no sections
    out[: EHDR.size] = EHDR.pack(*ehdr)
    for i, header in enumerate(headers):
        PHDR.pack_into(out, EHDR.size + i * PHDR.size, *header)
    return bytes(out)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: pack-elf.py VMLINUX OUTPUT")
    with open(sys.argv[1], "rb") as source:
        packed = pack(source.read())
    with open(sys.argv[2], "wb") as target:
        target.write(packed)


if __name__ == "__main__":
    main()
