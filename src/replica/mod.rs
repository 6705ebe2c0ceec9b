//! What the replicas of `duet serve` know of each other and remember of their store.
//!
//! PostgreSQL's lock says who writes. What it can't say is whether the database still has everything that clients have been shown: after
//! a failover to a server that lagged behind, it is just a shorter log. So each replica remembers the newest revision that clients of
//! any replica may have seen, as far as it has heard: what it published itself, and what the writer that it forwards to tells it twice a
//! second. It keeps that in a file, too, and refuses a database that lacks it.
//!
//! | file | what it is |
//! |---|---|
//! | `memory` | what clients have been shown, as this replica remembers it; the explanations when a database doesn't have it |
//! | `file` | the same on disk |
//! | `recall` | the engine's question, before it serves: asks those who wrote before, and the memory |
//! | `look` | the question that replicas ask each other: both ends |
//! | `follow` | which of the writer's URLs requests are forwarded to, and whether they may be |
//! | `urls` | which URLs other machines can use |
//!
//! Invariants: requests are forwarded only to a process that says of itself that it is the writer, isn't this one, and whose store has
//! everything that this replica remembers; what is remembered is never replaced by less; only an operator makes a replica forget, by
//! removing its file.
//!
//! It deliberately doesn't make the loss impossible: what a writer published in the last moments before it was gone together with its
//! database is known to nobody.

mod file;
mod follow;
mod look;
mod memory;
mod recall;
pub mod urls;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

pub use follow::Follow;
pub use look::{Instance, service};
pub use memory::{Memory, Source, keep};
pub use recall::Examiner;

/// A number that no other process has.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
