//! What clients have been shown of a store, and whether a store has it.
//!
//! The engine itself remembers what it has published, for as long as the process lives. Whoever remembers longer, or knows what another
//! process has published, is a [`Recall`] in the engine's options; where that memory is, is no business of the engine's.

use std::fmt::Debug;
use std::sync::atomic::Ordering;

use super::{Engine, Error, Shared};
use crate::mvcc::{ReadView, digest};
use crate::storage::{BoxFuture, LogRow};
use crate::types::Revision;

/// The newest revision of a store that clients may have been shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The store's; never 0.
    pub cluster_id: u64,
    /// The revision.
    pub revision: Revision,
    /// The digest of that revision's rows, if it is known.
    pub digest: Option<u32>,
}

/// Whether a store goes on from what clients have been shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does, or that can't be told any more because the revision has been compacted.
    Yes,
    /// It ends before, at this revision.
    Lacks(Revision),
    /// It has something else under that revision.
    Differs,
    /// It is another store, with this cluster id.
    OtherStore(u64),
}

/// Memory of what clients have been shown that outlasts the engine's own.
pub trait Recall: Send + Sync + Debug {
    /// Told at the beginning of each session as the writer: storage holds the store `cluster_id`, which ends at `last`; the engine itself
    /// has shown `own`; `wrote_before` are the URLs of the writer before. Answers what else the store must have in it, and the explanation
    /// for users when it is already clear that it must not be served. May take a moment to ask others.
    fn examine(
        &self,
        cluster_id: u64,
        last: Revision,
        own: Option<Seen>,
        wrote_before: Vec<String>,
    ) -> BoxFuture<'_, Result<Option<Seen>, String>>;

    /// The explanation for users when the store turned out to have another history than that of `seen`.
    fn differs(&self, seen: Seen) -> String;
}

/// The rows of a revision that clients have been shown, looked out for while a log is read.
pub(super) struct Sought {
    pub seen: Seen,
    digest: u32,
    rows: Vec<LogRow>,
}

impl Sought {
    /// `None` when there is nothing to look out for: rows at or below `compacted` may be gone.
    pub fn new(seen: Option<Seen>, compacted: Revision) -> Option<Self> {
        let seen = seen.filter(|seen| seen.revision > compacted)?;
        Some(Self { seen, digest: seen.digest?, rows: Vec::new() })
    }

    /// Looks at rows that pass by.
    pub fn pass(&mut self, rows: &[LogRow]) {
        self.rows.extend(rows.iter().filter(|row| row.rev.main == self.seen.revision).cloned());
    }

    /// Whether the revision has passed by as it was shown.
    pub fn is_found(&self) -> bool {
        digest(&self.rows) == Some(self.digest)
    }
}

impl Shared {
    /// `None` before the first recovery.
    pub(super) fn seen(&self) -> Option<Seen> {
        let cluster_id = self.cluster_id.load(Ordering::Relaxed);
        let store = self.store.read();
        (cluster_id != 0).then(|| Seen { cluster_id, revision: store.current(), digest: store.digest() })
    }
}

impl Engine {
    /// The newest revision that clients of this process may have been shown; `None` before it had anything to show.
    pub fn seen(&self) -> Option<Seen> {
        self.shared.seen()
    }

    /// Whether the store that this process writes goes on from `seen`. It is confirmed as a linearizable read is.
    ///
    /// # Errors
    /// Those of a linearizable read; `Storage`.
    pub async fn holds(&self, seen: Seen) -> Result<Holds, Error> {
        self.shared.read_barrier().await?;
        let Some(own) = self.seen() else { return Err(Error::NoLeader) };
        if own.cluster_id != seen.cluster_id {
            return Ok(Holds::OtherStore(own.cluster_id));
        }
        if own.revision < seen.revision {
            return Ok(Holds::Lacks(own.revision));
        }
        let compacted = self.shared.store.read().compacted();
        let Some(mut sought) = Sought::new(Some(seen), compacted) else { return Ok(Holds::Yes) };
        let read = self.shared.log.reader().rows(seen.revision, seen.revision, 1).await;
        let page = read.map_err(|error| Error::Storage(error.to_string()))?;
        sought.pass(&page.rows);
        if page.compacted < seen.revision && sought.rows.is_empty() {
            // The writer's own session has it: this one leads to a server that is behind, such as a former primary.
            return Err(Error::Storage(format!("revision {} can't be read back", seen.revision)));
        }
        Ok(if page.compacted >= seen.revision || sought.is_found() { Holds::Yes } else { Holds::Differs })
    }
}
