//! What can be asked of the one writer, and what it answers.

use bytes::Bytes;
use prost::Message;

use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, TxnRequest, TxnResponse, request_op::Request,
};
use crate::storage::AlarmRow;
use crate::types::{LeaseId, Rev, Revision};

/// What a queued command takes besides its request, and its answer besides what it tells.
const OVERHEAD_BYTES: usize = 512;

/// A request that goes through the writer. The façade has validated its fields.
#[derive(Clone, Debug)]
pub enum Command {
    /// Put.
    Put(PutRequest),
    /// DeleteRange.
    DeleteRange(DeleteRangeRequest),
    /// Txn, read-only ones included unless the caller may read the published state.
    Txn(TxnRequest),
    /// LeaseGrant with the id and the time to live (seconds) that were decided on.
    LeaseGrant {
        /// The id; not 0.
        id: LeaseId,
        /// Seconds.
        ttl: i64,
    },
    /// LeaseRevoke, by a client or because the lease has expired.
    LeaseRevoke {
        /// The id.
        id: LeaseId,
    },
    /// A lease was renewed for the first time since its expiry was stored: the stored expiry no longer holds.
    LeaseRenewed {
        /// The id.
        id: LeaseId,
        /// Seconds.
        ttl: i64,
    },
    /// Compact.
    Compact {
        /// The revision below which history goes.
        revision: Revision,
    },
    /// Raise an alarm.
    AlarmActivate(AlarmRow),
    /// Disarm an alarm.
    AlarmDeactivate(AlarmRow),
}

impl Command {
    /// etcd's name of the request.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Put(_) => "put",
            Self::DeleteRange(_) => "delete_range",
            Self::Txn(_) => "txn",
            Self::LeaseGrant { .. } => "lease_grant",
            Self::LeaseRevoke { .. } => "lease_revoke",
            Self::LeaseRenewed { .. } => "lease_keepalive",
            Self::Compact { .. } => "compaction",
            Self::AlarmActivate(_) | Self::AlarmDeactivate(_) => "alarm",
        }
    }

    /// The first key that the request names, for logs; empty if it names none.
    pub fn first_key(&self) -> Bytes {
        match self {
            Self::Put(put) => put.key.clone(),
            Self::DeleteRange(delete) => delete.key.clone(),
            Self::Txn(txn) => first_key(txn),
            _ => Bytes::new(),
        }
    }

    /// Bytes that the command takes in memory, roughly: for bounding queues.
    pub fn bytes(&self) -> usize {
        let request = match self {
            Self::Put(put) => put.encoded_len(),
            Self::DeleteRange(delete) => delete.encoded_len(),
            Self::Txn(txn) => txn.encoded_len(),
            _ => 0,
        };
        request + OVERHEAD_BYTES
    }
}

/// The first key that a transaction names, for logs; empty if it names none.
pub fn first_key(txn: &TxnRequest) -> Bytes {
    if let Some(compare) = txn.compare.first() {
        return compare.key.clone();
    }
    match txn.success.first().or(txn.failure.first()).and_then(|op| op.request.as_ref()) {
        Some(Request::RequestPut(put)) => put.key.clone(),
        Some(Request::RequestRange(range)) => range.key.clone(),
        Some(Request::RequestDeleteRange(delete)) => delete.key.clone(),
        Some(Request::RequestTxn(_)) | None => Bytes::new(),
    }
}

/// The answer to a [`Command`]; headers carry only revisions.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To a Put.
    Put(PutResponse),
    /// To a DeleteRange.
    DeleteRange(DeleteRangeResponse),
    /// To a Txn.
    Txn(TxnResponse),
    /// To everything else: the newest revision.
    Revision(Revision),
}

/// Why a [`Command`] was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not a refusal: these values must be loaded, then the command evaluated again.
    NeedValues(Vec<Rev>),
    /// The revision has been compacted.
    Compacted,
    /// The revision doesn't exist yet.
    FutureRevision,
    /// No such lease.
    LeaseNotFound,
    /// The lease id is taken.
    LeaseExists,
    /// A put that keeps the old value or lease found no key.
    KeyNotFound,
}
