#!/usr/bin/env bash
# Builds the guest's root image: an uncompressed initramfs with the agent as /init.
#
#     rootfs/build.sh OUTPUT-FILE AGENT-BINARY
#
# The same agent gives the same bytes. Root is not needed: device nodes are only headers in
# the archive. See README.md for what is in it and why.
set -euo pipefail

die() { printf 'rootfs/build.sh: %s\n' "$*" >&2; exit 1; }

[ $# = 2 ] || die "usage: rootfs/build.sh OUTPUT-FILE AGENT-BINARY"
output=$1
agent=$2
[ -s "$agent" ] || die "$agent is missing or empty; build it with: cargo build --release -p pouch-agent"

# Writes one entry of a "newc" archive: name, mode (octal), device major and minor, and
# optionally the file with its content.
inode=0
entry() {
  local name=$1 mode=$((8#$2)) major=$3 minor=$4 file=${5:-} size=0 links=1
  inode=$((inode + 1))
  [ -z "$file" ] || size=$(stat -L -c %s "$file")
  [ $((mode & 8#170000)) != $((8#040000)) ] || links=2
  printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' \
    "$inode" "$mode" 0 0 "$links" 0 "$size" 0 0 "$major" "$minor" $((${#name} + 1)) 0 "$name"
  pad $((110 + ${#name} + 1))
  [ -z "$file" ] || { cat "$file"; pad "$size"; }
}

# Fills up to a multiple of four bytes.
pad() { head -c $(((4 - $1 % 4) % 4)) /dev/zero; }

temporary=$(mktemp "$output.XXXXXX")
trap 'rm -f "$temporary"' EXIT
{
  for directory in dev proc sys run tmp root; do
    entry "$directory" 040755 0 0
  done
  # The kernel opens the first, the Rust runtime the second, before anything is mounted.
  entry dev/console 020600 5 1
  entry dev/null 020666 1 3
  entry init 100755 0 0 "$agent"
  inode=-1
  entry 'TRAILER!!!' 0 0 0
} >"$temporary"
chmod 0644 "$temporary"
mv "$temporary" "$output"
trap - EXIT
