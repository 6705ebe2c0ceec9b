// Command etcd-facts prints what etcd's own generated Go code says of its wire format, and its table of errors, one fact a line:
//
//	field <message> <number> <name> <kind> <cardinality> [<type>] [oneof <name>]
//	enum <enum> <number> <name>
//	rpc <service> <method> <input> <output> <unary|client|server|bidi>
//	error <name> <code> <text>
//
// `go run . > ../../etcdserver/etcd-facts.txt` renews the list that tests/etcdserver/facts.rs compares Duet with.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/reflect/protoreflect"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

const rpctypes = "go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

func main() {
	var facts []string
	seen := map[protoreflect.FullName]bool{}
	var visit func(m protoreflect.MessageDescriptor)
	enum := func(e protoreflect.EnumDescriptor) {
		if seen[e.FullName()] {
			return
		}
		seen[e.FullName()] = true
		for i := range e.Values().Len() {
			v := e.Values().Get(i)
			facts = append(facts, fmt.Sprintf("enum %s %d %s", e.FullName(), v.Number(), v.Name()))
		}
	}
	visit = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		facts = append(facts, fmt.Sprintf("message %s", m.FullName()))
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			line := fmt.Sprintf("field %s %d %s %s %s", m.FullName(), f.Number(), f.Name(), f.Kind(), f.Cardinality())
			if f.Message() != nil {
				line += " " + string(f.Message().FullName())
				visit(f.Message())
			}
			if f.Enum() != nil {
				line += " " + string(f.Enum().FullName())
				enum(f.Enum())
			}
			if o := f.ContainingOneof(); o != nil {
				line += " oneof " + string(o.Name())
			}
			facts = append(facts, line)
		}
	}
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_rpc_proto,
		v3lockpb.File_v3lock_proto,
		v3electionpb.File_v3election_proto,
		healthpb.File_grpc_health_v1_health_proto,
	} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				kind := map[[2]bool]string{
					{false, false}: "unary", {true, false}: "client", {false, true}: "server", {true, true}: "bidi",
				}[[2]bool{m.IsStreamingClient(), m.IsStreamingServer()}]
				facts = append(facts, fmt.Sprintf("rpc %s %s %s %s %s", s.FullName(), m.Name(), m.Input().FullName(), m.Output().FullName(), kind))
				visit(m.Input())
				visit(m.Output())
			}
		}
	}
	// Stored by etcd and found in snapshots, though no service names them.
	for _, m := range []protoreflect.MessageDescriptor{
		(&authpb.User{}).ProtoReflect().Descriptor(),
		(&authpb.Role{}).ProtoReflect().Descriptor(),
		(&mvccpb.KeyValue{}).ProtoReflect().Descriptor(),
	} {
		visit(m)
	}
	sort.Strings(facts)
	for _, fact := range append(facts, errorFacts()...) {
		fmt.Println(fact)
	}
}

// errorFacts reads the `ErrGRPC… = status.Error(codes.…, "…")` of rpctypes, in the order in which they are written.
func errorFacts() (facts []string) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", rpctypes).Output()
	if err != nil {
		log.Fatalf("go list %s: %v", rpctypes, err)
	}
	path := filepath.Join(strings.TrimSpace(string(dir)), "error.go")
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		log.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
			return true
		}
		call, ok := spec.Values[0].(*ast.CallExpr)
		if !ok || len(call.Args) != 2 {
			return true
		}
		code, isCode := call.Args[0].(*ast.SelectorExpr)
		text, isText := call.Args[1].(*ast.BasicLit)
		if !isCode || !isText {
			return true
		}
		unquoted, err := strconv.Unquote(text.Value)
		if err != nil {
			log.Fatal(err)
		}
		facts = append(facts, fmt.Sprintf("error %s %s %s", strings.TrimPrefix(spec.Names[0].Name, "ErrGRPC"), code.Sel.Name, unquoted))
		return true
	})
	return facts
}
