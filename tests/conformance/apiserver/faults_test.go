package apiserver

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"duet.local/conformance/harness/testserver"
	"duet.local/conformance/internal/cluster"
	"duet.local/conformance/internal/etcdclient"
)

// writers create and update config maps until they are stopped, and know what was acknowledged.
type writers struct {
	client *kubernetes.Clientset
	n      int
	stop   context.CancelFunc
	group  sync.WaitGroup
	// begun and acknowledged writes so far, of all writers.
	begun, acknowledged atomic.Int64

	mu      sync.Mutex
	created map[string]bool
	counted map[string]int
	// doubtful writes failed after they may have been applied: one update a writer at most counts more than acknowledged.
	doubtful map[string]int
	// last is when the last write was acknowledged, zero before the first since the start; stalled the longest time between two.
	last    time.Time
	stalled time.Duration
}

func startWriters(client *kubernetes.Clientset, n int) *writers {
	w := &writers{client: client, n: n, created: map[string]bool{}, counted: map[string]int{}, doubtful: map[string]int{}}
	w.start()
	return w
}

// start has them write, at first or again after they have been stopped.
func (w *writers) start() {
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.mu.Lock()
	w.last = time.Time{}
	w.mu.Unlock()
	for i := range w.n {
		w.group.Go(func() { w.write(ctx, i) })
	}
}

func (w *writers) write(ctx context.Context, writer int) {
	configMaps := w.client.CoreV1().ConfigMaps("default")
	counter := fmt.Sprintf("counter-%d", writer)
	for ctx.Err() == nil {
		// Each call ends, whatever the datastore does, and outlives the stop, so that its outcome is known.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		name := fmt.Sprintf("w%d-%06d", writer, w.begun.Add(1))
		if _, err := configMaps.Create(call, configMap(name, name), metav1.CreateOptions{}); err == nil {
			w.acknowledge(func() { w.created[name] = true })
		}
		if current, err := configMaps.Get(call, counter, metav1.GetOptions{}); err == nil {
			var n int
			fmt.Sscan(current.Data["value"], &n)
			current.Data["value"] = fmt.Sprint(n + 1)
			switch _, err := configMaps.Update(call, current, metav1.UpdateOptions{}); {
			case err == nil:
				w.acknowledge(func() { w.counted[counter]++ })
			case !apierrors.IsConflict(err):
				w.mu.Lock()
				w.doubtful[counter]++
				w.mu.Unlock()
			}
		} else if apierrors.IsNotFound(err) {
			_, _ = configMaps.Create(call, configMap(counter, "0"), metav1.CreateOptions{})
		}
		cancel()
	}
}

func (w *writers) acknowledge(note func()) {
	w.mu.Lock()
	note()
	now := time.Now()
	if !w.last.IsZero() {
		w.stalled = max(w.stalled, now.Sub(w.last))
	}
	w.last = now
	w.mu.Unlock()
	w.acknowledged.Add(1)
}

// takeStall returns the longest time between two acknowledged writes since it was asked last.
func (w *writers) takeStall() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	stalled := w.stalled
	w.stalled = 0
	return stalled
}

// more waits until n more writes have been acknowledged.
func (w *writers) more(t *testing.T, datastore interface{ Ended() error }, n int64) {
	t.Helper()
	deadline := time.After(patience)
	for target := w.acknowledged.Load() + n; w.acknowledged.Load() < target; {
		if err := datastore.Ended(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-deadline:
			t.Fatalf("only %d of %d more writes were acknowledged within %v", n-(target-w.acknowledged.Load()), n, patience)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// check stops the writers and compares what was acknowledged, what a consistent list has, and what the informer has.
func (w *writers) check(t *testing.T, informer cache.SharedIndexInformer) {
	t.Helper()
	w.stop()
	w.group.Wait()
	ctx := within(t)
	configMaps := w.client.CoreV1().ConfigMaps("default")
	etcdclient.Must[*corev1.ConfigMap](t)(configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "sentinel-"}}, metav1.CreateOptions{}))
	list := etcdclient.Must[*corev1.ConfigMapList](t)(configMaps.List(ctx, metav1.ListOptions{}))
	listed, values := map[string]string{}, map[string]string{}
	for _, item := range list.Items {
		listed[item.Name], values[item.Name] = item.ResourceVersion, item.Data["value"]
	}
	for name := range w.created {
		if values[name] != name {
			t.Errorf("the acknowledged %s is missing, or holds %q", name, values[name])
		}
	}
	for counter, acknowledged := range w.counted {
		var stored int
		fmt.Sscan(values[counter], &stored)
		if stored < acknowledged || stored > acknowledged+w.doubtful[counter] {
			t.Errorf("%s holds %d after %d acknowledged and %d doubtful updates", counter, stored, acknowledged, w.doubtful[counter])
		}
	}
	// Nobody writes any more, so the informer has to arrive at the list.
	cached := func() map[string]string {
		objects := map[string]string{}
		for _, object := range informer.GetStore().List() {
			if configMap := object.(*corev1.ConfigMap); configMap.Namespace == "default" {
				objects[configMap.Name] = configMap.ResourceVersion
			}
		}
		return objects
	}
	for !equal(cached(), listed) && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	etcdclient.Equal(t, "the informer's cache, against a consistent list", cached(), listed)
	t.Logf("%d acknowledged writes, %d objects", w.acknowledged.Load(), len(listed))
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for key, value := range a {
		if b[key] != value {
			return false
		}
	}
	return true
}

func startInformer(t *testing.T, client *kubernetes.Clientset) cache.SharedIndexInformer {
	t.Helper()
	factory := informers.NewSharedInformerFactory(client, 0)
	informer := factory.Core().V1().ConfigMaps().Informer()
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop); factory.Shutdown() })
	factory.Start(stop)
	if !cache.WaitForCacheSync(within(t).Done(), informer.HasSynced) {
		t.Fatal("the informer did not sync")
	}
	return informer
}

// underLoad runs a fault several times beneath writers and an informer, and checks what is left.
func underLoad(t *testing.T, fault func(t *testing.T, datastore *testserver.Server)) {
	datastore := testserver.Start(t, testserver.Options{})
	c := cluster.Start(t, datastore)
	informer := startInformer(t, c.Client)
	w := startWriters(c.Client, 8)
	t.Cleanup(func() { w.stop(); w.group.Wait() })
	for range cluster.Size(t, "DUET_TEST_RESTARTS", 3) {
		w.more(t, datastore, 200)
		fault(t, datastore)
		w.more(t, datastore, 200)
	}
	w.check(t, informer)
}

func TestNothingAcknowledgedIsLostWhenTheDatastoreIsKilled(t *testing.T) {
	underLoad(t, func(t *testing.T, datastore *testserver.Server) {
		datastore.Kill()
		if err := datastore.Restart(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNothingAcknowledgedIsLostWhenTheDatastoreIsRestarted(t *testing.T) {
	underLoad(t, func(t *testing.T, datastore *testserver.Server) {
		if err := datastore.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := datastore.Restart(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNothingAcknowledgedIsLostWhenDuetsPostgreSQLIsKilled(t *testing.T) {
	if _, kind, err := testserver.UnderTest(); err != nil || kind != testserver.Duet {
		t.Skipf("only Duet has a PostgreSQL (%v)", err)
	}
	underLoad(t, func(t *testing.T, datastore *testserver.Server) {
		pid, err := datastore.PostgresPID()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	})
}
