package testserver

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
)

// sharedStore is a fresh database in a PostgreSQL that several servers share.
type sharedStore struct {
	admin, name, url string
}

var sharedStores atomic.Int64

func newSharedStore(admin string) (*sharedStore, error) {
	parsed, err := url.Parse(admin)
	if err != nil {
		return nil, fmt.Errorf("DUET_TEST_PG is not a postgres:// URL: %w", err)
	}
	store := &sharedStore{admin: admin, name: fmt.Sprintf("conformance_%d_%d", os.Getpid(), sharedStores.Add(1))}
	parsed.Path = "/" + store.name
	store.url = parsed.String()
	return store, store.sql("CREATE DATABASE " + store.name)
}

func (s *sharedStore) drop() error {
	return s.sql("DROP DATABASE IF EXISTS " + s.name + " WITH (FORCE)")
}

// sql runs one statement through psql, which wherever there is a PostgreSQL is there too.
func (s *sharedStore) sql(statement string) error {
	output, err := exec.Command("psql", "--no-psqlrc", "--quiet", "--dbname", s.admin, "--command", statement).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s on DUET_TEST_PG: %w: %s", statement, err, strings.TrimSpace(string(output)))
	}
	return nil
}
