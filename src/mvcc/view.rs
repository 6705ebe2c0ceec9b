//! Reading one moment of history, whatever it is made of: the published store, staged changes over it, a transaction's own writes over
//! both.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::overlay::Overlay;
use crate::types::{KeyRange, LeaseId, Rev, Revision};

/// A value, or the knowledge that it is in storage only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// In memory.
    Resident(Bytes),
    /// Only in storage; this many bytes.
    Evicted(u32),
}

impl Value {
    /// The value's length in bytes, wherever it is.
    pub fn len(&self) -> usize {
        match self {
            Self::Resident(bytes) => bytes.len(),
            Self::Evicted(len) => *len as usize,
        }
    }

    /// Whether the value has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One version of a key: a put, or a tombstone (`version` 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Where in history it was written.
    pub rev: Rev,
    /// The revision of the put that created the key; 0 for a tombstone.
    pub create_revision: Revision,
    /// Puts since the key was created; 0 for a tombstone.
    pub version: i64,
    /// The attached lease, 0 for none.
    pub lease: LeaseId,
    /// The value; empty for a tombstone.
    pub value: Value,
}

impl Version {
    /// Whether this version is a deletion.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

/// Values that were loaded from storage for one evaluation, by place in history.
pub type Loaded = BTreeMap<Rev, Bytes>;

/// Why a request can't be answered from this view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalError {
    /// These values must be loaded first; then evaluate again.
    NeedValues(Vec<Rev>),
    /// The asked-for revision has been compacted.
    Compacted,
    /// The asked-for revision doesn't exist yet.
    FutureRevision,
    /// A put names a lease that doesn't exist.
    LeaseNotFound,
    /// A put that keeps the old value or lease found no key.
    KeyNotFound,
}

/// One moment of history that can be read, and the history below it down to the compact revision.
pub trait ReadView {
    /// The newest revision.
    fn current(&self) -> Revision;

    /// The compact revision; −1 before the first compaction.
    fn compacted(&self) -> Revision;

    /// The key as stored (so that its allocation can be shared) and its newest version at or below revision `at`, tombstones
    /// included.
    fn find(&self, key: &[u8], at: Revision) -> Option<(&Bytes, &Version)>;

    /// Visits each key of the range that has a version at or below `at`, in key order, with its newest such version, tombstones
    /// included, until `visit` breaks.
    fn visit<'a>(
        &'a self,
        range: &KeyRange,
        at: Revision,
        visit: &mut dyn FnMut(&'a Bytes, &'a Version) -> ControlFlow<()>,
    ) -> ControlFlow<()>;

    /// The key's live version at `at`.
    fn live(&self, key: &[u8], at: Revision) -> Option<(&Bytes, &Version)> {
        self.find(key, at).filter(|(_, version)| !version.is_tombstone())
    }
}

/// `over` laid over `base`: what a key has in the overlay hides what it has below.
pub struct Layered<'v, B: ReadView + ?Sized> {
    /// The lower layer.
    pub base: &'v B,
    /// The upper layer; its revisions are newer than all of the lower one's.
    pub over: &'v Overlay,
    /// The newest revision of both.
    pub current: Revision,
    /// The compact revision in force.
    pub compacted: Revision,
}

impl<B: ReadView + ?Sized> ReadView for Layered<'_, B> {
    fn current(&self) -> Revision {
        self.current
    }

    fn compacted(&self) -> Revision {
        self.compacted
    }

    fn find(&self, key: &[u8], at: Revision) -> Option<(&Bytes, &Version)> {
        self.over.find(key, at).or_else(|| self.base.find(key, at))
    }

    fn visit<'a>(
        &'a self,
        range: &KeyRange,
        at: Revision,
        visit: &mut dyn FnMut(&'a Bytes, &'a Version) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if range.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut over = self.over.range(range, at).peekable();
        self.base.visit(range, at, &mut |key, version| {
            while let Some((above, newer)) = over.next_if(|(above, _)| *above < key) {
                visit(above, newer)?;
            }
            match over.next_if(|(above, _)| *above == key) {
                Some((above, newer)) => visit(above, newer),
                None => visit(key, version),
            }
        })?;
        for (above, newer) in over {
            visit(above, newer)?;
        }
        ControlFlow::Continue(())
    }
}
