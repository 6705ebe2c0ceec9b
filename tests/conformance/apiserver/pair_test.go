package apiserver

import (
	"context"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"duet.local/conformance/harness/pair"
	"duet.local/conformance/internal/cluster"
)

// readiness asks an API server again and again whether it is ready, and remembers for how long it wasn't.
type readiness struct {
	stop  context.CancelFunc
	group sync.WaitGroup

	mu      sync.Mutex
	since   time.Time // of the first answer that it isn't, zero while it is
	longest time.Duration
}

func watchReadiness(client *kubernetes.Clientset) *readiness {
	ctx, stop := context.WithCancel(context.Background())
	r := &readiness{stop: stop}
	r.group.Go(func() {
		for ctx.Err() == nil {
			// An answer that doesn't come is none.
			asked, cancel := context.WithTimeout(ctx, time.Second)
			began := time.Now()
			err := client.RESTClient().Get().AbsPath("/readyz").Do(asked).Error()
			cancel()
			r.mu.Lock()
			if err != nil && r.since.IsZero() {
				r.since = began
			} else if err == nil && !r.since.IsZero() {
				r.longest = max(r.longest, time.Since(r.since))
				r.since = time.Time{}
			}
			r.mu.Unlock()
			time.Sleep(20 * time.Millisecond)
		}
	})
	return r
}

// take returns the longest time without readiness since it was asked last.
func (r *readiness) take() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	longest := r.longest
	if !r.since.IsZero() {
		longest = max(longest, time.Since(r.since))
	}
	r.longest = 0
	return longest
}

// unreadyMax is how long an API server may be without readiness, whatever happens to one node of its pair, on a machine that
// does nothing else. Such machines run no tests: DUET_TEST_SLOWNESS is how much slower this one may be.
const (
	unreadyMax = 2 * time.Second
	slowness   = 5
)

// An API server on a pair, with writers and an informer: whatever is lost, the API server is soon ready again, nothing that
// was acknowledged is missing, and the informer and a list agree.
func TestAPIServerOnAPair(t *testing.T) {
	allowed := unreadyMax * time.Duration(cluster.Size(t, "DUET_TEST_SLOWNESS", slowness))
	datastore := pair.Start(t)
	c := cluster.StartOn(t, datastore.Endpoints())
	informer := startInformer(t, c.Client)
	ready := watchReadiness(c.Client)
	t.Cleanup(func() { ready.stop(); ready.group.Wait() })
	w := startWriters(c.Client, 8)
	t.Cleanup(func() { w.stop(); w.group.Wait() })

	lost := func(t *testing.T, leader int) {
		datastore.Lose(t, leader)
		t.Log(datastore.UntilTakenOver(t, 1-leader))
		w.more(t, datastore, 200)
		datastore.StartNode(t, leader)
	}
	events := []struct {
		name string
		do   func(t *testing.T, leader int)
	}{
		{"the leader's machine is lost", lost},
		{"and the other one's, too", lost},
		{"the leader's PostgreSQL is killed", func(t *testing.T, leader int) { datastore.KillPostgres(t, leader) }},
		{"the leader's Duet is frozen", func(t *testing.T, leader int) { datastore.Freeze(t, leader) }},
		{"the follower's machine is lost", func(t *testing.T, leader int) {
			datastore.Lose(t, 1-leader)
			w.more(t, datastore, 200)
			datastore.StartNode(t, 1-leader)
		}},
		{"a switchover", func(t *testing.T, leader int) { datastore.Switchover(t, leader) }},
		{"each node is stopped and started again, one at a time", func(t *testing.T, leader int) {
			for _, node := range []int{1 - leader, leader} {
				datastore.StopNode(t, node)
				w.more(t, datastore, 200)
				datastore.StartNode(t, node)
				datastore.UntilPaired(t)
			}
		}},
	}
	for _, event := range events {
		leader := datastore.UntilPaired(t)
		w.more(t, datastore, 200)
		ready.take()
		w.takeStall()
		event.do(t, leader)
		w.more(t, datastore, 200)
		unready := ready.take().Round(time.Millisecond)
		// An API server asks its datastore with two seconds of patience, so it overlooks what writers feel.
		t.Logf("%s: not ready for %v, no write acknowledged for %v", event.name, unready, w.takeStall().Round(time.Millisecond))
		if unready > allowed {
			t.Errorf("%s: the API server was not ready for %v, more than %v", event.name, unready, allowed)
		}
		w.check(t, informer)
		w.start()
	}
	datastore.UntilPaired(t)
	w.check(t, informer)
}
