// Package machine is what the programs beside a test take from this machine and leave on it: ports, an environment, and
// PostgreSQLs that outlive who started them.
package machine

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Environment is this process's, without what servers would take for their settings: what chooses the server is not meant for it.
func Environment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "ETCD_") || strings.HasPrefix(variable, "DUET_")
	})
}

// PostgresBelow returns the pid of the running PostgreSQL whose data directory is below dir.
func PostgresBelow(dir string) (int, error) {
	var found []int
	_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if entry.Name() == "postmaster.pid" {
			if pid := livePostmaster(path); pid != 0 {
				found = append(found, pid)
			}
		}
		return nil
	})
	if len(found) != 1 {
		return 0, fmt.Errorf("%d running PostgreSQL below %s, expected one", len(found), dir)
	}
	return found[0], nil
}

// livePostmaster reads a postmaster.pid and returns the pid if a process has it and works in that directory.
func livePostmaster(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	var pid int
	if _, err := fmt.Sscanf(string(text), "%d", &pid); err != nil || pid <= 1 {
		return 0
	}
	// A postmaster's working directory is its data directory; another process that got the pid since has another one.
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != filepath.Dir(path) {
		return 0
	}
	return pid
}

// WaitUntilGone says whether the process has ended within the timeout.
func WaitUntilGone(pid int, timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if syscall.Kill(pid, 0) != nil {
			return true
		}
		// An orphan that nobody reaps has ended all the same.
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
			if _, state, ok := strings.Cut(string(stat), ") "); ok && strings.HasPrefix(state, "Z") {
				return true
			}
		}
	}
	return false
}

// Ports that clients' connections get are above: one of them may be taken at any moment.
const portsFrom, portsTo = 12000, 32000

var given sync.Map

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on, and the same one never again.
func FreePort() int {
	for range portsTo - portsFrom {
		port := portsFrom + rand.IntN(portsTo-portsFrom)
		if _, before := given.LoadOrStore(port, true); before {
			continue
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			listener.Close()
			return port
		}
	}
	panic("no free TCP port on 127.0.0.1")
}
