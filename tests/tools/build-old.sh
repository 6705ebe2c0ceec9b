#!/bin/sh
# Builds Duet as it was at the commit that upgrade-from names, and prints where the program is. Prints nothing in a copy of the repository
# that has no history.
#
#     tests/tools/build-old.sh
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${DUET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/duet}
commit=$(cat "$here/upgrade-from")
binary=$cache/bin/duet-$commit
if [ "$(git -C "$here" rev-parse --is-shallow-repository 2>/dev/null || echo true)" = true ] && [ ! -x "$binary" ]; then
    echo "build-old: left out: no history here that has $commit" >&2
    exit 0
fi
mkdir -p "$cache/bin"
(
    flock 9
    [ -x "$binary" ] && exit 0
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    git -C "$here/../.." archive -o "$work/old.tar" "$commit"
    tar -xf "$work/old.tar" -C "$work"
    # A folder of its own: the programs of both commits have the same names.
    cd "$work"
    CARGO_TARGET_DIR=$cache/upgrade-from CARGO_PROFILE_DEV_DEBUG=0 cargo build --locked --bin duet >&2
    mv "$cache/upgrade-from/debug/duet" "$binary"
) 9>"$binary.lock"
echo "$binary"
