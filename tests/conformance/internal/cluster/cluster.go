// Package cluster runs real Kubernetes programs over the server under test: a kube-apiserver, and around it, when a suite
// asks for them, the controller manager, the scheduler and KWOK's fake nodes.
package cluster

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"duet.local/conformance/harness/machine"
	"duet.local/conformance/harness/process"
	"duet.local/conformance/harness/testserver"
	"duet.local/conformance/internal/tools"
)

const (
	token       = "conformance"
	readyWithin = 3 * time.Minute
	stopWithin  = 60 * time.Second
)

// Cluster is a running kube-apiserver and what a client needs to reach it.
type Cluster struct {
	Config  *rest.Config
	Client  *kubernetes.Clientset
	Dynamic *dynamic.DynamicClient

	directory  string
	kubeconfig string
	port       int
}

// Start starts a kube-apiserver on the datastore and waits until it is ready. Flags come last on its command line.
func Start(t testing.TB, datastore *testserver.Server, flags ...string) *Cluster {
	t.Helper()
	return StartOn(t, datastore.ClientURL, flags...)
}

// StartOn is Start for a datastore with these endpoints, separated by commas.
func StartOn(t testing.TB, endpoints string, flags ...string) *Cluster {
	t.Helper()
	c := &Cluster{directory: t.TempDir(), port: machine.FreePort()}
	c.write(t, "tokens.csv", token+",admin,1,system:masters\n")
	c.write(t, "sa.key", newRSAKey(t))
	c.Config = &rest.Config{
		Host:            fmt.Sprintf("https://127.0.0.1:%d", c.port),
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		// What is tested is the datastore, so the client doesn't hold itself back.
		QPS: -1,
	}
	c.kubeconfig = c.write(t, "kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "%s", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, c.Config.Host, token))
	var err error
	if c.Client, err = kubernetes.NewForConfig(c.Config); err != nil {
		t.Fatal(err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(c.Config); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	apiserver := c.run(t, "kube-apiserver", append([]string{
		"--etcd-servers=" + endpoints,
		"--secure-port=" + strconv.Itoa(c.port), "--bind-address=127.0.0.1", "--cert-dir=" + c.directory,
		"--service-account-issuer=https://k", "--service-account-key-file=" + c.path("sa.key"),
		"--service-account-signing-key-file=" + c.path("sa.key"), "--token-auth-file=" + c.path("tokens.csv"),
		"--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/16",
	}, flags...)...)
	c.waitReady(t, apiserver)
	t.Logf("kube-apiserver was ready after %v", time.Since(begun).Round(100*time.Millisecond))
	return c
}

// StartControllers starts the controller manager, the scheduler and KWOK, which makes every node a running one.
func (c *Cluster) StartControllers(t testing.TB) {
	t.Helper()
	c.run(t, "kube-controller-manager", "--kubeconfig="+c.kubeconfig, "--service-account-private-key-file="+c.path("sa.key"),
		"--secure-port=0", "--leader-elect=false", "--kube-api-qps=200", "--kube-api-burst=400", "--use-service-account-credentials=false")
	c.run(t, "kube-scheduler", "--kubeconfig="+c.kubeconfig, "--secure-port=0", "--leader-elect=false",
		"--kube-api-qps=200", "--kube-api-burst=400")
	arguments := []string{"--kubeconfig=" + c.kubeconfig, "--manage-all-nodes", "--node-lease-duration-seconds=40",
		"--node-ip=10.0.0.1", "--cidr=10.128.0.0/9"}
	stages := filepath.Join(moduleDir(t, "kwok", "sigs.k8s.io/kwok"), "kustomize", "stage")
	for _, folder := range []string{"node/fast", "node/heartbeat-with-lease", "pod/fast"} {
		files, err := filepath.Glob(filepath.Join(stages, folder, "*.yaml"))
		if err != nil || len(files) == 0 {
			t.Fatalf("KWOK's module has no stages in %s: %v", folder, err)
		}
		for _, file := range files {
			if filepath.Base(file) != "kustomization.yaml" {
				arguments = append(arguments, "-c", file)
			}
		}
	}
	c.run(t, "kwok", arguments...)
}

// run starts a program that ends with the test; the end of its log is shown when the test fails.
func (c *Cluster) run(t testing.TB, name string, arguments ...string) *process.Process {
	t.Helper()
	log, err := process.NewLog(c.path(name + ".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tools.Path(t, name), arguments...)
	cmd.Dir = c.directory
	running, err := process.Start(cmd, log, "")
	if err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		select {
		case <-running.Gone():
			t.Errorf("%s ended by itself: %v", name, running.Err())
		default:
			if err := running.Stop(stopWithin); err != nil {
				t.Logf("%v", err)
			}
		}
		if t.Failed() {
			t.Logf("the end of %s's log:\n%s", name, log.Tail())
		}
		log.Close()
	})
	return running
}

func (c *Cluster) waitReady(t testing.TB, apiserver *process.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), readyWithin)
	defer cancel()
	for {
		err := c.Client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		if err == nil {
			return
		}
		select {
		case <-apiserver.Gone():
			t.Fatalf("kube-apiserver ended before it was ready: %v", apiserver.Err())
		case <-ctx.Done():
			t.Fatalf("kube-apiserver was not ready within %v: %v", readyWithin, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Cluster) path(name string) string { return filepath.Join(c.directory, name) }

func (c *Cluster) write(t testing.TB, name, content string) string {
	t.Helper()
	if err := os.WriteFile(c.path(name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return c.path(name)
}

// moduleDir is where the module cache has a module that a tool of tests/tools is built from.
func moduleDir(t testing.TB, tool, module string) string {
	t.Helper()
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = filepath.Join(tools.Dir(), tool)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("looking for %s: %v", module, err)
	}
	return strings.TrimSpace(string(output))
}

func newRSAKey(t testing.TB) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// Size is a number of things to make, which the environment may change.
func Size(t testing.TB, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	size, err := strconv.Atoi(text)
	if err != nil || size < 1 {
		t.Fatalf("%s=%q is not a positive number", variable, text)
	}
	return size
}
