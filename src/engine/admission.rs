//! Which of the values that were read back from storage go into memory again: those of requests that name few keys. A list of everything
//! must not push out what is in use.

use bytes::Bytes;

use super::Shared;
use crate::mvcc::{Loaded, ReadView};
use crate::proto::etcdserverpb::compare::CompareTarget;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{TxnRequest, TxnResponse};
use crate::proto::mvccpb::KeyValue;
use crate::types::Revision;

/// Values of at most so many keys are admitted after one request.
const KEYS_MAX: usize = 64;

/// Keys that were read, each at a revision at which it had the value.
#[derive(Debug, Default)]
pub(super) struct Used(Vec<(Bytes, Revision)>);

impl Used {
    /// What a range has shown.
    pub fn range(kvs: &[KeyValue]) -> Self {
        let mut used = Self::default();
        used.show(kvs);
        used
    }

    /// What a transaction has compared or shown.
    pub fn txn(request: &TxnRequest, response: &TxnResponse) -> Self {
        let mut used = Self::default();
        used.take_txn(request, response);
        used
    }

    fn show(&mut self, kvs: &[KeyValue]) {
        // One more than counts is enough to know that there are too many.
        self.0.extend(kvs.iter().take(KEYS_MAX + 1).map(|kv| (kv.key.clone(), kv.mod_revision)));
    }

    fn take_txn(&mut self, request: &TxnRequest, response: &TxnResponse) {
        let by_value = request.compare.iter().filter(|compare| compare.target == CompareTarget::Value as i32);
        let of_one_key = by_value.filter(|compare| compare.range_end.is_empty());
        self.0.extend(of_one_key.map(|compare| (compare.key.clone(), Revision::MAX)));
        let ops = if response.succeeded { &request.success } else { &request.failure };
        for (op, answer) in ops.iter().zip(&response.responses) {
            match (&op.request, &answer.response) {
                (_, Some(Response::ResponseRange(range))) => self.show(&range.kvs),
                (Some(Request::RequestTxn(nested)), Some(Response::ResponseTxn(answer))) => self.take_txn(nested, answer),
                _ => {}
            }
        }
    }
}

impl Shared {
    /// Puts those of the `loaded` values into memory that belong to keys in use.
    pub(super) fn admit(&self, used: &Used, loaded: &Loaded) {
        if loaded.is_empty() || used.0.len() > KEYS_MAX {
            return;
        }
        let mut store = self.store.write();
        for (key, at) in &used.0 {
            let Some(rev) = store.find(key, *at).map(|(_, version)| version.rev) else { continue };
            if let Some(value) = loaded.get(&rev) {
                store.admit(key, rev, value);
            }
        }
    }
}
