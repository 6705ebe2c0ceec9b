#!/bin/sh
# Installs what is missing to build and run Duet ("run"), to test it as well ("test"), to measure it ("bench"), or to test it against other
# PostgreSQLs, too ("postgres"), and says what it does.
#
# On Debian and its kin through apt-get; anywhere else it names what to install. What is there already is left alone: a
# cargo in PATH or in ~/.cargo, a PostgreSQL 15 to 18 anywhere that Duet looks. Prints nothing when nothing is missing.
set -eu

purpose=${1:-run}
case $purpose in run | test | postgres | bench) ;; *) echo "usage: scripts/setup.sh [run|test|postgres|bench]" >&2; exit 64 ;; esac

rust_minor=95 # rust-version in Cargo.toml
PATH=$HOME/.cargo/bin:$PATH
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo -E "$@"
    else fail "this needs root: $*"
    fi
}

refreshed=
apt_refresh() {
    [ -z "$refreshed" ] || return 0
    command -v apt-get >/dev/null || return 1
    as_root apt-get update -qq || say "apt-get update failed; trying with the lists that are here"
    refreshed=yes
}

# apt_install WHAT_FOR PACKAGE…
apt_install() {
    what_for=$1
    shift
    apt_refresh || fail "$what_for is missing and there is no apt-get here: install it, then start again"
    say "installing $* ($what_for)"
    as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null || fail "apt-get install $* failed: see above"
}

# The minor version of `apt-get install $1`'s candidate, if it is 1.x; else 0.
candidate_minor() {
    version=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}1\.\([0-9]*\)\..*/\2/p')
    echo "${version:-0}"
}

cargo_minor() {
    version=$(cargo --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')
    echo "${version:-0}"
}

ensure_rust() {
    [ "$(cargo_minor)" -lt $rust_minor ] || return 0
    [ "$(cargo_minor)" -eq 0 ] || say "cargo 1.$(cargo_minor) is here; Duet needs 1.$rust_minor"
    if command -v rustup >/dev/null; then
        say "installing Rust's stable toolchain with rustup"
        rustup toolchain install stable --profile minimal --component rustfmt --component clippy >&2
        rustup default stable >&2
    elif apt_refresh && [ "$(candidate_minor cargo)" -ge $rust_minor ]; then
        apt_install "Rust" cargo rustc
    elif [ "$(candidate_minor cargo-web)" -ge $rust_minor ]; then
        # Debian keeps a current Rust for its browsers: cargo-web takes the place of the release's cargo.
        apt_install "Rust" cargo-web rustc-web
    elif apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
        apt_install "Rust" rustup
        rustup toolchain install stable --profile minimal --component rustfmt --component clippy >&2
        rustup default stable >&2
    fi
    hash -r
    [ "$(cargo_minor)" -ge $rust_minor ] || fail "no Rust 1.$rust_minor or newer can be installed here: install it with rustup, then start again"
}

# rustfmt and clippy belong to the toolchain that rustup or Debian installed.
ensure_lints() {
    if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
        return 0
    fi
    if command -v rustup >/dev/null; then
        rustup component add rustfmt clippy >&2
    elif dpkg -s cargo-web >/dev/null 2>&1; then
        apt_install "formatting and lints" rustfmt-web rust-web-clippy
    else
        apt_install "formatting and lints" rustfmt rust-clippy
    fi
}

# Debian has protoc and the definitions that every other one imports in two packages.
has_protoc() {
    command -v protoc >/dev/null || return 1
    scratch=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\n' >"$scratch/probe.proto"
    found=0
    protoc -I "$scratch" --descriptor_set_out=/dev/null "$scratch/probe.proto" 2>/dev/null || found=1
    rm -r "$scratch"
    return $found
}

has_postgres() {
    for dir in /usr/lib/postgresql/1[5678]/bin /usr/pgsql-1[5678]/bin /usr/local/pgsql/bin /opt/homebrew/opt/postgresql@1[5678]/bin; do
        [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && return 0
    done
    command -v postgres >/dev/null && command -v initdb >/dev/null
}

# Debian's package makes a cluster and starts it; Duet runs its own, so that one would only be in the way.
ensure_postgres() {
    ! has_postgres || return 0
    conf=/etc/postgresql-common/createcluster.conf
    had_common=
    if dpkg -s postgresql-common >/dev/null 2>&1; then had_common=yes; else apt_install "PostgreSQL" postgresql-common; fi
    kept=
    if [ -f $conf ]; then
        kept=$(mktemp)
        cp $conf "$kept"
        as_root sed -i 's/^#\{0,1\} *create_main_cluster *=.*/create_main_cluster = false/' $conf
    fi
    apt_install "PostgreSQL" postgresql
    if [ -n "$kept" ]; then
        as_root cp "$kept" $conf
        rm -f "$kept"
    fi
    [ -n "$had_common" ] || say "PostgreSQL is installed without a running cluster; Duet starts its own"
    has_postgres || fail "PostgreSQL was installed, but not a version from 15 to 18: install one of these, or use --pg-bin-dir"
}

# cargo verifies the registry's certificate against these.
if command -v apt-get >/dev/null && [ ! -s /etc/ssl/certs/ca-certificates.crt ]; then
    apt_install "the CAs that cargo trusts" ca-certificates
fi
command -v cc >/dev/null || apt_install "a C compiler" build-essential
ensure_rust
ensure_postgres
if [ "$purpose" != run ]; then
    ensure_lints
    has_protoc || apt_install "the independent client's code generator" protobuf-compiler libprotobuf-dev
    command -v git >/dev/null || apt_install "git" git
    command -v ip >/dev/null || apt_install "the tests' networks" iproute2
fi
if [ "$purpose" = bench ]; then
    command -v iptables >/dev/null || apt_install "the packets that get lost between hosts" iptables
fi
if [ "$purpose" = postgres ]; then
    command -v npm >/dev/null || apt_install "what fetches PostgreSQL 16, 17 and 18" npm
fi
