//! Changes that aren't published: a transaction's own writes while it is evaluated, and the batches that are on their way to storage.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::view::{Value, Version};
use crate::storage::LogRow;
use crate::types::{KeyRange, Revision};

/// Versions by key, all newer than what the overlay is laid over.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// Every version's revision and key in the order written, so that publishing can drop the oldest without a search.
    order: VecDeque<(Revision, Bytes)>,
}

impl Overlay {
    /// Whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds a change. Changes arrive in history order.
    pub fn push(&mut self, row: &LogRow) {
        debug_assert!(self.order.back().is_none_or(|(revision, _)| *revision <= row.rev.main));
        self.order.push_back((row.rev.main, row.key.clone()));
        self.keys.entry(row.key.clone()).or_default().push(version_of(row));
    }

    /// Forgets all changes up to and including `published`: the layer below has them now.
    pub fn published(&mut self, published: Revision) {
        while let Some((_, key)) = self.order.pop_front_if(|(revision, _)| *revision <= published) {
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            versions.retain(|version| version.rev.main > published);
            if versions.is_empty() {
                self.keys.remove(&key);
            }
        }
    }

    /// The key's newest version at or below `at`, tombstones included.
    pub fn find(&self, key: &[u8], at: Revision) -> Option<(&Bytes, &Version)> {
        let (key, versions) = self.keys.get_key_value(key)?;
        newest(versions, at).map(|version| (key, version))
    }

    /// The keys of a non-empty range with their newest version at or below `at`, in key order.
    pub fn range<'a>(&'a self, range: &KeyRange, at: Revision) -> impl Iterator<Item = (&'a Bytes, &'a Version)> {
        self.keys
            .range::<[u8], _>(range.bounds())
            .filter_map(move |(key, versions)| newest(versions, at).map(|version| (key, version)))
    }

    /// All keys with their newest version.
    pub fn latest(&self) -> impl Iterator<Item = (&Bytes, &Version)> {
        self.keys.iter().filter_map(|(key, versions)| versions.last().map(|version| (key, version)))
    }
}

/// The newest of ascending versions at or below `at`.
pub(super) fn newest(versions: &[Version], at: Revision) -> Option<&Version> {
    versions.iter().rev().find(|version| version.rev.main <= at)
}

/// A row as the version that it writes.
pub(super) fn version_of(row: &LogRow) -> Version {
    Version {
        rev: row.rev,
        create_revision: row.create_revision,
        version: row.version,
        lease: row.lease,
        value: Value::Resident(row.value.clone().unwrap_or_default()),
    }
}
