package clientv3

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"duet.local/conformance/harness/testserver"
	"duet.local/conformance/internal/etcdclient"
)

// watchCreated starts a watch and returns once the server has registered it.
func watchCreated(t *testing.T, ctx context.Context, watcher clientv3.Watcher, key string, options ...clientv3.OpOption) clientv3.WatchChan {
	t.Helper()
	watch := watcher.Watch(ctx, key, append(options, clientv3.WithCreatedNotify())...)
	if response := etcdclient.Receive(t, "the created response of "+key, watch); !response.Created {
		t.Fatalf("the first response of the watch on %s is %+v, not its creation", key, response)
	}
	return watch
}

func TestAWatchSeesThePresentThePastAndNothingElse(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "w/a", "1", "x", "1", "w/b", "2")
	present := watchCreated(t, ctx, client, "w/", clientv3.WithPrefix())
	past := watchCreated(t, ctx, client, "w/", clientv3.WithPrefix(), clientv3.WithRev(2))
	future := watchCreated(t, ctx, client, "w/", clientv3.WithPrefix(), clientv3.WithRev(7))
	put(t, ctx, client, "w/a", "3", "x", "2")
	etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "w/", clientv3.WithPrefix()))
	put(t, ctx, client, "w/c", "4")

	etcdclient.Equal(t, "from the present", etcdclient.Events(t, present, 4),
		[]string{"PUT w/a=3@5", "DELETE w/a@7", "DELETE w/b@7", "PUT w/c=4@8"})
	etcdclient.Equal(t, "from the past", etcdclient.Events(t, past, 6),
		[]string{"PUT w/a=1@2", "PUT w/b=2@4", "PUT w/a=3@5", "DELETE w/a@7", "DELETE w/b@7", "PUT w/c=4@8"})
	etcdclient.Equal(t, "from the future", etcdclient.Events(t, future, 3),
		[]string{"DELETE w/a@7", "DELETE w/b@7", "PUT w/c=4@8"})
}

func TestEventsOfOneTransactionComeTogetherInTheirOrder(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "gone", "1")
	watch := watchCreated(t, ctx, client, "", clientv3.WithPrefix())
	etcdclient.Must[*clientv3.TxnResponse](t)(client.Txn(ctx).Then(
		clientv3.OpPut("z", "1"), clientv3.OpPut("a", "2"), clientv3.OpDelete("gone"), clientv3.OpPut("m", "3")).Commit())
	response := etcdclient.Receive(t, "the transaction", watch)
	var events []string
	for _, event := range response.Events {
		events = append(events, etcdclient.Describe(event))
	}
	etcdclient.Equal(t, "events of the one response", events, []string{"PUT z=1@3", "PUT a=2@3", "DELETE gone@3", "PUT m=3@3"})
	etcdclient.Equal(t, "header revision", response.Header.Revision, int64(3))
}

func TestWatchOptionsShapeTheEvents(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	previous := watchCreated(t, ctx, client, "k", clientv3.WithPrevKV())
	deletes := watchCreated(t, ctx, client, "k", clientv3.WithFilterPut())
	puts := watchCreated(t, ctx, client, "k", clientv3.WithFilterDelete())
	put(t, ctx, client, "k", "1", "k", "2")
	etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "k"))
	put(t, ctx, client, "k", "3")

	var seen []string
	for len(seen) < 4 {
		for _, event := range etcdclient.Receive(t, "an event with its previous value", previous).Events {
			before := "nothing"
			if event.PrevKv != nil {
				before = fmt.Sprintf("%s@%d", event.PrevKv.Value, event.PrevKv.ModRevision)
			}
			seen = append(seen, etcdclient.Describe(event)+" after "+before)
			if event.IsCreate() != (len(seen) == 1 || len(seen) == 4) {
				t.Errorf("%s: IsCreate is %v", seen[len(seen)-1], event.IsCreate())
			}
		}
	}
	etcdclient.Equal(t, "previous values", seen,
		[]string{"PUT k=1@2 after nothing", "PUT k=2@3 after 1@2", "DELETE k@4 after 2@3", "PUT k=3@5 after nothing"})
	etcdclient.Equal(t, "without puts", etcdclient.Events(t, deletes, 1), []string{"DELETE k@4"})
	etcdclient.Equal(t, "without deletes", etcdclient.Events(t, puts, 3), []string{"PUT k=1@2", "PUT k=2@3", "PUT k=3@5"})
}

func TestAWatchFromACompactedRevisionIsCancelledWithTheRevisionToGoOnFrom(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "k", "1", "k", "2", "k", "3", "k", "4")
	etcdclient.Must[*clientv3.CompactResponse](t)(client.Compact(ctx, 4))
	watch := client.Watch(ctx, "k", clientv3.WithRev(2))
	response := etcdclient.Receive(t, "the cancellation", watch)
	etcdclient.Equal(t, "cancelled", response.Canceled, true)
	etcdclient.Equal(t, "compact revision", response.CompactRevision, int64(4))
	etcdclient.ErrorText(t, "the watch's error", response.Err(), "etcdserver: mvcc: required revision has been compacted")
	if _, open := <-watch; open {
		t.Error("a cancelled watch goes on")
	}
	etcdclient.Equal(t, "from the compacted revision itself", etcdclient.Events(t, client.Watch(ctx, "k", clientv3.WithRev(4)), 2),
		[]string{"PUT k=3@4", "PUT k=4@5"})
}

func TestATombstoneAtTheCompactedRevisionIsStillDelivered(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "k", "1")
	etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "k"))
	etcdclient.Must[*clientv3.CompactResponse](t)(client.Compact(ctx, 3, clientv3.WithCompactPhysical()))
	etcdclient.Equal(t, "from the compacted revision", etcdclient.Events(t, client.Watch(ctx, "k", clientv3.WithRev(3)), 1), []string{"DELETE k@3"})
}

func TestProgressOnRequestComesOnceForTheStreamAndNeverAheadOfEvents(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	watch := watchCreated(t, ctx, client, "k", clientv3.WithPrefix())
	for i := range 50 {
		revision := put(t, ctx, client, fmt.Sprintf("k%d", i), "x", "unwatched", "x")
		if err := client.RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
		// The event may come before the progress and the progress may be of a later revision, but a progress that says
		// `revision` comes after the event of `revision` - 1.
		for seen := false; ; {
			response := etcdclient.Receive(t, "event and progress", watch)
			if len(response.Events) > 0 {
				seen = true
				continue
			}
			if !response.IsProgressNotify() {
				t.Fatalf("neither an event nor a progress: %+v", response)
			}
			if !seen {
				t.Fatalf("progress to revision %d came before the event of revision %d", response.Header.Revision, revision-1)
			}
			etcdclient.Equal(t, "revision of the progress", response.Header.Revision, revision)
			break
		}
	}
}

func TestProgressComesByItselfAtTheConfiguredInterval(t *testing.T) {
	ctx, client, _ := etcdclient.StartWith(t, testserver.Options{ProgressNotifyInterval: 500 * time.Millisecond})
	watch := watchCreated(t, ctx, client, "k", clientv3.WithProgressNotify())
	silent := watchCreated(t, ctx, client, "k")
	revision := put(t, ctx, client, "unwatched", "x")
	for {
		response := etcdclient.Receive(t, "a progress", watch)
		if !response.IsProgressNotify() {
			t.Fatalf("not a progress: %+v", response)
		}
		if response.Header.Revision == revision {
			break
		}
	}
	select {
	case response := <-silent:
		t.Errorf("the watch without progress_notify got %+v", response)
	default:
	}
}

func TestAWatchThatFallsBehindGetsEveryEventOnceAndInOrder(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	const events = 2000
	watch := watchCreated(t, ctx, client, "k", clientv3.WithPrefix())
	late := strings.Repeat("x", 8<<10)
	for i := range events {
		put(t, ctx, client, fmt.Sprintf("k%d", i%10), late)
	}
	next := int64(2)
	for next < events+2 {
		response := etcdclient.Receive(t, fmt.Sprintf("the event of revision %d", next), watch)
		if err := response.Err(); err != nil {
			t.Fatal(err)
		}
		for _, event := range response.Events {
			if event.Kv.ModRevision != next {
				t.Fatalf("after revision %d came %d", next-1, event.Kv.ModRevision)
			}
			next++
		}
	}
}

func TestALargeReplayMayBeFragmentedAndIsWholeAtTheClient(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	operations := make([]clientv3.Op, 100)
	for round := range 3 {
		for i := range operations {
			operations[i] = clientv3.OpPut(fmt.Sprintf("k%02d", i), strings.Repeat(fmt.Sprint(round), 12<<10))
		}
		etcdclient.Must[*clientv3.TxnResponse](t)(client.Txn(ctx).Then(operations...).Commit())
	}
	watch := client.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithFragment())
	var count int
	for count < 300 {
		response := etcdclient.Receive(t, fmt.Sprintf("events after the first %d", count), watch)
		if err := response.Err(); err != nil {
			t.Fatal(err)
		}
		for _, event := range response.Events {
			if want := fmt.Sprintf("k%02d", count%100); string(event.Kv.Key) != want || event.Kv.ModRevision != int64(2+count/100) {
				t.Fatalf("event %d is %s@%d, want %s@%d", count, event.Kv.Key, event.Kv.ModRevision, want, 2+count/100)
			}
			count++
		}
	}
}

func TestWatchesGoOnWhereTheyWereAfterARestart(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	watch := watchCreated(t, ctx, client, "k", clientv3.WithPrefix())
	put(t, ctx, client, "k1", "before")
	etcdclient.Equal(t, "before", etcdclient.Events(t, watch, 1), []string{"PUT k1=before@2"})
	server.Kill()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	put(t, ctx, client, "k2", "after", "k3", "after")
	etcdclient.Equal(t, "after", etcdclient.Events(t, watch, 2), []string{"PUT k2=after@3", "PUT k3=after@4"})
}

func TestManyWatchesOnOneStreamAndManyStreamsAllGetTheirEvents(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	const streams, watches = 10, 50
	var channels []clientv3.WatchChan
	for range streams {
		watcher := clientv3.NewWatcher(client)
		t.Cleanup(func() { watcher.Close() })
		for i := range watches {
			channels = append(channels, watchCreated(t, ctx, watcher, fmt.Sprintf("k%02d", i)))
		}
	}
	for i := range watches {
		put(t, ctx, client, fmt.Sprintf("k%02d", i), "x")
	}
	for i, channel := range channels {
		key := i % watches
		etcdclient.Equal(t, fmt.Sprintf("watch %d", i), etcdclient.Events(t, channel, 1), []string{fmt.Sprintf("PUT k%02d=x@%d", key, key+2)})
	}
}

func TestACancelledWatchEndsAndTheOthersOfItsStreamGoOn(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	short, cancel := context.WithCancel(ctx)
	ended, other := watchCreated(t, short, client, "k"), watchCreated(t, ctx, client, "k")
	cancel()
	for range ended {
	}
	put(t, ctx, client, "k", "1")
	etcdclient.Equal(t, "the other watch", etcdclient.Events(t, other, 1), []string{"PUT k=1@2"})
}
