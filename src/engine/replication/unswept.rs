//! What a follower leaves to its leader: to delete the rows that compaction made unreachable.
//!
//! Rows are named by their place in history. When a history is replaced by another, its places come again: nothing that was swept in
//! one may be deleted in the other, and so whoever deletes says which history it has swept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::types::{Rev, Revision};

/// Rows that a follower has taken out of its index and that the leader may not have deleted yet, by the compact revision that made them
/// unreachable: whoever becomes the writer deletes them.
#[derive(Default)]
pub(in crate::engine) struct Unswept {
    left: Mutex<Left>,
    history: AtomicU64,
}

#[derive(Default)]
struct Left {
    rows: BTreeMap<Revision, Vec<Rev>>,
    /// Some were taken and aren't known to be deleted yet.
    taken: bool,
}

impl Unswept {
    /// The number of the present history. Ask for it while the store is locked that is swept.
    pub fn history(&self) -> u64 {
        self.history.load(Ordering::SeqCst)
    }

    /// Remembers rows of a history, if that is still the present one.
    pub fn add(&self, history: u64, compacted: Revision, rows: &[Rev]) {
        let mut left = self.left.lock();
        if history == self.history() {
            left.rows.entry(compacted).or_default().extend(rows);
        }
    }

    /// Hands out what was remembered, piece by piece, to be deleted; then comes [`Unswept::put_down`].
    pub fn take(&self) -> Option<(Revision, Vec<Rev>)> {
        let mut left = self.left.lock();
        let taken = left.rows.pop_first();
        left.taken |= taken.is_some();
        taken
    }

    /// What was taken is deleted, or remembered again.
    pub fn put_down(&self) {
        self.left.lock().taken = false;
    }

    /// There are rows that this process has yet to delete.
    pub fn is_pending(&self) -> bool {
        let left = self.left.lock();
        left.taken || !left.rows.is_empty()
    }

    /// They are gone, up to this compact revision.
    pub fn swept(&self, compacted: Revision) {
        self.left.lock().rows.retain(|revision, _| *revision > compacted);
    }

    /// Another history is shown from now on.
    pub fn begin_anew(&self) {
        self.history.fetch_add(1, Ordering::SeqCst);
        self.left.lock().rows.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_leader_has_swept_is_forgotten_and_the_rest_is_handed_out() {
        let unswept = Unswept::default();
        unswept.add(0, 10, &[Rev::new(3, 0)]);
        unswept.add(0, 20, &[Rev::new(12, 0)]);
        unswept.add(0, 20, &[Rev::new(13, 0)]);
        unswept.swept(10);
        assert!(unswept.is_pending());
        assert_eq!(unswept.take(), Some((20, vec![Rev::new(12, 0), Rev::new(13, 0)])));
        assert_eq!(unswept.take(), None);
        assert!(unswept.is_pending(), "they are being deleted");
        unswept.put_down();
        assert!(!unswept.is_pending());
    }

    #[test]
    fn rows_of_another_history_are_not_remembered() {
        let unswept = Unswept::default();
        let history = unswept.history();
        unswept.add(history, 10, &[Rev::new(3, 0)]);
        unswept.begin_anew();
        unswept.add(history, 10, &[Rev::new(4, 0)]);
        assert_eq!(unswept.take(), None);
    }
}
