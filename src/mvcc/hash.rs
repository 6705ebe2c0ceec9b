//! Which rows etcd's `HashKV` covers.
//!
//! Of what stands at or below the compact revision only versions that a compaction at the hash's revision would keep count (if it would
//! keep any at all), and a tombstone exactly at the compact revision never does: so that stores hash equal whether or not they have
//! finished compacting.

use bytes::Bytes;

use super::overlay::newest;
use super::view::Version;
use crate::types::Revision;

/// What a hash is to cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashScope {
    /// The compact revision that is taken into account.
    pub compacted: Revision,
    /// Rows up to this revision.
    pub at: Revision,
    /// Whether this is the hash that etcd takes while it compacts at `at`: that keeps a tombstone exactly there, `HashKV` doesn't.
    pub compacting: bool,
}

/// The rows of some keys, unordered.
#[derive(Clone, Debug, Default)]
pub struct HashStep {
    /// The rows that count in any case.
    pub rows: Vec<(Bytes, Version)>,
    /// Those that count only if nothing would be kept of any key.
    pub otherwise: Vec<(Bytes, Version)>,
    /// Whether something would be kept of one of the keys.
    pub any_kept: bool,
    /// Where the next step begins; `None` when every key has been seen.
    pub next: Option<Bytes>,
}

impl HashScope {
    /// Adds what counts of a key's reachable versions, which ascend.
    pub(super) fn select(self, key: &Bytes, versions: &[Version], step: &mut HashStep) {
        let newest = newest(versions, self.at);
        let keeps = newest.filter(|version| !version.is_tombstone() || (self.compacting && version.rev.main == self.at));
        step.any_kept |= keeps.is_some();
        for version in versions.iter().take_while(|version| version.rev.main <= self.at) {
            if version.is_tombstone() && version.rev.main == self.compacted {
                continue;
            }
            let counts = version.rev.main > self.compacted || keeps.is_some_and(|kept| kept.rev == version.rev);
            let rows = if counts { &mut step.rows } else { &mut step.otherwise };
            rows.push((key.clone(), version.clone()));
        }
    }
}

impl HashStep {
    /// Takes another step's rows in.
    pub fn join(&mut self, mut other: HashStep) {
        self.rows.append(&mut other.rows);
        self.otherwise.append(&mut other.otherwise);
        self.any_kept |= other.any_kept;
        self.next = other.next;
    }

    /// All rows that count, in history order, once every key has been seen.
    pub fn finish(mut self) -> Vec<(Bytes, Version)> {
        if !self.any_kept {
            self.rows.append(&mut self.otherwise);
        }
        self.rows.sort_unstable_by_key(|(_, version)| version.rev);
        self.rows
    }
}
