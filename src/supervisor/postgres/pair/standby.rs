//! Following: the directory as it is, rewound, or made anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::super::StartError;
use super::super::config::DATABASE;
use super::super::network::PEER_ROLE;
use super::copy::CopyError;
use super::probe::{Session, exited, locked_out};
use super::role::{Control, WaitFor};
use super::{LOOK, PAUSE, Pursuit, START_AGAIN_MAX, Shared};
use crate::storage::pg::{PgOptions, text};
use crate::supervisor::fsm;

/// How long the leader's PostgreSQL may take to answer.
const LEADER_DEADLINE: Duration = Duration::from_secs(3);
/// How long the leader's first checkpoint after its promotion isn't worth a word.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(1);
/// Between two copies at most, when one fails after the other.
const COPY_AGAIN_MAX: Duration = Duration::from_secs(30);
/// A standby that gets nothing from a leader that is there, for so long, won't get anything.
const STARVED: Duration = Duration::from_secs(15);

const ANOTHER_STORE: &str = "the peer's PostgreSQL holds another store";
const WAY_OUT: &str = "it is not followed. If this node's data may go, empty its data directory";
const NO_WAL: &str = "the leader's PostgreSQL is there and doesn't have the WAL that is needed, or has gone another way";
const UNUSABLE: &str = "this node's data can't be used to follow the leader";

/// What the leader's PostgreSQL says of itself.
struct Leader {
    in_recovery: bool,
    system_identifier: u64,
    /// The timeline that it writes; 0 while it is in recovery.
    timeline: u32,
    /// The timeline of its last checkpoint, which is the one that pg_rewind believes it to be in.
    checkpointed: u32,
}

/// Why the leader isn't followed yet.
enum Obstacle {
    /// Try again in a moment.
    Later(String),
    /// The directory can't be used as it is, though it is whole: a leader that has something better is asked for first.
    Rebuild(String),
    /// It isn't whole: there is nothing to be given up.
    Broken(String),
}

impl Pursuit<'_> {
    /// Follows the peer; with `rebuild`, a directory that isn't whole may be made anew.
    pub(super) async fn standby(&self, rebuild: bool) {
        let running = self.runs().await;
        if running && (rebuild || !self.is_standby().await) {
            self.doing("stopping PostgreSQL");
            self.end().await;
            self.report(fsm::Postgres::Down);
            // The peer has something better to do than to answer, until it leads.
            tokio::time::sleep(PAUSE).await;
        }
        loop {
            match self.follow(rebuild).await {
                Ok(()) => self.trouble("PostgreSQL has ended while it followed the leader; starting it again".to_owned()),
                Err(Obstacle::Later(why)) => self.trouble(why),
                Err(Obstacle::Rebuild(why)) => match self.leads().await {
                    Ok(_) => self.give_up_copy(&why),
                    // It may be all that there is.
                    Err(leader) => {
                        self.trouble(format!("{UNUSABLE}: {why}. It isn't given up before there is another: {leader}"))
                    }
                },
                Err(Obstacle::Broken(why)) => self.give_up_copy(&why),
            }
            tokio::time::sleep(self.pause()).await;
        }
    }

    fn give_up_copy(&self, why: &str) {
        self.trouble(format!("{UNUSABLE}: {why}"));
        self.done();
        self.report_rebuild_needed();
    }

    /// The leader's PostgreSQL, if it is there and leads; why not.
    async fn leads(&self) -> Result<Leader, String> {
        let leader = self.shared.leader().await?;
        if leader.in_recovery { Err("the peer's PostgreSQL doesn't lead yet".to_owned()) } else { Ok(leader) }
    }

    /// Before the next try: a copy costs the leader as much as it costs here, so one that fails again and again is tried ever less often.
    fn pause(&self) -> Duration {
        let (copies, starts) = (self.copies_failed.load(Ordering::Acquire), self.starts_failed.load(Ordering::Acquire));
        let grown = |failures| PAUSE.saturating_mul(2_u32.saturating_pow(failures));
        grown(copies).min(COPY_AGAIN_MAX).max(grown(starts).min(START_AGAIN_MAX))
    }

    async fn is_standby(&self) -> bool {
        match self.shared.session().await {
            Ok(session) => session.look().await.is_ok_and(|seen| seen.in_recovery),
            Err(_) => false,
        }
    }

    /// Until PostgreSQL ends.
    async fn follow(&self, rebuild: bool) -> Result<(), Obstacle> {
        let later = |why: String| Obstacle::Later(why);
        let session =
            if self.runs().await { self.shared.session().await.map_err(later)? } else { self.start_standby(rebuild).await? };
        // Slots of the time when this node led would keep WAL for nobody.
        let drop_slots =
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT active";
        session.execute(drop_slots).await.map_err(later)?;
        self.well();
        self.done();
        tokio::select! {
            () = exited(self.shared.postgres.status()) => Ok(()),
            () = locked_out(Arc::clone(self.shared)) => {
                self.end().await;
                Err(Obstacle::Later("PostgreSQL let nobody in: it was ended".to_owned()))
            }
            obstacle = self.watch_standby(session) => {
                self.end().await;
                Err(obstacle)
            }
        }
    }

    async fn start_standby(&self, rebuild: bool) -> Result<Session, Obstacle> {
        let later = |error: StartError| Obstacle::Later(error.to_string());
        // Of a run that this one knows nothing of.
        self.end().await;
        self.report(fsm::Postgres::Down);
        let rebuild_now = rebuild && !self.copied.load(Ordering::Acquire);
        let (whole, distrusted) = (self.shared.has_data(), self.shared.is_distrusted());
        if rebuild_now || !whole || distrusted {
            if !rebuild {
                return Err(if whole {
                    Obstacle::Rebuild("the disk failed under it".to_owned())
                } else {
                    Obstacle::Broken("there is none, or a copy or a rewind of it was interrupted".to_owned())
                });
            }
            self.shared.leader().await.map_err(Obstacle::Later)?;
            self.copied().await?;
        } else {
            self.join_history().await?;
        }
        self.shared
            .on_disk(|shared| shared.write_role(WaitFor::Peer).and_then(|()| shared.sign_standby()))
            .await
            .map_err(later)?;
        match self.launch("starting PostgreSQL as the standby").await {
            Ok(session) => Ok(session),
            Err(error @ StartError::Damaged { .. }) => Err(Obstacle::Rebuild(error.to_string())),
            // It lets nobody in before it is consistent, and won't be.
            Err(error) if error.lacks_wal() => Err(match self.follows_this_store().await {
                Ok(()) => Obstacle::Rebuild(NO_WAL.to_owned()),
                Err(why) => Obstacle::Later(why),
            }),
            Err(error) => Err(later(error)),
        }
    }

    async fn copied(&self) -> Result<(), Obstacle> {
        self.copy().await.map_err(|error| match error {
            CopyError::Later(why) | CopyError::Never(why) | CopyError::Spoilt(why) => {
                self.copies_failed.fetch_add(1, Ordering::AcqRel);
                Obstacle::Later(format!("pg_basebackup: {why}"))
            }
        })?;
        self.copies_failed.store(0, Ordering::Release);
        tracing::info!("copied the leader's data");
        self.copied.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes this node's history a part of the leader's. A directory that only ever followed since its last start is one already.
    async fn join_history(&self) -> Result<(), Obstacle> {
        let control = Control::read(&self.shared.postgres).await.map_err(|error| match error {
            StartError::Damaged { .. } => Obstacle::Rebuild(error.to_string()),
            other => Obstacle::Later(other.to_string()),
        })?;
        if !control.was_primary() {
            return Ok(());
        }
        self.doing("asking the leader's PostgreSQL for its history");
        let asked = Instant::now();
        let mut leader = self.shared.leader().await.map_err(Obstacle::Later)?;
        // One that has just been promoted writes it soon.
        while !leader.in_recovery && leader.checkpointed != leader.timeline && asked.elapsed() < CHECKPOINT_PATIENCE {
            tokio::time::sleep(LOOK).await;
            leader = self.shared.leader().await.map_err(Obstacle::Later)?;
        }
        if leader.system_identifier != control.system_identifier {
            return Err(Obstacle::Later(format!(
                "{ANOTHER_STORE} (system identifier {}, here {}): {WAY_OUT}",
                leader.system_identifier, control.system_identifier
            )));
        }
        if leader.in_recovery {
            return Err(Obstacle::Later("the peer's PostgreSQL doesn't lead yet".to_owned()));
        }
        if leader.checkpointed != leader.timeline {
            // pg_rewind would take it for a part of the old timeline, and find nothing to do.
            return Err(Obstacle::Later("the peer's PostgreSQL hasn't written a checkpoint in its new timeline yet".to_owned()));
        }
        match self.rewind().await {
            Ok(()) => {
                tracing::info!("this node's history is a part of the leader's now");
                Ok(())
            }
            Err(CopyError::Later(why)) => Err(Obstacle::Later(format!("pg_rewind: {why}"))),
            Err(CopyError::Never(why)) => Err(Obstacle::Rebuild(format!("pg_rewind: {why}"))),
            Err(CopyError::Spoilt(why)) => Err(Obstacle::Broken(format!("pg_rewind: {why}"))),
        }
    }

    /// Reports what is, for as long as PostgreSQL answers; why it has to end.
    async fn watch_standby(&self, mut session: Session) -> Obstacle {
        let mut received = 0;
        let mut fed = Instant::now();
        let mut starved = false;
        // The process that receives, and what, once that is known to be the leader's timeline; and the question whether it is.
        let mut verified = None;
        let mut verifying: Option<Question> = None;
        let mut unanswered: Option<Instant> = None;
        loop {
            *self.shared.watching.lock() = Some(session.clone());
            let looked = Instant::now();
            let seen = match session.look().await {
                Ok(seen) => seen,
                Err(first) => match self.shared.session().await {
                    Ok(next) => {
                        session = next;
                        continue;
                    }
                    Err(second) => return Obstacle::Later(format!("{first}; {second}")),
                },
            };
            if !seen.in_recovery {
                return Obstacle::Later("PostgreSQL was promoted by somebody else: it was ended".to_owned());
            }
            let receives = seen.receiver.map(|receiver| (receiver, seen.timeline));
            verified = verified.filter(|known| receives == Some(*known));
            let unverified = receives.filter(|_| verified.is_none());
            verifying = verifying.filter(|(asked, _)| unverified == Some(*asked));
            if let (Some(asked), None) = (unverified, &verifying) {
                let shared = Arc::clone(self.shared);
                let question = tokio::spawn(async move { shared.verify(seen.timeline).await });
                verifying = Some((asked, AbortOnDropHandle::new(question)));
            }
            let streaming = verified.is_some();
            if self.shared.armed.load(Ordering::Acquire) && seen.sync_names != WaitFor::Peer.names(&self.shared.network) {
                // Nobody waits here yet. A promotion proves that they will.
                self.shared.armed.store(false, Ordering::Release);
                tracing::warn!(names = seen.sync_names, "somebody else has set synchronous_standby_names on this standby");
            }
            let advanced = std::mem::replace(&mut received, seen.flushed) < seen.flushed;
            self.note(&seen);
            // It lets nobody in before it is consistent.
            self.report(fsm::Postgres::Standby { streaming, consistent: true, advanced: advanced && streaming });
            if streaming {
                (fed, unanswered) = (Instant::now(), None);
                if std::mem::take(&mut starved) {
                    self.well();
                }
            } else if fed.elapsed() > STARVED {
                fed = Instant::now();
                match self.follows_this_store().await {
                    Ok(()) => {
                        return Obstacle::Rebuild(NO_WAL.to_owned());
                    }
                    Err(why) => {
                        starved = true;
                        self.trouble(why);
                    }
                }
            }
            let next = tokio::time::sleep_until(looked + LOOK);
            let Some((asked, question)) = &mut verifying else {
                next.await;
                continue;
            };
            tokio::select! {
                () = next => {}
                verdict = question => {
                    match verdict.unwrap_or_else(|error| Verdict::NoAnswer(error.to_string())) {
                        Verdict::Leader => verified = Some(*asked),
                        // Nobody says that what it receives is wrong.
                        Verdict::NoAnswer(why) => {
                            fed = Instant::now();
                            if unanswered.get_or_insert(fed).elapsed() > STARVED {
                                starved = true;
                                self.trouble(why);
                            }
                        }
                        Verdict::Another => {}
                    }
                    verifying = None;
                    tokio::time::sleep(if verified.is_some() { Duration::ZERO } else { LOOK }).await;
                }
            }
        }
    }

    /// Whether there is a leader of the store that this is a copy of; why not.
    async fn follows_this_store(&self) -> Result<(), String> {
        let leader = self.leads().await?;
        let control = Control::read(&self.shared.postgres).await.map_err(|error| error.to_string())?;
        let same = control.system_identifier == leader.system_identifier;
        if same { Ok(()) } else { Err(format!("{ANOTHER_STORE}: {WAY_OUT}")) }
    }
}

impl Shared {
    async fn leader(&self) -> Result<Leader, String> {
        let asked = async {
            let client = self.leader_session().await?;
            let sql = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
                         CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END, \
                         (SELECT timeline_id FROM pg_control_checkpoint())";
            let row = client.query_one(sql, &[]).await.map_err(|error| text(&error))?;
            Ok::<_, String>(Leader {
                in_recovery: row.get(0),
                system_identifier: row.get::<_, i64>(1).cast_unsigned(),
                timeline: row.get::<_, i32>(2).cast_unsigned(),
                checkpointed: row.get::<_, i32>(3).cast_unsigned(),
            })
        };
        let deadline = LEADER_DEADLINE.max(self.silence_max);
        let answer = timeout(deadline, asked).await.map_err(|_| "no answer in time".to_owned()).flatten();
        answer.map_err(|why| format!("the leader's PostgreSQL at {}:{}: {why}", self.network.peer.0, self.network.peer.1))
    }

    async fn leader_session(&self) -> Result<Client, String> {
        let network = &self.network;
        let quote =
            |path: &std::path::Path| format!("'{}'", path.display().to_string().replace('\\', "\\\\").replace('\'', "\\'"));
        let dsn = format!(
            "host={} port={} user={PEER_ROLE} dbname={DATABASE} connect_timeout=2 sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
            network.peer.0,
            network.peer.1,
            quote(&network.tls.ca_file),
            quote(&network.tls.cert_file),
            quote(&network.tls.key_file)
        );
        let options = PgOptions::from_dsn(&dsn, None).map_err(|error| error.to_string())?;
        options.connect().await.map_err(|error| text(&error))
    }

    /// Whether `timeline`, which is received, is the one that the leader writes now. A copy that has gone another way begins to stream, too, for
    /// a moment, and tells positions that mean something else.
    async fn verify(&self, timeline: u32) -> Verdict {
        match self.leader().await {
            Ok(leader) if leader.in_recovery => Verdict::NoAnswer("the peer's PostgreSQL doesn't lead yet".to_owned()),
            Ok(leader) if leader.timeline == timeline => Verdict::Leader,
            Ok(_) => Verdict::Another,
            Err(why) => Verdict::NoAnswer(why),
        }
    }
}

/// Asked of the leader, about what is received: by which process, of which timeline. It goes on while looks are slow.
type Question = ((i32, u32), AbortOnDropHandle<Verdict>);

/// What the leader says of what is received.
enum Verdict {
    Leader,
    Another,
    NoAnswer(String),
}
