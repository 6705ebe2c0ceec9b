//! What can be said of a request by looking at it alone: etcd's field checks, the rule against changing a key twice, and sizes.
//!
//! Pure functions over wire types. The order of the checks is etcd's (`api/v3rpc/key.go`), because of several faults a client is told
//! only the first: a transaction is checked whole for its fields, then for overlaps, and within each by operation, in order.
//!
//! Deliberately not here: whatever needs the store (leases, missing keys, revisions) or the caller's identity.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost::encoding::encoded_len_varint;

use super::error::Error;
use crate::proto::etcdserverpb as pb;
use crate::proto::nested::NESTED_MAX;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request as Op;

/// Checks a Range's fields.
pub fn range(request: &pb::RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// Why a RangeStream was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeStreamError {
    /// The range itself is at fault.
    Range(Error),
    /// It asks for an order other than ascending by key.
    CustomSort,
    /// It filters by revision.
    RevisionFilter,
}

/// Checks a RangeStream's fields: what can only be answered by looking at all keys first isn't streamed.
pub fn range_stream(request: &pb::RangeRequest) -> Result<(), RangeStreamError> {
    range(request).map_err(RangeStreamError::Range)?;
    if !in_key_order(request) {
        return Err(RangeStreamError::CustomSort);
    }
    if filters_revisions(request) {
        return Err(RangeStreamError::RevisionFilter);
    }
    Ok(())
}

/// Whether the answer comes in the order in which keys are stored. `NONE` counts, whatever the target.
fn in_key_order(request: &pb::RangeRequest) -> bool {
    request.sort_order == SortOrder::None as i32
        || (request.sort_order == SortOrder::Ascend as i32 && request.sort_target == SortTarget::Key as i32)
}

fn filters_revisions(request: &pb::RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Checks a Put's fields.
pub fn put(request: &pb::PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Checks a DeleteRange's fields.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks a Txn: the fields of every operation of both branches, then that no branch changes a key twice.
///
/// `max_txn_ops` bounds the operations of a branch; what a transaction uses of it is not there for those nested in it.
pub fn txn(request: &pb::TxnRequest, max_txn_ops: usize) -> Result<(), Error> {
    txn_fields(request, max_txn_ops, NESTED_MAX)?;
    overlaps(&request.success)?;
    overlaps(&request.failure)?;
    Ok(())
}

/// `levels` is how many transactions may be nested in this one. With max-txn-ops at 256 or below operations run out first, as in etcd.
fn txn_fields(request: &pb::TxnRequest, max_txn_ops: usize, levels: u32) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = max_txn_ops.checked_sub(ops) else {
        return Err(Error::TooManyOps);
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    request.success.iter().chain(&request.failure).try_for_each(|op| match &op.request {
        Some(Op::RequestRange(op)) => range(op),
        Some(Op::RequestPut(op)) => put(op),
        Some(Op::RequestDeleteRange(op)) => delete_range(op),
        Some(Op::RequestTxn(op)) => txn_fields(op, left, levels.checked_sub(1).ok_or(Error::TooManyOps)?),
        // etcd's answer to an operation that says nothing, though no key was looked for.
        None => Err(Error::KeyNotFound),
    })
}

/// The keys that a branch puts and the ranges that it deletes, nested transactions included.
#[derive(Default)]
struct Changes<'r> {
    puts: BTreeSet<&'r [u8]>,
    deletes: Spans<'r>,
}

/// Refuses a branch that changes a key twice, with etcd's exceptions (`checkIntervals`), which clients may rely on:
///
/// - overlapping deletes are fine, and so is what both branches of one nested transaction put;
/// - a nested put is held against this level's deletes and those of the nested transactions *before* it, not after;
/// - a delete of everything from a key on (`range_end` `\0`) is taken as an empty interval and so never collides.
fn overlaps(branch: &[pb::RequestOp]) -> Result<Changes<'_>, Error> {
    let mut changes = Changes::default();
    for op in branch {
        if let Some(Op::RequestDeleteRange(op)) = &op.request {
            changes.deletes.insert_request(op);
        }
    }
    for op in branch {
        if let Some(Op::RequestTxn(op)) = &op.request {
            nested_overlaps(op, &mut changes)?;
        }
    }
    for op in branch {
        if let Some(Op::RequestPut(op)) = &op.request
            && (changes.deletes.contain(&op.key) || !changes.puts.insert(&op.key))
        {
            return Err(Error::DuplicateKey);
        }
    }
    Ok(changes)
}

/// Adds a nested transaction's changes to those of the branch that holds it.
fn nested_overlaps<'r>(request: &'r pb::TxnRequest, changes: &mut Changes<'r>) -> Result<(), Error> {
    let then = overlaps(&request.success)?;
    let otherwise = overlaps(&request.failure)?;
    if then.puts.iter().any(|key| changes.puts.contains(key) || changes.deletes.contain(key)) {
        return Err(Error::DuplicateKey);
    }
    // Only one of the two branches is taken, so that what both put is put once.
    if otherwise.puts.iter().any(|key| changes.puts.contains(key) || changes.deletes.contain(key)) {
        return Err(Error::DuplicateKey);
    }
    changes.puts.extend(then.puts);
    changes.puts.extend(otherwise.puts);
    changes.deletes.union(&then.deletes);
    changes.deletes.union(&otherwise.deletes);
    Ok(())
}

/// A set of keys given by half-open spans, kept disjoint so that a lookup is one step in an ordered map.
#[derive(Default)]
struct Spans<'r> {
    /// Start → end, of which `None` is one key only: `[start, start + "\0")`.
    by_start: BTreeMap<&'r [u8], End<'r>>,
}

/// Where a span ends, exclusively.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End<'r> {
    /// Before this key.
    Before(&'r [u8]),
    /// Just after this key: before the key followed by a zero byte.
    After(&'r [u8]),
}

impl End<'_> {
    /// Whether `key` lies before the end.
    fn is_beyond(&self, key: &[u8]) -> bool {
        match *self {
            End::Before(end) => key < end,
            End::After(last) => key <= last,
        }
    }
}

impl<'r> Spans<'r> {
    fn insert_request(&mut self, request: &'r pb::DeleteRangeRequest) {
        let end = if request.range_end.is_empty() { End::After(&request.key) } else { End::Before(&request.range_end) };
        self.insert(&request.key, end);
    }

    fn insert(&mut self, start: &'r [u8], end: End<'r>) {
        if !end.is_beyond(start) {
            return; // reversed, empty, or "from a key on": never collides
        }
        let mut start = start;
        let mut end = end;
        if let Some((before, before_end)) = self.by_start.range(..=start).next_back().map(|(s, e)| (*s, *e))
            && before_end.is_beyond(start)
        {
            start = before;
            end = later(end, before_end);
        }
        while let Some((after, after_end)) = self.by_start.range(start..).next().map(|(s, e)| (*s, *e)) {
            if !end.is_beyond(after) {
                break;
            }
            end = later(end, after_end);
            self.by_start.remove(after);
        }
        self.by_start.insert(start, end);
    }

    fn union(&mut self, other: &Spans<'r>) {
        for (start, end) in &other.by_start {
            self.insert(start, *end);
        }
    }

    fn contain(&self, key: &[u8]) -> bool {
        self.by_start.range(..=key).next_back().is_some_and(|(_, end)| end.is_beyond(key))
    }
}

/// The end that lies further back.
fn later<'r>(a: End<'r>, b: End<'r>) -> End<'r> {
    let a_is_later = match (a, b) {
        (End::Before(a), End::Before(b)) | (End::After(a), End::After(b)) => a > b,
        // `a` as an end lies beyond `b + "\0"` only if there is room for a key after `b`.
        (End::Before(a), End::After(b)) => a > b,
        (End::After(a), End::Before(b)) => a >= b,
    };
    if a_is_later { a } else { b }
}

/// What etcd reckons a stored key takes beside its bytes (`kvOverhead`).
const KV_OVERHEAD_BYTES: i64 = 256;
/// What etcd reckons a lease takes (`leaseOverhead`).
pub const LEASE_COST_BYTES: i64 = 64;

/// The room that a Put is reckoned to take, in bytes, for the space quota.
pub fn put_cost(request: &pb::PutRequest) -> i64 {
    KV_OVERHEAD_BYTES + (request.key.len() + request.value.len()) as i64
}

/// The room that a Txn is reckoned to take, in bytes: that of its costlier branch. 0: it puts nothing and passes any quota.
pub fn txn_cost(request: &pb::TxnRequest) -> i64 {
    let branch = |ops: &[pb::RequestOp]| -> i64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(Op::RequestPut(op)) => put_cost(op),
                Some(Op::RequestTxn(op)) => txn_cost(op),
                _ => 0,
            })
            .sum()
    };
    branch(&request.success).max(branch(&request.failure))
}

/// What etcd's raft envelope adds to a request: a tag, and a header with a request id (`InternalRaftRequest`), in bytes.
const ENVELOPE_BYTES: usize = 1 + 13;

/// Refuses a write that is larger than `max_request_bytes` when marshalled the way etcd proposes it to its log.
pub fn size<M: Message>(request: &M, max_request_bytes: usize) -> Result<(), Error> {
    let len = request.encoded_len();
    if ENVELOPE_BYTES + encoded_len_varint(len as u64) + len > max_request_bytes { Err(Error::RequestTooLarge) } else { Ok(()) }
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
