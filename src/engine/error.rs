//! Why the engine didn't do what it was asked. The façade turns these into etcd's codes and texts.

use crate::mvcc::EvalError;
use crate::sequencer::Failure;
use crate::storage::LogError;

/// A request's failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The revision has been compacted.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision doesn't exist yet.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// No such lease.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The lease id is taken.
    #[error("lease already exists")]
    LeaseExists,
    /// A put that keeps the old value or lease found no key.
    #[error("key not found")]
    KeyNotFound,
    /// The store is over its quota, or its disk is full. Certainly not applied.
    #[error("database space exceeded")]
    NoSpace,
    /// A queue's bound is reached. Certainly not applied.
    #[error("too many requests")]
    TooManyRequests,
    /// No answer in time, or the answer was lost: for a write, the outcome is unknown.
    #[error("request timed out")]
    Timeout,
    /// The writer couldn't take the write: certainly not applied, and safe to send again.
    #[error("the writer is not available; the request was not applied")]
    NotApplied,
    /// This process isn't the writer and knows none.
    #[error("no leader")]
    NoLeader,
    /// The process is going down.
    #[error("server stopped")]
    Stopped,
    /// Storage failed a read.
    #[error("storage failed a read: {0}")]
    Storage(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NeedValues(_) => Self::Storage("values could not be read back".into()),
            Failure::Compacted => Self::Compacted,
            Failure::FutureRevision => Self::FutureRevision,
            Failure::LeaseNotFound => Self::LeaseNotFound,
            Failure::LeaseExists => Self::LeaseExists,
            Failure::KeyNotFound => Self::KeyNotFound,
        }
    }
}

impl From<EvalError> for Error {
    fn from(error: EvalError) -> Self {
        Failure::from(error).into()
    }
}

/// What a failed append means to the clients whose writes were in the batch.
impl From<&LogError> for Error {
    fn from(error: &LogError) -> Self {
        match error {
            LogError::Refused(_) | LogError::Deposed(_) => Self::NotApplied,
            LogError::Full(_) => Self::NoSpace,
            LogError::Unknown(_) | LogError::Unavailable(_) | LogError::Unusable(_) => Self::Timeout,
        }
    }
}
