//! A Range request, to etcd's letter: what `limit` counts, what is sorted, what `count` and `more` mean.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::view::{EvalError, Loaded, ReadView, Value, Version};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::proto::mvccpb::KeyValue;
use crate::types::{KeyRange, Rev, Revision};

/// What `count` says when a limit cuts the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountMode {
    /// All keys of the range (unary Range, transactions).
    Total,
    /// Only as far as was read (RangeStream counts by itself).
    AsRead,
}

/// Answers `request` from `view`. The header carries only the view's newest revision.
///
/// # Errors
/// `FutureRevision`, `Compacted`, or `NeedValues` when values that the answer needs are neither in memory nor in `loaded`.
pub fn range<V: ReadView + ?Sized>(
    view: &V,
    request: &RangeRequest,
    count_mode: CountMode,
    loaded: &Loaded,
) -> Result<RangeResponse, EvalError> {
    let mut scan = RangeScan::begin(view, request, count_mode)?;
    scan.step(view, loaded, usize::MAX)?;
    scan.finish()
}

/// A range that is collected in steps, so that what is read may change between them.
///
/// The beginning fixes the revision: the answer is the one that [`range`] would have given then, whatever is published meanwhile, because
/// history stays readable down to the compact revision. A compaction that passes the revision ends the scan.
#[derive(Debug)]
pub struct RangeScan<'r> {
    request: &'r RangeRequest,
    at: Revision,
    /// The newest revision at the beginning, for the header.
    current: Revision,
    read_limit: i64,
    /// Whether keys beyond what is read are counted.
    counts_rest: bool,
    /// etcd answers keys_only from its index, which knows no leases, unless it has to sort by value.
    index_only: bool,
    /// What hasn't been visited yet; `None` when nothing is left to do.
    rest: Option<KeyRange>,
    count: i64,
    kvs: Vec<KeyValue>,
    /// The places of those values that aren't at hand.
    missing: Vec<Rev>,
}

impl<'r> RangeScan<'r> {
    /// Fixes the revision; visits nothing yet.
    ///
    /// # Errors
    /// `FutureRevision`, `Compacted`.
    pub fn begin<V: ReadView + ?Sized>(view: &V, request: &'r RangeRequest, count_mode: CountMode) -> Result<Self, EvalError> {
        let current = view.current();
        if request.revision > current {
            return Err(EvalError::FutureRevision);
        }
        let at = if request.revision <= 0 { current } else { request.revision };
        if at < view.compacted() {
            return Err(EvalError::Compacted);
        }
        let read_limit = read_limit(request);
        let expected = if request.range_end.is_empty() { 1 } else { usize::try_from(read_limit).unwrap_or(usize::MAX).min(1024) };
        Ok(Self {
            request,
            at,
            current,
            read_limit,
            counts_rest: request.count_only || count_mode == CountMode::Total,
            index_only: request.keys_only && request.sort_target != SortTarget::Value as i32,
            rest: Some(KeyRange::new(request.key.clone(), request.range_end.clone())),
            count: 0,
            kvs: Vec::with_capacity(expected),
            missing: Vec::new(),
        })
    }

    /// Visits up to `keys_max` more keys that had begun by the scan's revision, deleted ones included. `view` is later than, or the same
    /// as, in the steps before.
    ///
    /// # Errors
    /// `Compacted` when a compaction has passed the scan's revision.
    pub fn step<V: ReadView + ?Sized>(&mut self, view: &V, loaded: &Loaded, keys_max: usize) -> Result<(), EvalError> {
        if self.at < view.compacted() {
            return Err(EvalError::Compacted);
        }
        let Some(keys) = self.rest.take() else { return Ok(()) };
        let mut visited = 0;
        let _ = view.visit(&keys, self.at, &mut |key, version| {
            if visited == keys_max {
                self.rest = Some(KeyRange::new(key.clone(), self.request.range_end.clone()));
                return ControlFlow::Break(());
            }
            visited += 1;
            if version.is_tombstone() {
                return ControlFlow::Continue(());
            }
            if self.count < self.read_limit {
                self.take(key, version, loaded);
            } else if !self.counts_rest {
                return ControlFlow::Break(());
            }
            self.count += 1;
            ControlFlow::Continue(())
        });
        Ok(())
    }

    /// Whether every key has been visited that the answer needs.
    pub fn is_done(&self) -> bool {
        self.rest.is_none()
    }

    /// The answer, once the scan is done: filters, sorts and cuts what was collected.
    ///
    /// # Errors
    /// `NeedValues` with all values that were neither in memory nor in `loaded`.
    pub fn finish(self) -> Result<RangeResponse, EvalError> {
        debug_assert!(self.is_done(), "an unfinished scan has no answer");
        if !self.missing.is_empty() {
            return Err(EvalError::NeedValues(self.missing));
        }
        let Self { request, mut kvs, count, .. } = self;
        filter(&mut kvs, request);
        sort(&mut kvs, request);
        let more = request.limit > 0 && kvs.len() as u64 > request.limit.unsigned_abs();
        if more {
            kvs.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let header = Some(ResponseHeader { revision: self.current, ..Default::default() });
        Ok(RangeResponse { header, kvs, more, count })
    }

    fn take(&mut self, key: &Bytes, version: &Version, loaded: &Loaded) {
        let value = if self.index_only { Some(Bytes::new()) } else { value_of(version, loaded) };
        let Some(value) = value else {
            self.missing.push(version.rev);
            return;
        };
        let lease = if self.index_only { 0 } else { version.lease };
        self.kvs.push(KeyValue { lease, ..key_value(key, version, value) });
    }
}

/// How many keys are read before filters and sorting: none when only their number is asked for; one more than the limit, to know whether
/// there is more; all of them when the order or a filter has to see everything first.
fn read_limit(request: &RangeRequest) -> i64 {
    if request.count_only {
        return 0;
    }
    let in_key_order = request.sort_order == SortOrder::None as i32
        || (request.sort_target == SortTarget::Key as i32 && request.sort_order == SortOrder::Ascend as i32);
    if request.limit <= 0 || !in_key_order || has_revision_filters(request) {
        return i64::MAX;
    }
    request.limit.saturating_add(1)
}

/// Whether one of the four revision filters is set.
pub fn has_revision_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn filter(kvs: &mut Vec<KeyValue>, request: &RangeRequest) {
    if !has_revision_filters(request) {
        return;
    }
    let within = |revision: i64, min: i64, max: i64| (min == 0 || revision >= min) && (max == 0 || revision <= max);
    kvs.retain(|kv| {
        within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
            && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
    });
}

fn sort(kvs: &mut [KeyValue], request: &RangeRequest) {
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    let descending = request.sort_order == SortOrder::Descend as i32;
    if target == SortTarget::Key && !descending {
        return;
    }
    let compare = |left: &KeyValue, right: &KeyValue| match target {
        SortTarget::Key => left.key.cmp(&right.key),
        SortTarget::Version => left.version.cmp(&right.version),
        SortTarget::Create => left.create_revision.cmp(&right.create_revision),
        SortTarget::Mod => left.mod_revision.cmp(&right.mod_revision),
        SortTarget::Value => left.value.cmp(&right.value),
    };
    kvs.sort_by(|left, right| if descending { compare(right, left) } else { compare(left, right) });
}

/// The version's value, from memory or from what was loaded.
pub(super) fn value_of(version: &Version, loaded: &Loaded) -> Option<Bytes> {
    match &version.value {
        Value::Resident(value) => Some(value.clone()),
        Value::Evicted(_) => loaded.get(&version.rev).cloned(),
    }
}

/// A version as etcd shows it.
pub fn key_value(key: &Bytes, version: &Version, value: Bytes) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: version.create_revision,
        mod_revision: version.rev.main,
        version: version.version,
        value,
        lease: version.lease,
    }
}
