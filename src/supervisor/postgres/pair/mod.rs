//! The PostgreSQL of one node of a pair: brought to whatever the state machine's [`Goal`] is, and reported as what it is.
//!
//! | file | what it is |
//! |---|---|
//! | `role` | what makes a data directory a primary's or a standby's |
//! | `primary` | starting, promoting, and what commits wait for |
//! | `standby` | following: as it is, rewound, or from a new copy |
//! | `copy` | pg_rewind and pg_basebackup, and what is left when they are interrupted |
//! | `disk` | how much room there is, the ballast, and a disk that failed |
//! | `inspect` | what it is set to, for `duet check` |
//! | `mark` | files that say something of the data across restarts |
//! | `probe` | what PostgreSQL says of itself, and whether it answers at all |
//!
//! Invariants: a report that bears a goal's number shows nothing that was found while an earlier goal was pursued; every start has
//! `synchronous_standby_names` set to the peer before a process runs; a directory that a rewind or a copy left half-done is known
//! as such, whatever was killed.
//!
//! It deliberately doesn't decide which goal is right, and never cancels a statement.

mod commits;
mod copy;
mod disk;
mod inspect;
mod mark;
mod primary;
mod probe;
mod role;
mod standby;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Network, Postgres, PostgresOptions, StartError, Status, Stopped};
use crate::supervisor::fsm::{self, Goal, NodeId};
use mark::HALF_DONE;

pub use super::network::PairTls;
pub use disk::give_up_ballast;
pub use inspect::{Inspection, Slot};

/// Between two looks at a running PostgreSQL.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks while something is about to happen.
const SOON: Duration = Duration::from_millis(3);
/// How long a PostgreSQL that is stopped at once is given before it is killed.
const STOP_PATIENCE: Duration = Duration::from_millis(300);
/// Between two looks at how far a start has got.
const PROGRESS: Duration = Duration::from_secs(1);
/// After a failure, before the next try.
const PAUSE: Duration = Duration::from_millis(150);
/// Between two starts at most, when one fails after the other.
const START_AGAIN_MAX: Duration = Duration::from_secs(2);

/// What [`PairPostgres::open`] needs to know.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// As for a node without a peer; `network` is filled in from the rest.
    pub postgres: PostgresOptions,
    /// Which of the two it is.
    pub me: NodeId,
    /// The pair's name, part of the names in certificates.
    pub cluster: String,
    /// Where this node's PostgreSQL listens for the peer.
    pub listen: SocketAddr,
    /// The peer's PostgreSQL: host and port.
    pub peer: (String, u16),
    /// Certificates.
    pub tls: PairTls,
    /// A PostgreSQL that gives no sign of life for so long is ended.
    pub silence_max: Duration,
}

/// What PostgreSQL is.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The number of the goal that was in force when this was found.
    pub goal: u64,
    /// For the state machine.
    pub postgres: fsm::Postgres,
    /// The data directory can't be used to follow the leader, and the goal doesn't allow to make it anew.
    pub rebuild_needed: bool,
    /// PostgreSQL's disk has taken nothing for long, and the peer has all that it took.
    pub stalled: bool,
    /// There is too little room for this node to be chosen for leading.
    pub short_of_disk: bool,
    /// For people.
    pub details: Details,
}

/// What people want to know of a node's PostgreSQL. Positions are bytes of WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// PostgreSQL's version.
    pub version: String,
    /// The timeline.
    pub timeline: u32,
    /// A primary's end of flushed WAL; what a standby has received and flushed.
    pub flushed: u64,
    /// What a standby has replayed.
    pub replayed: u64,
    /// A primary's view of what its standby has flushed; `None` while none streams.
    pub peer_flushed: Option<u64>,
    /// `synchronous_standby_names` as it is in force.
    pub sync_names: String,
    /// How often somebody else has changed that, since this process started.
    #[serde(default)]
    pub sync_names_changed: u64,
    /// Free bytes on the data directory's disk.
    pub free_bytes: u64,
    /// What is being done that takes long.
    pub doing: Option<String>,
    /// The last thing that went wrong.
    pub trouble: Option<String>,
}

/// See the module. Dropping it asks PostgreSQL to stop.
#[derive(Debug)]
pub struct PairPostgres {
    shared: Arc<Shared>,
    goals: watch::Sender<Numbered>,
    numbers: AtomicU64,
    manager: JoinHandle<()>,
    tender: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbered {
    number: u64,
    goal: Goal,
}

#[derive(Debug)]
struct Shared {
    postgres: Postgres,
    network: Network,
    silence_max: Duration,
    reports: watch::Sender<Report>,
    /// Details of the moment, put into every report.
    details: Mutex<Details>,
    /// Commits are known to wait for the peer since this postmaster started, or since it was proved. A primary's; a standby's will, once
    /// it is promoted.
    armed: AtomicBool,
    /// It was promoted, and no checkpoint has been asked for since.
    promoted: AtomicBool,
    /// The session that watches a standby, for its promotion.
    watching: Mutex<Option<probe::Session>>,
    room: disk::Room,
    /// The disk failed under the data that is there: see [`Shared::is_distrusted`].
    distrusted: AtomicBool,
    /// Held by whoever changes the data directory.
    disk: Arc<tokio::sync::Mutex<()>>,
}

impl PairPostgres {
    /// Locks the data directory and finds the binaries. Starts nothing; what an earlier run left is being ended when it returns, because
    /// the peer needn't wait for that. To be called where its tasks are to run.
    ///
    /// # Errors
    /// As [`Postgres::open`].
    pub async fn open(options: PairOptions) -> Result<Self, StartError> {
        let letter = |node| match node {
            NodeId::A => 'a',
            NodeId::B => 'b',
        };
        let (me, peer) = (letter(options.me), letter(options.me.peer()));
        let network = Network {
            listen: options.listen,
            peer: options.peer,
            own_name: format!("duet_{me}"),
            peer_name: format!("duet_{peer}"),
            peer_certificate: format!("{peer}.{}.duet", options.cluster),
            tls: options.tls,
        };
        let postgres = Postgres::open(PostgresOptions { network: Some(network.clone()), ..options.postgres }).await?;
        // pg_basebackup needs them before there is a data directory.
        network.install_tls(&postgres.data_dir, &postgres.account)?;
        let details = Details { version: postgres.version().to_string(), ..Details::default() };
        let shared = Arc::new(Shared {
            postgres,
            network,
            silence_max: options.silence_max,
            reports: watch::Sender::new(Report::default()),
            details: Mutex::new(details),
            armed: AtomicBool::new(false),
            promoted: AtomicBool::new(false),
            watching: Mutex::new(None),
            room: disk::Room::default(),
            distrusted: AtomicBool::new(false),
            disk: Arc::default(),
        });
        let (goals, received) = watch::channel(Numbered { number: 0, goal: Goal::Stopped });
        let manager = tokio::spawn(manage(Arc::clone(&shared), received));
        let tender = tokio::spawn(disk::tend(Arc::clone(&shared)));
        Ok(Self { shared, goals, numbers: AtomicU64::new(0), manager, tender })
    }

    /// Whether there is a data directory that looks whole: neither missing, nor left half-done by a copy or a rewind.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.shared.has_data()
    }

    /// Makes an empty store's data directory, when there is none.
    ///
    /// # Errors
    /// initdb's.
    pub async fn begin_data(&self) -> Result<(), StartError> {
        self.shared.postgres.end_leftovers().await?;
        self.shared.postgres.begin_data().await
    }

    /// Sets the goal, in place of the one before; its number. Returns at once.
    pub fn pursue(&self, goal: Goal) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        self.goals.send_replace(Numbered { number, goal });
        number
    }

    /// Follows what PostgreSQL is.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<Report> {
        self.shared.reports.subscribe()
    }

    /// How to connect: the socket, the role, the database. Contains no secret.
    #[must_use]
    pub fn connect_config(&self) -> tokio_postgres::Config {
        self.shared.postgres.connect_config()
    }

    /// Stops PostgreSQL in order, as far as `deadline` allows; nothing is pursued any more.
    pub async fn shutdown(&self, deadline: Duration) -> Stopped {
        self.manager.abort();
        self.shared.postgres.stop(deadline).await
    }
}

impl Drop for PairPostgres {
    fn drop(&mut self) {
        self.manager.abort();
        self.tender.abort();
    }
}

/// Pursues whatever the goal is, until the goals end.
async fn manage(shared: Arc<Shared>, mut goals: watch::Receiver<Numbered>) {
    // Nothing else touches the directory before every process of an earlier run has ended. Nobody acknowledges what those still do.
    while let Err(error) = shared.postgres.end_leftovers().await {
        Pursuit::new(&shared, *goals.borrow()).trouble(error.to_string());
        tokio::time::sleep(PAUSE).await;
    }
    shared.postgres.kill_tools();
    if let Err(error) = shared.on_disk(Shared::remove_old).await {
        tracing::warn!(%error, "what a new copy has replaced could not be removed");
    }
    loop {
        let numbered = *goals.borrow_and_update();
        let pursuit = Pursuit::new(&shared, numbered);
        let pursue = async {
            match numbered.goal {
                Goal::Stopped => pursuit.stopped().await,
                Goal::Primary { sync } => pursuit.primary(sync).await,
                Goal::Standby { rebuild } => pursuit.standby(rebuild).await,
            }
        };
        tokio::select! {
            () = pursue => {}
            changed = goals.changed() => if changed.is_err() { return },
        }
    }
}

/// One goal under way. Dropped, at whatever it waits for, when another goal takes its place: so nothing that must be finished is awaited
/// here without a task of its own.
struct Pursuit<'a> {
    shared: &'a Arc<Shared>,
    number: u64,
    /// The leader's data has been copied for this goal: it needn't be again.
    copied: AtomicBool,
    /// How many copies, and how many starts, have failed since the last that didn't.
    copies_failed: AtomicU32,
    starts_failed: AtomicU32,
}

impl<'a> Pursuit<'a> {
    fn new(shared: &'a Arc<Shared>, goal: Numbered) -> Self {
        Self {
            shared,
            number: goal.number,
            copied: AtomicBool::new(false),
            copies_failed: AtomicU32::new(0),
            starts_failed: AtomicU32::new(0),
        }
    }

    fn report(&self, postgres: fsm::Postgres) {
        self.shared.reports.send_replace(self.found(postgres));
    }

    /// What is to be reported, when nothing is wrong.
    fn found(&self, postgres: fsm::Postgres) -> Report {
        let room = &self.shared.room;
        let details = Details { free_bytes: room.free_bytes(), ..self.shared.details.lock().clone() };
        let short_of_disk = room.is_short();
        Report { goal: self.number, postgres, rebuild_needed: false, stalled: false, short_of_disk, details }
    }

    fn report_rebuild_needed(&self) {
        self.shared.reports.send_replace(Report { rebuild_needed: true, ..self.found(fsm::Postgres::Down) });
    }

    fn doing(&self, what: impl Into<String>) {
        self.shared.details.lock().doing = Some(what.into());
        self.report(fsm::Postgres::Busy);
    }

    fn done(&self) {
        self.shared.details.lock().doing = None;
    }

    /// Tells people of trouble, once for each kind.
    fn trouble(&self, what: String) {
        self.shared.trouble(what);
    }

    fn well(&self) {
        self.shared.details.lock().trouble = None;
    }

    /// Whether it runs, after what an earlier goal has begun has come to its end: what that is starting is used, not started once more.
    async fn runs(&self) -> bool {
        self.shared.postgres.settled().await;
        matches!(*self.shared.postgres.status().borrow(), Status::Running { .. })
    }

    async fn stopped(&self) {
        self.end().await;
        self.report(fsm::Postgres::Down);
        std::future::pending().await
    }

    /// Ends PostgreSQL at once; goes on to its end whatever becomes of the goal.
    async fn end(&self) {
        let shared = Arc::clone(self.shared);
        let ended = tokio::spawn(async move {
            shared.postgres.end_at_once(STOP_PATIENCE).await;
            shared.heed_disk().await;
        });
        let _ = ended.await;
    }

    /// Starts PostgreSQL in the role that its directory was given; goes on to its end whatever becomes of the goal. A session, with which
    /// was looked whether commits wait for the peer from the beginning.
    /// What it is for is told with how far it has got.
    async fn launch(&self, what: &str) -> Result<probe::Session, StartError> {
        self.doing(what);
        self.shared.armed.store(false, Ordering::Release);
        let shared = Arc::clone(self.shared);
        let mut launching = tokio::spawn(async move {
            let launched = shared.postgres.restart(Duration::ZERO).await;
            match &launched {
                // Before it had anything to say, too: its configuration could not be written.
                Err(StartError::DiskFull { .. }) => shared.on_disk(Shared::give_up_ballast).await,
                Err(_) => shared.heed_disk().await,
                Ok(()) => {}
            }
            launched
        });
        let launched = loop {
            match timeout(PROGRESS, &mut launching).await {
                Ok(launched) => break launched,
                Err(_) => {
                    if let Some(progress) = self.shared.postgres.start_progress() {
                        self.doing(format!("{what}: {progress}"));
                    }
                }
            }
        };
        let launched = launched.unwrap_or_else(|error| {
            Err(StartError::Failed { what: "starting PostgreSQL".to_owned(), detail: error.to_string() })
        });
        match &launched {
            Ok(()) => self.starts_failed.store(0, Ordering::Release),
            Err(_) => drop(self.starts_failed.fetch_add(1, Ordering::AcqRel)),
        }
        launched?;
        self.first_session().await.map_err(|detail| StartError::Failed { what: "the first session".to_owned(), detail })
    }

    async fn first_session(&self) -> Result<probe::Session, String> {
        let session = self.shared.session().await?;
        let armed = session.look().await?.sync_names == role::WaitFor::Peer.names(&self.shared.network);
        self.shared.armed.store(armed, Ordering::Release);
        Ok(session)
    }
}

impl Shared {
    fn trouble(&self, what: String) {
        let mut details = self.details.lock();
        if details.trouble.as_ref() != Some(&what) {
            tracing::warn!("{what}");
            details.trouble = Some(what);
        }
    }

    /// Does what waits for the disk where nothing else waits for it: a busy disk may take seconds. It is done to its end and before
    /// anything that is asked for later, whatever becomes of who asked.
    async fn on_disk<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let (turn, shared) = (Arc::clone(&self.disk).lock_owned().await, Arc::clone(self));
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&shared)
        });
        match done.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends, and everything that waits with it.
            Err(_) => std::future::pending().await,
        }
    }

    fn root(&self) -> &std::path::Path {
        self.postgres.data_dir.root()
    }

    fn has_data(&self) -> bool {
        let data_dir = &self.postgres.data_dir;
        data_dir.data_major().is_ok_and(|major| major.is_some()) && !HALF_DONE.is_set(data_dir.root())
    }
}
