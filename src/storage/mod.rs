//! What the engine asks of durable storage, in terms that forbid knowing which storage it is.
//!
//! A [`Log`] is an append-only sequence of [`Batch`]es with exactly one writer. [`pg`] keeps it in PostgreSQL; [`mem`] keeps it in
//! memory for tests and simulations.
//!
//! Written and durable are one here: [`Writer::append`] resolves to `Ok` only when the batch has been committed with the storage's
//! full durability, and batches become durable in the order in which they were appended. If a batch fails, no later batch of the same
//! session is applied.

pub mod mem;
pub mod pg;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::{Epoch, LeaseId, Millis, Rev, Revision};

/// A boxed future, so that the traits here can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One key's change: a row of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Where in history the change stands; unique.
    pub rev: Rev,
    /// The key that changed.
    pub key: Bytes,
    /// The new value; `None` for a deletion (a tombstone).
    pub value: Option<Bytes>,
    /// The revision of the put that created the key; 0 for a tombstone.
    pub create_revision: Revision,
    /// How many times the key was put since it was created; 0 for a tombstone.
    pub version: i64,
    /// The lease that the key is attached to; 0 for none and for a tombstone.
    pub lease: LeaseId,
}

/// A lease as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// The lease's id.
    pub id: LeaseId,
    /// The time to live that was granted, in seconds.
    pub ttl: i64,
    /// When it expires on the lessor's own clock, which stands still while nobody serves (see [`Meta::lessor_clock`]), in
    /// milliseconds; `None` when it was renewed since: it then gets its full time after a restart.
    pub expiry: Option<Millis>,
}

/// An alarm that is raised: etcd's `AlarmMember`, with its type as etcd's number (1 = NOSPACE, 2 = CORRUPT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AlarmRow {
    /// The member that raised it.
    pub member_id: u64,
    /// etcd's `AlarmType`.
    pub alarm: i32,
}

/// What is committed together: every effect of some whole transactions, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows of the log, strictly ascending by [`Rev`].
    pub rows: Vec<LogRow>,
    /// Leases that were granted, or whose stored expiry changed.
    pub leases_put: Vec<LeaseRow>,
    /// Leases that are gone. An id is never both here and in `leases_put`; a grant and a revoke in one batch cancel out.
    pub leases_deleted: Vec<LeaseId>,
    /// Alarms raised.
    pub alarms_put: Vec<AlarmRow>,
    /// Alarms disarmed.
    pub alarms_deleted: Vec<AlarmRow>,
    /// The new compact revision.
    pub compacted: Option<Revision>,
    /// The lessor's clock at the time of the batch, when it is worth storing.
    pub lessor_clock: Option<Millis>,
}

impl Batch {
    /// Whether the batch changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the batch holds nothing but rows of the log: the common case, which storage may treat with a shorter statement.
    pub fn is_rows_only(&self) -> bool {
        self.leases_put.is_empty()
            && self.leases_deleted.is_empty()
            && self.alarms_put.is_empty()
            && self.alarms_deleted.is_empty()
            && self.compacted.is_none()
            && self.lessor_clock.is_none()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.rows.iter().map(|row| row.key.len() + row.value.as_ref().map_or(0, Bytes::len)).sum()
    }
}

/// Everything stored beside the log's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Chosen at random when the store was created; never changes; never 0.
    pub cluster_id: u64,
    /// Chosen at random for the store's (single) member; never 0.
    pub member_id: u64,
    /// The epoch of the session that read this.
    pub epoch: Epoch,
    /// The compact revision; −1 when nothing was ever compacted (etcd's own convention: `Compact(0)` succeeds once).
    pub compacted: Revision,
    /// The newest revision in the log; `None` when the log is empty.
    pub last_revision: Option<Revision>,
    /// All stored leases.
    pub leases: Vec<LeaseRow>,
    /// All raised alarms.
    pub alarms: Vec<AlarmRow>,
    /// The lessor's clock as last stored.
    pub lessor_clock: Millis,
    /// The client URLs of the writer before this session, as it stored them; empty when there was none.
    pub wrote_before: Vec<String>,
}

/// Why storage didn't do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Certainly not applied, and the session goes on to refuse everything after it.
    #[error("storage refused the batch: {0}")]
    Refused(String),
    /// Certainly not applied: no room. The session refuses everything after it.
    #[error("storage is full: {0}")]
    Full(String),
    /// Perhaps applied, perhaps not. Only a new session can tell.
    #[error("storage's answer is unknown: {0}")]
    Unknown(String),
    /// Another writer has taken over: this one must never write again in this epoch.
    #[error("another writer has taken over: {0}")]
    Deposed(String),
    /// Storage can't be reached, or a read failed; a later try may succeed.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// Storage holds something that must not be served; trying again does not help. The text says what to do.
    #[error("{0}")]
    Unusable(String),
}

/// Whoever writes at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The store's.
    pub cluster_id: u64,
    /// The client URLs under which the writer is reached, as it has stored them.
    pub urls: Vec<String>,
}

/// A store that many may read and one may write.
pub trait Log: Send + Sync {
    /// Opens a session as the one writer: fences whoever wrote before, makes everything that it may have committed visible and
    /// durable (a synchronous barrier write), and raises the epoch by one. With `wait`, waits for the present writer to go away
    /// (a replica standing by); without, answers [`LogError::Deposed`] at once when there is one.
    ///
    /// `advertise` is stored for the replicas: the client URLs under which the writer is reached.
    fn acquire(&self, wait: bool, advertise: Vec<String>) -> BoxFuture<'_, Result<Box<dyn Writer>, LogError>>;

    /// Whoever calls this is about to call [`Log::acquire`], and waits for the right to: what can be made ready meanwhile is.
    fn prepare(&self) {}

    /// The present writer, for a replica that proxies to it; `None` when there is none.
    fn leader(&self) -> BoxFuture<'_, Result<Option<Leader>, LogError>>;

    /// Whether this process could become the writer as things are. If not, requests don't wait for it.
    fn may_write(&self) -> bool {
        true
    }

    /// The read side, usable at any time from anywhere.
    fn reader(&self) -> Arc<dyn Reader>;
}

/// The one writer's session.
pub trait Writer: Send {
    /// What was stored beside the rows when the session began.
    fn meta(&self) -> &Meta;

    /// Streams every row with `rev.main > after`, ascending, in chunks of bounded size, through `sink`. An error means that the
    /// rows seen so far are not all.
    fn recover<'a>(
        &'a mut self,
        after: Revision,
        sink: &'a mut (dyn FnMut(Vec<LogRow>) + Send),
    ) -> BoxFuture<'a, Result<(), LogError>>;

    /// Sends a batch. May be called again before the returned future resolves (pipelining); futures resolve in order. `Ok` means
    /// durable. After any error, all later batches of this session fail with `Refused`, `Deposed` or `Unknown`.
    fn append(&mut self, batch: Arc<Batch>) -> BoxFuture<'static, Result<(), LogError>>;

    /// One round trip that proves that this session was still the writer at some moment after the call.
    fn confirm(&mut self) -> BoxFuture<'static, Result<(), LogError>>;

    /// Resolves when the session has ended without being asked to, so that a new one needn't wait for somebody to find out. Batches
    /// that were under way then have their own answers.
    fn ended(&self) -> BoxFuture<'static, ()>;

    /// Ends the session in an orderly way, so that a successor needn't wait.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// How much room the store takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes on disk, dead rows and indexes included.
    pub total: i64,
}

/// The read side of a store.
pub trait Reader: Send + Sync {
    /// The values at these places, in the same order; `None` where there is no such row (compacted away in between). An error where a
    /// row is newer than [`Reader::newest`].
    fn values(&self, revs: Vec<Rev>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, LogError>>;

    /// Rows with `from <= rev.main <= to`, ascending, whole revisions only: as many as fit in about `max_bytes`, but at least one
    /// revision if there is any. The rows end early only at the byte limit: the caller goes on after the last revision it got.
    fn rows(&self, from: Revision, to: Revision, max_bytes: usize) -> BoxFuture<'_, Result<RowsPage, LogError>>;

    /// What can be read now, as it is at one moment: for reading everything while compaction deletes. It costs storage something for as long
    /// as it is held.
    fn snapshot(&self) -> BoxFuture<'_, Result<Box<dyn Snapshot>, LogError>>;

    /// The newest revision that can be read here: of the log's last row, or the compact revision if that is newer; 1 in an empty store. A standby shows what
    /// it has replayed so far.
    fn newest(&self) -> BoxFuture<'_, Result<Revision, LogError>>;

    /// Deletes these rows (compaction) if `epoch` is still the current one, else answers [`LogError::Deposed`]. Rows that are gone
    /// already are no error. Callers keep the list small (a few thousand).
    fn delete(&self, epoch: Epoch, revs: Vec<Rev>) -> BoxFuture<'_, Result<(), LogError>>;

    /// How much room the store takes now.
    fn disk_usage(&self) -> BoxFuture<'_, Result<DiskUsage, LogError>>;

    /// Gives room back where that is possible without blocking writes (PostgreSQL: VACUUM).
    fn defragment(&self) -> BoxFuture<'_, Result<(), LogError>>;
}

/// The log as it is at one moment.
pub trait Snapshot: Send {
    /// As [`Reader::rows`].
    fn rows(&mut self, from: Revision, to: Revision, max_bytes: usize) -> BoxFuture<'_, Result<RowsPage, LogError>>;
}

/// A page of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowsPage {
    /// The rows, ascending.
    pub rows: Vec<LogRow>,
    /// Whether rows up to `to` may remain after these.
    pub more: bool,
    /// The compact revision that is stored, looked at after the rows: those that had been deleted by then are at or below it. −1 when
    /// nothing was ever compacted.
    pub compacted: Revision,
}
