// Package upstream runs the tests of another module's packages, from that module's own source, as subtests of ours, and
// proves that a named family of test functions was run in full.
package upstream

import (
	"bufio"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
)

// Outcome is what became of one test function.
type Outcome string

const (
	Pass Outcome = "pass"
	Fail Outcome = "fail"
	Skip Outcome = "skip"
)

// Results are outcomes by package and top-level test function.
type Results map[string]map[string]Outcome

// event is a line of `go test -json`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// Run runs the packages' tests as `go test` does, one package after another, in the directory (and so with the module)
// of the running test, and repeats each top-level test's outcome and a failed one's output as a subtest. Flags are
// arguments to `go test`; DUET_TEST_RUN is its -run, for a person who looks into one test.
func Run(t *testing.T, flags []string, packages ...string) Results {
	t.Helper()
	arguments := append([]string{"test", "-json", "-count=1", "-p=1"}, flags...)
	if only := os.Getenv("DUET_TEST_RUN"); only != "" {
		arguments = append(arguments, "-run="+only)
	}
	cmd := exec.Command("go", append(arguments, packages...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	results := Results{}
	outputs := map[[2]string]*strings.Builder{}
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Errorf("not a line of go test -json: %s", lines.Text())
			continue
		}
		top, _, nested := strings.Cut(e.Test, "/")
		id := [2]string{e.Package, top}
		if outputs[id] == nil {
			outputs[id] = &strings.Builder{}
		}
		switch Outcome(e.Action) {
		case "output", "build-output":
			outputs[id].WriteString(e.Output)
		case Pass, Fail, Skip:
			if !nested {
				report(t, results, e, outputs[id].String())
				delete(outputs, id)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Errorf("reading the output of go test: %v", err)
	}
	if err := cmd.Wait(); err != nil && !t.Failed() {
		t.Errorf("go %s: %v", strings.Join(cmd.Args[1:], " "), err)
	}
	// What a timeout or a crash cut off has an output but never an outcome.
	for id, output := range outputs {
		if output.Len() > 0 && id[1] != "" {
			t.Errorf("%s %s has no outcome; its output:\n%s", id[0], id[1], output)
		}
	}
	return results
}

func report(t *testing.T, results Results, e event, output string) {
	if e.Test == "" {
		// The package's own line says nothing that its tests don't, unless it could not be run at all.
		if Outcome(e.Action) == Fail && len(results[e.Package]) == 0 {
			t.Errorf("%s could not be tested:\n%s", e.Package, output)
		}
		return
	}
	if results[e.Package] == nil {
		results[e.Package] = map[string]Outcome{}
	}
	results[e.Package][e.Test] = Outcome(e.Action)
	t.Run(filepath.Base(e.Package)+"/"+e.Test, func(t *testing.T) {
		switch Outcome(e.Action) {
		case Fail:
			t.Errorf("failed:\n%s", output)
		case Skip:
			t.Skip(strings.TrimSpace(output))
		}
	})
}

// PackageDir returns where the source of a package is.
func PackageDir(t *testing.T, path string) string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", "{{.Dir}}", path)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v", path, err)
	}
	return strings.TrimSpace(string(output))
}

// ExportedFunctions returns the exported functions of a package whose names begin with the prefix, read from its source.
func ExportedFunctions(t *testing.T, path, prefix string) []string {
	t.Helper()
	var names []string
	for _, file := range parse(t, PackageDir(t, path), false) {
		for _, declaration := range file.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if ok && function.Recv == nil && function.Name.IsExported() && strings.HasPrefix(function.Name.Name, prefix) {
				names = append(names, function.Name.Name)
			}
		}
	}
	sort.Strings(names)
	return names
}

// Callers returns, for each function of the package `imported`, the test functions of the package `path` that
// call it, read from the source.
func Callers(t *testing.T, path, imported string) map[string][]string {
	t.Helper()
	callers := map[string][]string{}
	for _, file := range parse(t, PackageDir(t, path), true) {
		name := importedAs(file, imported)
		if name == "" {
			continue
		}
		for _, declaration := range file.Decls {
			test, ok := declaration.(*ast.FuncDecl)
			if !ok || test.Recv != nil || !strings.HasPrefix(test.Name.Name, "Test") {
				continue
			}
			ast.Inspect(test, func(node ast.Node) bool {
				if selector, ok := node.(*ast.SelectorExpr); ok {
					if from, ok := selector.X.(*ast.Ident); ok && from.Name == name {
						callers[selector.Sel.Name] = append(callers[selector.Sel.Name], test.Name.Name)
					}
				}
				return true
			})
		}
	}
	return callers
}

// RequireAllRun fails the test for each exported function of `suites` with the prefix, benchmarks aside, that no passed
// test of `callers` has called.
func RequireAllRun(t *testing.T, results Results, suites, prefix string, callers ...string) {
	t.Helper()
	functions := slices.DeleteFunc(ExportedFunctions(t, suites, prefix), func(name string) bool {
		return strings.HasPrefix(name, prefix+"Benchmark")
	})
	if len(functions) == 0 {
		t.Fatalf("%s exports no %s…: the suites have moved", suites, prefix)
	}
	passed := map[string]int{}
	for _, path := range callers {
		for function, tests := range Callers(t, path, suites) {
			for _, test := range tests {
				if results[path][test] == Pass {
					passed[function]++
				}
			}
		}
	}
	for _, function := range functions {
		if passed[function] == 0 {
			t.Errorf("%s.%s was not run to a pass by any test of %s", filepath.Base(suites), function, strings.Join(callers, ", "))
		}
	}
	t.Logf("%d exported %s… of %s, all called by passed tests unless said otherwise above", len(functions), prefix, suites)
}

func parse(t *testing.T, directory string, tests bool) []*ast.File {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(directory, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no Go source in %s: %v", directory, err)
	}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") != tests {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

func importedAs(file *ast.File, path string) string {
	for _, spec := range file.Imports {
		if spec.Path.Value != fmt.Sprintf("%q", path) {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return filepath.Base(path)
	}
	return ""
}
