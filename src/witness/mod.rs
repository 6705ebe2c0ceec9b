//! The third party: durable versioned registers with compare-and-swap, one for each pair, and nothing more. It holds no data and is
//! on no write's path.
//!
//! | file | what it is |
//! |---|---|
//! | `register` P | what a compare-and-swap does |
//! | `stored` | a value as it is written down |
//! | `store` | registers in files, each change durable before it is answered |
//! | `service`, `wire` | the daemon's half of the wire |
//! | `backend` | the nodes' half, behind a trait: the daemon, an etcd, an object store, another cluster |
//!
//! Invariant: an answer says which unbroken history it belongs to ([`Answer::instance`]). A register that was wiped, restored from a
//! copy or put back in place begins a new one, which no node believes before the owner has written to it.
//!
//! It deliberately doesn't: know what the values mean, talk to PostgreSQL, or decide anything.
//!
//! [`Answer::instance`]: crate::supervisor::fsm::Answer::instance

pub mod backend;
pub mod register;
pub mod service;
pub mod store;
mod stored;
mod wire;
