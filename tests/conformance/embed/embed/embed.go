// Package embed stands in for etcd's own package of that name while Kubernetes' storage tests run: where they start an
// etcd inside their process, this starts the server under test as a process (package testserver says which).
//
// A module that wants this says `replace go.etcd.io/etcd/server/v3 => ../embed`. Then the tests that Kubernetes
// runs against etcd, compiled from its own unmodified source, run against Duet.
//
// It has what those tests use and nothing else; a field that it lacks is an error at compile time, so no setting
// is lost silently.
package embed

import (
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"

	"duet.local/conformance/harness/testserver"
)

// Config is the part of etcd's configuration that the tests set.
type Config struct {
	Name string
	// Dir is the test's own, which Duet's PostgreSQL can't use when it runs as another user: the server gets another one.
	Dir                 string
	ListenPeerUrls      []url.URL
	AdvertisePeerUrls   []url.URL
	ListenClientUrls    []url.URL
	AdvertiseClientUrls []url.URL
	InitialCluster      string
	ClientTLSInfo       transport.TLSInfo

	WatchProgressNotifyInterval time.Duration

	// UnsafeNoFsync says what the test server does anyway, and the logger is that of a server inside the process.
	UnsafeNoFsync    bool
	ZapLoggerBuilder func(*Config) error
}

// NewConfig returns the settings of a plain single member.
func NewConfig() *Config { return &Config{Name: "default"} }

// InitialClusterFromName is the one-member cluster that every server here is.
func (c *Config) InitialClusterFromName(name string) string {
	return fmt.Sprintf("%s=%s", name, c.AdvertisePeerUrls[0].String())
}

// NewZapLoggerBuilder takes a logger that has no use for a process of its own.
func NewZapLoggerBuilder(*zap.Logger) func(*Config) error {
	return func(*Config) error { return nil }
}

// Etcd is a running server.
type Etcd struct {
	Server *Server
	errors chan error
}

// Server is the handle that the tests take for etcd's server.
type Server struct{ running *testserver.Server }

// Cluster is the one member.
type Cluster struct{ urls []string }

// StartEtcd starts the server under test; it is ready when this returns.
func StartEtcd(config *Config) (*Etcd, error) {
	if len(config.ListenClientUrls) != 1 {
		return nil, fmt.Errorf("%d client URLs, this stand-in knows only one", len(config.ListenClientUrls))
	}
	options := testserver.Options{
		ClientURL:              config.ListenClientUrls[0].String(),
		ProgressNotifyInterval: config.WatchProgressNotifyInterval,
		CertFile:               config.ClientTLSInfo.CertFile,
		KeyFile:                config.ClientTLSInfo.KeyFile,
		TrustedCAFile:          config.ClientTLSInfo.TrustedCAFile,
	}
	running, err := testserver.Launch(options)
	if err != nil {
		return nil, err
	}
	return &Etcd{Server: &Server{running}, errors: make(chan error)}, nil
}

// Close stops the server and reports on Err when that went wrong.
func (e *Etcd) Close() {
	if err := e.Server.running.Close(); err != nil {
		select {
		case e.errors <- err:
		case <-time.After(time.Second):
			panic(err)
		}
	}
	close(e.errors)
}

// Err delivers what goes wrong after the start.
func (e *Etcd) Err() <-chan error { return e.errors }

// ReadyNotify is closed when the server is ready.
func (s *Server) ReadyNotify() <-chan struct{} {
	ready := make(chan struct{})
	close(ready)
	return ready
}

// Stop ends the server.
func (s *Server) Stop() { _ = s.running.Stop() }

// Cluster returns the one member.
func (s *Server) Cluster() *Cluster { return &Cluster{urls: []string{s.running.ClientURL}} }

// ClientURLs returns the endpoint.
func (c *Cluster) ClientURLs() []string { return c.urls }
