#!/usr/bin/env bash
# Builds the guest kernel: an uncompressed, stripped ELF `vmlinux` with a PVH entry, and `modules/`,
# a folder of modules and of the lists that depmod makes.
#
#     kernel-config/build.sh [--without-modules] OUTPUT-DIR
#
# The result is kept in the cache under a key made of this folder's content and the
# kernel source's version, so that a clone that changes neither never builds it again. Two builds
# differ in one thing: the key that signs the modules is made for each build and deleted after it.
#
# With --without-modules, modules are copied only if they have been built before. Otherwise the tree
# stays in the cache, with the key, until a run without this option builds its modules.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
modules=yes
[ "${1:-}" != --without-modules ] || { modules=; shift; }
out=${1:?usage: build.sh [--without-modules] OUTPUT-DIR}
cache=${POUCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pouch-vm}/kernel
source_archive=/usr/src/linux-source-6.12.tar.xz

say() { printf '==> guest kernel: %s\n' "$*" >&2; }
die() { printf 'kernel-config/build.sh: %s\n' "$*" >&2; exit 1; }

# The release stands inside the archive; the archive's own hash is the exact key.
key_of_sources() {
  { cat "$here"/*.config "$here/build.sh" "$here/pack-elf.py"; find "$here" -name '*.patch' | sort | xargs -r cat
    sha256sum <"$source_archive"; } | sha256sum | cut -c1-24
}

# Kconfig drops an option whose dependencies fail without a word; we want the word.
check_config() {
  local line name missing=0
  while read -r line; do
    case $line in
      CONFIG_*=n) grep -q "^${line%=n}=y" .config && { echo "  still set: ${line%=n}" >&2; missing=1; } ;;
      CONFIG_*) grep -qxF -- "$line" .config || { echo "  lost: $line" >&2; missing=1; } ;;
      '# CONFIG_'*' is not set') name=${line#\# }; name=${name% is not set}
        grep -q "^$name=" .config && { echo "  still set: $name" >&2; missing=1; } ;;
    esac
  done < <(cat "$here/guest.config" "$here/modules.config")
  [ "$missing" = 0 ] || die "these lines of *.config do not survive Kconfig; mend or remove them"
}

# A fixed identity makes the same inputs give the same file.
export KBUILD_BUILD_USER=pouch-vm KBUILD_BUILD_HOST=pouch-vm KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC'

prepare_tree() {
  say "unpacking $source_archive"
  tar -xJf "$source_archive" --strip-components=1
  local patch
  for patch in "$here"/*.patch; do
    [ -e "$patch" ] && { say "applying ${patch##*/}"; patch -p1 -s <"$patch"; }
  done
  make -s tinyconfig
  scripts/kconfig/merge_config.sh -m .config "$here/guest.config" "$here/modules.config" >/dev/null
  make -s olddefconfig
  check_config
  # The certificate of the key is verified at each boot, which takes 4 ms with the 4,096 bits of the default.
  sed 's/4096/2048/' certs/default_x509.genkey >certs/x509.genkey
}

build_kernel() {
  local tree=$1
  (
    cd "$tree"
    prepare_tree
    say "compiling on $(nproc) cores (about 7 minutes on two, once)"
    make -s -j"$(nproc)" vmlinux
    mkdir result
    "$here/pack-elf.py" vmlinux result/vmlinux
    cp .config result/config
  )
}

# Built in the kernel's tree, which has the key that the kernel takes.
build_modules() {
  local tree=$1
  (
    cd "$tree"
    say "compiling its modules on $(nproc) cores (about 8 minutes on two, once)"
    make -s -j"$(nproc)" modules
    # Without debugging sections, then signed, then depmod's lists.
    rm -rf installed modules.flat
    make -s INSTALL_MOD_PATH="$tree/installed" INSTALL_MOD_STRIP=1 modules_install
    flatten "$tree"/installed/lib/modules/* modules.flat
  )
}

# Modules have unique names, and the agent looks for them in one folder.
flatten() {
  local from=$1 to=$2 list
  mkdir "$to"
  find "$from" -name '*.ko' -exec cp -t "$to" {} +
  for list in dep alias softdep devname; do
    sed '/^#/d' "$from/modules.$list" >"$to/modules.$list"
  done
  sed -E -i 's@[^ :]+/@@g' "$to/modules.dep"
}

main() {
  [ -r "$source_archive" ] || die "$source_archive is missing; install it with: apt-get install linux-source-6.12"
  local key dir tree
  key=$(key_of_sources)
  dir=$cache/$key
  tree=$cache/tree.$key
  mkdir -p "$cache" "$out"
  exec 9>"$cache/lock"
  flock 9
  # Modules whose tree has been removed cannot be built for the kernel that is there.
  [ -d "$dir/modules" ] || [ -z "$modules" ] || [ -d "$tree" ] || rm -rf "$dir"
  if [ ! -s "$dir/vmlinux" ]; then
    rm -rf "$cache"/tree.*
    mkdir -m 0700 "$tree"
    build_kernel "$tree"
    mv "$tree/result" "$dir"
  fi
  if [ -n "$modules" ] && [ ! -d "$dir/modules" ]; then
    build_modules "$tree"
    mv "$tree/modules.flat" "$dir/modules"
  fi
  # The key that signed the modules goes with the rest.
  [ ! -d "$dir/modules" ] || rm -rf "$tree"
  copy_result "$dir"
}

# What is the same is left alone, so that it keeps its time.
copy_result() {
  local dir=$1 count=
  if ! cmp -s "$dir/vmlinux" "$out/vmlinux"; then
    rm -rf "$out/modules" "$out/vmlinux"
    install -m 0644 "$dir/vmlinux" "$out/vmlinux"
  fi
  if [ -d "$dir/modules" ]; then
    count=" and $(find "$dir/modules" -name '*.ko' | wc -l) modules"
    if [ ! -d "$out/modules" ]; then
      rm -rf "$out/modules.new"
      cp -r "$dir/modules" "$out/modules.new"
      mv "$out/modules.new" "$out/modules"
    fi
  fi
  say "$(stat -c %s "$dir/vmlinux" | numfmt --to=iec)$count in $out"
}

main
