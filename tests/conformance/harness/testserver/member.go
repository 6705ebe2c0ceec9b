package testserver

import (
	"fmt"
	"os"
	"testing"

	"duet.local/conformance/harness/pair"
)

const (
	// partVariable is the environment variable that makes every server a node of a pair.
	partVariable = "DUET_TEST_PAIR"
	// leads is the node that is to lead: A, because it begins an empty store.
	leads = 0
	// switchovers is how often a pair may be told to hand over until the server has its part.
	switchovers = 3
)

// member is a node of a pair, as a server under test.
type member struct {
	t    testing.TB
	pair *pair.Pair
	node int
}

// startMember starts a pair for the test, and returns the node that has this part in it.
func startMember(t testing.TB, part string, options Options) *Server {
	t.Helper()
	m := &member{t: t}
	switch part {
	case "leader":
		m.node = leads
	case "follower":
		m.node = 1 - leads
	default:
		t.Fatalf("%s=%q, it can be follower or leader", partVariable, part)
	}
	// None is skipped: a skipped test would look like one that passed.
	binary, kind, err := UnderTest()
	if err != nil || kind != Duet || os.Getenv("DUET_TEST_PG") != "" {
		t.Fatalf("%s is for DUET_BIN, without DUET_TEST_PG (%v)", partVariable, err)
	}
	if options.Dir != "" {
		t.Fatalf("%s: a pair's data directories are its own", partVariable)
	}
	s := &Server{Kind: kind, options: options, binary: binary, member: m}
	m.pair = pair.StartWith(t, func(node, port int) []string {
		url := fmt.Sprintf("%s://127.0.0.1:%d", options.scheme(), port)
		if node == m.node {
			if options.ClientURL != "" {
				url = options.ClientURL
			}
			s.ClientURL = url
		}
		return append([]string{"--listen-client-urls", url, "--advertise-client-urls", url}, options.flags()...)
	})
	s.Dir = m.pair.Dir(m.node)
	for range switchovers {
		leader := m.pair.UntilPaired(t)
		if leader == leads {
			return s
		}
		m.pair.Switchover(t, leader)
	}
	t.Fatalf("after %d switchovers the pair's leader is still the other node", switchovers)
	return nil
}

// restart starts the node again, and returns when it has everything that the other one has.
func (m *member) restart() {
	m.t.Helper()
	m.pair.StartNode(m.t, m.node)
	m.pair.UntilPaired(m.t)
}
