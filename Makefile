# Everything a person or CI does here. `make run` is all that a fresh Debian machine needs.
#
# Builds go into a cache outside of the checkout, so that a clean checkout starts warm.

SHELL := /bin/sh
export PATH := $(HOME)/.cargo/bin:$(PATH)
# The same place as that of tests/tools.
CACHE := $(or $(DUET_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/duet)
export CARGO_TARGET_DIR ?= $(CACHE)/target
DUET := $(CARGO_TARGET_DIR)/release/duet
# Flags for `duet pair` or `duet dev`: make run FLAGS="--data-dir /srv/duet".
FLAGS ?=

.PHONY: help run run-single build install test lint test-rust test-go test-postgres test-pair test-long bench clean

help:
	@echo "make run        install what is missing, build, and run a pair of nodes and their witness on this machine: duet pair"
	@echo "make run-single the same with one node: duet dev"
	@echo "make build      build $(DUET)"
	@echo "make install    copy it and duet-witness to /usr/local/bin (PREFIX=/usr/local)"
	@echo "make test       formatting, lints, all Rust tests, the short conformance suites"
	@echo "make test-postgres  what touches PostgreSQL, against 16, 17 and 18"
	@echo "make test-pair  thousands of seeds and millions of states for the pair's state machine; an upgrade from an older commit"
	@echo "make test-long  the long ones: Kubernetes' storage suites, a real API server, a whole control plane"
	@echo "make bench      criterion's benchmarks, and Duet beside etcd"

run: build
	$(DUET) pair $(FLAGS)

run-single: build
	$(DUET) dev $(FLAGS)

build:
	@scripts/setup.sh run
	cargo build --release --locked --bin duet --bin duet-witness

install: build
	install -D -m 0755 -t $(DESTDIR)$(or $(PREFIX),/usr/local)/bin $(DUET) $(DUET)-witness

test: lint test-rust test-go

lint:
	@scripts/setup.sh test
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings

# The differential suite needs etcd, and the witnesses an API server and a restored etcd, too: built from their Go modules when the cache doesn't
# have them.
test-rust:
	@scripts/setup.sh test
	tests/tools/build.sh etcd etcdutl kube-apiserver >/dev/null
	cargo test --locked

# What only an optimised build can show; then etcd's own clients and K3s' datastore client, against the release build.
test-go: build
	DUET_WITNESS_BIN=$(DUET)-witness cargo test --locked --test witness a_witness_that_works_is_small
	DUET_BIN=$(DUET) tests/conformance/run.sh clientv3 k3s etcdctl

# The PostgreSQLs that Debian 12 doesn't have are fetched once.
test-postgres:
	@scripts/setup.sh postgres
	tests/tools/test-postgres.sh

# `make test` runs the same with fewer seeds and states.
test-pair:
	@scripts/setup.sh test
	DUET_SEEDS=3000 DUET_MODEL_STATES=400000 cargo test --locked --test pair_model --test pair_simulation
	old=$$(tests/tools/build-old.sh) && { [ -z "$$old" ] || DUET_TEST_OLD_BIN=$$old cargo test --locked --test pair an_upgrade; }

test-long: build
	DUET_BIN=$(DUET) tests/conformance/run.sh clientv3-follower k3s-follower etcdctl-follower storage136 storage134 apiserver controlplane

bench: build
	@scripts/setup.sh bench
	tests/tools/build.sh etcd >/dev/null
	cargo bench --locked

clean:
	rm -rf $(CARGO_TARGET_DIR)
