//! Reads: the right to read, ranges and read-only transactions at the published revision, values read back from storage.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::Used;
use super::{Engine, Error, ReadRight, Role, Shared, slow};
use crate::mvcc::{
    CountMode, EvalError, Evaluator, LeaseLookup, Loaded, Operations, RangeScan, is_read_only, is_serializable, range,
};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::sequencer::{Command, Reply, first_key};
use crate::telemetry::metrics::RequestKind;
use crate::types::{LeaseId, Rev};

/// How many rounds of reading values back one request may take: a transaction takes one for each depth of its nesting, which is 256 at most;
/// any other ends only because history moved on under it.
pub(super) const ROUNDS_MAX: usize = 300;
/// Rounds that bring nothing, and the pause after each: a follower's storage may have lost rows to a compaction of the leader's that the
/// follower's memory hears of in a moment.
const IDLE_ROUNDS_MAX: usize = 50;
const IDLE_PAUSE: Duration = Duration::from_millis(20);
/// How many keys a range looks at under one hold of the store: a publish waits for that many, not for the whole list.
const KEYS_PER_STEP: usize = 1000;
/// How often a range is collected in steps; when compactions have overtaken each of them, it is taken whole.
const SCANS_MAX: usize = 3;
/// How many values are asked for at once.
const VALUES_PER_READ: usize = 512;
/// The pause before a read asks again for its confirmation after a session was lost.
const CONFIRM_RETRY: Duration = Duration::from_millis(20);
/// The pause before a read looks again whether this process has the right to answer it.
const LEASE_RETRY: Duration = Duration::from_millis(2);

/// Read-only transactions put nothing, so no lease matters to them.
struct NoLeases;

impl LeaseLookup for NoLeases {
    fn exists(&self, _id: LeaseId) -> bool {
        false
    }
}

impl Engine {
    /// Waits until what is published is at least as new as anything acknowledged before the call: the etcd ReadIndex.
    ///
    /// # Errors
    /// `Timeout`, `NoLeader`, `Stopped`, `TooManyRequests`.
    pub async fn read_barrier(&self) -> Result<(), Error> {
        self.shared.read_barrier().await
    }

    /// Waits until there is a history to show, which a new process has to read first. A watch that began before would take all of it for
    /// news.
    ///
    /// # Errors
    /// `Timeout`, `NoLeader`, `Stopped`.
    pub async fn recovered(&self) -> Result<(), Error> {
        let shared = &self.shared;
        if shared.refuse_unrecovered().is_ok() {
            return Ok(());
        }
        let mut role = shared.role.subscribe();
        let decided =
            role.wait_for(|role| shared.refuse_unrecovered().is_ok() || matches!(role, Role::Failed(_) | Role::Stopped));
        match tokio::time::timeout(shared.options.request_timeout, decided).await {
            Ok(Ok(_)) => shared.refuse_unrecovered(),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Whether what was collected after [`Engine::read_barrier`] may be shown: a process that was stopped in between may have been
    /// replaced meanwhile. Otherwise the barrier is asked again, which has a deadline.
    pub fn is_still_confirmed(&self) -> bool {
        match &self.shared.options.read_right {
            ReadRight::Exclusive | ReadRight::Confirm => true,
            ReadRight::Lease(lease) => lease.may_read(),
        }
    }

    /// Range. A linearizable one waits for [`Engine::read_barrier`] first. The header carries only the revision.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `Storage`, and those of the barrier.
    pub async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let read = slow::Read::begin("range", &request.key);
        let (confirmed, response) = self.confirmed_range(request, read.asked).await;
        let seconds = self.shared.metrics.server.request_seconds(RequestKind::Range, response.is_ok());
        seconds.observe(read.asked.elapsed().as_secs_f64());
        self.shared.tell_slow_read(&read, confirmed, response.is_err());
        response
    }

    /// The answer, and how long the last confirmation before it took from `asked` on.
    async fn confirmed_range(
        &self,
        request: &RangeRequest,
        asked: std::time::Instant,
    ) -> (Duration, Result<RangeResponse, Error>) {
        loop {
            if !request.serializable
                && let Err(error) = self.read_barrier().await
            {
                return (asked.elapsed(), Err(error));
            }
            let confirmed = asked.elapsed();
            let response = self.range_published(request, CountMode::Total).await;
            if request.serializable || self.is_still_confirmed() {
                return (confirmed, response);
            }
        }
    }

    /// Range at the published revision, without a barrier.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `Storage`.
    pub async fn range_published(&self, request: &RangeRequest, count_mode: CountMode) -> Result<RangeResponse, Error> {
        let shared = &self.shared;
        shared.refuse_unrecovered()?;
        shared.metrics.mvcc.range_total.inc();
        let (mut loaded, mut rounds) = (Loaded::new(), Rounds::default());
        loop {
            match shared.collect_range(request, count_mode, &loaded).await {
                Err(EvalError::NeedValues(revs)) => rounds.pass(shared.load_missing(revs, &mut loaded).await?).await?,
                decided => {
                    let response = decided?;
                    if loaded.is_empty() {
                        shared.metrics.value_cache.hits_total.inc_by(response.kvs.len() as u64);
                    } else {
                        shared.admit(&Used::range(&response.kvs), &loaded);
                    }
                    return Ok(response);
                }
            }
        }
    }

    /// Txn. A read-only one is answered from the published state (after a barrier unless all its ranges are serializable), any other
    /// goes through the writer.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `LeaseNotFound`, `KeyNotFound`, and those of every write or read.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Error> {
        if !is_read_only(&request) {
            return match self.shared.submit(Command::Txn(request)).await? {
                Reply::Txn(response) => Ok(response),
                other => unreachable!("a transaction is answered by a transaction's reply, not {other:?}"),
            };
        }
        let serializable = is_serializable(&request);
        let key = first_key(&request);
        let read = slow::Read::begin("txn", &key);
        loop {
            if !serializable && let Err(error) = self.read_barrier().await {
                self.shared.tell_slow_read(&read, read.asked.elapsed(), true);
                return Err(error);
            }
            // etcd's figure is of what comes after the barrier.
            let confirmed = std::time::Instant::now();
            let response = self.txn_published(&request).await;
            if serializable || self.is_still_confirmed() {
                let seconds = self.shared.metrics.server.request_seconds(RequestKind::ReadonlyTxn, response.is_ok());
                seconds.observe(confirmed.elapsed().as_secs_f64());
                self.shared.tell_slow_read(&read, confirmed.duration_since(read.asked), response.is_err());
                return response;
            }
        }
    }

    async fn txn_published(&self, request: &TxnRequest) -> Result<TxnResponse, Error> {
        self.shared.refuse_unrecovered()?;
        let (mut loaded, mut rounds) = (Loaded::new(), Rounds::default());
        loop {
            let mut operations = Operations::default();
            let evaluated = Evaluator::new(&*self.shared.store.read(), &NoLeases, &loaded).counting(&mut operations).txn(request);
            match evaluated {
                Err(EvalError::NeedValues(revs)) => rounds.pass(self.shared.load_missing(revs, &mut loaded).await?).await?,
                decided => {
                    self.shared.count_operations(operations);
                    let response = decided?.response;
                    if !loaded.is_empty() {
                        self.shared.admit(&Used::txn(request, &response), &loaded);
                    }
                    return Ok(response);
                }
            }
        }
    }
}

/// Rounds of reading values back for one request.
#[derive(Default)]
struct Rounds {
    all: usize,
    /// Those that brought nothing: the rows are gone, and the compaction that took them isn't published here yet.
    idle: usize,
}

impl Rounds {
    async fn pass(&mut self, progressed: bool) -> Result<(), Error> {
        self.all += 1;
        self.idle += usize::from(!progressed);
        if self.all > ROUNDS_MAX || self.idle > IDLE_ROUNDS_MAX {
            return Err(Error::Storage("history moved on faster than values could be read back".into()));
        }
        if !progressed {
            tokio::time::sleep(IDLE_PAUSE).await;
        }
        Ok(())
    }
}

impl Shared {
    /// Before the first recovery there is nothing that could be shown, not even as old.
    fn refuse_unrecovered(&self) -> Result<(), Error> {
        if self.cluster_id.load(Ordering::Relaxed) == 0 { Err(Error::NoLeader) } else { Ok(()) }
    }

    /// Whether what is published is everything that storage had when this process became the writer, and since.
    fn is_active(&self) -> bool {
        *self.role.borrow() == Role::Active
    }

    /// Whether a follower may take what is published for the leader's. Who leads once more, and has yet to notice that somebody else did
    /// meanwhile, would make it give up what that one wrote.
    pub(super) fn refuse_unless_leading(&self) -> Result<(), Error> {
        // In this order: see the barrier.
        if self.options.read_right.may_acknowledge() && self.is_active() { Ok(()) } else { Err(Error::NoLeader) }
    }

    pub(super) async fn read_barrier(&self) -> Result<(), Error> {
        let begun = Instant::now();
        let deadline = begun + self.options.request_timeout;
        loop {
            self.refuse_unless_serving()?;
            match &self.options.read_right {
                ReadRight::Exclusive if self.epoch.load(Ordering::Relaxed) != 0 => return Ok(()),
                ReadRight::Lease(lease) => {
                    // In this order: while a session ends and the next one begins, the role changes before the lease is the next one's.
                    if lease.may_read() && self.is_active() {
                        return Ok(());
                    }
                    if begun.elapsed() >= self.options.hold.unwrap_or(self.options.request_timeout) {
                        return Err(Error::Timeout);
                    }
                    tokio::time::sleep(LEASE_RETRY).await;
                    continue;
                }
                ReadRight::Exclusive | ReadRight::Confirm => {}
            }
            let (confirm, confirmed) = oneshot::channel();
            self.confirms.try_send(confirm).map_err(|_| Error::TooManyRequests)?;
            match tokio::time::timeout_at(deadline, confirmed).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(Error::NotApplied)) | Err(_)) => {}
                Ok(Ok(Err(error))) => return Err(error),
                Err(_) => return Err(Error::Timeout),
            }
            if *self.role.borrow() == Role::Stopped {
                return Err(Error::Stopped);
            }
            tokio::time::sleep(CONFIRM_RETRY).await;
        }
    }

    /// Collects a range. A large one lets writes in between its steps, and is all the same of one revision.
    async fn collect_range(
        &self,
        request: &RangeRequest,
        count_mode: CountMode,
        loaded: &Loaded,
    ) -> Result<RangeResponse, EvalError> {
        for _ in 0..SCANS_MAX {
            if let Some(response) = self.scan_range(request, count_mode, loaded).await? {
                return Ok(response);
            }
        }
        range(&*self.store.read(), request, count_mode, loaded)
    }

    /// `None` when a compaction passed the revision while the range was being collected, or another store took this one's place.
    async fn scan_range(
        &self,
        request: &RangeRequest,
        count_mode: CountMode,
        loaded: &Loaded,
    ) -> Result<Option<RangeResponse>, EvalError> {
        let (instance, mut scan) = {
            let store = self.store.read();
            let mut scan = RangeScan::begin(&*store, request, count_mode)?;
            scan.step(&*store, loaded, KEYS_PER_STEP)?;
            (store.instance(), scan)
        };
        while !scan.is_done() {
            tokio::task::yield_now().await;
            let store = self.store.read();
            if store.instance() != instance {
                return Ok(None);
            }
            match scan.step(&*store, loaded, KEYS_PER_STEP) {
                Err(EvalError::Compacted) => return Ok(None),
                stepped => stepped?,
            }
        }
        scan.finish().map(Some)
    }

    /// Reads back those of the values that aren't loaded yet; whether there were any.
    async fn load_missing(&self, revs: Vec<Rev>, loaded: &mut Loaded) -> Result<bool, Error> {
        let missing = revs.into_iter().filter(|rev| !loaded.contains_key(rev)).collect();
        let found = self.load_values(missing).await?;
        let progressed = !found.is_empty();
        loaded.extend(found);
        Ok(progressed)
    }

    /// Reads these values back. Places that are gone (compacted meanwhile) are left out: the caller's next evaluation, which sees the
    /// new compact revision, no longer asks for them.
    pub(super) async fn load_values(&self, revs: Vec<Rev>) -> Result<Loaded, Error> {
        let reader = self.log.reader();
        let mut loaded = Loaded::new();
        let _timer = self.metrics.value_cache.fetch_seconds.start_timer();
        self.metrics.value_cache.misses_total.inc_by(revs.len() as u64);
        for chunk in revs.chunks(VALUES_PER_READ) {
            let values = reader.values(chunk.to_vec()).await.map_err(|error| Error::Storage(error.to_string()))?;
            if values.len() != chunk.len() {
                return Err(Error::Storage(format!("asked for {} values, got {}", chunk.len(), values.len())));
            }
            loaded.extend(chunk.iter().zip(values).filter_map(|(rev, value)| Some((*rev, value?))));
        }
        Ok(loaded)
    }
}
