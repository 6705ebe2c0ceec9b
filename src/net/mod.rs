//! Sockets: listening, TLS and its reload, HTTP/1.1 and HTTP/2 on one port, and an end that clients can live with.
//!
//! | part | what it is |
//! |---|---|
//! | [`listen`] | TCP and Unix sockets for the listen URLs |
//! | [`tls`] | certificates, read again while serving; who a client is |
//! | [`self_signed`] | the certificate of `--auto-tls` |
//! | [`serve`] | connections: one task each, graceful shutdown with a hard deadline |
//! | [`drain`] | requests held while a switchover goes on |
//! | [`http`] | `/health`, `/livez`, `/readyz`, `/version`, `/metrics` with etcd's bodies |
//! | [`Address`] | where another server is, and connections to it |
//! | [`proxy`] | requests forwarded to the active writer |
//! | [`virtual_ip`] | an address that moves between machines |
//!
//! Invariants: every wait for a peer has a deadline; nothing a peer sends ends more than its own connection; a bad new
//! certificate never replaces a good old one. It deliberately knows nothing of etcd's services: it serves a router.

mod address;
pub mod certificate;
mod client_names;
pub mod drain;
pub mod http;
pub mod listen;
pub mod local;
pub mod proxy;
pub mod self_signed;
mod serve;
#[cfg(test)]
mod serve_test;
pub mod tls;
#[cfg(test)]
mod tls_test;
pub mod virtual_ip;
mod x509;

/// How long a request is held at most while nobody can answer it: a change of the leader takes less, and clients wait longer than that.
pub const HOLD_MAX: std::time::Duration = std::time::Duration::from_secs(2);

pub(crate) use address::Address;
pub use listen::{BindError, Listeners, SocketOptions};
pub use serve::{Drained, ServeOptions, serve};
