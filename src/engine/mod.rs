//! The engine: one writer task that orders all changes, and reads served from memory at the published revision.
//!
//! It wires the pure modules (sequencer, mvcc, lessor, watch hub) to storage. A write goes: queue → sequencer (evaluate, assign the
//! revision, fill the open batch) → storage (several batches pipelined) → publish (store, lessor, hub) → answer.
//!
//! Invariants: nothing that isn't durable is ever visible, not even through a failed compare; answers leave only after publication;
//! when a batch's outcome is unknown, its clients are told so, the staged state is thrown away and storage is read again before
//! anything else is decided; every queue is bounded and every wait of a client's has a deadline. A batch on its way to storage has none: to
//! cancel a commit that waits for a standby would make it look done. Its clients are told "unknown" in time, and the session's end, which
//! TCP or PostgreSQL's supervisor brings about, decides.
//!
//! What it deliberately doesn't do: validate request fields or know etcd's error texts (the façade does), speak SQL (storage does).

mod admission;
mod answer;
mod auto_compaction;
mod clock;
mod compactor;
mod disk_usage;
mod error;
mod hash;
mod history;
mod leases;
mod metrics;
mod options;
mod overtaken;
mod proposal;
mod publish;
mod reads;
mod recovery;
pub mod replication;
mod request;
mod seen;
mod slow;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::lease::Lessor;
use crate::mvcc::{ReadView, Store};
use crate::proto::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse};
use crate::sequencer::{Command, Reply};
use crate::storage::{AlarmRow, Log};
use crate::telemetry::metrics::Metrics;
use crate::types::{Epoch, Revision};
use crate::watch::WatchHub;

use disk_usage::DiskUsage;
use history::StoreHistory;
use proposal::Proposal;
use replication::{Followers, Unswept};
use request::{Asked, QueuedBytes, Request};

pub use auto_compaction::AutoCompaction;
pub use clock::LessorClock;
pub use error::Error;
pub use hash::KvHash;
pub use leases::{LeaseGranted, LeaseTtl};
pub use options::{Options, ReadLease, ReadRight};
pub use seen::{Holds, Recall, Seen};

/// What this process is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not the writer yet, or not any more; another process may be.
    Standby,
    /// Not the writer, but has in memory what the writer has published: answers watches and serializable reads.
    Following,
    /// Has the writer's session and reads what storage holds.
    Recovering,
    /// The writer.
    Active,
    /// Gave up: storage must not be served. The text says why and what to do.
    Failed(String),
    /// Going down.
    Stopped,
}

/// Figures for Status, metrics and people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// The published revision.
    pub revision: Revision,
    /// The compact revision; −1 before the first compaction.
    pub compacted: Revision,
    /// The epoch of the writer's session.
    pub epoch: Epoch,
    /// Batches published since the process started.
    pub batches: u64,
    /// Bytes on disk, as last asked.
    pub disk_bytes: i64,
    /// About how many bytes the reachable history takes.
    pub in_use_bytes: i64,
    /// Live keys.
    pub keys: usize,
    /// Bytes of values in memory.
    pub resident_bytes: usize,
    /// Requests that wait for the writer.
    pub queued: usize,
}

/// A space quota as Status and metrics show it, in bytes: −1 when there is none, which is how etcd's users switch it off.
pub fn shown_quota(quota_bytes: u64) -> i64 {
    if quota_bytes == 0 { -1 } else { i64::try_from(quota_bytes).unwrap_or(i64::MAX) }
}

/// Everything that the writer task, the readers and the watchers share.
struct Shared {
    options: Options,
    log: Arc<dyn Log>,
    metrics: Metrics,
    /// Held while gauges are set: a counter that grows by a difference must not do so twice. Taken before any other lock.
    refreshing: Mutex<()>,
    /// Locks are taken in this order: hub, store, lessor.
    store: Arc<RwLock<Store>>,
    lessor: Mutex<Lessor>,
    hub: WatchHub,
    alarms: Mutex<std::collections::BTreeSet<AlarmRow>>,
    clock: LessorClock,
    role: watch::Sender<Role>,
    /// What is in memory is, or was until a moment ago, what the writer has published.
    is_current: AtomicBool,
    requests: mpsc::Sender<Request>,
    queued_bytes: Arc<AtomicUsize>,
    confirms: mpsc::Sender<oneshot::Sender<Result<(), Error>>>,
    cluster_id: AtomicU64,
    member_id: AtomicU64,
    epoch: AtomicI64,
    /// The epoch of the last session that this process itself had; 0 before the first.
    led: AtomicI64,
    batches: AtomicU64,
    disk_usage: DiskUsage,
    compaction: Notify,
    compaction_hashes: Mutex<hash::CompactionHashes>,
    /// The compact revision up to which storage has been swept.
    swept: watch::Sender<Revision>,
    /// Who gets what is published.
    followers: Followers,
    /// What this process left in storage while it followed another.
    unswept: Unswept,
    /// The lessor doesn't know what the writer that was followed did with leases.
    leases_stale: AtomicBool,
    /// What this process shows of what it follows.
    shown: watch::Sender<Revision>,
    stop: CancellationToken,
}

/// A handle on the engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Engine {
    /// Starts the engine's tasks over `log`. They acquire the writer's session (waiting while another process has it), recover, and
    /// serve; see [`Engine::role`] for how far they are.
    pub fn start(options: Options, log: Arc<dyn Log>, metrics: Metrics) -> Self {
        let (requests, requests_rx) = mpsc::channel(options.queue_requests_max);
        let (confirms, confirms_rx) = mpsc::channel(options.queue_requests_max);
        let store = Store::new(options.store);
        let (revision, compacted) = (store.current(), store.compacted());
        let store = Arc::new(RwLock::new(store));
        let history = StoreHistory { store: Arc::clone(&store), log: Arc::clone(&log) };
        let shared = Arc::new(Shared {
            store,
            lessor: Mutex::new(Lessor::default()),
            hub: WatchHub::new(revision, compacted, Arc::new(history), options.watch),
            alarms: Mutex::default(),
            clock: LessorClock::default(),
            role: watch::Sender::new(Role::Standby),
            is_current: AtomicBool::new(false),
            refreshing: Mutex::default(),
            requests,
            queued_bytes: Arc::default(),
            confirms,
            cluster_id: AtomicU64::new(0),
            member_id: AtomicU64::new(0),
            epoch: AtomicI64::new(0),
            led: AtomicI64::new(0),
            batches: AtomicU64::new(0),
            disk_usage: DiskUsage::default(),
            compaction: Notify::new(),
            compaction_hashes: Mutex::default(),
            swept: watch::Sender::new(-1),
            followers: Followers::default(),
            unswept: Unswept::default(),
            leases_stale: AtomicBool::new(false),
            shown: watch::Sender::new(revision),
            stop: CancellationToken::new(),
            options,
            log,
            metrics,
        });
        let tasks = TaskTracker::new();
        tasks.spawn(writer::drive(Arc::clone(&shared), requests_rx, confirms_rx));
        tasks.spawn(compactor::run(Arc::clone(&shared)));
        tasks.spawn(auto_compaction::run(Arc::clone(&shared), shared.options.auto_compaction));
        tasks.spawn(disk_usage::watch(Arc::clone(&shared)));
        tasks.close();
        Self { shared, tasks }
    }

    /// What this process is, and changes of that.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.shared.role.subscribe()
    }

    /// Waits until this process is the writer and serves.
    ///
    /// # Errors
    /// The engine gave up (the text says why) or was stopped.
    pub async fn active(&self) -> Result<(), String> {
        let mut role = self.role();
        let reached = role.wait_for(|role| matches!(role, Role::Active | Role::Failed(_) | Role::Stopped)).await;
        match reached.as_deref() {
            Ok(Role::Active) => Ok(()),
            Ok(Role::Failed(why)) => Err(why.clone()),
            _ => Err("the engine was stopped".to_owned()),
        }
    }

    /// Stops taking requests, finishes what is under way, stores the lessor's clock and ends the writer's session.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.tasks.wait().await;
    }

    /// The store's `(cluster id, member id)`; zeros until storage was reached for the first time.
    pub fn ids(&self) -> (u64, u64) {
        (self.shared.cluster_id.load(Ordering::Relaxed), self.shared.member_id.load(Ordering::Relaxed))
    }

    /// The epoch of the writer's session: etcd's raft term.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch.load(Ordering::Relaxed)
    }

    /// The published revision.
    pub fn revision(&self) -> Revision {
        self.shared.store.read().current()
    }

    /// Present figures.
    pub fn status(&self) -> EngineStatus {
        let shared = &self.shared;
        let store = shared.store.read();
        EngineStatus {
            revision: store.current(),
            compacted: store.compacted(),
            epoch: shared.epoch.load(Ordering::Relaxed),
            batches: shared.batches.load(Ordering::Relaxed),
            disk_bytes: shared.disk_usage.last(),
            in_use_bytes: i64::try_from(store.in_use_bytes()).unwrap_or(i64::MAX),
            keys: store.live_key_count(),
            resident_bytes: store.resident_bytes(),
            queued: shared.options.queue_requests_max - shared.requests.capacity(),
        }
    }

    /// The hub that watch streams are opened with.
    pub fn watch(&self) -> &WatchHub {
        &self.shared.hub
    }

    /// Put.
    ///
    /// # Errors
    /// `LeaseNotFound`, `KeyNotFound`, and those of every write: `TooManyRequests`, `Timeout`, `NotApplied`, `NoSpace`, `Stopped`.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, Error> {
        match self.shared.submit(Command::Put(request)).await? {
            Reply::Put(response) => Ok(response),
            other => unreachable!("a put is answered by a put's reply, not {other:?}"),
        }
    }

    /// DeleteRange.
    ///
    /// # Errors
    /// Those of every write; see [`Engine::put`].
    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Error> {
        match self.shared.submit(Command::DeleteRange(request)).await? {
            Reply::DeleteRange(response) => Ok(response),
            other => unreachable!("a delete is answered by a delete's reply, not {other:?}"),
        }
    }

    /// Compact. With `physical`, waits until the rows are gone from storage. Answers the newest revision.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, and those of every write.
    pub async fn compact(&self, revision: Revision, physical: bool) -> Result<Revision, Error> {
        let current = self.shared.submit_revision(Command::Compact { revision }).await?;
        if physical {
            let (mut swept, mut role) = (self.shared.swept.subscribe(), self.shared.role.subscribe());
            tokio::select! {
                _ = swept.wait_for(|swept| *swept >= revision) => {}
                // Whoever writes now sweeps, too; this process may never come to it.
                _ = role.wait_for(|role| !matches!(role, Role::Active | Role::Recovering)) => return Err(Error::NoLeader),
                () = self.shared.stop.cancelled() => return Err(Error::Stopped),
            }
        }
        Ok(current)
    }

    /// Raises an alarm. Answers the newest revision.
    ///
    /// # Errors
    /// Those of every write.
    pub async fn alarm_activate(&self, alarm: AlarmRow) -> Result<Revision, Error> {
        self.shared.submit_revision(Command::AlarmActivate(alarm)).await
    }

    /// Disarms an alarm. Answers the newest revision.
    ///
    /// # Errors
    /// Those of every write.
    pub async fn alarm_deactivate(&self, alarm: AlarmRow) -> Result<Revision, Error> {
        self.shared.submit_revision(Command::AlarmDeactivate(alarm)).await
    }

    /// The alarms that are raised, sorted.
    pub fn alarms(&self) -> Vec<AlarmRow> {
        self.shared.alarms.lock().iter().copied().collect()
    }

    /// Whether a write that adds about `cost` bytes stays within the quota.
    pub fn has_room(&self, cost: usize) -> bool {
        let quota = self.shared.options.quota_bytes;
        quota == 0 || self.shared.store.read().in_use_bytes() as u64 + cost as u64 <= quota
    }

    /// Gives room back to the operating system where that is possible without blocking writes.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn defragment(&self) -> Result<(), Error> {
        self.shared.log.reader().defragment().await.map_err(|error| Error::Storage(error.to_string()))?;
        self.shared.refresh_disk_usage().await;
        Ok(())
    }
}

impl Shared {
    fn set_role(&self, role: Role) {
        match role {
            Role::Active | Role::Following => self.is_current.store(true, Ordering::Release),
            Role::Standby | Role::Failed(_) | Role::Stopped => self.is_current.store(false, Ordering::Release),
            // Memory is as it was before: the writer's own, a follower's, or nobody's.
            Role::Recovering => {}
        }
        self.role.send_if_modified(|present| {
            let changed = *present != role;
            *present = role;
            changed
        });
    }

    /// Queues a command and waits for its answer, no longer than the request timeout.
    async fn submit(&self, command: Command) -> Result<Reply, Error> {
        let asked = Asked::of(&command);
        let proposal = Proposal::begin(&self.metrics, &command);
        let answer = self.propose(command, asked.clone()).await;
        proposal.end(&answer);
        if let Err(error) = &answer {
            self.tell_slow_refusal(&asked, error);
        }
        answer
    }

    async fn propose(&self, command: Command, asked: Asked) -> Result<Reply, Error> {
        self.refuse_unless_serving()?;
        let bytes = command.bytes();
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let queued = QueuedBytes(Arc::clone(&self.queued_bytes), bytes);
        if before > self.options.queue_bytes_max {
            return Err(Error::TooManyRequests);
        }
        let (reply, mut answer) = oneshot::channel();
        let request = Request::new(command, asked, Some(queued), Some(reply));
        let claim = request.reply.claim.clone();
        match self.requests.try_send(request) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(Error::TooManyRequests),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Error::Stopped),
        }
        let deadline = Instant::now() + self.options.request_timeout;
        if let Some(hold) = self.options.hold {
            match tokio::time::timeout(hold, &mut answer).await {
                Ok(answer) => return answer.unwrap_or(Err(Error::Timeout)),
                Err(_) if claim.withdraw() => return Err(Error::NotApplied),
                // The writer has it in hand.
                Err(_) => {}
            }
        }
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            // Dropped with the session that had it in hand, or never answered: nothing is known about it.
            Ok(Err(_)) | Err(_) => Err(Error::Timeout),
        }
    }

    /// [`Shared::submit`] for commands whose answer is just a revision.
    async fn submit_revision(&self, command: Command) -> Result<Revision, Error> {
        match self.submit(command).await? {
            Reply::Revision(revision) => Ok(revision),
            other => unreachable!("expected a revision, not {other:?}"),
        }
    }

    fn refuse_unless_serving(&self) -> Result<(), Error> {
        match &*self.role.borrow() {
            Role::Active | Role::Recovering => Ok(()),
            Role::Standby | Role::Following | Role::Failed(_) => Err(Error::NoLeader),
            Role::Stopped => Err(Error::Stopped),
        }
    }
}
