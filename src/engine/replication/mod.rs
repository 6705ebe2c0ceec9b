//! How one process's memory follows another's: what a leader publishes, its followers publish a moment later.
//!
//! Durability isn't its business: a follower's storage gets the same rows by its own way (PostgreSQL's replication), before or after. A
//! follower answers watches and serializable reads from memory, and when it becomes the writer only reads from storage what it lacks.
//!
//! | file | what it is |
//! |---|---|
//! | `leader` | feeds followers: history back to where they stand, then each batch as it is published |
//! | `follower` | takes it in, while this process waits to become the writer |
//! | `unswept` | what is left to delete if the leader doesn't get to it |
//!
//! Invariants: a follower publishes the leader's revisions, in order, without a gap, or begins anew; a follower that can't keep up is
//! cut off and holds up nobody; what a follower has is compared with what the leader has before anything is built on it.

mod follower;
mod leader;
mod unswept;

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::stream::BoxStream;

use crate::storage::{Batch, BoxFuture, LogError, LogRow};
use crate::types::{Epoch, Revision};

pub(super) use follower::{follow, replace};
pub(super) use leader::Followers;
pub(super) use unswept::Unswept;

/// Where a follower stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The store's cluster id; 0 when the follower has nothing.
    pub cluster_id: u64,
    /// The revision that it has published.
    pub revision: Revision,
    /// The digest of that revision's rows, if it is known.
    pub digest: Option<u32>,
}

/// What a leader tells its followers: `Began`, `Page`s, `Paged`, `Batch`es, `CaughtUp`, and then the others as they come.
#[derive(Clone, Debug)]
pub enum Followed {
    /// The first.
    Began {
        /// The store's.
        cluster_id: u64,
        /// The store's.
        member_id: u64,
        /// The leader's.
        epoch: Epoch,
        /// The pages begin with the first row there is, and replace what the follower has.
        whole: bool,
        /// The follower has published what the leader doesn't have.
        diverged: bool,
    },
    /// Whole revisions, read back from storage; at and below `compacted` rows may be missing.
    Page {
        /// Ascending.
        rows: Vec<LogRow>,
        /// The compact revision after the rows were read.
        compacted: Revision,
    },
    /// There are no more pages.
    Paged {
        /// What they have reached.
        revision: Revision,
        /// The compact revision that holds there. Compactions that came while pages were read are in the batches that follow.
        compacted: Revision,
    },
    /// Everything that pages and batches have told so far may be shown.
    CaughtUp,
    /// Published together; what it says of leases and alarms is of no use to a follower.
    Batch(Arc<Batch>),
    /// What this compact revision made unreachable is gone from storage.
    Swept(Revision),
    /// Nothing has happened, and the leader is there.
    Alive,
}

/// What a follower hears; an error is the end.
pub type FollowedStream = BoxStream<'static, Result<Followed, LogError>>;

/// The way to the leader.
pub trait Leader: Send + Sync + Debug {
    /// Waits until there is a leader other than this process, and asks it for everything after `position`.
    fn follow(&self, position: Position) -> BoxFuture<'_, Result<FollowedStream, LogError>>;
}
