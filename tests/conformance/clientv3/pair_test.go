package clientv3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"duet.local/conformance/internal/etcdclient"
)

// Of three leases the client and a bare stream keep one each alive, through the follower, which becomes the leader; nobody
// keeps the third, whose end proves that leases end there at all.
func TestLeasesThatAreKeptAliveThroughTheFollowerOutliveTheLossOfTheLeader(t *testing.T) {
	if os.Getenv("DUET_TEST_PAIR") != "follower" {
		t.Skip("the leader is to be lost, and the client's only endpoint to stay: set DUET_TEST_PAIR=follower")
	}
	const ttl = 5
	ctx, client, server := etcdclient.Start(t)
	pair, follower := server.Pair()
	leases := map[string]clientv3.LeaseID{"client": grant(t, client, ttl), "stream": grant(t, client, ttl), "left": grant(t, client, ttl)}
	for key, lease := range leases {
		etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, key, "x", clientv3.WithLease(lease)))
	}
	watch := client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(5))
	renewals := etcdclient.Must[<-chan *clientv3.LeaseKeepAliveResponse](t)(client.KeepAlive(ctx, leases["client"]))
	etcdclient.Receive(t, "the client's first renewal", renewals)

	bare := pb.NewLeaseClient(dial(t, server))
	keeping, stop := context.WithCancel(ctx)
	defer stop()
	renewed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- keepAlive(keeping, bare, int64(leases["stream"]), renewed) }()
	etcdclient.Receive(t, "the bare stream's first renewal", renewed)

	pair.Lose(t, 1-follower)
	lost := time.Now()
	t.Log(pair.UntilTakenOver(t, follower))
	etcdclient.Equal(t, "what went away", etcdclient.Events(t, watch, 1), []string{"DELETE left@5"})
	t.Logf("the lease that nobody kept ended %v after the loss", time.Since(lost).Round(time.Millisecond))

	for len(renewals) > 0 {
		<-renewals
	}
	for past := lost.Add(3 * ttl * time.Second); time.Now().Before(past); {
		etcdclient.Receive(t, "a renewal after the loss", renewals)
	}
	stop()
	if err := etcdclient.Receive(t, "the end of the bare streams", ended); err != nil {
		t.Error(err)
	}
	etcdclient.Equal(t, "what is there", keysOf(get(t, ctx, client, "", clientv3.WithPrefix()).Kvs), "client stream")
	for _, key := range []string{"client", "stream"} {
		lease := etcdclient.Must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, leases[key]))
		if lease.TTL <= 0 || lease.TTL > ttl || lease.GrantedTTL != ttl {
			t.Errorf("the lease of %s has %d s left of %d, %d were asked for", key, lease.TTL, lease.GrantedTTL, ttl)
		}
	}
}

// keepAlive renews a lease each second, until the context ends, on one stream for as long as there is one; after
// Unavailable, and after nothing else, on another one.
func keepAlive(ctx context.Context, client pb.LeaseClient, lease int64, renewed chan<- struct{}) error {
	for {
		err := keepAliveOnOneStream(ctx, client, lease, renewed)
		if ctx.Err() != nil {
			return nil
		}
		if status.Code(err) != codes.Unavailable {
			return fmt.Errorf("a lease's stream ended with %w, want Unavailable", err)
		}
		pause(ctx, 500*time.Millisecond)
	}
}

func keepAliveOnOneStream(ctx context.Context, client pb.LeaseClient, lease int64, renewed chan<- struct{}) error {
	stream, err := client.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	for {
		// A stream that has ended says why to who receives.
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if answer.ID != lease || answer.TTL <= 0 {
			return fmt.Errorf("%v, when the lease should be there", answer)
		}
		select {
		case renewed <- struct{}{}:
		default:
		}
		pause(ctx, time.Second)
	}
}

func pause(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}
