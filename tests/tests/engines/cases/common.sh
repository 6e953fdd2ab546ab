#!/bin/sh
# What all cases begin with: `. common.sh` in a script whose first argument is the runtime.
set -u
R=${1:?usage: $0 RUNTIME}
P=${IMAGES:-pouch-test}
N=pbug$(basename "$0" | cut -c1-2)-$$
T=${SECONDS_MAX:-600}
clean() { :; }
done_() { clean; docker rm -f -v "$N" "$N-2" >/dev/null 2>&1; docker volume rm -f "$N" "$N-2" >/dev/null 2>&1; docker network rm "$N" >/dev/null 2>&1; }
trap done_ EXIT
trap 'exit 130' INT TERM
# Runs a container to its end; says so if it takes too long.
run() { timeout -k 10 "$T" docker run --rm --runtime="$R" --name "$N" "$@" </dev/null; s=$?; case $s in 124|137) echo "timed out";; esac; return $s; }
