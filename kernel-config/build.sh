#!/usr/bin/env bash
# Builds the guest kernel: an uncompressed, stripped ELF `vmlinux` with a PVH entry.
#
#     kernel-config/build.sh OUTPUT-DIR
#
# The result is kept in the cache under a key made of this folder's content and the
# kernel source's version, so that a clone that changes neither never builds it again.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTPUT-DIR}
cache=${POUCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pouch-vm}/kernel
source_archive=/usr/src/linux-source-6.12.tar.xz

say() { printf '==> guest kernel: %s\n' "$*" >&2; }
die() { printf 'kernel-config/build.sh: %s\n' "$*" >&2; exit 1; }

# The release stands inside the archive; the archive's own hash is the exact key.
key_of_sources() {
  { cat "$here/guest.config" "$here/build.sh" "$here/sort-tables.py" "$here/pack-elf.py"; find "$here" -name '*.patch' | sort | xargs -r cat
    sha256sum <"$source_archive"; } | sha256sum | cut -c1-24
}

# Kconfig drops an option whose dependencies fail without a word; we want the word.
check_config() {
  local line missing=0
  while read -r line; do
    case $line in
      CONFIG_*=n) grep -q "^${line%=n}=y" .config && { echo "  still set: ${line%=n}" >&2; missing=1; } ;;
      CONFIG_*) grep -qxF -- "$line" .config || { echo "  lost: $line" >&2; missing=1; } ;;
      '# CONFIG_'*' is not set') name=${line#\# }; name=${name% is not set}
        grep -q "^$name=" .config && { echo "  still set: $name" >&2; missing=1; } ;;
    esac
  done <"$here/guest.config"
  [ "$missing" = 0 ] || die "these lines of guest.config do not survive Kconfig; mend or remove them"
}

build() {
  local work=$1
  say "unpacking $source_archive"
  tar -xJf "$source_archive" -C "$work" --strip-components=1
  cd "$work"
  local patch
  for patch in "$here"/*.patch; do
    [ -e "$patch" ] && { say "applying ${patch##*/}"; patch -p1 -s <"$patch"; }
  done
  # A fixed identity makes the same inputs give the same file.
  export KBUILD_BUILD_USER=pouch-vm KBUILD_BUILD_HOST=pouch-vm KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC'
  make -s tinyconfig
  scripts/kconfig/merge_config.sh -m .config "$here/guest.config" >/dev/null
  make -s olddefconfig
  check_config
  say "compiling on $(nproc) cores (about 8 minutes on two, once)"
  make -s -j"$(nproc)" vmlinux
  "$here/sort-tables.py" vmlinux
  "$here/pack-elf.py" vmlinux "$work/vmlinux.packed"
}

main() {
  [ -r "$source_archive" ] || die "$source_archive is missing; install it with: apt-get install linux-source-6.12"
  local key dir
  key=$(key_of_sources)
  dir=$cache/$key
  mkdir -p "$cache" "$out"
  exec 9>"$cache/lock"
  flock 9
  if [ ! -s "$dir/vmlinux" ]; then
    local work
    rm -rf "$cache"/work.*
    work=$(mktemp -d "$cache/work.XXXXXX")
    (build "$work")
    mkdir -p "$dir.new"
    cp "$work/vmlinux.packed" "$dir.new/vmlinux"
    cp "$work/.config" "$dir.new/config"
    rm -rf "$work"
    mv "$dir.new" "$dir"
  fi
  cmp -s "$dir/vmlinux" "$out/vmlinux" || install -m 0644 "$dir/vmlinux" "$out/vmlinux"
  say "$(stat -c %s "$dir/vmlinux" | numfmt --to=iec) at $out/vmlinux"
}

main
