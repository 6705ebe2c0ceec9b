package clientv3

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"duet.local/conformance/internal/etcdclient"
)

func grant(t *testing.T, client *clientv3.Client, ttl int64) clientv3.LeaseID {
	t.Helper()
	return etcdclient.Must[*clientv3.LeaseGrantResponse](t)(client.Grant(etcdclient.Context(t), ttl)).ID
}

func TestALeaseThatEndsTakesItsKeysWithItInOneRevision(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	for name, end := range map[string]func(id clientv3.LeaseID) error{
		"revoked": func(id clientv3.LeaseID) error { _, err := client.Revoke(ctx, id); return err },
		"expired": func(clientv3.LeaseID) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			id := grant(t, client, 2)
			for _, key := range []string{"b", "a", "c"} {
				etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, key, "x", clientv3.WithLease(id)))
			}
			// A put without the lease takes the key away from it.
			revision := put(t, ctx, client, "c", "kept")
			watch := watchCreated(t, ctx, client, "", clientv3.WithPrefix())
			if err := end(id); err != nil {
				t.Fatal(err)
			}
			response := etcdclient.Receive(t, "the deletes", watch)
			var events []string
			for _, event := range response.Events {
				if event.Kv.ModRevision != revision+1 {
					t.Errorf("%s, want revision %d", etcdclient.Describe(event), revision+1)
				}
				events = append(events, event.Type.String()+" "+string(event.Kv.Key))
			}
			etcdclient.Equal(t, "events", events, []string{"DELETE a", "DELETE b"})
			etcdclient.Equal(t, "keys left", keysOf(get(t, ctx, client, "", clientv3.WithPrefix()).Kvs), "c")
		})
	}
}

func TestALeaseThatIsKeptAliveOutlivesItsTTL(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	kept, left := grant(t, client, 2), grant(t, client, 4)
	etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, "kept", "x", clientv3.WithLease(kept)))
	etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, "left", "x", clientv3.WithLease(left)))
	watch := watchCreated(t, ctx, client, "", clientv3.WithPrefix())
	renewals := etcdclient.Must[<-chan *clientv3.LeaseKeepAliveResponse](t)(client.KeepAlive(ctx, kept))
	go func() {
		for range renewals {
		}
	}()
	// The other lease lasts twice as long, so its end proves that the kept one has passed its own.
	etcdclient.Equal(t, "what went away", etcdclient.Events(t, watch, 1), []string{"DELETE left@4"})
	etcdclient.Equal(t, "what is there", keysOf(get(t, ctx, client, "", clientv3.WithPrefix()).Kvs), "kept")
}

func TestLeaseAnswersTellWhatThereIs(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	first, second := grant(t, client, 600), grant(t, client, 300)
	for _, key := range []string{"b", "a"} {
		etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, key, "x", clientv3.WithLease(first)))
	}
	lease := etcdclient.Must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, first, clientv3.WithAttachedKeys()))
	etcdclient.Equal(t, "granted TTL", lease.GrantedTTL, int64(600))
	if lease.TTL <= 0 || lease.TTL > 600 {
		t.Errorf("the remaining TTL is %d of 600", lease.TTL)
	}
	attached := map[string]bool{}
	for _, key := range lease.Keys {
		attached[string(key)] = true
	}
	etcdclient.Equal(t, "attached keys", attached, map[string]bool{"a": true, "b": true})

	all := map[clientv3.LeaseID]bool{}
	for _, lease := range etcdclient.Must[*clientv3.LeaseLeasesResponse](t)(client.Leases(ctx)).Leases {
		all[lease.ID] = true
	}
	etcdclient.Equal(t, "leases", all, map[clientv3.LeaseID]bool{first: true, second: true})

	renewed := etcdclient.Must[*clientv3.LeaseKeepAliveResponse](t)(client.KeepAliveOnce(ctx, first))
	etcdclient.Equal(t, "TTL after a renewal", renewed.TTL, int64(600))

	unknown := etcdclient.Must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, 4711))
	etcdclient.Equal(t, "TTL of an unknown lease", unknown.TTL, int64(-1))
	_, err := client.KeepAliveOnce(ctx, 4711)
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("renewing an unknown lease: %v", err)
	}
	_, err = client.Revoke(ctx, 4711)
	etcdclient.ErrorText(t, "revoking an unknown lease", err, "etcdserver: requested lease not found")
	_, err = client.Grant(ctx, 9_000_000_001)
	etcdclient.ErrorText(t, "a lease for too long", err, "etcdserver: too large lease TTL")
}

func TestLeasesAndTheirKeysAreThereAfterARestart(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	long, short := grant(t, client, 600), grant(t, client, 3)
	etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, "long", "x", clientv3.WithLease(long)))
	etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, "short", "x", clientv3.WithLease(short)))
	server.Kill()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	watch := client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(4))
	etcdclient.Equal(t, "what went away", etcdclient.Events(t, watch, 1), []string{"DELETE short@4"})
	lease := etcdclient.Must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, long, clientv3.WithAttachedKeys()))
	etcdclient.Equal(t, "granted TTL", lease.GrantedTTL, int64(600))
	etcdclient.Equal(t, "attached keys", lease.Keys, [][]byte{[]byte("long")})
}
