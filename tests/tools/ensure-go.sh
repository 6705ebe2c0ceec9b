#!/bin/sh
# Prints the directory that holds a `go` of at least the version below, after making sure that there is one.
#
# Taken in this order: the `go` of PATH, /usr/local/go, one that an earlier run of this script fetched. When none of them
# is new enough, any older Go (Debian's golang-go is installed when there is none at all) fetches the toolchain as a Go
# module, which its checksum database vouches for, into Duet's cache. Nothing in the checkout or in the system is replaced.
set -eu

wanted_minor=26        # the lowest `go` line that the modules under tests/ and those they build ask for is 1.26
fetched=go1.26.8       # what is fetched when nothing here is new enough
cache=${DUET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/duet}

fail() { echo "ensure-go: $*" >&2; exit 1; }

# The minor version of the Go at $1, 0 when it doesn't run. GOTOOLCHAIN=local and / keep a new go from answering for
# another one that a go.mod or a setting asks for.
minor() {
    version=$(cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || { echo 0; return; }
    case $version in
        go1.*) version=${version#go1.}; echo "${version%%[!0-9]*}" ;;
        *) echo 0 ;;
    esac
}

older=
for go in "$(command -v go || true)" /usr/local/go/bin/go "$cache/$fetched/bin/go" /usr/lib/go/bin/go /usr/lib/go-1.*/bin/go; do
    [ -x "$go" ] || continue
    found=$(minor "$go")
    if [ "$found" -ge "$wanted_minor" ]; then
        echo "$(cd / && GOTOOLCHAIN=local "$go" env GOROOT)/bin"
        exit 0
    fi
    # Older than 1.11 knows no modules.
    [ "$found" -ge 11 ] && older=$go
done

if [ -z "$older" ]; then
    command -v apt-get >/dev/null ||
        fail "there is no Go here, nor apt-get to install one with: install Go 1.$wanted_minor or newer and put it into PATH"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "there is no Go here, and installing it needs root: run 'apt-get install golang-go' as root"
        as_root="sudo"
    fi
    echo "ensure-go: installing Debian's golang-go" >&2
    $as_root apt-get update -q >&2 || echo "ensure-go: apt-get update failed, trying with the lists at hand" >&2
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends golang-go >&2 ||
        fail "apt-get install golang-go failed: install Go 1.$wanted_minor or newer and put it into PATH"
    older=$(command -v go) || fail "golang-go is installed, but there is no go in PATH"
fi

mkdir -p "$cache"
exec 9>"$cache/ensure-go.lock"
flock 9
if ! [ -x "$cache/$fetched/bin/go" ]; then
    module=golang.org/toolchain@v0.0.1-$fetched.$("$older" env GOOS)-$("$older" env GOARCH)
    echo "ensure-go: fetching $fetched with $older" >&2
    fresh=$(mktemp -d "$cache/toolchain.XXXXXX")
    trap 'chmod -R u+w "$fresh" 2>/dev/null; rm -rf "$fresh"' EXIT
    # A module cache of its own, so that the only copy is the one that is moved into place.
    (cd / && GOTOOLCHAIN=local GOMODCACHE="$fresh" GOFLAGS=-modcacherw "$older" mod download "$module") >&2 ||
        fail "$older could not fetch $module: is the module proxy reachable?"
    # A module's files carry no execute bits.
    chmod 0755 "$fresh/$module"/bin/* "$fresh/$module"/pkg/tool/*/*
    mv "$fresh/$module" "$cache/$fetched"
fi
[ "$(minor "$cache/$fetched/bin/go")" -ge "$wanted_minor" ] || fail "$cache/$fetched/bin/go doesn't run: remove $cache/$fetched and try again"
echo "$cache/$fetched/bin"
