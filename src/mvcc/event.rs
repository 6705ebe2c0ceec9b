//! What a published revision tells its watchers.

use super::view::Version;
use crate::storage::LogRow;
use crate::types::Revision;

/// One change, with what it replaced.
#[derive(Clone, Debug)]
pub struct Event {
    /// The change.
    pub row: LogRow,
    /// The key's live version before the transaction (at revision − 1), if it had one and it isn't compacted: what etcd calls the
    /// previous key-value. Its value may be evicted from memory.
    pub prev: Option<Version>,
}

/// All changes of one revision, in sub-revision order. Never empty.
#[derive(Clone, Debug)]
pub struct RevisionEvents {
    /// The revision.
    pub revision: Revision,
    /// Its changes.
    pub events: Vec<Event>,
}

impl RevisionEvents {
    /// About how much memory the events hold on to, in bytes.
    pub fn weight(&self) -> usize {
        self.events
            .iter()
            .map(|event| {
                let value = event.row.value.as_ref().map_or(0, bytes::Bytes::len);
                let prev = event.prev.as_ref().map_or(0, |version| version.value.len());
                event.row.key.len() + value + prev + size_of::<Event>()
            })
            .sum()
    }
}
