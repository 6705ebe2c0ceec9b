//! What an operator sees of a running process: logs, metrics and the figures behind them.
//!
//! Invariants: no secret and no stored value ever reaches a log line or a label; every registered metric has a real
//! source (`tests/tidy.rs` fails when a handle is never used); label values come from closed sets, so that a client
//! can't grow the registry.
//!
//! It deliberately starts no HTTP server: `/metrics` is a route that [`crate::net`] serves.

pub mod grpc;
mod known;
pub mod log;
pub mod metrics;
pub mod process;
pub mod systemd;
