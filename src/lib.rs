//! Duet: an etcd-compatible Kubernetes datastore on PostgreSQL.
//!
//! ARCHITECTURE.md has the bird's-eye view; this is the code map. Modules marked P are pure: no I/O, no clock, no random source.
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] P | revisions, key ranges, lease ids, time |
//! | [`mvcc`] P | the key index, evaluation of transactions and ranges, compaction, hash |
//! | [`sequencer`] P | revision assignment, staged state, batch policy |
//! | [`watch`] P | the watch hub: interval index, cursors; `stream` is its I/O half |
//! | [`lease`] P | the lessor, over an injected clock |
//! | [`storage`] | the log behind a trait: PostgreSQL, and memory for tests |
//! | [`engine`] | the one writer task; wires the pure modules to storage; recovery |
//! | [`etcdserver`] | the façade: etcd's gRPC services over the engine |
//! | [`supervisor`] | runs the PostgreSQL of a node's own; `fsm` P: who of a pair leads |
//! | [`witness`] | the pair's third party: durable registers with compare-and-swap |
//! | [`replica`] | what the replicas of `duet serve` know of each other, and what they remember |
//! | [`proto`] | the generated wire types |
//! | [`check`] | what has to be right for a pair, looked at |
//! | [`net`] | listeners, TLS and its reload, HTTP beside gRPC, graceful shutdown |
//! | [`cli`] | the subcommands |
//! | [`config`] | options from flags, environment and file; validation |
//! | [`telemetry`] | logs, metrics |

pub mod check;
pub mod cli;
pub mod config;
pub mod engine;
pub mod etcdserver;
pub mod lease;
pub mod mvcc;
pub mod net;
pub mod proto;
pub mod replica;
pub mod sequencer;
pub mod storage;
pub mod supervisor;
pub mod telemetry;
pub mod types;
pub mod watch;
pub mod witness;
