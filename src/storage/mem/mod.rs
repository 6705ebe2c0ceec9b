//! The log in memory, for tests and simulations: durable for as long as the [`MemLog`] lives, with faults on demand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    AlarmRow, Batch, BoxFuture, DiskUsage, Leader, LeaseRow, Log, LogError, LogRow, Meta, Reader, RowsPage, Snapshot, Writer,
};
use crate::types::{Epoch, LeaseId, Millis, Rev, Revision};

/// Rows per chunk of a recovery: small, so that tests see chunk boundaries.
const RECOVER_CHUNK: usize = 7;

/// What goes wrong with an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused; the session is broken.
    Refuse,
    /// Storage is full; the session is broken.
    Full,
    /// Applied, but the answer is lost; the session is broken.
    LoseAnswer,
    /// Not applied, and the answer is lost; the session is broken.
    LoseRequest,
}

/// A log in memory; clones share it.
#[derive(Clone)]
pub struct MemLog {
    state: Arc<Mutex<State>>,
    /// While true, appends wait.
    held: Arc<watch::Sender<bool>>,
    /// Sessions of this epoch and earlier ones have ended.
    ended: Arc<watch::Sender<Epoch>>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Rev, LogRow>,
    leases: BTreeMap<LeaseId, LeaseRow>,
    alarms: BTreeSet<AlarmRow>,
    compacted: Option<Revision>,
    lessor_clock: Millis,
    epoch: Epoch,
    cluster_id: u64,
    advertise: Vec<String>,
    faults: VecDeque<Fault>,
    appends: u64,
    values_read: u64,
}

impl Default for MemLog {
    fn default() -> Self {
        let state = State { cluster_id: 0xC1, ..State::default() };
        Self {
            state: Arc::new(Mutex::new(state)),
            held: Arc::new(watch::Sender::new(false)),
            ended: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl MemLog {
    /// Lets the next append fail this way.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push_back(fault);
    }

    /// Lets appends wait until released.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Ends the present session, as a server that is killed does.
    pub fn end_session(&self) {
        self.ended.send_replace(self.state.lock().epoch);
    }

    /// All rows.
    pub fn rows(&self) -> Vec<LogRow> {
        self.state.lock().rows.values().cloned().collect()
    }

    /// All leases.
    pub fn leases(&self) -> Vec<LeaseRow> {
        self.state.lock().leases.values().copied().collect()
    }

    /// How many batches were appended.
    pub fn appends(&self) -> u64 {
        self.state.lock().appends
    }

    /// How many values were asked for by their places.
    pub fn values_read(&self) -> u64 {
        self.state.lock().values_read
    }

    /// Loses the newest revisions, as a failover to a stale replica would.
    pub fn truncate(&self, last: Revision) {
        self.state.lock().rows.retain(|rev, _| rev.main <= last);
    }

    /// Becomes another store.
    pub fn replace_identity(&self, cluster_id: u64) {
        self.state.lock().cluster_id = cluster_id;
    }
}

impl State {
    fn commit(&mut self, batch: &Batch) {
        self.appends += 1;
        for row in &batch.rows {
            let clash = self.rows.insert(row.rev, row.clone());
            assert!(clash.is_none(), "revision {:?} was written twice", row.rev);
        }
        self.leases.retain(|id, _| !batch.leases_deleted.contains(id));
        self.leases.extend(batch.leases_put.iter().map(|row| (row.id, *row)));
        self.alarms.retain(|alarm| !batch.alarms_deleted.contains(alarm));
        self.alarms.extend(&batch.alarms_put);
        self.compacted = batch.compacted.or(self.compacted);
        self.lessor_clock = batch.lessor_clock.unwrap_or(self.lessor_clock);
    }
}

impl Log for MemLog {
    fn acquire(&self, _wait: bool, advertise: Vec<String>) -> BoxFuture<'_, Result<Box<dyn Writer>, LogError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            state.epoch += 1;
            let wrote_before = std::mem::replace(&mut state.advertise, advertise);
            let meta = Meta {
                cluster_id: state.cluster_id,
                member_id: 0xAA,
                epoch: state.epoch,
                compacted: state.compacted.unwrap_or(-1),
                last_revision: state.rows.keys().next_back().map(|rev| rev.main),
                leases: state.leases.values().copied().collect(),
                alarms: state.alarms.iter().copied().collect(),
                lessor_clock: state.lessor_clock,
                wrote_before,
            };
            let writer = MemWriter { log: self.clone(), meta, broken: Arc::default() };
            Ok(Box::new(writer) as Box<dyn Writer>)
        })
    }

    fn leader(&self) -> BoxFuture<'_, Result<Option<Leader>, LogError>> {
        Box::pin(async {
            let state = self.state.lock();
            Ok(Some(Leader { cluster_id: state.cluster_id, urls: state.advertise.clone() }))
        })
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(self.clone())
    }
}

struct MemWriter {
    log: MemLog,
    meta: Meta,
    broken: Arc<Mutex<Option<LogError>>>,
}

impl Writer for MemWriter {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn recover<'a>(
        &'a mut self,
        after: Revision,
        sink: &'a mut (dyn FnMut(Vec<LogRow>) + Send),
    ) -> BoxFuture<'a, Result<(), LogError>> {
        Box::pin(async move {
            let rows: Vec<LogRow> = self.log.rows().into_iter().filter(|row| row.rev.main > after).collect();
            rows.chunks(RECOVER_CHUNK).for_each(|chunk| sink(chunk.to_vec()));
            Ok(())
        })
    }

    fn append(&mut self, batch: Arc<Batch>) -> BoxFuture<'static, Result<(), LogError>> {
        let (log, broken, epoch) = (self.log.clone(), Arc::clone(&self.broken), self.meta.epoch);
        Box::pin(async move {
            let mut held = log.held.subscribe();
            let _ = held.wait_for(|held| !held).await;
            if let Some(error) = broken.lock().clone() {
                return Err(error);
            }
            let mut state = log.state.lock();
            if state.epoch != epoch {
                return Err(LogError::Deposed("a newer epoch".into()));
            }
            let Some(fault) = state.faults.pop_front() else {
                state.commit(&batch);
                return Ok(());
            };
            if fault == Fault::LoseAnswer {
                state.commit(&batch);
            }
            let (error, later) = match fault {
                Fault::Refuse => (LogError::Refused("injected".into()), LogError::Refused("after a refusal".into())),
                Fault::Full => (LogError::Full("injected".into()), LogError::Refused("after a refusal".into())),
                Fault::LoseAnswer | Fault::LoseRequest => {
                    let lost = LogError::Unknown("injected".into());
                    (lost.clone(), lost)
                }
            };
            *broken.lock() = Some(later);
            Err(error)
        })
    }

    fn confirm(&mut self) -> BoxFuture<'static, Result<(), LogError>> {
        let (log, broken, epoch) = (self.log.clone(), Arc::clone(&self.broken), self.meta.epoch);
        Box::pin(async move {
            if let Some(error) = broken.lock().clone() {
                return Err(error);
            }
            let current = log.state.lock().epoch;
            if current == epoch { Ok(()) } else { Err(LogError::Deposed("a newer epoch".into())) }
        })
    }

    fn ended(&self) -> BoxFuture<'static, ()> {
        let (mut ended, epoch) = (self.log.ended.subscribe(), self.meta.epoch);
        Box::pin(async move {
            if ended.wait_for(|ended| *ended >= epoch).await.is_err() {
                std::future::pending().await
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Reader for MemLog {
    fn values(&self, revs: Vec<Rev>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, LogError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            state.values_read += revs.len() as u64;
            Ok(revs.iter().map(|rev| state.rows.get(rev).and_then(|row| row.value.clone())).collect())
        })
    }

    fn rows(&self, from: Revision, to: Revision, max_bytes: usize) -> BoxFuture<'_, Result<RowsPage, LogError>> {
        Box::pin(async move {
            let state = self.state.lock();
            Ok(page_of(&state.rows, state.compacted, from, to, max_bytes))
        })
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Box<dyn Snapshot>, LogError>> {
        Box::pin(async move {
            let state = self.state.lock();
            Ok(Box::new(MemSnapshot { rows: state.rows.clone(), compacted: state.compacted }) as Box<dyn Snapshot>)
        })
    }

    fn newest(&self) -> BoxFuture<'_, Result<Revision, LogError>> {
        Box::pin(async move {
            let state = self.state.lock();
            Ok(state.rows.keys().next_back().map_or(1, |rev| rev.main).max(state.compacted.unwrap_or(1)))
        })
    }

    fn delete(&self, epoch: Epoch, revs: Vec<Rev>) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            if state.epoch != epoch {
                return Err(LogError::Deposed("a newer epoch".into()));
            }
            revs.iter().for_each(|rev| drop(state.rows.remove(rev)));
            Ok(())
        })
    }

    fn disk_usage(&self) -> BoxFuture<'_, Result<DiskUsage, LogError>> {
        Box::pin(async move {
            let state = self.state.lock();
            let bytes: usize = state.rows.values().map(|row| row.key.len() + row.value.as_ref().map_or(0, Bytes::len)).sum();
            Ok(DiskUsage { total: i64::try_from(bytes).unwrap_or(i64::MAX) })
        })
    }

    fn defragment(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }
}

fn page_of(
    rows: &BTreeMap<Rev, LogRow>,
    compacted: Option<Revision>,
    from: Revision,
    to: Revision,
    max_bytes: usize,
) -> RowsPage {
    let mut page = RowsPage { compacted: compacted.unwrap_or(-1), ..RowsPage::default() };
    let mut bytes = 0;
    for (rev, row) in rows.range(Rev::new(from, 0)..) {
        if rev.main > to {
            break;
        }
        let begins_revision = page.rows.last().is_some_and(|last: &LogRow| last.rev.main != rev.main);
        if begins_revision && bytes >= max_bytes {
            page.more = true;
            break;
        }
        bytes += row.key.len() + row.value.as_ref().map_or(0, Bytes::len);
        page.rows.push(row.clone());
    }
    page
}

/// See [`Reader::snapshot`].
struct MemSnapshot {
    rows: BTreeMap<Rev, LogRow>,
    compacted: Option<Revision>,
}

impl Snapshot for MemSnapshot {
    fn rows(&mut self, from: Revision, to: Revision, max_bytes: usize) -> BoxFuture<'_, Result<RowsPage, LogError>> {
        Box::pin(async move { Ok(page_of(&self.rows, self.compacted, from, to, max_bytes)) })
    }
}
