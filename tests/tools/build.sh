#!/bin/sh
# Builds the real peers that Duet is tested against from Go modules, and prints the path of each, one a line.
#
#     tests/tools/build.sh NAME…      NAME: one of the table below
#
# Binaries live in ${DUET_CACHE:-${XDG_CACHE_HOME:-~/.cache}/duet}/bin/<name>-<version>. One that is there and was built
# from the same go.mod, go.sum and flags is not built again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${DUET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/duet}
jobs=${DUET_GO_JOBS:-2}

# Sets module (a folder here), package, version and cgo for a name.
look_up() {
    cgo=0
    case $1 in
        etcd)                    module=etcd; package=go.etcd.io/etcd/server/v3; version=v3.7.3 ;;
        etcdctl | etcdutl)       module=etcd; package=go.etcd.io/etcd/$1/v3; version=v3.7.3 ;;
        kube-apiserver | kube-controller-manager | kube-scheduler)
                                 module=kubernetes-1.36; package=k8s.io/kubernetes/cmd/$1; version=v1.36.3 ;;
        kube-apiserver-1.34)     module=kubernetes-1.34; package=k8s.io/kubernetes/cmd/kube-apiserver; version=v1.34.4 ;;
        kwok)                    module=kwok; package=sigs.k8s.io/kwok/cmd/kwok; version=v0.8.0 ;;
        kine)                    module=kine; package=github.com/k3s-io/kine; version=v0.16.4; cgo=1 ;;
        *) echo "build: unknown name '$1'" >&2; exit 64 ;;
    esac
    case $module in
        # Without it a kube-apiserver calls itself v0.0.0-master and refuses its own feature gates.
        kubernetes-*) ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version" ;;
        kwok)         ldflags="-s -w -X sigs.k8s.io/kwok/pkg/consts.Version=$version" ;;
        *)            ldflags="-s -w" ;;
    esac
}

[ $# -gt 0 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 64; }
mkdir -p "$cache/bin"
for name in "$@"; do
    look_up "$name"
    binary=$cache/bin/${name%-1.*}-$version
    wanted=$(cat "$here/$module/go.mod" "$here/$module/go.sum" | sha256sum | cut -c 1-64)" cgo=$cgo $ldflags"
    (
        flock 9
        [ -x "$binary" ] && [ "$(cat "$binary.stamp" 2>/dev/null)" = "$wanted" ] && exit 0
        gobin=$("$here/ensure-go.sh")
        if [ "$cgo" = 1 ] && ! command -v "${CC:-cc}" >/dev/null; then
            echo "build: $name needs a C compiler: install gcc" >&2
            exit 1
        fi
        echo "build: $name $version" >&2
        rm -f "$binary.stamp"
        cd "$here/$module"
        CGO_ENABLED=$cgo GOWORK=off GOTOOLCHAIN=local "$gobin/go" build -p "$jobs" -trimpath -buildvcs=false \
            -ldflags "$ldflags" -o "$binary.new" "$package" >&2
        mv "$binary.new" "$binary"
        echo "$wanted" >"$binary.stamp"
    ) 9>"$binary.lock"
    echo "$binary"
done
