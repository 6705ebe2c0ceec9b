// Package storage runs the tests that Kubernetes has for its storage layer, from its own source, against the server under
// test: etcd3 (the exported RunTest… suites over etcd3.New, and what is specific to etcd), the watch cache over it, the
// factory with health checks and TLS, the generic registry, and the leases of API servers. Each test has a fresh store.
//
// They start their etcd through package embed, which this module's go.mod replaces.
package storage

import (
	"testing"

	"duet.local/conformance/harness/upstream"
)

const apiserver = "k8s.io/apiserver/pkg/"

func TestKubernetesStorageSuitesPass(t *testing.T) {
	results := upstream.Run(t, []string{"-timeout=60m", "-parallel=2"},
		apiserver+"storage/etcd3", apiserver+"storage/cacher", apiserver+"storage/storagebackend/factory",
		apiserver+"registry/generic/registry", apiserver+"reconcilers")

	// Run…: four of the suites for watches have no "Test" in their names.
	t.Run("none of the exported suites is forgotten", func(t *testing.T) {
		upstream.RequireAllRun(t, results, apiserver+"storage/testing", "Run", apiserver+"storage/etcd3", apiserver+"storage/cacher")
	})
}
