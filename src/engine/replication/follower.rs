//! Takes in what the leader publishes, while this process waits to become the writer.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::{Followed, Leader, Position};
use crate::engine::{Engine, Role, Shared};
use crate::lease::Lessor;
use crate::mvcc::{ReadView, Store};
use crate::storage::{Batch, BoxFuture, LogError, LogRow};
use crate::types::{Epoch, Revision};

/// A leader that hasn't said anything for so long isn't there.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// The same while it reads and sends history, which may take it longer on a slow disk or wire.
const COPY_SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long this process still counts as following after it has heard the last of its leader: a failover takes less.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_LOOK: Duration = Duration::from_millis(100);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks whether storage has what memory has, until it does, and from then on.
const STORAGE_LOOK: Duration = Duration::from_millis(100);
const STORAGE_LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long an answer of the leader's is held back until it can be seen here, too.
const SHOWN_PATIENCE: Duration = Duration::from_secs(1);
/// How long storage may lack what memory has, or not be readable, before others answer this process's clients.
const STORAGE_PATIENCE: Duration = Duration::from_secs(10);
/// What watch streams are ended with when what they have shown isn't so any more.
const DIVERGED: &str = "etcdserver: no leader";

/// Follows whoever leads, until the future is dropped, which it may be at any moment. The role is [`Role::Following`] while there is a
/// leader and both memory and storage have what it has published, storage with some delay.
///
/// Resolves only to an error after which this process must not go on: [`LogError::Unusable`].
pub(in crate::engine) async fn follow(shared: &Shared) -> LogError {
    let Some(leader) = &shared.options.leader else { return std::future::pending().await };
    let heard = Mutex::new(Instant::now());
    let following = async {
        loop {
            match follow_once(shared, leader.as_ref(), &heard).await {
                Err(LogError::Unusable(why)) => return LogError::Unusable(why),
                Err(error) => tracing::debug!(%error, "not following the leader any more; beginning again"),
                Ok(never) => match never {},
            }
            sleep(PAUSE).await;
        }
    };
    let impatient = async {
        loop {
            sleep(PATIENCE_LOOK).await;
            let silent = heard.lock().elapsed();
            if silent >= PATIENCE && *shared.role.borrow() == Role::Following {
                tracing::warn!(?silent, "there is no leader to follow");
                shared.set_role(Role::Standby);
            }
        }
    };
    tokio::select! {
        error = following => error,
        never = impatient => never,
    }
}

async fn follow_once(shared: &Shared, leader: &dyn Leader, heard: &Mutex<Instant>) -> Result<Infallible, LogError> {
    let position = {
        let store = shared.store.read();
        Position { cluster_id: shared.cluster_id.load(Ordering::Relaxed), revision: store.current(), digest: store.digest() }
    };
    let mut stream = leader.follow(position).await?;
    let mut copy = None;
    let mut showing: OptionFuture<BoxFuture<'_, Infallible>> = None.into();
    let mut silence = COPY_SILENCE_MAX;
    loop {
        let followed = tokio::select! {
            followed = timeout(silence, stream.next()) => followed,
            Some(never) = &mut showing => match never {},
        };
        let followed = followed.map_err(|_| LogError::Unavailable(format!("the leader is silent for {silence:?}")))?;
        let followed = followed.unwrap_or_else(|| Err(LogError::Unavailable("the leader hung up".to_owned())))?;
        *heard.lock() = Instant::now();
        match (followed, &mut copy) {
            (Followed::Began { cluster_id, member_id, epoch, whole, diverged }, copy @ None) => {
                check_identity(shared, cluster_id)?;
                *copy = Some(Copy::begin(shared, Ids { cluster_id, member_id, epoch }, whole, diverged));
            }
            (Followed::Page { rows, compacted }, Some(copy)) => copy.page(rows, compacted)?,
            (Followed::Paged { revision, compacted }, Some(copy)) => copy.paged(revision, compacted)?,
            (Followed::Batch(batch), Some(copy)) => copy.batch(&batch)?,
            (Followed::CaughtUp, Some(copy)) => {
                let revision = copy.caught_up();
                silence = SILENCE_MAX;
                showing = Some(Box::pin(show_while_stored(shared, revision, heard)) as BoxFuture<'_, Infallible>).into();
            }
            (Followed::Swept(compacted), Some(_)) => shared.unswept.swept(compacted),
            (Followed::Alive, Some(_)) => {}
            (other, _) => return Err(out_of_order(&format!("{other:?}"))),
        }
    }
}

/// Has requests answered here once storage shows what memory had at the last look, and for as long: watchers that lag, and values that
/// aren't in memory, are read from there.
async fn show_while_stored(shared: &Shared, mut revision: Revision, heard: &Mutex<Instant>) -> Infallible {
    let mut stored = Instant::now();
    loop {
        match shared.log.reader().newest().await {
            Ok(newest) if newest >= revision => stored = Instant::now(),
            Ok(newest) => tracing::debug!(newest, revision, "the follower's storage is behind its memory"),
            Err(error) => tracing::debug!(%error, "the follower's storage can't be read"),
        }
        let role = shared.role.borrow().clone();
        let behind = stored.elapsed();
        // Who waits to lead again keeps its clients' requests; it isn't a follower.
        if role == Role::Standby && behind < STORAGE_LOOK && heard.lock().elapsed() < PATIENCE {
            shared.set_role(Role::Following);
            let (revision, epoch) = (shared.store.read().current(), shared.epoch.load(Ordering::Relaxed));
            tracing::info!(revision, epoch, "following the leader: watches and serializable reads are answered here");
        } else if role == Role::Following && behind >= STORAGE_PATIENCE {
            shared.set_role(Role::Standby);
            tracing::warn!(
                ?behind,
                "this node's PostgreSQL doesn't have what the leader has published: the leader answers its clients"
            );
        }
        if *shared.role.borrow() == Role::Following {
            revision = shared.store.read().current();
            sleep(STORAGE_LOOK_AGAIN).await;
        } else {
            sleep(STORAGE_LOOK).await;
        }
    }
}

fn check_identity(shared: &Shared, cluster_id: u64) -> Result<(), LogError> {
    let known = shared.cluster_id.load(Ordering::Relaxed);
    if known == 0 || known == cluster_id {
        return Ok(());
    }
    Err(LogError::Unusable(format!(
        "the leader has another store (cluster id {cluster_id:x}, was {known:x}): somebody replaced it. Clients of this process have \
         seen the old one, so the new one is not shown to them. If the change was intended, restart this process."
    )))
}

fn out_of_order(what: &str) -> LogError {
    LogError::Unavailable(format!("the leader's stream is out of order: {what}"))
}

#[derive(Clone, Copy)]
struct Ids {
    cluster_id: u64,
    member_id: u64,
    epoch: Epoch,
}

/// What is being taken in.
struct Copy<'a> {
    shared: &'a Shared,
    ids: Ids,
    diverged: bool,
    /// A new store that isn't shown yet; `None` when the present one is continued.
    building: Option<Store>,
    /// The compact revision after the last page.
    thinned: Revision,
}

impl<'a> Copy<'a> {
    fn begin(shared: &'a Shared, ids: Ids, whole: bool, diverged: bool) -> Self {
        if diverged && *shared.role.borrow() == Role::Following {
            // What this process has isn't so any more.
            shared.set_role(Role::Standby);
        }
        let building = whole.then(|| Store::new(shared.options.store));
        Self { shared, ids, diverged, building, thinned: -1 }
    }

    fn page(&mut self, rows: Vec<LogRow>, compacted: Revision) -> Result<(), LogError> {
        self.thinned = compacted;
        match &mut self.building {
            Some(store) => {
                store.restore(&rows, compacted).map_err(|revision| out_of_order(&format!("revision {revision} is missing")))
            }
            None => self.apply(rows, None),
        }
    }

    fn paged(&mut self, revision: Revision, compacted: Revision) -> Result<(), LogError> {
        let current = match &mut self.building {
            Some(store) => {
                // The last revisions may have been thinned out altogether.
                let reached = if self.thinned >= revision { revision } else { store.current() };
                store.finish_restore(compacted, reached);
                store.current()
            }
            None => {
                self.apply(Vec::new(), Some(compacted))?;
                self.shared.store.read().current()
            }
        };
        if current == revision { Ok(()) } else { Err(out_of_order(&format!("it ends at {current}, not {revision}"))) }
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), LogError> {
        self.apply(batch.rows.clone(), batch.compacted)
    }

    /// Shows what was built; the published revision.
    fn caught_up(&mut self) -> Revision {
        let shared = self.shared;
        if let Some(store) = self.building.take() {
            show(shared, store, self.diverged);
        }
        shared.member_id.store(self.ids.member_id, Ordering::Relaxed);
        let before = if self.diverged {
            shared.epoch.swap(self.ids.epoch, Ordering::Relaxed)
        } else {
            // What clients have been told never steps back, whatever this node led itself meanwhile.
            shared.epoch.fetch_max(self.ids.epoch, Ordering::Relaxed)
        };
        if self.ids.epoch != before {
            shared.metrics.server.leader_changes_seen_total.inc();
        }
        shared.cluster_id.store(self.ids.cluster_id, Ordering::Relaxed);
        let revision = shared.store.read().current();
        tracing::debug!(revision, epoch = self.ids.epoch, "memory has what the leader has published");
        revision
    }

    /// Takes in what is new of it.
    fn apply(&mut self, mut rows: Vec<LogRow>, compacted: Option<Revision>) -> Result<(), LogError> {
        let (current, known) = match &self.building {
            Some(store) => (store.current(), store.compacted()),
            None => {
                let store = self.shared.store.read();
                (store.current(), store.compacted())
            }
        };
        rows.drain(..rows.partition_point(|row| row.rev.main <= current));
        let mut last = current;
        for revision in rows.chunk_by(|left, right| left.rev.main == right.rev.main) {
            last += 1;
            if revision[0].rev.main != last {
                return Err(out_of_order(&format!("revision {last} is missing")));
            }
        }
        let compacted = compacted.filter(|compacted| *compacted > known);
        if compacted.is_some_and(|compacted| compacted > last) {
            return Err(out_of_order("a compaction of the future"));
        }
        if rows.is_empty() && compacted.is_none() {
            return Ok(());
        }
        let batch = Batch { rows, compacted, ..Batch::default() };
        match &mut self.building {
            Some(store) => drop(store.apply(&batch)),
            None => publish(self.shared, &batch),
        }
        Ok(())
    }
}

fn publish(shared: &Shared, batch: &Batch) {
    forget_leases(shared);
    shared.hub.publish(|| shared.store.write().apply(batch));
    shared.shown.send_replace(shared.store.read().current());
    if let Some(compacted) = batch.compacted {
        shared.hub.compact(compacted);
        shared.compaction.notify_one();
    }
}

/// Leases live at the writer, with what is stored of them.
fn forget_leases(shared: &Shared) {
    if !shared.leases_stale.swap(true, Ordering::Relaxed) {
        *shared.lessor.lock() = Lessor::default();
    }
}

/// Puts a store in the place of the one that was shown.
fn show(shared: &Shared, store: Store, diverged: bool) {
    forget_leases(shared);
    let (current, compacted) = (store.current(), store.compacted());
    if diverged || current < shared.hub.current() {
        let had = shared.hub.current();
        tracing::error!(
            had,
            current,
            "the leader doesn't have what this node has shown to clients: an operator has accepted the loss of data, or the leader's \
             disk has lost it. Watches are ended; restart the clients of this pair (API servers relist)"
        );
        replace(shared, store);
    } else {
        shared.hub.jump(|| {
            *shared.store.write() = store;
            current
        });
        shared.hub.compact(compacted);
    }
    shared.shown.send_replace(current);
    shared.swept.send_replace(-1);
    shared.compaction.notify_one();
}

impl Engine {
    /// Resolves when this process, if it follows another, shows everything up to `revision`; soon in any case.
    ///
    /// As at etcd's members: whoever has been told of a revision finds it in what is answered here next.
    pub async fn shows(&self, revision: Revision) {
        let shared = &self.shared;
        let (mut shown, mut role) = (shared.shown.subscribe(), shared.role.subscribe());
        if shared.store.read().current() >= revision {
            return;
        }
        tokio::select! {
            _ = shown.wait_for(|shown| *shown >= revision) => {}
            _ = role.wait_for(|role| *role != Role::Following) => {}
            () = sleep(SHOWN_PATIENCE) => tracing::debug!(revision, "the leader's stream is late: an answer wasn't held up any longer for it"),
        }
    }
}

/// Shows another history than before: nothing that was built on the old one goes on.
pub(in crate::engine) fn replace(shared: &Shared, store: Store) {
    *shared.compaction_hashes.lock() = Default::default();
    shared.hub.reset(DIVERGED, || {
        let shown = (store.current(), store.compacted());
        let mut present = shared.store.write();
        *present = store;
        // Revisions are used again: what was to be deleted of the old ones would be taken from the new ones.
        shared.unswept.begin_anew();
        shown
    });
}
