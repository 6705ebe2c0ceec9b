// Package etcdctl types what a person types: the same etcdctl commands go to a real etcd and to the server under test,
// both from an empty store, and what they print has to be the same. What must differ (ids, addresses, sizes, times,
// hashes) is masked; everything else counts, the exit code too.
package etcdctl

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"duet.local/conformance/harness/testserver"
	"duet.local/conformance/internal/etcdclient"
	"duet.local/conformance/internal/tools"
)

// ctl runs etcdctl against one server.
type ctl struct {
	path   string
	server *testserver.Server
	// leases are the ids that the server gave, in their order.
	leases []string
}

func newCtl(t *testing.T, server *testserver.Server) *ctl {
	return &ctl{path: tools.Path(t, "etcdctl"), server: server}
}

func (c *ctl) command(arguments ...string) *exec.Cmd {
	for i, argument := range arguments {
		for j, lease := range c.leases {
			argument = strings.ReplaceAll(argument, fmt.Sprintf("<lease %d>", j), lease)
		}
		arguments[i] = argument
	}
	return exec.Command(c.path, append([]string{"--endpoints", c.server.ClientURL, "--command-timeout", "30s"}, arguments...)...)
}

// run returns the exit code and all that was printed, as a person sees it.
func (c *ctl) run(t *testing.T, stdin string, arguments ...string) (int, string) {
	t.Helper()
	cmd := c.command(arguments...)
	cmd.Stdin = strings.NewReader(stdin)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if arguments[0] == "lease" && arguments[1] == "grant" {
		if granted := regexp.MustCompile(`lease ([0-9a-f]{1,16}) granted`).FindSubmatch(output); granted != nil {
			c.leases = append(c.leases, string(granted[1]))
		}
	}
	return cmd.ProcessState.ExitCode(), string(output)
}

var attached = regexp.MustCompile(`attached keys\(\[(.*)\]\)`)

var masks = []struct {
	pattern *regexp.Regexp
	with    string
}{
	// What etcdctl's own client logs has times and addresses in it.
	{regexp.MustCompile(`(?m)^\{"level":.*\n`), ""},
	{regexp.MustCompile(`[0-9.]+(ns|µs|ms|s)\b`), "<time>"},
	{regexp.MustCompile(`"(ClusterID|MemberID|RaftTerm)" : \d+`), `"$1" : 0`},
	{regexp.MustCompile(`remaining\(\d+s\)|remaining\(<time>\)`), "remaining(<n>s)"},
	{regexp.MustCompile(`"(cluster_id|member_id|raft_term|memberID)":\d+`), `"$1":0`},
}

// masked is the output without what two servers can't have in common.
func (c *ctl) masked(output string) string {
	for i, lease := range c.leases {
		output = strings.ReplaceAll(output, lease, fmt.Sprintf("<lease %d>", i))
		if id, err := strconv.ParseInt(lease, 16, 64); err == nil {
			output = strings.ReplaceAll(output, strconv.FormatInt(id, 10), fmt.Sprintf("<lease %d>", i))
		}
	}
	output = strings.ReplaceAll(output, c.server.ClientURL, "<endpoint>")
	output = strings.ReplaceAll(output, c.server.Host(), "<endpoint>")
	for _, mask := range masks {
		output = mask.pattern.ReplaceAllString(output, mask.with)
	}
	// etcd keeps a lease's keys in no order.
	return attached.ReplaceAllStringFunc(output, func(list string) string {
		keys := strings.Fields(attached.FindStringSubmatch(list)[1])
		sort.Strings(keys)
		return fmt.Sprintf("attached keys(%v)", keys)
	})
}

func both(t *testing.T) (oracle, tested *ctl) {
	t.Helper()
	etcd := testserver.Start(t, testserver.Options{Binary: tools.Path(t, "etcd"), Kind: testserver.Etcd})
	return newCtl(t, etcd), newCtl(t, testserver.Start(t, testserver.Options{}))
}

func TestCommandsPrintWhatTheyPrintOnEtcd(t *testing.T) {
	oracle, tested := both(t)
	for _, step := range []struct {
		stdin string
		line  string
	}{
		{line: "get nothing"},
		{line: "get nothing -w json"},
		{line: "put a 1"},
		{line: "put a 2 --prev-kv"},
		{line: "put b from-stdin-is-not-used"},
		{stdin: "a value\nof two lines", line: "put c"},
		{line: "put d/1 x"},
		{line: "put d/2 y"},
		{line: "put d/3 z -w json"},
		{line: "get a"},
		{line: "get a -w json"},
		{line: "get a -w fields"},
		{line: "get a --rev 2"},
		{line: "get a --print-value-only"},
		{line: "get a --hex"},
		{line: "get d/ --prefix"},
		{line: "get d/ --prefix --keys-only"},
		{line: "get d/ --prefix --count-only -w fields"},
		{line: "get d/ --prefix --limit 2 -w json"},
		{line: "get d/ --prefix --order DESCEND --sort-by VALUE"},
		{line: "get b d/2"},
		{line: "get d/2 --from-key"},
		{line: "get --prefix d/ --consistency s"},
		{line: "get a --rev 1000"},
		{line: "del nothing"},
		{line: "del d/1 --prev-kv"},
		{line: "del d/ --prefix"},
		{line: "put a 3 --ignore-value"},
		{line: "put a --ignore-value"},
		{line: "put new --ignore-value"},
		{line: "put a 4 --lease 4711"},
		{stdin: "mod(\"a\") > \"0\"\nvalue(\"b\") = \"other\"\n\nput yes 1\n\nput no 1\nget a\n\n", line: "txn"},
		{stdin: "create(\"fresh\") = \"0\"\n\nput fresh 1\nget fresh\ndel b\n\nget fresh\n\n", line: "txn -w json"},
		{stdin: "\nput twice 1\nput twice 2\n\n\n", line: "txn"},
		{line: "lease grant 600"},
		{line: "put leased 1 --lease <lease 0>"},
		{line: "put leased-too 1 --lease=<lease 0>"},
		{line: "get leased -w fields"},
		{line: "lease timetolive <lease 0>"},
		{line: "lease timetolive <lease 0> --keys"},
		{line: "lease timetolive 1234"},
		{line: "lease list"},
		{line: "lease keep-alive --once <lease 0>"},
		{line: "lease keep-alive --once 1234"},
		{line: "lease revoke <lease 0>"},
		{line: "lease revoke <lease 0>"},
		{line: "get leased --prefix"},
		{line: "lease grant -1"},
		{line: "lease grant 9000000001"},
		{line: "compaction 5"},
		{line: "compaction 5"},
		{line: "compaction 8 --physical"},
		{line: "compaction 99999"},
		{line: "get a --rev 3"},
		{line: "watch a --rev 3"},
		{line: "member list"},
		{line: "endpoint health"},
		{line: "alarm list"},
		{line: "alarm disarm"},
		{line: "defrag"},
		{line: "get \\0 --from-key --keys-only -w json"},
	} {
		// A pair's two nodes are no single etcd's one member; suite clientv3 asks for them.
		if pair, _ := tested.server.Pair(); pair != nil && step.line == "member list" {
			continue
		}
		arguments := strings.Fields(step.line)
		arguments = joinLease(arguments)
		wantCode, want := oracle.run(t, step.stdin, append([]string(nil), arguments...)...)
		gotCode, got := tested.run(t, step.stdin, append([]string(nil), arguments...)...)
		want, got = oracle.masked(want), tested.masked(got)
		if strings.HasPrefix(step.line, "member list") {
			want, got = maskHex(want), maskHex(got)
		}
		if gotCode != wantCode || got != want {
			t.Errorf("etcdctl %s\n--- exit code %d, printed\n%s\n--- where etcd's exit code is %d, and it prints\n%s", step.line, gotCode, got, wantCode, want)
		}
	}
}

// joinLease puts `<lease` and `0>` together again, which Fields has split.
func joinLease(fields []string) []string {
	var joined []string
	for _, field := range fields {
		if last := len(joined) - 1; last >= 0 && strings.HasSuffix(joined[last], "<lease") {
			joined[last] += " " + field
			continue
		}
		joined = append(joined, field)
	}
	return joined
}

// maskHex hides the member's id and its peer's address.
func maskHex(output string) string {
	output = regexp.MustCompile(`^[0-9a-f]+,`).ReplaceAllString(output, "<id>,")
	return regexp.MustCompile(`http://(127\.0\.0\.1|localhost):\d+`).ReplaceAllString(output, "<peer>")
}

func TestAWatchPrintsEventsAsTheyHappen(t *testing.T) {
	oracle, tested := both(t)
	record := func(c *ctl) []string {
		cmd := c.command("watch", "w/", "--prefix", "--prev-kv", "--rev", "1")
		stdout := etcdclient.Must[io.ReadCloser](t)(cmd.StdoutPipe())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		lines := make(chan string)
		go func() {
			defer close(lines)
			for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
				lines <- scanner.Text()
			}
		}()
		for _, arguments := range [][]string{{"put", "w/a", "1"}, {"put", "outside", "1"}, {"put", "w/a", "2"}, {"del", "w/a"}, {"put", "w/b", "end"}} {
			if code, output := c.run(t, "", arguments...); code != 0 {
				t.Fatalf("etcdctl %v: %s", arguments, output)
			}
		}
		var seen []string
		for len(seen) == 0 || seen[len(seen)-1] != "end" {
			seen = append(seen, etcdclient.Receive(t, fmt.Sprintf("a line after %q", seen), lines))
		}
		return seen
	}
	etcdclient.Equal(t, "lines of etcdctl watch", record(tested), record(oracle))
}

func TestEndpointCommandsAnswerWithTheSameFields(t *testing.T) {
	oracle, tested := both(t)
	for _, line := range []string{"endpoint status -w json", "endpoint hashkv -w json", "endpoint health -w json", "member list -w json", "alarm list -w json"} {
		var shapes [2]string
		for i, c := range []*ctl{oracle, tested} {
			for range 3 {
				if code, output := c.run(t, "", "put", "k", "v"); code != 0 {
					t.Fatal(output)
				}
			}
			code, output := c.run(t, "", strings.Fields(line)...)
			if code != 0 {
				t.Fatalf("etcdctl %s on %v: %s", line, c.server.Kind, output)
			}
			var answer any
			if err := json.Unmarshal([]byte(output), &answer); err != nil {
				t.Fatalf("etcdctl %s on %v is not JSON: %v: %s", line, c.server.Kind, err, output)
			}
			shapes[i] = shape(answer)
		}
		etcdclient.Equal(t, "fields of etcdctl "+line, shapes[1], shapes[0])
	}
	_, table := tested.run(t, "", "endpoint", "status", "-w", "table")
	if !strings.Contains(table, tested.server.ClientURL) || !strings.Contains(table, "true") {
		t.Errorf("etcdctl endpoint status shows no leader at the endpoint:\n%s", table)
	}
}

// shape is a JSON value with its numbers and texts replaced by their types.
func shape(value any) string {
	switch value := value.(type) {
	case map[string]any:
		shaped := map[string]string{}
		for key, field := range value {
			shaped[key] = shape(field)
		}
		text, _ := json.Marshal(shaped)
		return string(text)
	case []any:
		if len(value) == 0 {
			return "[]"
		}
		return "[" + shape(value[0]) + "]"
	default:
		return fmt.Sprintf("%T", value)
	}
}

func TestLockAndElectWorkThroughKeysAndLeases(t *testing.T) {
	server := testserver.Start(t, testserver.Options{})
	c := newCtl(t, server)
	// Within the lock the key is there; after it, it is gone.
	code, output := c.run(t, "", "lock", "mutex", "--", c.path, "--endpoints", server.ClientURL, "get", "mutex", "--prefix", "--keys-only")
	if code != 0 || !strings.Contains(output, "mutex/") {
		t.Errorf("etcdctl lock: exit code %d, the command inside printed %q", code, output)
	}
	if _, output := c.run(t, "", "get", "mutex", "--prefix", "--keys-only"); strings.TrimSpace(output) != "" {
		t.Errorf("after the lock there is %q", output)
	}
	cmd := c.command("elect", "race", "me")
	stdout := etcdclient.Must[io.ReadCloser](t)(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	won := make([]byte, 256)
	n, _ := stdout.Read(won)
	if !bytes.HasPrefix(won[:n], []byte("race/")) {
		t.Errorf("the only candidate printed %q", won[:n])
	}
	code, output = c.run(t, "", "get", "race", "--prefix", "--print-value-only")
	if code != 0 || strings.TrimSpace(output) != "me" {
		t.Errorf("the election's key holds %q", output)
	}
}

func TestAMirrorIsMadeFromOneServerToAnother(t *testing.T) {
	source, target := newCtl(t, testserver.Start(t, testserver.Options{})), newCtl(t, testserver.Start(t, testserver.Options{}))
	source.run(t, "", "put", "m/before", "1")
	cmd := source.command("make-mirror", "--prefix", "m/", target.server.Host())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ctx, client := etcdclient.Context(t), etcdclient.New(t, target.server)
	watch := client.Watch(ctx, "m/before")
	if current, err := client.Get(ctx, "m/before"); err != nil || current.Count == 0 {
		etcdclient.Receive(t, "the key that was there before", watch)
	}
	watch = client.Watch(ctx, "m/after")
	source.run(t, "", "put", "m/after", "2")
	etcdclient.Equal(t, "the mirrored event", len(etcdclient.Events(t, watch, 1)), 1)
}

func TestTheSmallPerformanceCheckPasses(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute; left out with -short")
	}
	server := testserver.Start(t, testserver.Options{})
	code, output := newCtl(t, server).run(t, "", "check", "perf", "--load", "s")
	if code != 0 || strings.Contains(output, "FAIL") {
		t.Errorf("etcdctl check perf: exit code %d\n%s", code, output)
	}
}
