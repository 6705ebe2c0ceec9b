package storage

// What the upstream tests need and this package doesn't: go.mod lists only what something here imports.
import (
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/stretchr/testify/require"
	_ "k8s.io/apimachinery/pkg/api/apitesting"
	_ "k8s.io/apiserver/pkg/apis/example/v1"
	_ "k8s.io/apiserver/pkg/apis/example2/v1"
	_ "k8s.io/apiserver/pkg/reconcilers"
	_ "k8s.io/apiserver/pkg/registry/generic/registry"
	_ "k8s.io/apiserver/pkg/storage/cacher"
	_ "k8s.io/apiserver/pkg/storage/etcd3"
	_ "k8s.io/apiserver/pkg/storage/etcd3/testing"
	_ "k8s.io/apiserver/pkg/storage/etcd3/testing/testingcert"
	_ "k8s.io/apiserver/pkg/storage/storagebackend/factory"
	_ "k8s.io/apiserver/pkg/storage/testing"
	_ "k8s.io/apiserver/pkg/util/flowcontrol"
	_ "k8s.io/client-go/features/testing"
	_ "k8s.io/client-go/util/watchlist"
	_ "k8s.io/component-base/featuregate/testing"
	_ "k8s.io/component-base/metrics/testutil"
	_ "k8s.io/utils/clock/testing"
	_ "sigs.k8s.io/randfill"
)
