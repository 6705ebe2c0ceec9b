#!/bin/sh
# Runs conformance suites against the duet binary that DUET_BIN names, or, without it, against the etcd of ETCD_BIN.
#
#     tests/conformance/run.sh [suite…]       all of them when none is named:
#     storage136 storage134 clientv3 k3s etcdctl apiserver controlplane clientv3-follower k3s-follower etcdctl-follower
#
# Go, etcd, Kubernetes and KWOK are fetched and built when the cache doesn't have them (tests/tools). Prints how long each
# suite took; the exit code is 1 when one failed, and the others run all the same.
set -u

here=$(cd "$(dirname "$0")" && pwd)
tools=$here/../tools

if [ -n "${DUET_BIN:-}" ]; then
    DUET_BIN=$(readlink -f "$DUET_BIN") || exit 64
    [ -x "$DUET_BIN" ] || { echo "run: DUET_BIN=$DUET_BIN is not an executable: build it with 'cargo build --release'" >&2; exit 64; }
    export DUET_BIN
elif [ -z "${ETCD_BIN:-}" ]; then
    echo "run: set DUET_BIN to the duet binary (or ETCD_BIN to an etcd)" >&2
    exit 64
fi

gobin=$("$tools/ensure-go.sh") || exit 1
# The suites call `go` themselves, to run the tests of other modules.
export PATH="$gobin:$PATH" GOWORK=off GOTOOLCHAIN=local

if [ $# -eq 0 ]; then
    set -- clientv3 k3s etcdctl storage136 storage134 apiserver controlplane
    # Only Duet runs as a pair, whose PostgreSQLs are its own.
    [ -z "${DUET_BIN:-}" ] || [ -n "${DUET_TEST_PG:-}" ] || set -- "$@" clientv3-follower k3s-follower etcdctl-follower
fi
failed=
for suite in "$@"; do
    modfile= part=${DUET_TEST_PAIR:-} name=$suite
    case $suite in
        # Every server is the follower of a pair of its own.
        clientv3-follower | k3s-follower | etcdctl-follower) part=follower name=${suite%-follower} ;;
    esac
    case $name in
        k3s) directory=$here/k3s package=. ;;
        storage136) directory=$here/storage package=. ;;
        # The same package with Kubernetes 1.34's modules; the tests of other modules that it runs need the flag too.
        storage134) directory=$here/storage package=. modfile=-modfile=kubernetes-1.34.mod ;;
        clientv3 | etcdctl | apiserver | controlplane) directory=$here package=./$name ;;
        *) echo "run: unknown suite '$suite'" >&2; exit 64 ;;
    esac
    case $name in
        etcdctl) needed="etcd etcdctl" ;;
        apiserver) needed=kube-apiserver ;;
        controlplane) needed="kube-apiserver kube-controller-manager kube-scheduler kwok" ;;
        *) needed= ;;
    esac
    # shellcheck disable=SC2086 # several names
    if [ -n "$needed" ] && ! "$tools/build.sh" $needed >/dev/null; then
        echo "run: $suite: its tools could not be built" >&2
        failed="$failed $suite"
        continue
    fi
    started=$(date +%s)
    if (cd "$directory" && DUET_TEST_PAIR=$part GOFLAGS="${GOFLAGS:-} $modfile" go test -count=1 -p 2 -timeout 60m ${DUET_TEST_FLAGS:-} "$package"); then
        outcome=passed
    else
        outcome=FAILED
        failed="$failed $suite"
    fi
    echo "run: $suite $outcome in $(($(date +%s) - started)) s"
done
[ -z "$failed" ] || { echo "run: failed:$failed" >&2; exit 1; }
