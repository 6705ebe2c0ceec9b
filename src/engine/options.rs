//! What the engine is told at start.

use std::sync::Arc;
use std::time::Duration;

use super::replication::Leader;
use super::{AutoCompaction, Recall};
use crate::mvcc::StoreOptions;
use crate::sequencer::BatchCaps;
use crate::watch::WatchConfig;

/// The rights of a moment that somebody else decides on: the supervisor of a pair.
pub trait ReadLease: Send + Sync {
    /// Whether what the present session of the writer has published may be shown as the newest now.
    fn may_read(&self) -> bool;

    /// Whether what that session has committed may be acknowledged now.
    fn may_acknowledge(&self) -> bool;

    /// Whether somebody who may has accepted that revisions which clients have seen are gone.
    fn may_lose_published(&self) -> bool {
        false
    }
}

/// What gives this process the right to answer a linearizable read from memory.
#[derive(Clone)]
pub enum ReadRight {
    /// Nobody else can write to this storage while the process lives: it holds the lock on the data directory of the PostgreSQL that
    /// it runs. A paused process keeps the lock, so what was published last is what is newest.
    Exclusive,
    /// Others may take over: every read is confirmed by a round trip on the writer's session, shared by all that wait.
    Confirm,
    /// Others may take over, but not while the lease lasts. It is looked at before a read, and again before the answer leaves: a process
    /// that was stopped in between has none.
    Lease(Arc<dyn ReadLease>),
}

impl ReadRight {
    /// Whether what storage has committed may be acknowledged now.
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        match self {
            Self::Exclusive | Self::Confirm => true,
            Self::Lease(lease) => lease.may_acknowledge(),
        }
    }

    /// See [`ReadLease::may_lose_published`].
    #[must_use]
    pub fn may_lose_published(&self) -> bool {
        match self {
            Self::Exclusive | Self::Confirm => false,
            Self::Lease(lease) => lease.may_lose_published(),
        }
    }
}

impl std::fmt::Debug for ReadRight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "Exclusive",
            Self::Confirm => "Confirm",
            Self::Lease(_) => "Lease",
        })
    }
}

/// The engine's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for values and recent events.
    pub store: StoreOptions,
    /// When a batch is full.
    pub batch: BatchCaps,
    /// How many batches may be under way to storage at once.
    pub pipeline_depth: usize,
    /// How many requests may wait for the writer.
    pub queue_requests_max: usize,
    /// How many bytes of requests may wait for the writer.
    pub queue_bytes_max: usize,
    /// After how long a request is answered as timed out (etcd: 5 s and two election timeouts).
    pub request_timeout: Duration,
    /// After how long a request that the writer hasn't taken in hand, and a read without the right to it, are given up: the request as
    /// certainly not applied, so that its client tries elsewhere. `None`: only after the request timeout.
    pub hold: Option<Duration>,
    /// A request that takes longer is logged with its cause (etcd's warning-apply-duration).
    pub slow_request: Duration,
    /// Bytes in use above which writes are refused and the NOSPACE alarm is raised; 0: never.
    pub quota_bytes: u64,
    /// How reads are confirmed.
    pub read_right: ReadRight,
    /// The way to the writer while another process is it, to follow what it publishes.
    pub leader: Option<Arc<dyn Leader>>,
    /// Who remembers what clients were shown when this process doesn't.
    pub recall: Option<Arc<dyn Recall>>,
    /// The client URLs stored for replicas that proxy to this process.
    pub advertise_client_urls: Vec<String>,
    /// Seconds granted at least to every lease (etcd: one and a half election timeouts, rounded up).
    pub lease_ttl_min: i64,
    /// What history is kept without anybody asking for compactions.
    pub auto_compaction: AutoCompaction,
    /// Keys that one step of a compaction looks at.
    pub compaction_batch_keys: usize,
    /// The pause between two steps of a compaction.
    pub compaction_pause: Duration,
    /// What a watch stream is allowed, and how often it reports progress.
    pub watch: WatchConfig,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: StoreOptions::default(),
            batch: BatchCaps::default(),
            pipeline_depth: 2,
            queue_requests_max: 16 * 1024,
            queue_bytes_max: 128 << 20,
            request_timeout: Duration::from_secs(7),
            hold: None,
            slow_request: Duration::from_millis(100),
            quota_bytes: 2 << 30,
            read_right: ReadRight::Confirm,
            leader: None,
            recall: None,
            advertise_client_urls: Vec::new(),
            lease_ttl_min: 2,
            auto_compaction: AutoCompaction::Off,
            compaction_batch_keys: 1000,
            compaction_pause: Duration::from_millis(10),
            watch: WatchConfig::default(),
        }
    }
}
