// Package etcdclient connects the suites to the server under test with etcd's own client, and holds the few checks that
// all of them need.
package etcdclient

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/testing/protocmp"

	"duet.local/conformance/harness/testserver"
)

// Patience is how long a test waits for anything that must happen. It says that something is broken, never that
// something is slow.
const Patience = 60 * time.Second

// New returns a client of the server, closed when the test ends.
func New(t testing.TB, server *testserver.Server) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{server.ClientURL},
		DialTimeout: Patience,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		t.Fatalf("connecting to %s: %v", server.ClientURL, err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// Start starts a server on an empty store and connects to it.
func Start(t testing.TB) (context.Context, *clientv3.Client, *testserver.Server) {
	t.Helper()
	return StartWith(t, testserver.Options{})
}

// StartWith is Start with options.
func StartWith(t testing.TB, options testserver.Options) (context.Context, *clientv3.Client, *testserver.Server) {
	t.Helper()
	server := testserver.Start(t, options)
	return Context(t), New(t, server), server
}

// Context ends with the test, or when the test's patience does.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Must returns the value, or ends the test.
func Must[T any](t testing.TB) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// wholeBytes compares values at once; one byte after the other, megabytes of them take half a minute.
var wholeBytes = cmp.Comparer(func(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) })

// Equal fails the test when the two differ. Messages are compared by their fields.
func Equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if difference := cmp.Diff(want, got, protocmp.Transform(), wholeBytes); difference != "" {
		t.Errorf("%s differs (-want +got):\n%s", what, difference)
	}
}

// ErrorText fails the test unless the error has exactly this text.
func ErrorText(t testing.TB, what string, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("%s: got error %v, want %q", what, err, want)
	}
}

// Receive takes one value from a channel, or ends the test.
func Receive[T any](t testing.TB, what string, channel <-chan T) T {
	t.Helper()
	select {
	case value, open := <-channel:
		if !open {
			t.Fatalf("%s: the channel was closed", what)
		}
		return value
	case <-time.After(Patience):
		t.Fatalf("%s: nothing came within %v", what, Patience)
	}
	panic("not reached")
}

// Events receives watch responses until there are n events, and returns them as `PUT key=value@mod` or `DELETE key@mod`.
func Events(t testing.TB, watch clientv3.WatchChan, n int) []string {
	t.Helper()
	var events []string
	for len(events) < n {
		response := Receive(t, fmt.Sprintf("watch response with event %d of %d", len(events)+1, n), watch)
		if err := response.Err(); err != nil {
			t.Fatalf("watch ended after %v: %v", events, err)
		}
		for _, event := range response.Events {
			events = append(events, Describe(event))
		}
	}
	return events
}

// Describe writes an event as a line.
func Describe(event *clientv3.Event) string {
	if event.Type == clientv3.EventTypeDelete {
		return fmt.Sprintf("DELETE %s@%d", event.Kv.Key, event.Kv.ModRevision)
	}
	return fmt.Sprintf("PUT %s=%s@%d", event.Kv.Key, event.Kv.Value, event.Kv.ModRevision)
}
