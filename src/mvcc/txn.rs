//! Evaluating writes: Put, DeleteRange, Txn and the deletion of a lease's keys, to etcd's letter.
//!
//! An evaluation sees one moment (the view), changes nothing, and yields the rows to be logged with the response to be given once they
//! are durable. All compares, nested ones included, see the state before the transaction; all checks of the branch taken come before
//! any effect; ranges inside see the transaction's own earlier writes.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::operations::Operations;
use super::overlay::Overlay;
use super::range::{CountMode, key_value, range, value_of};
use super::view::{EvalError, Layered, Loaded, ReadView, Version};
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::storage::LogRow;
use crate::types::{KeyRange, LeaseId, Rev, Revision};

/// What an evaluation yields: the rows to log (none: nothing changes, no revision is used) and the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated<R> {
    /// The transaction's changes, all of one revision.
    pub rows: Vec<LogRow>,
    /// The answer; its headers carry only revisions.
    pub response: R,
}

/// Which leases exist, staged grants and revokes included.
pub trait LeaseLookup {
    /// Whether the lease exists.
    fn exists(&self, id: LeaseId) -> bool;
}

/// One transaction under evaluation.
pub struct Evaluator<'a> {
    view: &'a dyn ReadView,
    leases: &'a dyn LeaseLookup,
    loaded: &'a Loaded,
    begin: Revision,
    writes: Overlay,
    rows: Vec<LogRow>,
    /// Values that are neither in memory nor loaded. The evaluation goes on with empty ones in their place, to ask for all of them at
    /// once; what it yields then counts for nothing.
    missing: Vec<Rev>,
    /// Where operations are counted.
    operations: Option<&'a mut Operations>,
}

impl<'a> Evaluator<'a> {
    /// A transaction that begins at the view's newest revision.
    pub fn new(view: &'a dyn ReadView, leases: &'a dyn LeaseLookup, loaded: &'a Loaded) -> Self {
        let (begin, writes) = (view.current(), Overlay::default());
        Self { view, leases, loaded, begin, writes, rows: Vec::new(), missing: Vec::new(), operations: None }
    }

    /// Counts in `operations` what etcd counts of the request, also of one that is refused. What is counted before
    /// `NeedValues` is to be thrown away.
    pub fn counting(self, operations: &'a mut Operations) -> Self {
        Self { operations: Some(operations), ..self }
    }

    fn count(&mut self, add: impl FnOnce(&mut Operations)) {
        if let Some(operations) = &mut self.operations {
            add(operations);
        }
    }

    fn finish<R>(mut self, response: R) -> Result<Evaluated<R>, EvalError> {
        self.count(Operations::end);
        self.refuse_incomplete()?;
        Ok(Evaluated { rows: self.rows, response })
    }

    fn refuse_incomplete(&self) -> Result<(), EvalError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let mut missing = self.missing.clone();
        missing.sort_unstable();
        missing.dedup();
        Err(EvalError::NeedValues(missing))
    }

    /// Evaluates a Put.
    ///
    /// # Errors
    /// `LeaseNotFound`, `KeyNotFound` (a missing lease is noticed first), `NeedValues`.
    pub fn put(mut self, request: &PutRequest) -> Result<Evaluated<PutResponse>, EvalError> {
        // etcd checks and puts in one transaction, and looks once for both.
        self.check_put(request)?;
        let response = self.do_put(request);
        self.finish(response)
    }

    /// Evaluates a DeleteRange.
    ///
    /// # Errors
    /// `NeedValues`.
    pub fn delete_range(mut self, request: &DeleteRangeRequest) -> Result<Evaluated<DeleteRangeResponse>, EvalError> {
        let response = self.do_delete_range(request);
        self.finish(response)
    }

    /// Evaluates a Txn.
    ///
    /// # Errors
    /// The first operation at fault of the branches taken decides; `NeedValues`.
    pub fn txn(mut self, request: &TxnRequest) -> Result<Evaluated<TxnResponse>, EvalError> {
        let mut path = Vec::new();
        self.decide(request, &mut path);
        self.refuse_incomplete()?;
        let checked = self.check(request, &mut path.iter());
        if checked.is_err() || !is_read_only(request) {
            self.count(Operations::end);
        }
        checked?;
        let mut response = self.execute(request, &mut path.iter())?;
        response.header = Some(header(self.revision()));
        self.finish(response)
    }

    /// Deletes these keys as far as they live (a revoked lease's), in the order given, in one revision. The answer is the revision.
    pub fn delete_keys(mut self, keys: impl IntoIterator<Item = Bytes>) -> Evaluated<Revision> {
        for key in keys {
            if self.layered().live(&key, Revision::MAX).is_some() {
                self.count(Operations::delete);
                self.delete(key);
            }
        }
        self.count(Operations::end);
        let response = self.revision();
        Evaluated { rows: self.rows, response }
    }

    /// The newest revision the transaction sees: its own once it has written.
    fn revision(&self) -> Revision {
        if self.rows.is_empty() { self.begin } else { self.begin + 1 }
    }

    fn layered(&self) -> Layered<'_, dyn ReadView + 'a> {
        Layered { base: self.view, over: &self.writes, current: self.revision(), compacted: self.view.compacted() }
    }

    // --- compares -------------------------------------------------------------------------------------------------------------

    /// Which branch each Txn takes: this one's, then those of the nested ones on the branch taken, depth first. Where values are missing,
    /// the path ends.
    fn decide(&mut self, request: &TxnRequest, path: &mut Vec<bool>) {
        let Some(holds) = self.all_hold(&request.compare) else { return };
        path.push(holds);
        for op in branch(request, holds) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.decide(nested, path);
            }
        }
    }

    /// Whether all compares hold; `None` when that rests on values that are missing.
    fn all_hold(&mut self, compares: &[Compare]) -> Option<bool> {
        let mut missing = Vec::new();
        for compare in compares {
            self.count(Operations::range);
            if !self.holds(compare, &mut missing) {
                return Some(false);
            }
        }
        let known = missing.is_empty();
        self.missing.extend(missing);
        known.then_some(true)
    }

    /// Whether a compare holds for every key of its range, as far as values aren't missing. On no key at all, values never compare (there
    /// is no way to say "missing") and everything else compares with zero.
    fn holds(&self, compare: &Compare, missing: &mut Vec<Rev>) -> bool {
        let by_value = compare.target == CompareTarget::Value as i32;
        let keys = KeyRange::new(compare.key.clone(), compare.range_end.clone());
        let mut outcome = None;
        let _ = self.view.visit(&keys, self.begin, &mut |_, version| {
            if version.is_tombstone() {
                return ControlFlow::Continue(());
            }
            let value = match value_of(version, self.loaded) {
                Some(value) => value,
                None if by_value => {
                    missing.push(version.rev);
                    outcome = Some(true);
                    return ControlFlow::Continue(());
                }
                None => Bytes::new(),
            };
            let holds = compare_version(compare, Some(version), &value);
            outcome = Some(holds);
            if holds { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        outcome.unwrap_or_else(|| !by_value && compare_version(compare, None, &Bytes::new()))
    }

    // --- checks ---------------------------------------------------------------------------------------------------------------

    fn check(&mut self, request: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<(), EvalError> {
        for op in branch(request, next(path)) {
            match &op.request {
                Some(Request::RequestRange(range)) => self.check_range(range)?,
                Some(Request::RequestPut(put)) => self.check_put(put)?,
                Some(Request::RequestTxn(nested)) => self.check(nested, path)?,
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Inside a transaction even a negative revision is compared with the compact revision.
    fn check_range(&self, request: &RangeRequest) -> Result<(), EvalError> {
        match request.revision {
            0 => Ok(()),
            revision if revision > self.begin => Err(EvalError::FutureRevision),
            revision if revision < self.view.compacted() => Err(EvalError::Compacted),
            _ => Ok(()),
        }
    }

    fn check_put(&mut self, request: &PutRequest) -> Result<(), EvalError> {
        if request.lease != 0 && !self.leases.exists(request.lease) {
            return Err(EvalError::LeaseNotFound);
        }
        self.count_previous(request);
        let needs_key = request.ignore_value || request.ignore_lease;
        if needs_key && self.view.live(&request.key, self.begin).is_none() {
            return Err(EvalError::KeyNotFound);
        }
        Ok(())
    }

    /// A put that needs the previous pair looks for it.
    fn count_previous(&mut self, request: &PutRequest) {
        if request.prev_kv || request.ignore_value || request.ignore_lease {
            self.count(Operations::range);
        }
    }

    // --- effects --------------------------------------------------------------------------------------------------------------

    fn execute(&mut self, request: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<TxnResponse, EvalError> {
        let succeeded = next(path);
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let response = match &op.request {
                Some(Request::RequestRange(inner)) => Some(Response::ResponseRange(self.do_range(inner)?)),
                Some(Request::RequestPut(put)) => {
                    self.count_previous(put);
                    Some(Response::ResponsePut(self.do_put(put)))
                }
                Some(Request::RequestDeleteRange(delete)) => Some(Response::ResponseDeleteRange(self.do_delete_range(delete))),
                Some(Request::RequestTxn(nested)) => Some(Response::ResponseTxn(self.execute(nested, path)?)),
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
    }

    fn do_range(&mut self, request: &RangeRequest) -> Result<RangeResponse, EvalError> {
        self.count(Operations::range);
        match range(&self.layered(), request, CountMode::Total, self.loaded) {
            Err(EvalError::NeedValues(revs)) => {
                self.missing.extend(revs);
                Ok(RangeResponse::default())
            }
            decided => decided,
        }
    }

    fn do_put(&mut self, request: &PutRequest) -> PutResponse {
        let layered = self.layered();
        let found = layered.live(&request.key, Revision::MAX);
        let prev = found.map(|(_, version)| version.clone());
        // Stored bytes are copies of their own size: a slice of the request's buffer would keep all of that buffer alive.
        let key = found.map_or_else(|| Bytes::copy_from_slice(&request.key), |(key, _)| key.clone());
        let prev_kv = match &prev {
            Some(version) if request.prev_kv => Some(self.needed(&key, version)),
            _ => None,
        };
        let value = match &prev {
            Some(version) if request.ignore_value => self.needed(&key, version).value,
            _ => Bytes::copy_from_slice(&request.value),
        };
        let lease = match &prev {
            Some(version) if request.ignore_lease => version.lease,
            _ => request.lease,
        };
        self.count(|operations| operations.put(key.len() + value.len()));
        self.write(LogRow {
            rev: self.next_rev(),
            key,
            value: Some(value),
            create_revision: prev.as_ref().map_or(self.begin + 1, |version| version.create_revision),
            version: prev.as_ref().map_or(1, |version| version.version + 1),
            lease,
        });
        PutResponse { header: Some(header(self.begin + 1)), prev_kv }
    }

    fn do_delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        if request.prev_kv {
            self.count(Operations::range);
        }
        self.count(Operations::delete);
        let keys = KeyRange::new(request.key.clone(), request.range_end.clone());
        let mut doomed = Vec::new();
        let mut prev_kvs = Vec::new();
        let mut missing = Vec::new();
        let _ = self.layered().visit(&keys, Revision::MAX, &mut |key, version| {
            if version.is_tombstone() {
                return ControlFlow::Continue(());
            }
            doomed.push(key.clone());
            if request.prev_kv {
                match value_of(version, self.loaded) {
                    Some(value) => prev_kvs.push(key_value(key, version, value)),
                    None => missing.push(version.rev),
                }
            }
            ControlFlow::Continue(())
        });
        self.missing.extend(missing);
        let deleted = i64::try_from(doomed.len()).expect("a store has fewer than 2^63 keys");
        doomed.into_iter().for_each(|key| self.delete(key));
        DeleteRangeResponse { header: Some(header(self.revision())), deleted, prev_kvs }
    }

    fn needed(&mut self, key: &Bytes, version: &Version) -> KeyValue {
        let value = value_of(version, self.loaded).unwrap_or_else(|| {
            self.missing.push(version.rev);
            Bytes::new()
        });
        key_value(key, version, value)
    }

    fn delete(&mut self, key: Bytes) {
        self.write(LogRow { rev: self.next_rev(), key, value: None, create_revision: 0, version: 0, lease: 0 });
    }

    fn next_rev(&self) -> Rev {
        let sub = i32::try_from(self.rows.len()).expect("a transaction changes fewer than 2^31 keys");
        Rev::new(self.begin + 1, sub)
    }

    fn write(&mut self, row: LogRow) {
        self.writes.push(&row);
        self.rows.push(row);
    }
}

/// Whether the transaction only reads: no operation other than a Range at its top level. It then skips the queue of writes, the size
/// limit and the quota. One that holds a nested transaction counts as a write even if that only reads.
pub fn is_read_only(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some())
}

/// Whether a read-only transaction may be answered from local state: every Range in it says so.
pub fn is_serializable(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some_and(|range| range.serializable))
}

/// Each operation of both branches, as the Range that it is or `None`.
fn ranges(request: &TxnRequest) -> impl Iterator<Item = Option<&RangeRequest>> {
    request.success.iter().chain(&request.failure).map(|op| match &op.request {
        Some(Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

fn header(revision: Revision) -> ResponseHeader {
    ResponseHeader { revision, ..Default::default() }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn next(path: &mut std::slice::Iter<'_, bool>) -> bool {
    *path.next().expect("the path has an entry for every transaction on it")
}

fn compare_version(compare: &Compare, version: Option<&Version>, value: &Bytes) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let number = |actual: i64, wanted: i64| actual.cmp(&wanted);
    let target = CompareTarget::try_from(compare.target);
    let union = compare.target_union.as_ref();
    let ordering = match target {
        Ok(CompareTarget::Value) => match union {
            Some(TargetUnion::Value(wanted)) => value.cmp(wanted),
            _ => value.cmp(&Bytes::new()),
        },
        Ok(CompareTarget::Create) => {
            let wanted = if let Some(TargetUnion::CreateRevision(wanted)) = union { *wanted } else { 0 };
            number(version.map_or(0, |version| version.create_revision), wanted)
        }
        Ok(CompareTarget::Mod) => {
            let wanted = if let Some(TargetUnion::ModRevision(wanted)) = union { *wanted } else { 0 };
            number(version.map_or(0, |version| version.rev.main), wanted)
        }
        Ok(CompareTarget::Version) => {
            let wanted = if let Some(TargetUnion::Version(wanted)) = union { *wanted } else { 0 };
            number(version.map_or(0, |version| version.version), wanted)
        }
        Ok(CompareTarget::Lease) => {
            let wanted = if let Some(TargetUnion::Lease(wanted)) = union { *wanted } else { 0 };
            number(version.map_or(0, |version| version.lease), wanted)
        }
        Err(_) => Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering == Equal,
        Ok(CompareResult::NotEqual) => ordering != Equal,
        Ok(CompareResult::Greater) => ordering == Greater,
        Ok(CompareResult::Less) => ordering == Less,
        // etcd treats an operator that it doesn't know as true.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(operation: Request) -> TxnRequest {
        TxnRequest { success: vec![RequestOp { request: Some(operation) }], ..Default::default() }
    }

    #[test]
    fn only_ranges_at_the_top_level_make_a_transaction_read_only() {
        let range = |serializable| Request::RequestRange(RangeRequest { serializable, ..Default::default() });
        assert!(is_read_only(&txn(range(false))));
        assert!(!is_read_only(&txn(Request::RequestPut(PutRequest::default()))));
        assert!(!is_read_only(&txn(Request::RequestTxn(txn(range(true))))), "a nested one makes it a write");
        assert!(is_serializable(&txn(range(true))));
        assert!(!is_serializable(&txn(range(false))));
    }
}
