#!/usr/bin/env bash
# Builds the guest kernel: an uncompressed, stripped ELF `vmlinux` with a PVH entry, and `modules/`,
# a folder of modules and of the lists that depmod makes.
#
#     kernel-config/build.sh OUTPUT-DIR
#
# The result is kept in the cache under a key made of this folder's content and the
# kernel source's version, so that a clone that changes neither never builds it again. Two builds
# differ in one thing: the key that signs the modules is made for each and kept by none.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTPUT-DIR}
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
  scripts/kconfig/merge_config.sh -m .config "$here/guest.config" "$here/modules.config" >/dev/null
  make -s olddefconfig
  check_config
  # The certificate of the key is verified at each boot, which takes 4 ms with the 4,096 bits of the default.
  sed 's/4096/2048/' certs/default_x509.genkey >certs/x509.genkey
  say "compiling on $(nproc) cores (about 12 minutes on two, once)"
  make -s -j"$(nproc)" vmlinux modules
  "$here/pack-elf.py" vmlinux "$work/vmlinux.packed"
  # Without debugging sections, then signed, then depmod's lists.
  make -s INSTALL_MOD_PATH="$work/installed" INSTALL_MOD_STRIP=1 modules_install
  flatten "$work"/installed/lib/modules/* "$work/modules.flat"
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
    cp -r "$work/modules.flat" "$dir.new/modules"
    # The key that signed the modules goes with the rest.
    rm -rf "$work"
    mv "$dir.new" "$dir"
  fi
  if ! cmp -s "$dir/vmlinux" "$out/vmlinux" || [ ! -d "$out/modules" ]; then
    rm -rf "$out/modules" "$out/vmlinux"
    cp -r "$dir/modules" "$out/modules"
    install -m 0644 "$dir/vmlinux" "$out/vmlinux"
  fi
  say "$(stat -c %s "$dir/vmlinux" | numfmt --to=iec) and $(find "$dir/modules" -name '*.ko' | wc -l) modules in $out"
}

main
