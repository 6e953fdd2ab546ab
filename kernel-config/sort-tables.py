#!/usr/bin/env python3
"""Sorts the tables of a linked vmlinux that the kernel would sort at each boot, in place.

    sort-tables.py VMLINUX

They are those of jump labels (include/linux/jump_label.h: `struct jump_entry`) and of static calls
(include/linux/static_call_types.h: `struct static_call_site`), in the order that the kernel's own
comparisons have. 0009-tables-sorted-by-build.patch makes the kernel leave alone what is sorted.
"""

import struct
import sys

SHT_SYMTAB, PT_LOAD = 2, 1
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")
# The lowest bits of a key are flags.
FLAGS = 3


class Image:
    """A linked kernel, by its virtual addresses."""

    def __init__(self, content):
        self.content = bytearray(content)
        ehdr = EHDR.unpack_from(content)
        headers = [PHDR.unpack_from(content, ehdr[5] + i * PHDR.size) for i in range(ehdr[10])]
        self.segments = [(h[3], h[2], h[5]) for h in headers if h[0] == PT_LOAD]
        self.sections = [SHDR.unpack_from(content, ehdr[6] + i * SHDR.size) for i in range(ehdr[12])]

    def symbols(self, names):
        """The values of the symbols called `names`, in their order."""
        symtab = next(s for s in self.sections if s[1] == SHT_SYMTAB)
        strings = self.sections[symtab[6]][4]
        found = {}
        for offset in range(symtab[4], symtab[4] + symtab[5], SYM.size):
            name, _, _, _, value, _ = SYM.unpack_from(self.content, offset)
            end = self.content.index(0, strings + name)
            found[self.content[strings + name : end].decode()] = value
        return [found[name] for name in names]

    def offset(self, address):
        """Where the byte of a virtual address lies in the file."""
        return next(at + address - start for start, at, size in self.segments if start <= address < start + size)


def sort(image, names, entry, order):
    """Sorts the table between two symbols: signed fields, each relative to its own address.

    `entry` is the struct of one entry, `order` makes a sort key of its fields' absolute values.
    """
    start, stop = image.symbols(names)
    at = image.offset(start)
    sizes = [struct.calcsize("<" + letter) for letter in entry]
    places = [sum(sizes[:i]) for i in range(len(sizes))]
    layout = struct.Struct("<" + entry)
    rows = []
    for position in range(0, stop - start, layout.size):
        fields = layout.unpack_from(image.content, at + position)
        rows.append([field + start + position + place for field, place in zip(fields, places)])
    rows.sort(key=order)
    for index, row in enumerate(rows):
        position = index * layout.size
        fields = [value - start - position - place for value, place in zip(row, places)]
        layout.pack_into(image.content, at + position, *fields)
    return len(rows)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: sort-tables.py VMLINUX")
    with open(sys.argv[1], "rb") as file:
        image = Image(file.read())
    # A jump entry: code, target, key; by key, then by code.
    sort(image, ["__start___jump_table", "__stop___jump_table"], "iiq", lambda e: (e[2] & ~FLAGS, e[0]))
    # A site of a static call: address, key.
    sort(image, ["__start_static_call_sites", "__stop_static_call_sites"], "ii", lambda e: e[1] & ~FLAGS)
    with open(sys.argv[1], "wb") as file:
        file.write(image.content)


if __name__ == "__main__":
    main()
