//! A Range request, to etcd's letter: what `limit` counts, what is sorted, what `count` and `more` mean.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::view::{EvalError, Loaded, ReadView, Value, Version};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::proto::mvccpb::KeyValue;
use crate::types::{KeyRange, Rev};

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
    let current = view.current();
    if request.revision > current {
        return Err(EvalError::FutureRevision);
    }
    let at = if request.revision <= 0 { current } else { request.revision };
    if at < view.compacted() {
        return Err(EvalError::Compacted);
    }
    let keys = KeyRange::new(request.key.clone(), request.range_end.clone());
    let header = Some(ResponseHeader { revision: current, ..Default::default() });
    if request.count_only {
        let count = count_live(view, &keys, at);
        return Ok(RangeResponse { header, count, ..Default::default() });
    }
    let read_limit = read_limit(request);
    let mut collector = Collector::new(request, loaded, read_limit);
    let mut count: i64 = 0;
    let _ = view.visit(&keys, at, &mut |key, version| {
        if version.is_tombstone() {
            return ControlFlow::Continue(());
        }
        if count < read_limit {
            collector.take(key, version);
        } else if count_mode == CountMode::AsRead {
            return ControlFlow::Break(());
        }
        count += 1;
        ControlFlow::Continue(())
    });
    let mut kvs = collector.finish()?;
    filter(&mut kvs, request);
    sort(&mut kvs, request);
    let more = request.limit > 0 && kvs.len() as u64 > request.limit.unsigned_abs();
    if more {
        kvs.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(RangeResponse { header, kvs, more, count })
}

fn count_live<V: ReadView + ?Sized>(view: &V, keys: &KeyRange, at: i64) -> i64 {
    let mut count = 0;
    let _ = view.visit(keys, at, &mut |_, version| {
        count += i64::from(!version.is_tombstone());
        ControlFlow::Continue(())
    });
    count
}

/// How many keys are read before filters and sorting: one more than the limit, to know whether there is more; all of them when the
/// order or a filter has to see everything first.
fn read_limit(request: &RangeRequest) -> i64 {
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

/// Gathers key-values, and the places of those values that aren't at hand.
struct Collector<'a> {
    kvs: Vec<KeyValue>,
    missing: Vec<Rev>,
    loaded: &'a Loaded,
    /// etcd answers keys_only from its index, which knows no leases, unless it has to sort by value.
    index_only: bool,
}

impl<'a> Collector<'a> {
    fn new(request: &RangeRequest, loaded: &'a Loaded, read_limit: i64) -> Self {
        let expected = usize::try_from(read_limit).unwrap_or(usize::MAX).min(1024);
        let index_only = request.keys_only && request.sort_target != SortTarget::Value as i32;
        Self { kvs: Vec::with_capacity(expected), missing: Vec::new(), loaded, index_only }
    }

    fn take(&mut self, key: &Bytes, version: &Version) {
        let value = if self.index_only { Some(Bytes::new()) } else { value_of(version, self.loaded) };
        let Some(value) = value else {
            self.missing.push(version.rev);
            return;
        };
        let lease = if self.index_only { 0 } else { version.lease };
        self.kvs.push(KeyValue { lease, ..key_value(key, version, value) });
    }

    fn finish(self) -> Result<Vec<KeyValue>, EvalError> {
        if self.missing.is_empty() { Ok(self.kvs) } else { Err(EvalError::NeedValues(self.missing)) }
    }
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
