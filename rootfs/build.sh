#!/usr/bin/env bash
# Builds the guest's root image: an EROFS file system with the agent as /init, and the kernel's modules if given.
#
#     rootfs/build.sh OUTPUT-FILE AGENT-BINARY [MODULES-FOLDER]
#
# The same inputs give the same bytes. See README.md for what is in it and why.
set -euo pipefail

die() { printf 'rootfs/build.sh: %s\n' "$*" >&2; exit 1; }

[ $# = 2 ] || [ $# = 3 ] || die "usage: rootfs/build.sh OUTPUT-FILE AGENT-BINARY [MODULES-FOLDER]"
output=$1
agent=$2
modules=${3:-}
[ -s "$agent" ] || die "$agent is missing or empty; build it with: cargo build --release -p pouch-agent"
[ -z "$modules" ] || [ -s "$modules/modules.dep" ] || die "$modules has no modules; build them with: kernel-config/build.sh"

temporary=$(mktemp -d "$output.XXXXXX")
trap 'rm -rf "$temporary"' EXIT
root=$temporary/root
install -d -m 0755 "$root" "$root"/{dev,proc,sys,run,tmp,root,lib,lib/modules}
install -m 0755 "$agent" "$root/init"
[ -z "$modules" ] || install -m 0644 -t "$root/lib/modules" "$modules"/*
# Fixed times, owners and identity; whole blocks of data, as DAX needs them.
mkfs.erofs --quiet -T0 --all-root -x-1 -U 706f7563-682d-766d-0000-000000000000 -Enoinline_data \
  "$temporary/image" "$root" >&2
# The guest maps persistent memory in units of 2 MiB.
truncate --size=%2M "$temporary/image"
chmod 0644 "$temporary/image"
mv "$temporary/image" "$output"
