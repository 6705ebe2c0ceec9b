// Package testserver starts the server that a conformance suite runs against: a process of its own, on an empty store,
// for each test that asks for one.
//
// Which server is the caller's choice, by environment: DUET_BIN names the duet binary, started as the drop-in for a
// single etcd that it is (`duet etcd`, with etcd's flags); without it, ETCD_BIN names a real etcd. The suites
// are the same for both, and are only worth something while they pass on both.
//
// Duet's data directories are copies of one that it has made, so that not every test waits for PostgreSQL's initdb.
// DUET_TEST_PG, a `postgres://` URL of a superuser, makes Duet's stores fresh databases of that one PostgreSQL, served by
// `duet serve --database`, instead of a PostgreSQL of their own each.
//
// DUET_TEST_PAIR=follower (or leader) makes each server a node of a pair of its own, the one that follows (or leads) when
// the test begins: two nodes and their witness. Only Start starts such servers.
//
// Every process is in a temporary directory, on free ports of 127.0.0.1, and is gone when the test ends. The package
// needs nothing but the standard library, so that modules that are pinned to different Kubernetes versions can share it.
package testserver

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"duet.local/conformance/harness/machine"
	"duet.local/conformance/harness/pair"
	"duet.local/conformance/harness/process"
)

// readyLine is what etcd prints, and programs that start an etcd wait for, once clients can be served.
const readyLine = "ready to serve client requests"

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// Kind says whose server is under test.
type Kind int

const (
	Etcd Kind = iota
	Duet
)

func (k Kind) String() string {
	if k == Duet {
		return "duet"
	}
	return "etcd"
}

// Options are what a test may want of its server. The zero value is a plain one on an empty store.
type Options struct {
	// Dir is the data directory, which has to be empty; a temporary one when not named.
	Dir string
	// ClientURL is where to listen, `http://127.0.0.1:<a free port>` when empty.
	ClientURL string
	// ProgressNotifyInterval is the interval of periodic watch progress, the server's default when zero.
	ProgressNotifyInterval           time.Duration
	CertFile, KeyFile, TrustedCAFile string
	// Args are appended to the command line; they must be flags that etcd has.
	Args []string
	// Binary and Kind override the environment's choice. For suites that compare two servers.
	Binary string
	Kind   Kind
}

// Server is one running process and its data directory.
type Server struct {
	Kind Kind
	// ClientURL is the one endpoint, with its scheme.
	ClientURL string
	// Dir is the data directory.
	Dir string

	options Options
	binary  string
	store   *sharedStore
	log     *process.Log
	process *process.Process
	ownDir  string
	// member is this server in its pair, when it has one; log, process and ownDir are unused then.
	member *member
}

// UnderTest returns the binary that the environment names and whose it is.
func UnderTest() (binary string, kind Kind, err error) {
	if binary = os.Getenv("DUET_BIN"); binary != "" {
		return binary, Duet, nil
	}
	if binary = os.Getenv("ETCD_BIN"); binary != "" {
		return binary, Etcd, nil
	}
	return "", 0, errors.New("nothing to test: set DUET_BIN to a duet binary, or ETCD_BIN to an etcd " +
		"(tests/tools/build.sh etcd builds one and prints its path)")
}

// Start starts a server for the test, and stops it and removes its store when the test ends. A failed test shows the
// end of the server's log.
func Start(t testing.TB, options Options) *Server {
	t.Helper()
	if part := os.Getenv(partVariable); part != "" && options.Binary == "" {
		return startMember(t, part, options)
	}
	server, err := Launch(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("stopping the server: %v", err)
		}
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", server.log.Tail())
		}
	})
	return server
}

// Launch is Start for callers that have no test to tie the server to: they call Close.
func Launch(options Options) (*Server, error) { return launch(options, true) }

func launch(options Options, fromTemplate bool) (launched *Server, failed error) {
	binary, kind := options.Binary, options.Kind
	if binary == "" {
		if os.Getenv(partVariable) != "" {
			return nil, errors.New(partVariable + " is not for a suite whose servers don't belong to a test")
		}
		var err error
		if binary, kind, err = UnderTest(); err != nil {
			return nil, err
		}
	}
	ownDir, err := os.MkdirTemp("", "duet-conformance-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if failed != nil {
			os.RemoveAll(ownDir)
		}
	}()
	// Duet's PostgreSQL may run as another user than the one who made the directory.
	if err := os.Chmod(ownDir, 0o755); err != nil {
		return nil, err
	}
	s := &Server{Kind: kind, Dir: options.Dir, options: options, binary: binary, ownDir: ownDir}
	if s.Dir == "" {
		s.Dir = filepath.Join(ownDir, "data")
	}
	if s.log, err = process.NewLog(filepath.Join(ownDir, "server.log")); err != nil {
		return nil, err
	}
	if kind == Duet && os.Getenv("DUET_TEST_PG") != "" {
		if s.store, err = newSharedStore(os.Getenv("DUET_TEST_PG")); err != nil {
			return nil, err
		}
	}
	if kind == Duet && s.store == nil && fromTemplate {
		if err := copyTemplate(binary, s.Dir); err != nil {
			return nil, err
		}
	}
	// A free port may be taken between the look and the use, so try another one.
	for attempt := 0; ; attempt++ {
		if s.ClientURL = options.ClientURL; s.ClientURL == "" {
			s.ClientURL = fmt.Sprintf("%s://127.0.0.1:%d", options.scheme(), machine.FreePort())
		}
		err = s.Restart()
		if err == nil {
			return s, nil
		}
		if options.ClientURL != "" || attempt == 2 || !strings.Contains(s.log.Tail(), "address already in use") {
			tail := s.log.Tail()
			return nil, fmt.Errorf("%w; the end of its log:\n%s", errors.Join(err, s.Close()), tail)
		}
	}
}

// Restart starts the server's process on the store and the ports that it had. The process must be gone.
func (s *Server) Restart() error {
	if s.member != nil {
		s.member.restart()
		return nil
	}
	cmd := exec.Command(s.binary, s.arguments()...)
	cmd.Env = machine.Environment()
	started, err := process.Start(cmd, s.log, readyLine)
	if err != nil {
		return fmt.Errorf("starting %s: %w", s.binary, err)
	}
	s.process = started
	select {
	case <-started.Ready():
		return nil
	case <-started.Gone():
		return fmt.Errorf("%s %s ended before it was ready: %v", s.binary, strings.Join(cmd.Args[1:], " "), started.Err())
	case <-time.After(startTimeout):
		started.Kill()
		return fmt.Errorf("%s %s was not ready after %v", s.binary, strings.Join(cmd.Args[1:], " "), startTimeout)
	}
}

func (s *Server) arguments() []string {
	var arguments []string
	switch {
	case s.store != nil:
		arguments = []string{"serve", "--database", s.store.url, "--data-dir", s.Dir}
	case s.Kind == Duet:
		arguments = []string{"etcd"}
	}
	if s.store == nil {
		peer := fmt.Sprintf("http://127.0.0.1:%d", machine.FreePort())
		arguments = append(arguments, "--name", "default", "--data-dir", s.Dir, "--listen-peer-urls", peer,
			"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	}
	arguments = append(arguments, "--listen-client-urls", s.ClientURL, "--advertise-client-urls", s.ClientURL)
	if s.Kind == Etcd {
		arguments = append(arguments, "--unsafe-no-fsync")
	}
	return append(arguments, s.options.flags()...)
}

// flags are those that a server of any kind takes.
func (o Options) flags() []string {
	var flags []string
	if o.ProgressNotifyInterval > 0 {
		flags = append(flags, "--watch-progress-notify-interval", o.ProgressNotifyInterval.String())
	}
	if o.CertFile != "" {
		flags = append(flags, "--cert-file", o.CertFile, "--key-file", o.KeyFile)
	}
	if o.TrustedCAFile != "" {
		flags = append(flags, "--client-cert-auth", "--trusted-ca-file", o.TrustedCAFile)
	}
	return append(flags, o.Args...)
}

func (o Options) scheme() string {
	if o.CertFile != "" {
		return "https"
	}
	return "http"
}

// Host returns the endpoint without its scheme.
func (s *Server) Host() string {
	parsed, err := url.Parse(s.ClientURL)
	if err != nil {
		return s.ClientURL
	}
	return parsed.Host
}

// Pair is the pair that the server is a node of, and which node; nil without DUET_TEST_PAIR.
func (s *Server) Pair() (*pair.Pair, int) {
	if s.member == nil {
		return nil, 0
	}
	return s.member.pair, s.member.node
}

// Log returns the end of what the server has printed.
func (s *Server) Log() string {
	if s.member != nil {
		return s.member.pair.Log(s.member.node)
	}
	return s.log.Tail()
}

// Gone is closed when the running process has ended, whoever ended it.
func (s *Server) Gone() <-chan struct{} {
	if s.member != nil {
		return s.member.pair.Gone(s.member.node)
	}
	return s.process.Gone()
}

// Ended says why the running process has ended; nil while it runs.
func (s *Server) Ended() error {
	if s.member != nil {
		return s.member.pair.Ended()
	}
	select {
	case <-s.process.Gone():
		return fmt.Errorf("the datastore's process has ended: %v", s.process.Err())
	default:
		return nil
	}
}

// Kill ends the process with SIGKILL and waits until it is gone. Its PostgreSQL, if it has one, stays; of a pair's node
// nothing does, because Duet's guardian would start it again.
func (s *Server) Kill() {
	if s.member != nil {
		s.member.pair.Lose(s.member.t, s.member.node)
		return
	}
	s.process.Kill()
}

// Stop asks the process to end, as an init system would, and waits until it has.
func (s *Server) Stop() error {
	if s.member != nil {
		s.member.pair.StopNode(s.member.t, s.member.node)
		return nil
	}
	return s.process.Stop(stopTimeout)
}

// Close stops the server and removes what it leaves, a PostgreSQL that outlived it among that. A pair ends with its test.
func (s *Server) Close() error {
	if s.member != nil {
		return nil
	}
	var err error
	if s.process != nil {
		err = s.Stop()
	}
	if pid, postgresErr := s.PostgresPID(); postgresErr == nil {
		_ = syscall.Kill(pid, syscall.SIGQUIT)
		if !machine.WaitUntilGone(pid, stopTimeout) {
			err = errors.Join(err, fmt.Errorf("the PostgreSQL with pid %d did not end", pid))
		}
	}
	if s.store != nil {
		err = errors.Join(err, s.store.drop())
	}
	return errors.Join(err, s.log.Close(), os.RemoveAll(s.ownDir))
}

// PostgresPID returns the pid of the running PostgreSQL whose data directory is below the server's.
func (s *Server) PostgresPID() (int, error) { return machine.PostgresBelow(s.Dir) }
