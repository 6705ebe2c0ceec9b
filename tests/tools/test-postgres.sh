#!/bin/sh
# Runs what touches PostgreSQL against every supported major version, and shows that each minor that loses writes is refused.
#
#     tests/tools/test-postgres.sh [VERSION…]      default: 16 17 18, which Debian 12 doesn't have
set -eu
cd "$(dirname "$0")/../.."

[ $# -gt 0 ] || set -- 16 17 18
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
suites="--test storage_pg --test storage_pg_external --test supervisor_postgres"

# Builds the program, too, as cargo does for its integration tests: `cargo build` would build all dependencies once more, without
# the features that only tests use.
cargo test --locked --no-run $suites --test pair_postgres --test cli --test faults
duet=${CARGO_TARGET_DIR:-target}/debug/duet

for version in "$@"; do
    DUET_TEST_PG_BIN_DIR=$(tests/tools/postgres.sh "$version")
    export DUET_TEST_PG_BIN_DIR
    echo "test-postgres: $("$DUET_TEST_PG_BIN_DIR/postgres" --version)"
    cargo test --locked $suites
    # What a pair needs besides a server isn't in the archives that postgres.sh fetches so far.
    if [ -x "$DUET_TEST_PG_BIN_DIR/pg_basebackup" ]; then
        cargo test --locked --test pair_postgres
    else
        echo "test-postgres: left out: pair_postgres, for want of pg_basebackup, pg_rewind and pg_controldata of $version"
    fi
    cargo test --locked --test cli -- the_postgresql_that_is_named kill_9 a_replica
    cargo test --locked --test faults -- a_backend_killed
done

unset DUET_TEST_PG_BIN_DIR
for version in 15.12 16.8 17.4; do
    code=0
    said=$("$duet" dev --listen-client-urls http://127.0.0.1:0 --data-dir "$work/data" \
        --pg-bin-dir "$(tests/tools/postgres.sh "$version")" 2>&1) || code=$?
    case $code:$said in
        "72:duet: PostgreSQL $version in "*" can lose acknowledged writes "*) echo "test-postgres: $version is refused" ;;
        *) echo "test-postgres: $version should have been refused with exit code 72; code $code: $said" >&2; exit 1 ;;
    esac
done
