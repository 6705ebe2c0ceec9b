// Package pair runs two Duet nodes and their witness on this machine, as `duet init` configures them, and takes parts of
// them away.
package pair

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"duet.local/conformance/harness/machine"
	"duet.local/conformance/harness/process"
)

const (
	patience    = 3 * time.Minute
	stopTimeout = 60 * time.Second
	look        = 20 * time.Millisecond
)

// Pair is a pair that runs; its nodes are numbered 0 and 1.
type Pair struct {
	binary  string
	dir     string
	client  [2]int
	flags   [2][]string
	witness *process.Process
	nodes   [2]*process.Process
	logs    []*process.Log
	// last are the nodes' logs, each since its last start.
	last [2]*process.Log
}

// Status is what a node says of itself; see `duet status --json`.
type Status struct {
	Node      string `json:"node"`
	Role      string `json:"role"`
	Open      bool   `json:"open"`
	Mode      string `json:"mode"`
	PeerReady bool   `json:"peer_ready"`
	Survives  struct {
		A bool `json:"a"`
		B bool `json:"b"`
	} `json:"survives"`
	LastTakeover *struct {
		Text string `json:"text"`
	} `json:"last_takeover"`
}

// Start makes a pair and waits until both nodes have everything. It is stopped when the test ends.
func Start(t testing.TB) *Pair {
	t.Helper()
	return StartWith(t, func(int, int) []string { return nil })
}

// StartWith is Start with further flags for each node, which may depend on its client port.
func StartWith(t testing.TB, flags func(node, port int) []string) *Pair {
	t.Helper()
	binary := os.Getenv("DUET_BIN")
	if binary == "" {
		t.Skip("only Duet runs as a pair: set DUET_BIN")
	}
	dir, err := os.MkdirTemp("", "duet-pair-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// PostgreSQL may run as another user than the one who made the directory.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &Pair{binary: binary, dir: dir}
	port := machine.FreePort
	two := func() string { return fmt.Sprintf("%d,%d", port(), port()) }
	p.client = [2]int{port(), port()}
	for node, port := range p.client {
		p.flags[node] = flags(node, port)
	}
	p.duet(t, "init", "--cluster", "test", "--a", "127.0.0.1", "--b", "127.0.0.1", "--witness", "127.0.0.1",
		"--client-port", fmt.Sprintf("%d,%d", p.client[0], p.client[1]), "--peer-port", two(), "--pg-port", two(),
		"--witness-port", strconv.Itoa(port()), "--client-tls=false", "--in-place", "--out", filepath.Join(dir, "pair"))
	t.Cleanup(func() { p.stop(t) })
	p.witness = p.run(t, "witness", "witness", "--config-file", filepath.Join(dir, "pair", "witness", "witness.toml"))
	for node := range p.nodes {
		p.StartNode(t, node)
	}
	p.UntilPaired(t)
	return p
}

// Endpoints are both nodes' client URLs, as etcd's clients take them.
func (p *Pair) Endpoints() string { return p.Endpoint(0) + "," + p.Endpoint(1) }

// Endpoint is a node's client URL, unless a flag has given it another one.
func (p *Pair) Endpoint(node int) string { return fmt.Sprintf("http://127.0.0.1:%d", p.client[node]) }

// StartNode starts a node's Duet, which starts its PostgreSQL.
func (p *Pair) StartNode(t testing.TB, node int) {
	t.Helper()
	arguments := []string{"node", "--config-file", p.config(node), "--pg-shared-buffers=64MiB"}
	p.nodes[node] = p.run(t, letter(node), append(arguments, p.flags[node]...)...)
	p.last[node] = p.logs[len(p.logs)-1]
}

// Lose ends every process of a node at once, without a word to anybody.
func (p *Pair) Lose(t testing.TB, node int) {
	t.Helper()
	postmaster := p.postmaster(t, node)
	pids := append(descendants(p.nodes[node].PID()), descendants(postmaster)...)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.nodes[node].Gone()
	p.nodes[node] = nil
}

// Freeze stops a node's Duet with SIGSTOP, and waits until its guardian has killed it.
func (p *Pair) Freeze(t testing.TB, node int) {
	t.Helper()
	guarded := children(p.nodes[node].PID())
	if len(guarded) != 1 {
		t.Fatalf("node %s's guardian has the children %v, expected one", letter(node), guarded)
	}
	if err := syscall.Kill(guarded[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if !machine.WaitUntilGone(guarded[0], patience) {
		t.Fatalf("node %s's Duet stands still for %v, and nobody has killed it", letter(node), patience)
	}
}

// KillPostgres ends a node's PostgreSQL with SIGKILL.
func (p *Pair) KillPostgres(t testing.TB, node int) {
	t.Helper()
	if err := syscall.Kill(p.postmaster(t, node), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// StopNode ends a node in order, as an init system does: it hands over first, if it leads.
func (p *Pair) StopNode(t testing.TB, node int) {
	t.Helper()
	if err := p.nodes[node].Stop(stopTimeout); err != nil {
		t.Fatal(err)
	}
	p.nodes[node] = nil
}

// Switchover has the leader hand over.
func (p *Pair) Switchover(t testing.TB, leader int) {
	t.Helper()
	p.duet(t, "switchover", "--config-file", p.config(leader))
}

// UntilPaired waits until both nodes have everything and one of them answers, and returns that one.
func (p *Pair) UntilPaired(t testing.TB) int {
	t.Helper()
	leader := -1
	p.until(t, "both nodes have everything", func(all []Status) bool {
		paired := len(all) == 2
		for _, one := range all {
			paired = paired && one.Mode == "PAIR"
			if one.Open && one.PeerReady && one.Survives.A && one.Survives.B {
				leader = number(one)
			}
		}
		return paired && leader >= 0
	})
	return leader
}

// UntilTakenOver waits until this node answers requests in the other one's place, and returns what it says of its takeover.
func (p *Pair) UntilTakenOver(t testing.TB, node int) string {
	t.Helper()
	text := ""
	p.until(t, "node "+letter(node)+" answers", func(all []Status) bool {
		for _, one := range all {
			if one.Open && number(one) == node && one.LastTakeover != nil {
				text = one.LastTakeover.Text
				return true
			}
		}
		return false
	})
	return text
}

// Gone is closed when the node's running Duet has ended.
func (p *Pair) Gone(node int) <-chan struct{} { return p.nodes[node].Gone() }

// Dir is where a node's configuration and data are.
func (p *Pair) Dir(node int) string { return filepath.Dir(p.config(node)) }

// Log is the end of what a node has printed since its last start.
func (p *Pair) Log(node int) string { return p.last[node].Tail() }

// Ended says which part that should run has ended; nil while none has.
func (p *Pair) Ended() error {
	for part, running := range map[string]*process.Process{"the witness": p.witness, "node a": p.nodes[0], "node b": p.nodes[1]} {
		if running == nil {
			continue
		}
		select {
		case <-running.Gone():
			return fmt.Errorf("%s has ended: %v", part, running.Err())
		default:
		}
	}
	return nil
}

func (p *Pair) until(t testing.TB, what string, fits func([]Status) bool) {
	t.Helper()
	var all []Status
	for deadline := time.Now().Add(patience); ; time.Sleep(look) {
		if all = p.status(); fits(all) {
			return
		}
		if err := p.Ended(); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s; the nodes say %+v", patience, what, all)
		}
	}
}

// status is what those nodes say that answer.
func (p *Pair) status() []Status {
	for node, running := range p.nodes {
		if running == nil {
			continue
		}
		// Its exit code says whether the pair is well; what the nodes say stands in the output all the same.
		output, _ := exec.Command(p.binary, "status", "--json", "--config-file", p.config(node)).Output()
		var all []Status
		if json.Unmarshal(output, &all) == nil && len(all) > 0 {
			return all
		}
	}
	return nil
}

func (p *Pair) stop(t testing.TB) {
	for _, running := range append(p.nodes[:], p.witness) {
		if running != nil {
			if err := running.Stop(stopTimeout); err != nil {
				t.Error(err)
			}
		}
	}
	for _, log := range p.logs {
		if t.Failed() {
			t.Logf("the end of a log:\n%s", log.Tail())
		}
		log.Close()
	}
}

func (p *Pair) run(t testing.TB, name string, arguments ...string) *process.Process {
	t.Helper()
	log, err := process.NewLog(filepath.Join(p.dir, fmt.Sprintf("%s-%d.log", name, len(p.logs))))
	if err != nil {
		t.Fatal(err)
	}
	p.logs = append(p.logs, log)
	running, err := process.Start(p.command(arguments...), log, "")
	if err != nil {
		t.Fatal(err)
	}
	return running
}

func (p *Pair) duet(t testing.TB, arguments ...string) {
	t.Helper()
	if output, err := p.command(arguments...).CombinedOutput(); err != nil {
		t.Fatalf("duet %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
}

func (p *Pair) command(arguments ...string) *exec.Cmd {
	cmd := exec.Command(p.binary, arguments...)
	cmd.Env = machine.Environment()
	return cmd
}

func (p *Pair) config(node int) string {
	return filepath.Join(p.dir, "pair", letter(node), "duet.toml")
}

func (p *Pair) postmaster(t testing.TB, node int) int {
	t.Helper()
	pid, err := machine.PostgresBelow(p.Dir(node))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func letter(node int) string { return string(rune('a' + node)) }

func number(status Status) int {
	if status.Node == "A" {
		return 0
	}
	return 1
}

// descendants are a process and all that it has started, directly or not.
func descendants(pid int) []int {
	found := []int{pid}
	for _, child := range children(pid) {
		found = append(found, descendants(child)...)
	}
	return found
}

// children are the processes that a process's first thread has started.
func children(pid int) []int {
	var found []int
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, child := range strings.Fields(string(text)) {
		if child, err := strconv.Atoi(child); err == nil {
			found = append(found, child)
		}
	}
	return found
}
