//! A digest of one revision's rows, by which two nodes find out whether they have the same history up to there.
//!
//! It is kept as rows pass by, so that it costs no look back. Histories that part differ in the first revision after, and, but for a
//! coincidence of 1 in 4 billion, in any later one that has other rows.

use crate::storage::LogRow;
use crate::types::Revision;

/// The digest of the newest revision whose rows passed by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Digest {
    revision: Revision,
    crc: u32,
}

impl Digest {
    /// Takes in a row; rows come in history order.
    pub fn add(&mut self, row: &LogRow) {
        if row.rev.main != self.revision {
            *self = Self { revision: row.rev.main, crc: 0 };
        }
        let mut fixed = [0; 40];
        let value_len = row.value.as_ref().map_or(u64::MAX, |value| value.len() as u64);
        for (slot, number) in fixed.chunks_exact_mut(8).zip([
            row.rev.main.to_be_bytes(),
            row.create_revision.to_be_bytes(),
            row.version.to_be_bytes(),
            row.lease.to_be_bytes(),
            value_len.to_be_bytes(),
        ]) {
            slot.copy_from_slice(&number);
        }
        self.crc = crc32c::crc32c_append(self.crc, &fixed);
        self.crc = crc32c::crc32c_append(self.crc, &row.key);
        self.crc = crc32c::crc32c_append(self.crc, row.value.as_deref().unwrap_or_default());
    }

    /// The digest of `revision`, if that is the one whose rows passed by last.
    pub fn of(&self, revision: Revision) -> Option<u32> {
        (self.revision == revision).then_some(self.crc)
    }
}

/// The digest of these rows, which are all of their revision's.
#[must_use]
pub fn digest(rows: &[LogRow]) -> Option<u32> {
    let mut digest = Digest::default();
    rows.iter().for_each(|row| digest.add(row));
    rows.last().and_then(|row| digest.of(row.rev.main))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Rev;
    use bytes::Bytes;

    fn row(key: &'static str, value: Option<&'static str>) -> LogRow {
        LogRow {
            rev: Rev::new(7, 0),
            key: Bytes::from_static(key.as_bytes()),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
            create_revision: 3,
            version: 2,
            lease: 0,
        }
    }

    #[test]
    fn every_part_of_a_row_counts() {
        let rows = [
            row("k", Some("v")),
            row("kv", Some("")),
            row("k", Some("")),
            row("k", None),
            LogRow { lease: 1, ..row("k", Some("v")) },
            LogRow { version: 3, ..row("k", Some("v")) },
            LogRow { create_revision: 4, ..row("k", Some("v")) },
            LogRow { rev: Rev::new(8, 0), ..row("k", Some("v")) },
        ];
        let digests: std::collections::BTreeSet<u32> =
            rows.iter().map(|row| digest(std::slice::from_ref(row)).expect("there is a row")).collect();
        assert_eq!(digests.len(), rows.len());
    }

    #[test]
    fn only_the_newest_revision_has_one() {
        let mut passing = Digest::default();
        passing.add(&row("k", Some("v")));
        passing.add(&LogRow { rev: Rev::new(8, 0), ..row("a", Some("b")) });
        passing.add(&LogRow { rev: Rev::new(8, 1), ..row("c", None) });
        assert_eq!(passing.of(7), None);
        let rows = [LogRow { rev: Rev::new(8, 0), ..row("a", Some("b")) }, LogRow { rev: Rev::new(8, 1), ..row("c", None) }];
        assert_eq!(passing.of(8), digest(&rows));
        assert_eq!(digest(&[]), None);
    }
}
