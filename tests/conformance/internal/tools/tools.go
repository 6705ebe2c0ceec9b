// Package tools finds the real programs that the suites use: built by tests/tools/build.sh, which is asked for them.
package tools

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

var (
	mu    sync.Mutex
	paths = map[string]string{}
)

// Path returns the path of the program, and builds it when the cache doesn't have it.
func Path(t testing.TB, name string) string {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if paths[name] == "" {
		cmd := exec.Command(filepath.Join(Dir(), "build.sh"), name)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		output, err := cmd.Output()
		if err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, stderr.String())
		}
		paths[name] = strings.TrimSpace(string(output))
	}
	return paths[name]
}

// Dir is the folder tests/tools.
func Dir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "tools")
}
