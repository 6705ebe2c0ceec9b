// Package controlplane runs a whole Kubernetes control plane on the server under test: API server, controller manager,
// scheduler, and KWOK, which plays the kubelets of all nodes.
//
// Sizes: DUET_TEST_NODES (50), DUET_TEST_PODS (300).
package controlplane

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/utils/ptr"

	clientv3 "go.etcd.io/etcd/client/v3"

	"duet.local/conformance/harness/testserver"
	"duet.local/conformance/internal/cluster"
	"duet.local/conformance/internal/etcdclient"
)

// patience is how long a test waits for the cluster to get somewhere.
const patience = 10 * time.Minute

const namespace = "workload"

func TestAWholeControlPlaneRunsADeploymentThroughItsLife(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nodes, pods := cluster.Size(t, "DUET_TEST_NODES", 50), cluster.Size(t, "DUET_TEST_PODS", 300)
	datastore := testserver.Start(t, testserver.Options{})
	c := cluster.Start(t, datastore)
	c.StartControllers(t)
	deployments := c.Client.AppsV1().Deployments(namespace)

	step := func(what string, do func()) {
		t.Helper()
		begun := time.Now()
		do()
		t.Logf("%s: %v", what, time.Since(begun).Round(10*time.Millisecond))
	}
	step(fmt.Sprintf("%d nodes are ready", nodes), func() {
		for i := range nodes {
			etcdclient.Must[*corev1.Node](t)(c.Client.CoreV1().Nodes().Create(ctx, node(i), metav1.CreateOptions{}))
		}
		untilNodesReady(t, ctx, c.Client, nodes)
	})
	step(fmt.Sprintf("a deployment of %d pods is available", pods), func() {
		etcdclient.Must[*corev1.Namespace](t)(c.Client.CoreV1().Namespaces().Create(ctx,
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}))
		etcdclient.Must[*appsv1.Deployment](t)(deployments.Create(ctx, deployment(int32(pods)), metav1.CreateOptions{}))
		untilDeployment(t, ctx, c.Client, complete(int32(pods)))
	})
	podsAgree(t, ctx, c.Client, pods, "first")
	step("it is rolled", func() {
		change(t, ctx, c.Client, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "second" })
		untilDeployment(t, ctx, c.Client, complete(int32(pods)))
	})
	step("the old pods are gone", func() { untilPods(t, ctx, c.Client, pods) })
	podsAgree(t, ctx, c.Client, pods, "second")
	step("it is scaled to zero", func() {
		change(t, ctx, c.Client, func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](0) })
		untilDeployment(t, ctx, c.Client, complete(0))
		untilPods(t, ctx, c.Client, 0)
	})
	step(fmt.Sprintf("it is scaled to %d again", pods/3), func() {
		change(t, ctx, c.Client, func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To(int32(pods / 3)) })
		untilDeployment(t, ctx, c.Client, complete(int32(pods/3)))
	})
	step("it is deleted, and its replica sets and pods with it", func() {
		if err := deployments.Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)}); err != nil {
			t.Fatal(err)
		}
		untilPods(t, ctx, c.Client, 0)
		empty := func(store cache.Store) bool { return len(store.List()) == 0 }
		until(t, ctx, c.Client, &appsv1.ReplicaSet{}, "replicasets", empty)
		until(t, ctx, c.Client, &appsv1.Deployment{}, "deployments", empty)
	})
	step("the namespace is deleted with all in it", func() {
		etcdclient.Must[*appsv1.Deployment](t)(deployments.Create(ctx, deployment(int32(pods/3)), metav1.CreateOptions{}))
		untilDeployment(t, ctx, c.Client, complete(int32(pods/3)))
		deleteNamespace(t, ctx, c.Client)
	})
	left := keysOfNamespace(t, ctx, datastore)
	if len(left) > 0 {
		t.Errorf("the deleted namespace has left %d keys in the datastore, %s among them", len(left), left[0])
	}
}

func node(i int) *corev1.Node {
	capacity := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("110")}
	name := fmt.Sprintf("node-%03d", i)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status:     corev1.NodeStatus{Allocatable: capacity, Capacity: capacity},
	}
}

func deployment(replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": "web"}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: ptr.To[int64](1),
					Containers: []corev1.Container{{Name: "c", Image: "first",
						Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}}}},
				},
			},
		},
	}
}

// change updates the deployment, again when somebody else was faster.
func change(t *testing.T, ctx context.Context, client *kubernetes.Clientset, edit func(*appsv1.Deployment)) {
	t.Helper()
	for {
		current := etcdclient.Must[*appsv1.Deployment](t)(client.AppsV1().Deployments(namespace).Get(ctx, "web", metav1.GetOptions{}))
		edit(current)
		_, err := client.AppsV1().Deployments(namespace).Update(ctx, current, metav1.UpdateOptions{})
		if err == nil {
			return
		}
		if !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	}
}

// until follows a resource of the namespace until the condition holds over all of it.
func until(t *testing.T, ctx context.Context, client *kubernetes.Clientset, kind runtime.Object, plural string, holds func(cache.Store) bool) {
	t.Helper()
	group := client.CoreV1().RESTClient()
	if plural == "deployments" || plural == "replicasets" {
		group = client.AppsV1().RESTClient()
	}
	in := namespace
	if plural == "nodes" {
		in = metav1.NamespaceAll
	}
	lister := cache.NewListWatchFromClient(group, plural, in, fields.Everything())
	var store cache.Store
	precondition := func(synced cache.Store) (bool, error) {
		store = synced
		return holds(synced), nil
	}
	_, err := watchtools.UntilWithSync(ctx, lister, kind, precondition, func(watch.Event) (bool, error) { return holds(store), nil })
	if err != nil {
		t.Fatalf("waiting on %d %s: %v", len(store.List()), plural, err)
	}
}

func untilNodesReady(t *testing.T, ctx context.Context, client *kubernetes.Clientset, n int) {
	t.Helper()
	until(t, ctx, client, &corev1.Node{}, "nodes", func(store cache.Store) bool {
		ready := 0
		for _, object := range store.List() {
			for _, condition := range object.(*corev1.Node).Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		return ready == n
	})
}

func untilPods(t *testing.T, ctx context.Context, client *kubernetes.Clientset, n int) {
	t.Helper()
	until(t, ctx, client, &corev1.Pod{}, "pods", func(store cache.Store) bool { return len(store.List()) == n })
}

func untilDeployment(t *testing.T, ctx context.Context, client *kubernetes.Clientset, holds func(*appsv1.Deployment) bool) {
	t.Helper()
	until(t, ctx, client, &appsv1.Deployment{}, "deployments", func(store cache.Store) bool {
		objects := store.List()
		return len(objects) == 1 && holds(objects[0].(*appsv1.Deployment))
	})
}

// complete says that the deployment's controller has seen its newest version and has nothing left to do.
func complete(replicas int32) func(*appsv1.Deployment) bool {
	return func(d *appsv1.Deployment) bool {
		return d.Status.ObservedGeneration == d.Generation && *d.Spec.Replicas == replicas && d.Status.Replicas == replicas &&
			d.Status.UpdatedReplicas == replicas && d.Status.AvailableReplicas == replicas
	}
}

// podsAgree compares the pods of a consistent list with what the deployment should have.
func podsAgree(t *testing.T, ctx context.Context, client *kubernetes.Clientset, n int, image string) {
	t.Helper()
	pods := etcdclient.Must[*corev1.PodList](t)(client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{}))
	running := 0
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodRunning && pod.Spec.NodeName != "" && pod.Spec.Containers[0].Image == image {
			running++
		}
	}
	if running != n || len(pods.Items) != n {
		t.Errorf("%d of %d pods run the image %s on a node, want %d", running, len(pods.Items), image, n)
	}
}

func deleteNamespace(t *testing.T, ctx context.Context, client *kubernetes.Clientset) {
	t.Helper()
	events := etcdclient.Must[watch.Interface](t)(client.CoreV1().Namespaces().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + namespace}))
	defer events.Stop()
	if err := client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for event := range events.ResultChan() {
		if event.Type == watch.Deleted {
			return
		}
	}
	t.Fatalf("the namespace was not gone within %v", patience)
}

// keysOfNamespace reads from the datastore itself what the API server has left there.
func keysOfNamespace(t *testing.T, ctx context.Context, datastore *testserver.Server) []string {
	t.Helper()
	client := etcdclient.New(t, datastore)
	var keys []string
	for _, resource := range []string{"pods", "replicasets", "deployments", "configmaps", "serviceaccounts", "namespaces"} {
		for _, prefix := range []string{"/registry/" + resource + "/" + namespace + "/", "/registry/" + resource + "/" + namespace} {
			options := []clientv3.OpOption{clientv3.WithKeysOnly()}
			if prefix[len(prefix)-1] == '/' {
				options = append(options, clientv3.WithPrefix())
			}
			for _, kv := range etcdclient.Must[*clientv3.GetResponse](t)(client.Get(ctx, prefix, options...)).Kvs {
				keys = append(keys, string(kv.Key))
			}
		}
	}
	return keys
}
