module go.etcd.io/etcd/server/v3

go 1.26

require (
	duet.local/conformance/harness v0.0.0
	go.etcd.io/etcd/client/pkg/v3 v3.6.4
	go.uber.org/zap v1.27.0
)

require (
	go.uber.org/multierr v1.11.0 // indirect
	golang.org/x/sys v0.31.0 // indirect
)

replace duet.local/conformance/harness => ../harness
