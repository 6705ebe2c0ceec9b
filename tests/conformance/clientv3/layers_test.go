package clientv3

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"

	"duet.local/conformance/internal/etcdclient"
)

// The packages that etcd's client module builds on KV, Watch and Lease.

func TestANamespaceHidesItsPrefix(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	inner := etcdclient.New(t, server)
	inner.KV = namespace.NewKV(client.KV, "ns/")
	inner.Watcher = namespace.NewWatcher(client.Watcher, "ns/")
	inner.Lease = namespace.NewLease(client.Lease, "ns/")
	watch := watchCreated(t, ctx, inner, "", clientv3.WithPrefix())
	put(t, ctx, client, "outside", "x", "ns0", "x")
	lease := grant(t, inner, 600)
	etcdclient.Must[*clientv3.TxnResponse](t)(inner.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision("a"), "=", 0)).
		Then(clientv3.OpPut("a", "1", clientv3.WithLease(lease))).Commit())
	etcdclient.Equal(t, "events", etcdclient.Events(t, watch, 1), []string{"PUT a=1@4"})
	etcdclient.Equal(t, "keys inside", keysOf(get(t, ctx, inner, "", clientv3.WithPrefix()).Kvs), "a")
	etcdclient.Equal(t, "keys outside", keysOf(get(t, ctx, client, "", clientv3.WithPrefix()).Kvs), "ns/a ns0 outside")
	attached := etcdclient.Must[*clientv3.LeaseTimeToLiveResponse](t)(inner.TimeToLive(ctx, lease, clientv3.WithAttachedKeys()))
	etcdclient.Equal(t, "keys of the lease", attached.Keys, [][]byte{[]byte("a")})
}

func TestLeasedKeysAreServedFromTheClientUntilSomebodyWrites(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	leased := func() clientv3.KV {
		kv, stop, err := leasing.NewKV(etcdclient.New(t, server), "leases/", concurrency.WithTTL(5))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		return kv
	}
	owner, other := leased(), leased()
	put(t, ctx, client, "k", "1")
	for range 2 {
		etcdclient.Equal(t, "owner's read", string(get(t, ctx, owner, "k").Kvs[0].Value), "1")
	}
	etcdclient.Equal(t, "lease keys", keysOf(get(t, ctx, client, "leases/", clientv3.WithPrefix()).Kvs), "leases/k")
	// The other's write has to take the ownership away first.
	put(t, ctx, other, "k", "2")
	etcdclient.Equal(t, "owner's read after the other's write", string(get(t, ctx, owner, "k").Kvs[0].Value), "2")
	swapped := etcdclient.Must[*clientv3.TxnResponse](t)(owner.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "2")).
		Then(clientv3.OpPut("k", "3")).Commit())
	etcdclient.Equal(t, "owner's swap", swapped.Succeeded, true)
	etcdclient.Must[*clientv3.DeleteResponse](t)(other.Delete(ctx, "k", clientv3.WithPrefix()))
	etcdclient.Equal(t, "owner's read after the delete", len(get(t, ctx, owner, "k").Kvs), 0)
}

func TestAMirrorHasWhatTheOriginalHas(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	want := map[string]string{}
	// More than the 1,000 keys that the mirror reads at once.
	for i := range 1500 {
		key := fmt.Sprintf("m/%04d", i)
		put(t, ctx, client, key, "base")
		want[key] = "base"
	}
	syncer := mirror.NewSyncer(client, "m/", 0)
	base, failed := syncer.SyncBase(ctx)
	got := map[string]string{}
	for page := range base {
		for _, kv := range page.Kvs {
			got[string(kv.Key)] = string(kv.Value)
		}
	}
	for err := range failed {
		t.Fatal(err)
	}
	updates := syncer.SyncUpdates(ctx)
	put(t, ctx, client, "m/0000", "changed", "m/new", "x")
	etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "m/0001"))
	want["m/0000"], want["m/new"] = "changed", "x"
	delete(want, "m/0001")
	for events := 0; events < 3; {
		for _, event := range etcdclient.Receive(t, "an update", updates).Events {
			if events++; event.Type == clientv3.EventTypeDelete {
				delete(got, string(event.Kv.Key))
			} else {
				got[string(event.Kv.Key)] = string(event.Kv.Value)
			}
		}
	}
	etcdclient.Equal(t, "mirror", got, want)
}

func TestAnOrderedClientNeverSeesAnOlderRevision(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	kv := ordering.NewKV(client.KV, func(clientv3.Op, clientv3.OpResponse, int64) error {
		t.Error("an answer was older than one before it")
		return nil
	})
	for i := range 50 {
		put(t, ctx, client, "k", fmt.Sprint(i))
		etcdclient.Equal(t, "serializable read after the write", string(get(t, ctx, kv, "k", clientv3.WithSerializable()).Kvs[0].Value), fmt.Sprint(i))
	}
}

func TestEndpointsOfAServiceAreListedAndWatched(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	manager := etcdclient.Must[endpoints.Manager](t)(endpoints.NewManager(client, "service"))
	watch := etcdclient.Must[endpoints.WatchChannel](t)(manager.NewWatchChannel(ctx))
	if err := manager.AddEndpoint(ctx, "service/1", endpoints.Endpoint{Addr: "10.0.0.1:80"}); err != nil {
		t.Fatal(err)
	}
	added := etcdclient.Receive(t, "the added endpoint", watch)
	etcdclient.Equal(t, "added", added[0].Endpoint.Addr, "10.0.0.1:80")
	list := etcdclient.Must[endpoints.Key2EndpointMap](t)(manager.List(ctx))
	etcdclient.Equal(t, "listed", list["service/1"].Addr, "10.0.0.1:80")
	if err := manager.DeleteEndpoint(ctx, "service/1"); err != nil {
		t.Fatal(err)
	}
	removed := etcdclient.Receive(t, "the removed endpoint", watch)
	etcdclient.Equal(t, "removed", removed[0].Op, endpoints.Delete)
}

func TestKubernetesClientInterfaceAnswersAsItsDocumentationSays(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	k8s := kubernetes.Client{Client: client}
	created := etcdclient.Must[kubernetes.PutResponse](t)(k8s.OptimisticPut(ctx, "/registry/pods/a", []byte("1"), 0, kubernetes.PutOptions{}))
	etcdclient.Equal(t, "create", fmt.Sprint(created.Succeeded, created.Revision), "true 2")
	conflict := etcdclient.Must[kubernetes.PutResponse](t)(k8s.OptimisticPut(ctx, "/registry/pods/a", []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	etcdclient.Equal(t, "second create", fmt.Sprintf("%v %d %s", conflict.Succeeded, conflict.Revision, conflict.KV.Value), "false 2 1")
	updated := etcdclient.Must[kubernetes.PutResponse](t)(k8s.OptimisticPut(ctx, "/registry/pods/a", []byte("2"), 2, kubernetes.PutOptions{}))
	etcdclient.Equal(t, "update", fmt.Sprint(updated.Succeeded, updated.Revision), "true 3")
	for _, name := range []string{"b", "c"} {
		etcdclient.Must[kubernetes.PutResponse](t)(k8s.OptimisticPut(ctx, "/registry/pods/"+name, []byte("x"), 0, kubernetes.PutOptions{}))
	}
	page := etcdclient.Must[kubernetes.ListResponse](t)(k8s.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 2}))
	etcdclient.Equal(t, "page", fmt.Sprintf("%s %d %d", keysOf(page.Kvs), page.Count, page.Revision), "/registry/pods/a /registry/pods/b 3 5")
	rest := etcdclient.Must[kubernetes.ListResponse](t)(k8s.List(ctx, "/registry/pods/",
		kubernetes.ListOptions{Limit: 2, Revision: page.Revision, Continue: "/registry/pods/b\x00"}))
	etcdclient.Equal(t, "rest", fmt.Sprintf("%s %d", keysOf(rest.Kvs), rest.Count), "/registry/pods/c 1")
	etcdclient.Equal(t, "count", etcdclient.Must[int64](t)(k8s.Count(ctx, "/registry/pods/", kubernetes.CountOptions{})), int64(3))
	failed := etcdclient.Must[kubernetes.DeleteResponse](t)(k8s.OptimisticDelete(ctx, "/registry/pods/a", 2, kubernetes.DeleteOptions{GetOnFailure: true}))
	etcdclient.Equal(t, "delete at an old revision", fmt.Sprintf("%v %s", failed.Succeeded, failed.KV.Value), "false 2")
	deleted := etcdclient.Must[kubernetes.DeleteResponse](t)(k8s.OptimisticDelete(ctx, "/registry/pods/a", 3, kubernetes.DeleteOptions{}))
	etcdclient.Equal(t, "delete", fmt.Sprint(deleted.Succeeded, deleted.Revision), "true 6")
	gone := etcdclient.Must[kubernetes.GetResponse](t)(k8s.Get(ctx, "/registry/pods/a", kubernetes.GetOptions{}))
	if gone.KV != nil || gone.Revision != 6 {
		t.Errorf("a deleted key is answered with %v at revision %d", gone.KV, gone.Revision)
	}
}
