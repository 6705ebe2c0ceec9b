//! Every metric that Duet exports, as typed handles.
//!
//! A figure that means the same as one of etcd's carries etcd's name, type, labels and buckets (source: the
//! `metrics.go` files of etcd 3.7's server, and where those are updated), so that etcd's dashboards and alert rules work
//! unchanged; the rest is `duet_*`. Figures that etcd has and Duet could only invent (raft heartbeats, snapshots, bbolt)
//! are absent rather than zero.
//!
//! One difference holds for all counters of operations: etcd's members each apply every write, and each counts it; here
//! a write counts at the process that decided it, and a read or an event at the one that answered with it.
//!
//! Invariants: [`Metrics`] is made over a [`Registry`] that is passed in; nothing here is global, so tests and several
//! servers in one process don't share figures. Handles are cheap to clone and to update (atomics, no locks); the hot
//! path never looks a label up. A figure that isn't known at the moment of a scrape is absent from it ([`Known`]).

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::grpc::GrpcMetrics;
pub use super::known::Known;
use super::process::ProcessCollector;

/// The etcd release whose API and behaviour this server reproduces.
pub const ETCD_VERSION: &str = "3.7.3";
/// The cluster version that a cluster of [`ETCD_VERSION`] members agrees on, as `/version` writes it.
pub const ETCD_CLUSTER_VERSION: &str = "3.7.0";

/// All handles; clones share the same figures.
#[derive(Clone)]
pub struct Metrics(Arc<MetricsInner>);

/// The groups of handles behind [`Metrics`].
pub struct MetricsInner {
    /// `etcd_server_*`: role, proposals, requests.
    pub server: ServerMetrics,
    /// `etcd_mvcc_*` and `etcd_debugging_mvcc_*`: the store.
    pub mvcc: MvccMetrics,
    /// `etcd_debugging_mvcc_*watch*` and `duet_watch_*`: watchers and events.
    pub watch: WatchMetrics,
    /// `etcd_debugging_lease_*`.
    pub lease: LeaseMetrics,
    /// `duet_engine_*`: batches, commits, queues, recovery.
    pub engine: EngineMetrics,
    /// `duet_value_cache_*`: values in memory.
    pub value_cache: ValueCacheMetrics,
    /// `duet_compaction_*` and etcd's figures of its compactor.
    pub compaction: CompactionMetrics,
    /// `grpc_server_*` and `etcd_network_client_grpc_*`; updated by [`super::grpc::GrpcMetricsLayer`].
    pub grpc: GrpcMetrics,
    /// `duet_net_*`: connections, handshakes and certificates.
    pub net: NetMetrics,
    registry: Registry,
}

impl std::ops::Deref for Metrics {
    type Target = MetricsInner;
    fn deref(&self) -> &MetricsInner {
        &self.0
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Registers every metric on `registry`; with `extensive` (etcd's `--metrics=extensive`) the duration of each gRPC
    /// method too.
    ///
    /// # Errors
    /// A name is already taken on this registry: one registry holds one `Metrics`.
    pub fn new(registry: &Registry, extensive: bool) -> Result<Self, prometheus::Error> {
        let r = Registrar(registry);
        let inner = MetricsInner {
            server: ServerMetrics::new(&r)?,
            mvcc: MvccMetrics::new(&r)?,
            watch: WatchMetrics::new(&r)?,
            lease: LeaseMetrics::new(&r)?,
            engine: EngineMetrics::new(&r)?,
            value_cache: ValueCacheMetrics::new(&r)?,
            compaction: CompactionMetrics::new(&r)?,
            grpc: GrpcMetrics::new(&r, extensive)?,
            net: NetMetrics::new(&r)?,
            registry: registry.clone(),
        };
        registry.register(Box::new(ProcessCollector::new()?))?;
        Ok(Self(Arc::new(inner)))
    }

    /// Metrics on a registry of their own, for tests and tools.
    #[must_use]
    pub fn unshared() -> Self {
        Self::new(&Registry::new(), true).expect("an empty registry holds no conflicting name")
    }

    /// Adds figures that are read from elsewhere at each scrape.
    ///
    /// # Errors
    /// One of its names is taken.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        self.registry.register(collector)
    }

    /// Everything in Prometheus' text format, for `/metrics`.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(64 << 10);
        // Encoding into a String fails only on a metric family without metrics, and `gather` leaves those out.
        if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "could not encode the metrics");
        }
        out
    }
}

/// Registers metrics of each kind under their full names.
pub(super) struct Registrar<'a>(&'a Registry);

type Made<T> = Result<T, prometheus::Error>;

impl Registrar<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, made: Made<C>) -> Made<C> {
        let metric = made?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    pub(super) fn counter(&self, name: &str, help: &str) -> Made<IntCounter> {
        self.keep(IntCounter::new(name, help))
    }
    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Made<IntCounterVec> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> Made<IntGauge> {
        self.keep(IntGauge::new(name, help))
    }
    /// A gauge that is absent while its figure isn't known.
    fn known_gauge(&self, name: &str, help: &str) -> Made<Known<IntGauge>> {
        self.keep(IntGauge::new(name, help).map(Known::new))
    }
    /// The same for a figure with a fraction.
    fn known_float_gauge(&self, name: &str, help: &str) -> Made<Known<Gauge>> {
        self.keep(Gauge::new(name, help).map(Known::new))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Made<IntGaugeVec> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    /// `count` buckets from `start`, each `factor` times the one before, as etcd writes its buckets.
    fn histogram(&self, name: &str, help: &str, (start, factor, count): Buckets) -> Made<Histogram> {
        let buckets = prometheus::exponential_buckets(start, factor, count)?;
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }
    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        (start, factor, count): Buckets,
        labels: &[&str],
    ) -> Made<HistogramVec> {
        let buckets = prometheus::exponential_buckets(start, factor, count)?;
        self.keep(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }
}

type Buckets = (f64, f64, usize);
/// 0.1 ms to 6.6 s: commits and waits, which take a fraction of a millisecond on a good disk.
const FAST_SECONDS: Buckets = (0.0001, 2.0, 17);
/// 1 ms to 8.2 s: etcd's buckets for whole requests.
const REQUEST_SECONDS: Buckets = (0.001, 2.0, 14);

/// What etcd calls the kinds of requests in `etcd_server_request_duration_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are etcd's request names
pub enum RequestKind {
    Range,
    ReadonlyTxn,
    Put,
    DeleteRange,
    Txn,
    Compaction,
    LeaseGrant,
    LeaseRevoke,
    Alarm,
}

impl RequestKind {
    const ALL: [(RequestKind, &'static str); 9] = [
        (RequestKind::Range, "Range"),
        (RequestKind::ReadonlyTxn, "ReadonlyTxn"),
        (RequestKind::Put, "Put"),
        (RequestKind::DeleteRange, "DeleteRange"),
        (RequestKind::Txn, "Txn"),
        (RequestKind::Compaction, "Compaction"),
        (RequestKind::LeaseGrant, "LeaseGrant"),
        (RequestKind::LeaseRevoke, "LeaseRevoke"),
        (RequestKind::Alarm, "Alarm"),
    ];
}

/// Role, proposals and requests (`etcdserver/metrics.go`, `etcdhttp/health.go`).
///
/// A proposal is what etcd sends through raft (`v3_server.go`, `processInternalRaftRequestOnce`), which is what the
/// writer here decides: every request that may change something, transactions whose compares fail and requests that are
/// refused included.
pub struct ServerMetrics {
    /// 1 while this process knows a writer that it can serve or forward writes to.
    pub has_leader: IntGauge,
    /// 1 while this process is the writer.
    pub is_leader: IntGauge,
    /// Times that a writer was seen to begin: this process, the one that it follows, or the one that it forwards to.
    pub leader_changes_seen_total: IntCounter,
    /// Proposals that this process decided and that are durable, refusals included as in etcd: a gauge there and here,
    /// of raft's commit index, which goes on after a restart where this one begins anew. Known to the writer alone.
    pub proposals_committed_total: Known<IntGauge>,
    /// Those of them that the store in memory has, too: all, since they become durable and visible in one step.
    pub proposals_applied_total: Known<IntGauge>,
    /// Proposals that wait for their answer, wherever they are: queued, being gathered, or on their way to PostgreSQL.
    pub proposals_pending: IntGauge,
    /// Proposals without an answer: no leader, storage refused or lost them, too late, or given up by the client.
    pub proposals_failed_total: IntCounter,
    /// The backend quota in force, bytes.
    pub quota_backend_bytes: IntGauge,
    health_success: IntCounter,
    health_failures: IntCounter,
    healthcheck: IntGaugeVec,
    healthchecks_total: IntCounterVec,
    server_id: IntGaugeVec,
    server_id_shown: AtomicU64,
    request_seconds: Vec<[Histogram; 2]>,
}

impl ServerMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        let requests = r.histograms(
            "etcd_server_request_duration_seconds",
            "Response latency distribution in seconds for each type.",
            REQUEST_SECONDS,
            &["type", "success"],
        )?;
        let request_seconds = RequestKind::ALL
            .map(|(_, name)| ["false", "true"].map(|success| requests.with_label_values(&[name, success])))
            .into();
        r.gauges(
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            &["server_version"],
        )?
        .with_label_values(&[ETCD_VERSION])
        .set(1);
        r.gauges(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            &["cluster_version"],
        )?
        .with_label_values(&[ETCD_CLUSTER_VERSION.trim_end_matches(".0")])
        .set(1);
        r.gauges("duet_build_info", "The version of Duet that is running, as a label.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(Self {
            has_leader: r.gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.")?,
            is_leader: r.gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.")?,
            leader_changes_seen_total: r
                .counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.")?,
            proposals_committed_total: r
                .known_gauge("etcd_server_proposals_committed_total", "The total number of consensus proposals committed.")?,
            proposals_applied_total: r
                .known_gauge("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.")?,
            proposals_pending: r.gauge("etcd_server_proposals_pending", "The current number of pending proposals to commit.")?,
            proposals_failed_total: r
                .counter("etcd_server_proposals_failed_total", "The total number of failed proposals seen.")?,
            quota_backend_bytes: r.gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.")?,
            health_success: r.counter("etcd_server_health_success", "The total number of successful health checks")?,
            health_failures: r.counter("etcd_server_health_failures", "The total number of failed health checks")?,
            healthcheck: r.gauges("etcd_server_healthcheck", "The result of each kind of healthcheck.", &["type", "name"])?,
            healthchecks_total: r.counters(
                "etcd_server_healthchecks_total",
                "The total number of each kind of healthcheck.",
                &["type", "name", "status"],
            )?,
            server_id: r.gauges(
                "etcd_server_id",
                "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
                &["server_id"],
            )?,
            server_id_shown: AtomicU64::new(0),
            request_seconds,
        })
    }

    /// Where the duration of a request of `kind` belongs; resolved beforehand, so this is only an index. As in etcd a
    /// write that the writer refuses was a success: it was proposed, committed, and answered. One without an answer in
    /// time wasn't, though etcd's code lets it count as one; and one that never gets to the writer (too large, or because
    /// of an alarm) has no duration, where etcd proposes it first.
    #[must_use]
    pub fn request_seconds(&self, kind: RequestKind, success: bool) -> &Histogram {
        &self.request_seconds[kind as usize][usize::from(success)]
    }

    /// States this process' member id; 0 while it isn't known, and the metric absent.
    pub fn set_server_id(&self, member_id: u64) {
        if self.server_id_shown.swap(member_id, Ordering::Relaxed) == member_id {
            return;
        }
        self.server_id.reset();
        if member_id != 0 {
            self.server_id.with_label_values(&[&format!("{member_id:x}")]).set(1);
        }
    }

    /// Counts an answer of `/health`.
    pub fn observe_health(&self, healthy: bool) {
        if healthy { &self.health_success } else { &self.health_failures }.inc();
    }

    /// Counts one check of `/livez` or `/readyz`; `name` is one of the few names that these have.
    pub fn observe_check(&self, kind: &'static str, name: &'static str, success: bool) {
        self.healthcheck.with_label_values(&[kind, name]).set(i64::from(success));
        let status = if success { "success" } else { "error" };
        self.healthchecks_total.with_label_values(&[kind, name, status]).inc();
    }
}

/// The store (`storage/mvcc/metrics.go`). What is counted of a request is in [`crate::mvcc::Operations`].
pub struct MvccMetrics {
    /// Looks at a range of keys: Range requests, chunks of RangeStream, and in transactions compares and previous pairs,
    /// too; and one for each previous pair that a watcher is sent.
    pub range_total: IntCounter,
    /// Puts, inside transactions too.
    pub put_total: IntCounter,
    /// DeleteRange requests, inside transactions too, and one for each key of a lease that is revoked.
    pub delete_total: IntCounter,
    /// Transactions of etcd's store with more than one operation, whatever request they belong to.
    pub txn_total: IntCounter,
    /// Bytes of keys and values put since the start (a gauge in etcd).
    pub total_put_size_in_bytes: IntGauge,
    /// Keys that exist at the published revision.
    pub keys_total: Known<IntGauge>,
    /// The published revision.
    pub current_revision: Known<IntGauge>,
    /// The revision of the last compaction; −1 before the first one, as in etcd.
    pub compact_revision: Known<IntGauge>,
    /// The size on disk of the database that this process reads, bytes.
    pub db_total_size_in_bytes: Known<IntGauge>,
    /// What of it is live data, bytes.
    pub db_total_size_in_use_in_bytes: Known<IntGauge>,
    /// Duration of HashKV where it had to be computed.
    pub hash_rev_duration_seconds: Histogram,
}

impl MvccMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        Ok(Self {
            range_total: r.counter("etcd_mvcc_range_total", "Total number of ranges seen by this member.")?,
            put_total: r.counter("etcd_mvcc_put_total", "Total number of puts seen by this member.")?,
            delete_total: r.counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member.")?,
            txn_total: r.counter("etcd_mvcc_txn_total", "Total number of txns seen by this member.")?,
            total_put_size_in_bytes: r
                .gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "The total size of put kv pairs seen by this member.")?,
            keys_total: r.known_gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.")?,
            current_revision: r.known_gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.")?,
            compact_revision: r
                .known_gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store.")?,
            db_total_size_in_bytes: r.known_gauge(
                "etcd_mvcc_db_total_size_in_bytes",
                "Total size of the underlying database physically allocated in bytes.",
            )?,
            db_total_size_in_use_in_bytes: r.known_gauge(
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Total size of the underlying database logically in use in bytes.",
            )?,
            hash_rev_duration_seconds: r.histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                "The latency distribution of storage hash by revision operation.",
                (0.01, 2.0, 15),
            )?,
        })
    }
}

/// Watchers and the events on their way to them.
pub struct WatchMetrics {
    /// Open Watch RPCs.
    pub stream_total: IntGauge,
    /// Watchers on all streams; as in etcd those that a compaction has ended count until their client cancels them.
    pub watcher_total: IntGauge,
    /// Watchers that are behind and replayed from the log (etcd: unsynced).
    pub slow_watcher_total: IntGauge,
    /// Events sent, each as often as there are watchers that it is sent to.
    pub events_total: IntCounter,
    /// Events that have been queued for watchers and not sent yet, counted likewise.
    pub pending_events_total: IntGauge,
    /// How many revisions the watcher that lags most still has to read from history.
    pub lag_revisions: IntGauge,
    /// Revisions in the memory ring that lagging watchers are replayed from first.
    pub ring_revisions: IntGauge,
}

impl WatchMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        Ok(Self {
            stream_total: r.gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.")?,
            watcher_total: r.gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.")?,
            slow_watcher_total: r.gauge("etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.")?,
            events_total: r.counter("etcd_debugging_mvcc_events_total", "Total number of events sent by this member.")?,
            pending_events_total: r
                .gauge("etcd_debugging_mvcc_pending_events_total", "Total number of pending events to be sent.")?,
            lag_revisions: r.gauge("duet_watch_lag_revisions", "Revisions by which the watcher that lags most is behind.")?,
            ring_revisions: r.gauge("duet_watch_ring_revisions", "Revisions that the memory ring holds.")?,
        })
    }
}

/// Leases (`lease/metrics.go`).
pub struct LeaseMetrics {
    /// Leases granted.
    pub granted_total: IntCounter,
    /// Leases revoked by request or by expiry.
    pub revoked_total: IntCounter,
    /// Keepalives that renewed a lease.
    pub renewed_total: IntCounter,
    /// Granted TTLs, seconds.
    pub ttl_total: Histogram,
    /// Leases that were revoked because they had expired.
    pub expired_total: IntCounter,
    /// Leases that exist; the writer alone knows.
    pub active: Known<IntGauge>,
}

impl LeaseMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        Ok(Self {
            granted_total: r.counter("etcd_debugging_lease_granted_total", "The total number of granted leases.")?,
            revoked_total: r.counter("etcd_debugging_lease_revoked_total", "The total number of revoked leases.")?,
            renewed_total: r.counter("etcd_debugging_lease_renewed_total", "The number of renewed leases seen by the leader.")?,
            ttl_total: r.histogram("etcd_debugging_lease_ttl_total", "Bucketed histogram of lease TTLs.", (1.0, 2.0, 24))?,
            expired_total: r.counter("etcd_debugging_server_lease_expired_total", "The total number of expired leases.")?,
            active: r.known_gauge("duet_lease_active", "Leases that exist.")?,
        })
    }
}

/// The writer: batches, commits, queues, recovery.
pub struct EngineMetrics {
    /// Requests that were answered with each committed batch.
    pub batch_operations: Histogram,
    /// Bytes of keys and values in each committed batch.
    pub batch_bytes: Histogram,
    /// From sending a batch to PostgreSQL to knowing that it is durable.
    pub commit_seconds: Histogram,
    /// From queueing a write to the writer taking it in hand.
    pub queue_wait_seconds: Histogram,
    /// Requests that wait in the writer's queue.
    pub queue_depth: IntGauge,
    /// Ranges and writes that took longer, from being asked to being answered, than etcd's 100 ms for applying one; each
    /// is logged with its cause. etcd's own `slow_apply_total` leaves out the time until a write is committed.
    pub slow_requests_total: IntCounter,
    /// Batches sent to PostgreSQL and not answered yet.
    pub batches_in_flight: IntGauge,
    /// Batches whose outcome was unknown because the connection broke.
    pub unknown_batches_total: IntCounter,
    /// Recoveries: the store read back from PostgreSQL, at start or after a broken connection.
    pub recoveries_total: IntCounter,
    /// Duration of the last recovery, seconds.
    pub recovery_duration_seconds: Known<Gauge>,
    /// Rows that the last recovery read.
    pub recovery_rows: Known<IntGauge>,
    /// Errors that PostgreSQL or its connection gave.
    pub storage_errors_total: IntCounter,
    /// 1 while the writer's connection to PostgreSQL stands.
    pub storage_connected: IntGauge,
    /// The epoch of the writer that this process is or follows.
    pub epoch: Known<IntGauge>,
}

impl EngineMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        Ok(Self {
            batch_operations: r.histogram(
                "duet_engine_batch_operations",
                "Requests that were answered with each committed batch.",
                (1.0, 2.0, 14),
            )?,
            batch_bytes: r.histogram(
                "duet_engine_batch_bytes",
                "Bytes of keys and values in each committed batch.",
                (256.0, 4.0, 10),
            )?,
            commit_seconds: r.histogram(
                "duet_engine_commit_duration_seconds",
                "From sending a batch to PostgreSQL to knowing that it is durable.",
                FAST_SECONDS,
            )?,
            queue_wait_seconds: r.histogram(
                "duet_engine_queue_wait_seconds",
                "From queueing a write to the writer taking it in hand.",
                FAST_SECONDS,
            )?,
            queue_depth: r.gauge("duet_engine_queue_depth", "Requests that wait in the writer's queue.")?,
            slow_requests_total: r.counter(
                "duet_engine_slow_requests_total",
                "Ranges and writes that took longer than --warning-apply-duration.",
            )?,
            batches_in_flight: r.gauge("duet_engine_batches_in_flight", "Batches sent to PostgreSQL and not answered yet.")?,
            unknown_batches_total: r.counter(
                "duet_engine_unknown_batches_total",
                "Batches whose outcome was unknown because the connection broke.",
            )?,
            recoveries_total: r.counter(
                "duet_engine_recoveries_total",
                "Times that the store was read back from PostgreSQL, at start or after a broken connection.",
            )?,
            recovery_duration_seconds: r
                .known_float_gauge("duet_engine_recovery_duration_seconds", "Duration of the last recovery.")?,
            recovery_rows: r.known_gauge("duet_engine_recovery_rows", "Rows that the last recovery read.")?,
            storage_errors_total: r
                .counter("duet_storage_errors_total", "Errors that PostgreSQL or the connection to it gave.")?,
            storage_connected: r.gauge(
                "duet_storage_connected",
                "Whether the writer's connection to PostgreSQL stands. 1 if it does, 0 otherwise.",
            )?,
            epoch: r.known_gauge("duet_engine_epoch", "The epoch that this process writes or follows.")?,
        })
    }
}

/// Values in memory.
pub struct ValueCacheMetrics {
    /// Bytes held.
    pub bytes: IntGauge,
    /// The budget, bytes.
    pub limit_bytes: IntGauge,
    /// Values that a read found in memory.
    pub hits_total: IntCounter,
    /// Values that a read fetched from PostgreSQL.
    pub misses_total: IntCounter,
    /// Values dropped to keep the budget.
    pub evictions_total: IntCounter,
    /// Duration of a fetch of missing values from PostgreSQL.
    pub fetch_seconds: Histogram,
}

impl ValueCacheMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        Ok(Self {
            bytes: r.gauge("duet_value_cache_bytes", "Bytes of values held in memory.")?,
            limit_bytes: r.gauge("duet_value_cache_limit_bytes", "The budget for values in memory, bytes.")?,
            hits_total: r.counter("duet_value_cache_hits_total", "Values that a read found in memory.")?,
            misses_total: r.counter("duet_value_cache_misses_total", "Values that a read fetched from PostgreSQL.")?,
            evictions_total: r.counter("duet_value_cache_evictions_total", "Values dropped from memory to keep the budget.")?,
            fetch_seconds: r.histogram(
                "duet_value_cache_fetch_duration_seconds",
                "Duration of a fetch of missing values from PostgreSQL.",
                FAST_SECONDS,
            )?,
        })
    }
}

/// Compaction (`storage/mvcc/metrics.go`, and what is Duet's own). Those of the database are told by the process that
/// deletes from it, which in a pair is the leader for both.
pub struct CompactionMetrics {
    /// Time that one compaction spent in the index, milliseconds; here it is spent in many short steps.
    pub index_pause_milliseconds: Histogram,
    /// One step of deletion in PostgreSQL, milliseconds.
    pub db_pause_milliseconds: Histogram,
    /// One whole compaction of the database without its time in the index, milliseconds.
    pub db_total_milliseconds: Histogram,
    /// When the last compaction of the database ended, Unix seconds; 0 before, as in etcd.
    pub db_last: IntGauge,
    /// Rows deleted by compaction.
    pub db_keys_total: IntCounter,
    /// Revisions that are compacted in memory and still to be removed from the database; the writer alone knows.
    pub pending_revisions: Known<IntGauge>,
}

impl CompactionMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        Ok(Self {
            index_pause_milliseconds: r.histogram(
                "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
                "Bucketed histogram of index compaction pause duration.",
                (0.5, 2.0, 14),
            )?,
            db_pause_milliseconds: r.histogram(
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "Bucketed histogram of db compaction pause duration.",
                (1.0, 2.0, 13),
            )?,
            db_total_milliseconds: r.histogram(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "Bucketed histogram of db compaction total duration.",
                (100.0, 2.0, 14),
            )?,
            db_last: r.gauge(
                "etcd_debugging_mvcc_db_compaction_last",
                "The unix time of the last db compaction. Resets to 0 on start.",
            )?,
            db_keys_total: r.counter("etcd_debugging_mvcc_db_compaction_keys_total", "Total number of db keys compacted.")?,
            pending_revisions: r.known_gauge(
                "duet_compaction_pending_revisions",
                "Revisions compacted in memory and still to be removed from the database.",
            )?,
        })
    }
}

/// Connections and certificates.
pub struct NetMetrics {
    /// Open client connections.
    pub connections: IntGauge,
    /// Client connections accepted.
    pub connections_total: IntCounter,
    /// TLS handshakes that failed or took too long.
    pub tls_handshake_failures_total: IntCounter,
    /// Certificate reloads that took effect.
    pub tls_reloads_total: IntCounter,
    /// Certificate reloads that were refused; the old certificate stayed.
    pub tls_reload_failures_total: IntCounter,
    /// Requests forwarded to the active writer.
    pub proxied_total: IntCounter,
}

impl NetMetrics {
    fn new(r: &Registrar) -> Made<Self> {
        Ok(Self {
            connections: r.gauge("duet_net_connections", "Open client connections.")?,
            connections_total: r.counter("duet_net_connections_total", "Client connections accepted.")?,
            tls_handshake_failures_total: r
                .counter("duet_net_tls_handshake_failures_total", "TLS handshakes that failed or took too long.")?,
            tls_reloads_total: r.counter("duet_net_tls_reloads_total", "Certificate reloads that took effect.")?,
            tls_reload_failures_total: r.counter(
                "duet_net_tls_reload_failures_total",
                "Certificate reloads that were refused; the old certificate stayed in use.",
            )?,
            proxied_total: r.counter("duet_net_proxied_total", "Requests forwarded to the active writer.")?,
        })
    }
}
