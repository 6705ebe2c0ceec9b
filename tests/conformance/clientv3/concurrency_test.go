package clientv3

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"duet.local/conformance/internal/etcdclient"
)

func session(t *testing.T, client *clientv3.Client, options ...concurrency.SessionOption) *concurrency.Session {
	t.Helper()
	session := etcdclient.Must[*concurrency.Session](t)(concurrency.NewSession(client, options...))
	t.Cleanup(func() { session.Close() })
	return session
}

func TestAMutexLetsOneInAtATime(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	const holders, rounds = 8, 10
	var (
		group  sync.WaitGroup
		inside int
	)
	for range holders {
		// Each with a connection and a session of its own, as the processes that need a lock have.
		held := session(t, etcdclient.New(t, server))
		group.Go(func() {
			mutex := concurrency.NewMutex(held, "/lock")
			for range rounds {
				if err := mutex.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				// The race detector would see it too, were the lock not one.
				inside++
				if inside != 1 {
					t.Errorf("%d hold the lock", inside)
				}
				inside--
				if err := mutex.Unlock(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	etcdclient.Equal(t, "keys of waiters left", len(get(t, ctx, client, "/lock", clientv3.WithPrefix()).Kvs), 0)
}

func TestALockIsFreedWhenItsSessionEndsAndTryLockDoesNotWait(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	dying := session(t, etcdclient.New(t, server), concurrency.WithTTL(2))
	if err := concurrency.NewMutex(dying, "/lock").Lock(ctx); err != nil {
		t.Fatal(err)
	}
	next := concurrency.NewMutex(session(t, client), "/lock")
	if err := next.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("TryLock on a held lock: %v", err)
	}
	// Orphan stops the renewals, as a crash would; the lease has to expire.
	dying.Orphan()
	if err := next.Lock(ctx); err != nil {
		t.Errorf("the lock of a dead session: %v", err)
	}
}

func TestAnElectionHasOneLeaderAndPassesOn(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	observed := concurrency.NewElection(session(t, client), "/election").Observe(ctx)
	first := concurrency.NewElection(session(t, etcdclient.New(t, server)), "/election")
	second := concurrency.NewElection(session(t, etcdclient.New(t, server)), "/election")
	if _, err := first.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Errorf("the leader of nobody: %v", err)
	}
	if err := first.Campaign(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	won := make(chan error, 1)
	go func() { won <- second.Campaign(ctx, "second") }()
	leader := func(want string) {
		t.Helper()
		response := etcdclient.Receive(t, "the leader "+want, observed)
		etcdclient.Equal(t, "observed leader", string(response.Kvs[0].Value), want)
	}
	leader("first")
	if err := first.Proclaim(ctx, "first again"); err != nil {
		t.Fatal(err)
	}
	leader("first again")
	select {
	case err := <-won:
		t.Fatalf("the second won beside the first: %v", err)
	default:
	}
	if err := first.Resign(ctx); err != nil {
		t.Fatal(err)
	}
	if err := etcdclient.Receive(t, "the second's victory", won); err != nil {
		t.Fatal(err)
	}
	leader("second")
	if err := first.Proclaim(ctx, "too late"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		t.Errorf("a proclamation of one who resigned: %v", err)
	}
}

func TestSoftwareTransactionsConserveTheSum(t *testing.T) {
	for name, isolation := range map[string]concurrency.Isolation{
		"serializable snapshot": concurrency.SerializableSnapshot,
		"serializable":          concurrency.Serializable,
		"repeatable reads":      concurrency.RepeatableReads,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, client, _ := etcdclient.Start(t)
			const accounts, workers, transfers, each = 5, 8, 20, 100
			for i := range accounts {
				put(t, ctx, client, fmt.Sprintf("account/%d", i), fmt.Sprint(each))
			}
			var group sync.WaitGroup
			for worker := range workers {
				group.Go(func() {
					for i := range transfers {
						from, to := fmt.Sprintf("account/%d", (worker+i)%accounts), fmt.Sprintf("account/%d", (worker+2*i+1)%accounts)
						if from == to {
							continue
						}
						_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
							var a, b int
							fmt.Sscan(stm.Get(from), &a)
							fmt.Sscan(stm.Get(to), &b)
							stm.Put(from, fmt.Sprint(a-1))
							stm.Put(to, fmt.Sprint(b+1))
							return nil
						}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			sum := 0
			for _, kv := range get(t, ctx, client, "account/", clientv3.WithPrefix()).Kvs {
				var balance int
				fmt.Sscan(string(kv.Value), &balance)
				sum += balance
			}
			etcdclient.Equal(t, "sum of all accounts", sum, accounts*each)
		})
	}
}

func TestASessionEndsWithItsLease(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	held := session(t, client, concurrency.WithTTL(3))
	etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, "mine", "x", clientv3.WithLease(held.Lease())))
	etcdclient.Must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(context.Background(), held.Lease()))
	select {
	case <-held.Done():
	case <-ctx.Done():
		t.Fatal("the session of a revoked lease goes on")
	}
	etcdclient.Equal(t, "keys left", len(get(t, ctx, client, "mine").Kvs), 0)
}
