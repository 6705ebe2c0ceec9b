// Package apiserver runs a real kube-apiserver on the server under test, and a client that writes, lists, watches and
// caches as controllers do, while the datastore is compacted, killed and started again beneath it.
//
// Sizes: DUET_TEST_CONFIGMAPS (2,000), DUET_TEST_NAMESPACES (20), DUET_TEST_SECRETS (500), DUET_TEST_CUSTOM (500),
// DUET_TEST_LEASES (100), DUET_TEST_EVENTS (200), DUET_TEST_RESTARTS (3). DUET_TEST_SLOWNESS (5) multiplies how
// long an API server on a pair may be without readiness.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"duet.local/conformance/harness/testserver"
	"duet.local/conformance/internal/cluster"
	"duet.local/conformance/internal/etcdclient"
)

// patience is how long a test waits for what must happen; with thousands of objects on a small machine that is long.
const patience = 5 * time.Minute

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// inParallel calls f for 0 to n-1, eight at a time.
func inParallel(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var group errgroup.Group
	group.SetLimit(8)
	for i := range n {
		group.Go(func() error { return f(i) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"made-by": "conformance"}},
		Data: map[string]string{"value": value, "padding": strings.Repeat("x", 1024)}}
}

// untilEvent reads a watch until the test accepts an event.
func untilEvent(t *testing.T, ctx context.Context, what string, events watch.Interface, accept func(watch.Event) bool) {
	t.Helper()
	for {
		select {
		case event, open := <-events.ResultChan():
			if !open {
				t.Fatalf("%s: the watch ended", what)
			}
			if event.Type == watch.Error {
				t.Fatalf("%s: the watch failed: %v", what, apierrors.FromObject(event.Object))
			}
			if accept(event) {
				return
			}
		case <-ctx.Done():
			t.Fatalf("%s: did not happen within %v", what, patience)
		}
	}
}

func TestAKubeAPIServerWorks(t *testing.T) {
	datastore := testserver.Start(t, testserver.Options{})
	c := cluster.Start(t, datastore, "--event-ttl=5s")

	t.Run("namespaces, config maps and secrets are kept and listed", func(t *testing.T) { keepsAndLists(t, c.Client) })
	t.Run("custom resources are defined, stored and watched", func(t *testing.T) { customResources(t, c) })
	t.Run("leases are renewed and conflicts are noticed", func(t *testing.T) { renewsLeases(t, c.Client) })
	t.Run("events expire", func(t *testing.T) { expiresEvents(t, c.Client) })
	t.Run("a watch sees every change once and in order", func(t *testing.T) { watches(t, c.Client) })
	t.Run("server-side apply keeps owners apart", func(t *testing.T) { applies(t, c.Client) })
	t.Run("a collection is deleted at once", func(t *testing.T) { deletesCollections(t, c.Client) })
}

func keepsAndLists(t *testing.T, client *kubernetes.Clientset) {
	ctx := within(t)
	namespaces, configMaps, secrets := cluster.Size(t, "DUET_TEST_NAMESPACES", 20), cluster.Size(t, "DUET_TEST_CONFIGMAPS", 2000), cluster.Size(t, "DUET_TEST_SECRETS", 500)
	inParallel(t, namespaces, func(i int) error {
		_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i)}}, metav1.CreateOptions{})
		return err
	})
	want := make([]map[string]string, namespaces)
	versions := make([]string, configMaps)
	begun := time.Now()
	inParallel(t, configMaps, func(i int) error {
		created, err := client.CoreV1().ConfigMaps(fmt.Sprintf("n%d", i%namespaces)).Create(ctx, configMap(fmt.Sprintf("c%05d", i), fmt.Sprint(i)), metav1.CreateOptions{})
		if err == nil {
			versions[i] = created.ResourceVersion
		}
		return err
	})
	t.Logf("%d config maps were created in %v", configMaps, time.Since(begun).Round(time.Millisecond))
	inParallel(t, secrets, func(i int) error {
		_, err := client.CoreV1().Secrets(fmt.Sprintf("n%d", i%namespaces)).Create(ctx,
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%05d", i)}, Data: map[string][]byte{"bytes": {0, byte(i), 0xff}}}, metav1.CreateOptions{})
		return err
	})
	for i := range configMaps {
		if want[i%namespaces] == nil {
			want[i%namespaces] = map[string]string{}
		}
		want[i%namespaces][fmt.Sprintf("c%05d", i)] = versions[i]
	}
	named := func(list *corev1.ConfigMapList) map[string]string {
		found := map[string]string{}
		for _, item := range list.Items {
			if item.Name != "kube-root-ca.crt" {
				found[item.Name] = item.ResourceVersion
			}
		}
		return found
	}
	for i := range namespaces {
		namespace := client.CoreV1().ConfigMaps(fmt.Sprintf("n%d", i))
		consistent := etcdclient.Must[*corev1.ConfigMapList](t)(namespace.List(ctx, metav1.ListOptions{}))
		etcdclient.Equal(t, "a consistent list", named(consistent), want[i])
		cached := etcdclient.Must[*corev1.ConfigMapList](t)(namespace.List(ctx, metav1.ListOptions{
			ResourceVersion: consistent.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}))
		etcdclient.Equal(t, "a list from the cache", named(cached), want[i])
		exact := etcdclient.Must[*corev1.ConfigMapList](t)(namespace.List(ctx, metav1.ListOptions{
			ResourceVersion: consistent.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact, Limit: 100000}))
		etcdclient.Equal(t, "a list at an exact revision", named(exact), want[i])
	}
	// All namespaces in pages; what is written meanwhile doesn't show.
	pages, all := 0, map[string]string{}
	for options := (metav1.ListOptions{Limit: 150, LabelSelector: "made-by=conformance"}); ; pages++ {
		page := etcdclient.Must[*corev1.ConfigMapList](t)(client.CoreV1().ConfigMaps("").List(ctx, options))
		for name, version := range named(page) {
			if _, twice := all[name]; twice {
				t.Errorf("%s is on two pages", name)
			}
			all[name] = version
		}
		if page.Continue == "" {
			break
		}
		options.Continue = page.Continue
		etcdclient.Must[*corev1.ConfigMap](t)(client.CoreV1().ConfigMaps("n0").Create(ctx, configMap(fmt.Sprintf("c-late-%d", pages), ""), metav1.CreateOptions{}))
	}
	merged := map[string]string{}
	for _, one := range want {
		for name, version := range one {
			merged[name] = version
		}
	}
	etcdclient.Equal(t, fmt.Sprintf("the list of %d pages", pages+1), all, merged)
	secretsListed := etcdclient.Must[*corev1.SecretList](t)(client.CoreV1().Secrets("").List(ctx, metav1.ListOptions{}))
	for _, secret := range secretsListed.Items {
		var i int
		if _, err := fmt.Sscanf(secret.Name, "s%05d", &i); err == nil && string(secret.Data["bytes"]) != string([]byte{0, byte(i), 0xff}) {
			t.Errorf("secret %s came back as %v", secret.Name, secret.Data["bytes"])
		}
	}
	etcdclient.Equal(t, "secrets", len(secretsListed.Items), secrets)
}

var (
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	widgets     = schema.GroupVersionResource{Group: "conformance.local", Version: "v1", Resource: "widgets"}
)

func customResources(t *testing.T, c *cluster.Cluster) {
	ctx := within(t)
	definition := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "widgets.conformance.local"},
		"spec": map[string]any{
			"group": "conformance.local", "scope": "Namespaced",
			"names": map[string]any{"plural": "widgets", "singular": "widget", "kind": "Widget"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{
					"spec": map[string]any{"type": "object", "properties": map[string]any{"size": map[string]any{"type": "integer"}}}}}}}},
		}}}
	established := etcdclient.Must[watch.Interface](t)(c.Dynamic.Resource(definitions).Watch(ctx, metav1.ListOptions{}))
	defer established.Stop()
	etcdclient.Must[*unstructured.Unstructured](t)(c.Dynamic.Resource(definitions).Create(ctx, definition, metav1.CreateOptions{}))
	untilEvent(t, ctx, "the definition's Established condition", established, func(event watch.Event) bool {
		conditions, _, _ := unstructured.NestedSlice(event.Object.(*unstructured.Unstructured).Object, "status", "conditions")
		for _, condition := range conditions {
			if fields := condition.(map[string]any); fields["type"] == "Established" && fields["status"] == "True" {
				return true
			}
		}
		return false
	})
	n := cluster.Size(t, "DUET_TEST_CUSTOM", 500)
	resource := c.Dynamic.Resource(widgets).Namespace("default")
	var events watch.Interface
	// The handler of a new kind is installed a moment after the condition.
	for err := error(nil); events == nil; {
		if events, err = resource.Watch(ctx, metav1.ListOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		} else if err != nil {
			events = nil
			time.Sleep(50 * time.Millisecond)
		}
	}
	defer events.Stop()
	inParallel(t, n, func(i int) error {
		_, err := resource.Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "conformance.local/v1", "kind": "Widget",
			"metadata": map[string]any{"name": fmt.Sprintf("w%05d", i)}, "spec": map[string]any{"size": int64(i)}}}, metav1.CreateOptions{})
		return err
	})
	seen := map[string]bool{}
	untilEvent(t, ctx, "an event for each custom resource", events, func(event watch.Event) bool {
		seen[event.Object.(*unstructured.Unstructured).GetName()] = true
		return len(seen) == n
	})
	list := etcdclient.Must[*unstructured.UnstructuredList](t)(resource.List(ctx, metav1.ListOptions{}))
	etcdclient.Equal(t, "custom resources", len(list.Items), n)
}

func renewsLeases(t *testing.T, client *kubernetes.Clientset) {
	ctx := within(t)
	leases := client.CoordinationV1().Leases("default")
	inParallel(t, cluster.Size(t, "DUET_TEST_LEASES", 100), func(i int) error {
		lease, err := leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("l%d", i)}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		stale := lease.DeepCopy()
		for range 5 {
			now := metav1.NowMicro()
			lease.Spec.RenewTime = &now
			if lease, err = leases.Update(ctx, lease, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
		if _, err = leases.Update(ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return fmt.Errorf("an update of %s from its first version: %v, want a conflict", lease.Name, err)
		}
		return nil
	})
}

func expiresEvents(t *testing.T, client *kubernetes.Clientset) {
	ctx := within(t)
	n := cluster.Size(t, "DUET_TEST_EVENTS", 200)
	namespace := etcdclient.Must[*corev1.Namespace](t)(client.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "events"}}, metav1.CreateOptions{})).Name
	events := etcdclient.Must[watch.Interface](t)(client.CoreV1().Events(namespace).Watch(ctx, metav1.ListOptions{}))
	defer events.Stop()
	inParallel(t, n, func(i int) error {
		_, err := client.CoreV1().Events(namespace).Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("e%d", i)},
			InvolvedObject: corev1.ObjectReference{Namespace: namespace}}, metav1.CreateOptions{})
		return err
	})
	deleted := 0
	untilEvent(t, ctx, "the expiry of every event", events, func(event watch.Event) bool {
		if event.Type == watch.Deleted {
			deleted++
		}
		return deleted == n
	})
	left := etcdclient.Must[*corev1.EventList](t)(client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{}))
	etcdclient.Equal(t, "events left", len(left.Items), 0)
}

func watches(t *testing.T, client *kubernetes.Clientset) {
	ctx := within(t)
	configMaps := client.CoreV1().ConfigMaps("default")
	start := etcdclient.Must[*corev1.ConfigMapList](t)(configMaps.List(ctx, metav1.ListOptions{})).ResourceVersion
	const changes = 100
	object := etcdclient.Must[*corev1.ConfigMap](t)(configMaps.Create(ctx, configMap("watched", "0"), metav1.CreateOptions{}))
	for i := 1; i < changes; i++ {
		object.Data["value"] = fmt.Sprint(i)
		object = etcdclient.Must[*corev1.ConfigMap](t)(configMaps.Update(ctx, object, metav1.UpdateOptions{}))
	}
	if err := configMaps.Delete(ctx, "watched", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	events := etcdclient.Must[watch.Interface](t)(configMaps.Watch(ctx, metav1.ListOptions{ResourceVersion: start, FieldSelector: "metadata.name=watched"}))
	defer events.Stop()
	var seen []string
	untilEvent(t, ctx, "the delete", events, func(event watch.Event) bool {
		seen = append(seen, fmt.Sprintf("%s %s", event.Type, event.Object.(*corev1.ConfigMap).Data["value"]))
		return event.Type == watch.Deleted
	})
	want := []string{"ADDED 0"}
	for i := 1; i < changes; i++ {
		want = append(want, fmt.Sprintf("MODIFIED %d", i))
	}
	etcdclient.Equal(t, "events", seen, append(want, fmt.Sprintf("DELETED %d", changes-1)))
}

func applies(t *testing.T, client *kubernetes.Clientset) {
	ctx := within(t)
	configMaps := client.CoreV1().ConfigMaps("default")
	apply := func(manager, key, value string, force bool) (*corev1.ConfigMap, error) {
		return configMaps.Apply(ctx, corev1apply.ConfigMap("applied", "default").WithData(map[string]string{key: value}),
			metav1.ApplyOptions{FieldManager: manager, Force: force})
	}
	etcdclient.Must[*corev1.ConfigMap](t)(apply("one", "a", "1", false))
	both := etcdclient.Must[*corev1.ConfigMap](t)(apply("two", "b", "2", false))
	etcdclient.Equal(t, "data of two owners", both.Data, map[string]string{"a": "1", "b": "2"})
	again := etcdclient.Must[*corev1.ConfigMap](t)(apply("two", "b", "2", false))
	etcdclient.Equal(t, "version after an apply that changes nothing", again.ResourceVersion, both.ResourceVersion)
	if _, err := apply("two", "a", "other", false); !apierrors.IsConflict(err) {
		t.Errorf("taking another owner's field: %v, want a conflict", err)
	}
	forced := etcdclient.Must[*corev1.ConfigMap](t)(apply("two", "a", "other", true))
	etcdclient.Equal(t, "data after it was forced", forced.Data, map[string]string{"a": "other"})
}

func deletesCollections(t *testing.T, client *kubernetes.Clientset) {
	ctx := within(t)
	configMaps := client.CoreV1().ConfigMaps("default")
	inParallel(t, 300, func(i int) error {
		_, err := configMaps.Create(ctx, configMap(fmt.Sprintf("collected-%d", i), ""), metav1.CreateOptions{})
		return err
	})
	etcdclient.Must[*corev1.ConfigMap](t)(configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "spared"}}, metav1.CreateOptions{}))
	if err := configMaps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "made-by=conformance"}); err != nil {
		t.Fatal(err)
	}
	left := etcdclient.Must[*corev1.ConfigMapList](t)(configMaps.List(ctx, metav1.ListOptions{LabelSelector: "made-by=conformance"}))
	etcdclient.Equal(t, "left of the collection", len(left.Items), 0)
	etcdclient.Must[*corev1.ConfigMap](t)(configMaps.Get(ctx, "spared", metav1.GetOptions{}))
}

func TestAnAPIServerCompactsItsDatastore(t *testing.T) {
	datastore := testserver.Start(t, testserver.Options{})
	client := etcdclient.New(t, datastore)
	c := cluster.Start(t, datastore, "--etcd-compaction-interval=3s", "--watch-cache=false")
	ctx := within(t)
	compactions := client.Watch(ctx, "compact_rev_key")
	configMaps := c.Client.CoreV1().ConfigMaps("default")
	for i := range 10 {
		etcdclient.Must[*corev1.ConfigMap](t)(configMaps.Create(ctx, configMap(fmt.Sprintf("c%d", i), ""), metav1.CreateOptions{}))
	}
	first := etcdclient.Must[*corev1.ConfigMapList](t)(configMaps.List(ctx, metav1.ListOptions{Limit: 2}))
	var listed int64
	fmt.Sscan(first.ResourceVersion, &listed)
	// The API server compacts to the revision that it saw an interval before, so the list's is compacted by the first
	// compaction to it or beyond.
	for compacted := int64(0); compacted <= listed; {
		etcdclient.Must[*corev1.ConfigMap](t)(configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "later-"}}, metav1.CreateOptions{}))
		response := etcdclient.Receive(t, "a compaction of the API server", compactions)
		for _, event := range response.Events {
			fmt.Sscan(string(event.Kv.Value), &compacted)
		}
	}
	// The key is written before the compaction, so that may come a moment later.
	for {
		_, err := client.Get(ctx, "x", clientv3.WithRev(listed))
		if err != nil && strings.Contains(err.Error(), "required revision has been compacted") {
			break
		}
		if err != nil || ctx.Err() != nil {
			t.Fatalf("a read at the compacted revision %d: %v", listed, errors.Join(err, ctx.Err()))
		}
		time.Sleep(20 * time.Millisecond)
	}
	_, err := configMaps.List(ctx, metav1.ListOptions{Limit: 2, Continue: first.Continue})
	if !apierrors.IsResourceExpired(err) {
		t.Errorf("the second page of a compacted list: %v, want 410 Gone", err)
	}
}
