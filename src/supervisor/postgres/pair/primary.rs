//! Leading: starting or promoting, and what commits wait for.
//!
//! `synchronous_standby_names` is only believed to be in force when that was proved. A backend sees a new value before the
//! checkpointer has set the shared flag that makes commits wait; so the names are first set to somebody who doesn't exist, a commit of
//! our own is *seen waiting*, and only then they are set to the peer, which doesn't touch the flag again. Where there were no names, one has
//! to come to its end *without* waiting before: a checkpointer that is late could take the flag away afterwards. The same way is gone again
//! when somebody else has set the names.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::super::StartError;
use super::super::network::peer_role_sql;
use super::commits::{CHECKPOINT_DEADLINE, Confirming, Held, RELOAD_DEADLINE};
use super::disk::Stall;
use super::probe::{Seen, Session, exited, locked_out};
use super::role::{Control, WaitFor};
use super::{LOOK, Pursuit, Report, SOON, START_AGAIN_MAX, Shared};
use crate::supervisor::fsm::{self, Sync};

/// A commit that waits, or doesn't.
const PROBE: &str = "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'duet', 'armed'); COMMIT";
/// From a promotion to its checkpoint.
const SETTLED: Duration = Duration::from_millis(300);
/// A session that has watched a standby answers within this, or another is faster.
const ANSWERS: Duration = Duration::from_millis(200);
const PROMOTE_DEADLINE: Duration = Duration::from_secs(60);
/// A standby that lags so little has caught up, in bytes of WAL.
const CAUGHT_UP: u64 = 1 << 20;
/// After its end has been reported, the state machine is given so long to prefer the peer before PostgreSQL is started again.
const RESTART_DELAY: Duration = Duration::from_millis(100);
/// Who has led for so long has started well.
const STEADY: Duration = Duration::from_secs(10);
/// How long people are told of names that somebody else had set, after they are set right.
const TOLD: Duration = Duration::from_secs(60);
/// Between two looks at the slot of a peer that doesn't stream.
const SLOT_LOOK: Duration = Duration::from_secs(1);

impl Pursuit<'_> {
    /// Leads, and waits for the peer with each commit if `sync`.
    pub(super) async fn primary(&self, sync: bool) {
        let mut restarts = Restarts::default();
        loop {
            let began = Instant::now();
            match self.lead(sync).await {
                Ok(()) => {}
                Err(why) => {
                    self.trouble(why);
                    // The peer needn't wait until what doesn't answer has been ended: nothing that it still does is acknowledged.
                    self.report(fsm::Postgres::Down);
                    self.end().await;
                }
            }
            self.done();
            self.report(fsm::Postgres::Down);
            tokio::time::sleep(restarts.delay(began.elapsed())).await;
        }
    }

    /// Until PostgreSQL ends (`Ok`), or something is so wrong that it has to.
    async fn lead(&self, sync: bool) -> Result<(), String> {
        let session = self.become_primary(sync).await?;
        let status = self.shared.postgres.status();
        tokio::select! {
            () = exited(status) => {
                tracing::warn!("PostgreSQL has ended");
                Ok(())
            }
            () = locked_out(Arc::clone(self.shared)) => Err("PostgreSQL lets nobody in: ending it".to_owned()),
            why = self.be_primary(session, sync) => Err(why),
        }
    }

    /// Why it has to end.
    async fn be_primary(&self, session: Session, sync: bool) -> String {
        let prepared = async {
            self.apply_sync(&session, sync, CHECKPOINT_DEADLINE).await?;
            if !sync {
                // Whoever waits for it waits no longer than it must.
                self.report(fsm::Postgres::Primary(Sync::Off { caught_up: false }));
            }
            self.prepare_for_peer(&session).await
        };
        if let Err(why) = prepared.await {
            return why;
        }
        self.checkpoint_new_timeline();
        self.well();
        self.done();
        self.watch_primary(session, sync).await
    }

    async fn become_primary(&self, sync: bool) -> Result<Session, String> {
        let running = self.runs().await;
        if running && let Some(present) = self.present_session().await {
            let (session, seen) = present?;
            return if seen.in_recovery { self.promote(session, sync).await } else { Ok(session) };
        }
        self.end().await;
        let control = Control::read(&self.shared.postgres).await.map_err(|error| error.to_string())?;
        if control.was_primary() {
            return self.start_primary().await.map_err(|error| error.to_string());
        }
        // A copy that followed somebody gets a timeline of its own, always: that one may have written more than it has sent.
        let session = self.start_follower().await.map_err(|error| error.to_string())?;
        self.promote(session, sync).await
    }

    /// The session that has watched it, if that still answers: a new one takes longer than a promotion. Otherwise a new one; and what it sees.
    async fn present_session(&self) -> Option<Result<(Session, Seen), String>> {
        let watching = self.shared.watching.lock().take();
        if let Some(session) = watching
            && let Ok(Ok(seen)) = timeout(ANSWERS, session.look()).await
        {
            return Some(Ok((session, seen)));
        }
        // One that wasn't there in time is no reason to end what runs: the machine may have been busy.
        let session = match self.shared.session().await {
            Ok(session) => session,
            Err(_) => self.shared.session().await.ok()?,
        };
        let seen = session.look().await;
        Some(seen.map(|seen| (session, seen)))
    }

    /// As [`locked_out`], but for a promotion that takes longer than any: it needs the processor more than somebody who knocks.
    async fn lets_nobody_in(&self) {
        tokio::time::sleep(self.shared.silence_max).await;
        locked_out(Arc::clone(self.shared)).await;
    }

    async fn start_follower(&self) -> Result<Session, StartError> {
        self.check_whole()?;
        self.shared.on_disk(|shared| shared.write_role(WaitFor::Peer).and_then(|()| shared.sign_standby())).await?;
        self.launch("starting PostgreSQL, to promote it").await
    }

    fn check_whole(&self) -> Result<(), StartError> {
        if self.shared.has_data() {
            return Ok(());
        }
        Err(StartError::Damaged {
            pgdata: self.shared.postgres.data_dir.pgdata(),
            detail: "a copy or a rewind of it was interrupted".to_owned(),
        })
    }

    async fn start_primary(&self) -> Result<Session, StartError> {
        self.check_whole()?;
        // Whatever the goal is: nobody may see what isn't safe, and no commit may slip through.
        self.shared.on_disk(|shared| shared.write_role(WaitFor::Peer).and_then(|()| shared.sign_primary())).await?;
        self.launch("starting PostgreSQL as the primary").await
    }

    async fn promote(&self, session: Session, sync: bool) -> Result<Session, String> {
        self.doing("promoting PostgreSQL");
        tokio::select! {
            promoted = self.until_promoted(session, sync) => promoted,
            // It is the postmaster that promotes, and an old session doesn't tell whether that is there.
            () = exited(self.shared.postgres.status()) => Err("PostgreSQL has ended while it was promoted".to_owned()),
            () = self.lets_nobody_in() => Err("PostgreSQL lets nobody in: ending it".to_owned()),
        }
    }

    async fn until_promoted(&self, session: Session, sync: bool) -> Result<Session, String> {
        let began = Instant::now();
        // Everything that was received is replayed before the promotion ends; nothing is received after it has begun.
        self.shared.promoted.store(true, Ordering::Release);
        if let Err(error) = session.execute("SELECT pg_promote(wait => false)").await
            // One that an earlier goal has begun may have ended just now.
            && session.look().await?.in_recovery
        {
            return Err(error);
        }
        if !sync {
            // Meanwhile: nobody commits before the promotion has been reported.
            self.write_role(WaitFor::Nobody).await?;
            session.execute("SELECT pg_reload_conf()").await?;
        }
        let mut seen = session.look().await?;
        while seen.in_recovery {
            if began.elapsed() > PROMOTE_DEADLINE {
                return Err(format!("not promoted within {PROMOTE_DEADLINE:?}"));
            }
            tokio::time::sleep(SOON).await;
            seen = session.look().await?;
        }
        tracing::info!(took_ms = began.elapsed().as_millis() as u64, timeline = seen.timeline, "promoted");
        Ok(session)
    }

    /// What the peer needs to follow: its role, its slot.
    async fn prepare_for_peer(&self, session: &Session) -> Result<(), String> {
        // A promotion has removed it, and so has a start as the primary: one that nobody supervises must be read-only again.
        self.shared.on_disk(Shared::sign_standby).await.map_err(|error| error.to_string())?;
        session.execute(&peer_role_sql()).await?;
        self.make_slot(session).await
    }

    /// Makes the peer's slot anew when it has kept too much and is lost: whoever streams from it, or copies with it, gets nothing any more.
    async fn mend_slot(&self, session: &Session) -> Result<(), String> {
        let slot = &self.shared.network.peer_name;
        let usable = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $ AND wal_status <> 'lost')";
        if session.asks(&usable.replace('$', &format!("'{slot}'"))).await? {
            return Ok(());
        }
        tracing::warn!(slot, "the peer's replication slot is lost: making it anew; the peer needs a new copy");
        self.make_slot(session).await
    }

    async fn make_slot(&self, session: &Session) -> Result<(), String> {
        let slot = &self.shared.network.peer_name;
        session
            .execute(&format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                   WHERE slot_type = 'physical' AND NOT active AND (slot_name <> '{slot}' OR wal_status = 'lost'); \
                 SELECT pg_create_physical_replication_slot('{slot}', true) \
                   WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"
            ))
            .await
    }

    /// pg_rewind, up to PostgreSQL 15, takes a leader for a part of the timeline in which it wrote its last checkpoint: so there is one soon
    /// after a promotion, beside everything else, when the requests that have waited for the promotion have had the disk for themselves.
    fn checkpoint_new_timeline(&self) {
        if !self.shared.promoted.swap(false, Ordering::AcqRel) {
            return;
        }
        let shared = Arc::clone(self.shared);
        tokio::spawn(async move {
            for pause in [SETTLED, 10 * SETTLED, 100 * SETTLED] {
                tokio::time::sleep(pause).await;
                let done = async {
                    let client = shared.connect().await?;
                    client.batch_execute("CHECKPOINT").await
                };
                match done.await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(
                        error = crate::storage::pg::text(&error),
                        "no checkpoint after the promotion: the peer waits for the next one"
                    ),
                }
            }
        });
    }

    /// Makes commits wait for the peer, provably and within `patience`, or for nobody.
    async fn apply_sync(&self, session: &Session, sync: bool, patience: Duration) -> Result<(), String> {
        if !sync {
            // Who waits already is seen to while looking.
            return self.set_names(session, WaitFor::Nobody).await;
        }
        let wanted = WaitFor::Peer.names(&self.shared.network);
        if self.shared.armed.load(Ordering::Acquire) {
            self.write_role(WaitFor::Peer).await?;
        }
        let found = session.look().await?.sync_names;
        if self.shared.armed.load(Ordering::Acquire) {
            if found == wanted {
                return Ok(());
            }
            self.tampered(&found, &wanted);
        }
        let probe = timeout(RELOAD_DEADLINE, self.shared.connect())
            .await
            .map_err(|_| "no session to prove that commits wait".to_owned())?;
        let probe = probe.map_err(|error| crate::storage::pg::text(&error))?;
        let pid: i32 = probe.query_one("SELECT pg_backend_pid()", &[]).await.map_err(|e| crate::storage::pg::text(&e))?.get(0);
        if found.is_empty() {
            // A checkpointer that is late has yet to let commits go: one would be seen waiting that doesn't for long.
            match timeout(patience, probe.batch_execute(PROBE)).await {
                Ok(done) => done.map_err(|error| crate::storage::pg::text(&error))?,
                Err(_) => return Err("commits could not be made not to wait for the peer".to_owned()),
            }
        }
        // It goes on as a primary meanwhile: nothing new is reported.
        self.set_names(session, WaitFor::Arming).await?;
        let _commit = AbortOnDropHandle::new(tokio::spawn(async move {
            // Never cancelled: it ends when the peer confirms, or with its session.
            while probe.batch_execute(PROBE).await.is_ok() {
                tokio::time::sleep(SOON).await;
            }
        }));
        let waiting = format!("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep')");
        let began = Instant::now();
        while !session.asks(&waiting).await? {
            if began.elapsed() > patience {
                return Err("commits could not be made to wait for the peer".to_owned());
            }
            tokio::time::sleep(SOON).await;
        }
        self.set_names(session, WaitFor::Peer).await?;
        self.shared.armed.store(true, Ordering::Release);
        Ok(())
    }

    /// Somebody else has set the names: whatever was known of what commits wait for is known no more. Told each time.
    fn tampered(&self, found: &str, wanted: &str) {
        self.shared.armed.store(false, Ordering::Release);
        let what = format!(
            "somebody else has set synchronous_standby_names to '{found}' (ALTER SYSTEM?): setting it to '{wanted}' again, as it has to be"
        );
        tracing::warn!("{what}");
        let mut details = self.shared.details.lock();
        details.sync_names_changed += 1;
        details.trouble = Some(what);
    }

    async fn write_role(&self, wait_for: WaitFor) -> Result<(), String> {
        self.shared.on_disk(move |shared| shared.write_role(wait_for)).await.map_err(|error| error.to_string())
    }

    /// Writes the names and waits until they are in force on a session. Whatever that sees at first, they are read again: another process
    /// may still have others.
    async fn set_names(&self, session: &Session, wait_for: WaitFor) -> Result<(), String> {
        let wanted = wait_for.names(&self.shared.network);
        self.write_role(wait_for).await?;
        session.execute("SELECT pg_reload_conf()").await?;
        let began = Instant::now();
        while began.elapsed() < RELOAD_DEADLINE {
            if session.look().await?.sync_names == wanted {
                return Ok(());
            }
            tokio::time::sleep(SOON).await;
        }
        // A start writes everything anew that could be in the way.
        Err(format!(
            "synchronous_standby_names could not be set to '{wanted}' within {RELOAD_DEADLINE:?}: starting PostgreSQL again"
        ))
    }

    /// Reports what is, for as long as PostgreSQL answers; why it has to end.
    async fn watch_primary(&self, mut session: Session, sync: bool) -> String {
        let (mut confirming, mut stall) = (Confirming::default(), Stall::default());
        let wanted = if sync { WaitFor::Peer } else { WaitFor::Nobody }.names(&self.shared.network);
        let (mut told, mut slot_seen, mut held) = (None, Instant::now(), Held::default());
        loop {
            *self.shared.watching.lock() = Some(session.clone());
            let looked = Instant::now();
            let seen = match session.look().await {
                Ok(seen) => seen,
                // One session may be terminated by anybody: only when there is no other, PostgreSQL has gone.
                Err(first) => match self.shared.session().await {
                    Ok(next) => {
                        session = next;
                        continue;
                    }
                    Err(second) => return format!("{first}; {second}"),
                },
            };
            if seen.in_recovery {
                return "PostgreSQL is in recovery, though it was promoted: ending it".to_owned();
            }
            if seen.sync_names != wanted || sync && !self.shared.armed.load(Ordering::Acquire) {
                (confirming, stall) = (Confirming::default(), Stall::default());
                self.tampered(&seen.sync_names, &wanted);
                told = Some(Instant::now());
                self.note(&seen);
                // Nothing counts that was acknowledged meanwhile, until the peer has confirmed it.
                self.report(fsm::Postgres::Primary(Sync::Off { caught_up: false }));
                match self.apply_sync(&session, sync, RELOAD_DEADLINE).await {
                    Ok(()) => continue,
                    Err(why) => return why,
                }
            }
            if !sync && let Err(why) = held.see(&session, seen.waiting).await {
                return why;
            }
            if seen.peer_flushed.is_none() && slot_seen.elapsed() > SLOT_LOOK {
                slot_seen = Instant::now();
                if let Err(why) = self.mend_slot(&session).await {
                    tracing::debug!(why, "the peer's slot could not be looked at");
                }
            }
            if told.is_some_and(|at| at.elapsed() > TOLD) {
                told = None;
                self.well();
            }
            let report = if !sync {
                let caught_up = seen.peer_flushed.is_some_and(|flushed| seen.edge.saturating_sub(flushed) < CAUGHT_UP);
                Sync::Off { caught_up }
            } else if confirming.confirms(&seen) {
                Sync::Confirmed
            } else {
                Sync::Waiting
            };
            self.note(&seen);
            let found = self.found(fsm::Postgres::Primary(report));
            let stalled = report == Sync::Confirmed && stall.lasts(&seen, looked);
            self.shared.reports.send_replace(Report { stalled, ..found });
            let pause = if report == Sync::Waiting { SOON * 4 } else { LOOK };
            tokio::time::sleep(pause.saturating_sub(looked.elapsed())).await;
        }
    }

    pub(super) fn note(&self, seen: &Seen) {
        let mut details = self.shared.details.lock();
        details.timeline = seen.timeline;
        details.flushed = seen.flushed;
        details.replayed = if seen.in_recovery { seen.edge } else { seen.flushed };
        details.peer_flushed = seen.peer_flushed;
        details.sync_names.clone_from(&seen.sync_names);
    }
}

/// How soon PostgreSQL is started again: at once after it has led for a while, and ever less soon while it doesn't get that far.
#[derive(Default)]
struct Restarts(u32);

impl Restarts {
    /// Before the next start, after one that went well for so long.
    fn delay(&mut self, led: Duration) -> Duration {
        if led > STEADY {
            self.0 = 0;
        }
        let delay = RESTART_DELAY.saturating_mul(2_u32.saturating_pow(self.0)).min(START_AGAIN_MAX);
        self.0 = self.0.saturating_add(1);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_that_ends_again_and_again_is_started_ever_less_soon() {
        let (mut restarts, short) = (Restarts::default(), Duration::from_millis(30));
        assert_eq!([0; 3].map(|_| restarts.delay(short).as_millis()), [100, 200, 400]);
        assert_eq!(restarts.delay(STEADY * 2), RESTART_DELAY, "it had led for a while");
        let last = (0..100).map(|_| restarts.delay(short)).last();
        assert_eq!(last, Some(START_AGAIN_MAX));
    }
}
