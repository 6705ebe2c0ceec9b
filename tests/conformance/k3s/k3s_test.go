// Package k3s uses the datastore client of K3s and RKE2, which is Kine's, as they do before and while a server joins:
// the endpoint is resolved, the bootstrap data is listed, locked with an empty value, written, and updated by compare
// and swap.
package k3s

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/client"
	"github.com/k3s-io/kine/pkg/endpoint"
	kinetls "github.com/k3s-io/kine/pkg/tls"

	"duet.local/conformance/harness/testserver"
)

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// connect is what a K3s server does with its datastore-endpoint, datastore-cafile, -certfile and -keyfile.
func connect(t *testing.T, datastore string, tls kinetls.Config) client.Client {
	t.Helper()
	resolved, err := endpoint.Listen(within(t), endpoint.Config{Endpoint: datastore, BackendTLSConfig: tls})
	if err != nil {
		t.Fatalf("resolving the datastore endpoint %s: %v", datastore, err)
	}
	if len(resolved.Endpoints) != 1 || resolved.Endpoints[0] != datastore {
		t.Fatalf("the endpoint %s became %v: it must be passed through, not served by Kine", datastore, resolved.Endpoints)
	}
	store, err := client.New(resolved)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// bootstrapKey is where the data of a cluster with this token is.
func bootstrapKey(token string) string {
	digest := sha256.Sum256([]byte(token))
	return "/bootstrap/" + hex.EncodeToString(digest[:])[:12]
}

func list(t *testing.T, store client.Client, prefix string) []client.Value {
	t.Helper()
	values, err := store.List(within(t), prefix, 0)
	if err != nil {
		t.Fatalf("listing %s: %v", prefix, err)
	}
	return values
}

// endpoints runs the test over each kind of endpoint that bypasses Kine.
func endpoints(t *testing.T, test func(t *testing.T, connect func(t *testing.T) client.Client)) {
	t.Run("http", func(t *testing.T) {
		server := testserver.Start(t, testserver.Options{})
		test(t, func(t *testing.T) client.Client { return connect(t, server.ClientURL, kinetls.Config{}) })
	})
	t.Run("https with client certificates", func(t *testing.T) {
		certs := testserver.NewCerts(t)
		server := testserver.Start(t, testserver.Options{CertFile: certs.ServerCert, KeyFile: certs.ServerKey, TrustedCAFile: certs.CA})
		tls := kinetls.Config{CAFile: certs.CA, CertFile: certs.ClientCert, KeyFile: certs.ClientKey}
		test(t, func(t *testing.T) client.Client { return connect(t, server.ClientURL, tls) })
	})
	t.Run("unix", func(t *testing.T) {
		// Short, because the path of a socket may have no more than 107 bytes.
		directory, err := os.MkdirTemp("", "k3s-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(directory) })
		server := testserver.Start(t, testserver.Options{ClientURL: "unix://" + filepath.Join(directory, "datastore.sock")})
		test(t, func(t *testing.T) client.Client { return connect(t, server.ClientURL, kinetls.Config{}) })
	})
}

func TestTheFirstServerStoresTheBootstrapDataAndTheNextOneReadsIt(t *testing.T) {
	endpoints(t, func(t *testing.T, connect func(t *testing.T) client.Client) {
		first := connect(t)
		key := bootstrapKey("token")
		if found := list(t, first, "/bootstrap"); len(found) != 0 {
			t.Fatalf("a fresh datastore has bootstrap data: %v", found)
		}
		// The lock: an empty value, which must count as there.
		if err := first.Create(within(t), key, []byte{}); err != nil {
			t.Fatalf("taking the lock: %v", err)
		}
		locked := list(t, first, "/bootstrap")
		if len(locked) != 1 || string(locked[0].Key) != key || len(locked[0].Data) != 0 || locked[0].Modified == 0 {
			t.Fatalf("the lock is listed as %+v", locked)
		}
		second := connect(t)
		if err := second.Create(within(t), key, []byte{}); err == nil || err.Error() != "key exists" {
			t.Fatalf("taking the lock a second time: %v, want \"key exists\"", err)
		}
		// Certificates and keys of a cluster, encrypted: bytes of all kinds.
		data := make([]byte, 200<<10)
		rand.Read(data)
		if err := first.Update(within(t), key, locked[0].Modified, data); err != nil {
			t.Fatalf("storing the data: %v", err)
		}
		stored := list(t, second, "/bootstrap")
		if len(stored) != 1 || !bytes.Equal(stored[0].Data, data) {
			t.Fatalf("the second server finds %d entries, and not the %d bytes that the first has stored", len(stored), len(data))
		}
		if err := second.Update(within(t), key, locked[0].Modified, []byte("stale")); err == nil {
			t.Error("an update from a revision that has passed was accepted")
		}
		if again := list(t, first, "/bootstrap"); !bytes.Equal(again[0].Data, data) || again[0].Modified != stored[0].Modified {
			t.Error("a refused update has changed the data")
		}
	})
}

func TestATokenIsRotatedByCreatingTheNewKeyAndDeletingTheOld(t *testing.T) {
	endpoints(t, func(t *testing.T, connect func(t *testing.T) client.Client) {
		store := connect(t)
		old, rotated := bootstrapKey("old"), bootstrapKey("new")
		if err := store.Create(within(t), old, []byte("data")); err != nil {
			t.Fatal(err)
		}
		before, err := store.Get(within(t), old)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Create(within(t), rotated, []byte("data again")); err != nil {
			t.Fatal(err)
		}
		if err := store.Delete(within(t), old, before.Modified+100); err == nil {
			t.Error("a delete at a revision that the key doesn't have was accepted")
		}
		if err := store.Delete(within(t), old, before.Modified); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Get(within(t), old); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("the old key after its delete: %v", err)
		}
		if found := list(t, store, "/bootstrap"); len(found) != 1 || string(found[0].Key) != rotated {
			t.Errorf("after the rotation there is %v", found)
		}
		// Put is Get and Update.
		if err := store.Put(within(t), rotated, []byte("third")); err != nil {
			t.Fatal(err)
		}
		if value, err := store.Get(within(t), rotated); err != nil || string(value.Data) != "third" {
			t.Errorf("after a put there is %q (%v)", value.Data, err)
		}
	})
}

func TestOfManyServersThatStartAtOnceOneTakesTheLock(t *testing.T) {
	server := testserver.Start(t, testserver.Options{})
	key := bootstrapKey("token")
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		won   int
	)
	for range 10 {
		store := connect(t, server.ClientURL, kinetls.Config{})
		group.Go(func() {
			err := store.Create(within(t), key, []byte{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if err.Error() != "key exists" {
				t.Errorf("a server that came late got %v", err)
			}
		})
	}
	group.Wait()
	if won != 1 {
		t.Errorf("%d servers hold the lock", won)
	}
}

func TestAListAtARevisionAndACompactionAreEtcds(t *testing.T) {
	server := testserver.Start(t, testserver.Options{})
	store := connect(t, server.ClientURL, kinetls.Config{})
	for _, value := range []string{"1", "2", "3"} {
		if err := store.Create(within(t), "/bootstrap/"+value, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	values := list(t, store, "/bootstrap")
	then, err := store.List(within(t), "/bootstrap", int(values[1].Modified))
	if err != nil || len(then) != 2 {
		t.Errorf("at the second key's revision there are %d keys (%v)", len(then), err)
	}
	if _, err := store.Compact(within(t), values[2].Modified); err != nil {
		t.Fatal(err)
	}
	if _, err := store.List(within(t), "/bootstrap", int(values[0].Modified)); err == nil {
		t.Error("a list at a compacted revision was answered")
	}
}
