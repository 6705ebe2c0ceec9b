//! A PostgreSQL of Duet's own: the installed binaries, run in Duet's data directory, as a suitable user, reachable
//! through a socket that only Duet can use.
//!
//! Invariants:
//! - One live Duet per data directory, one live PostgreSQL per Duet: both are kernel locks, so no crash leaves one stale.
//! - A postmaster is started only when every process of its predecessor has ended.
//! - What Duet's promises rest on (fsync, full pages, no restart of PostgreSQL's own) can't be configured away.
//! - Data either is complete and on disk, or isn't there: an interrupted initdb is done again.
//!
//! It deliberately doesn't: decide when to restart ([`Postgres::keep_running`] is for whoever has nothing better),
//! replicate, create a schema, or use pg_ctl (which polls ten times a second and loses the log).

mod binaries;
mod config;
mod data_dir;
mod error;
mod initdb;
mod log;
mod network;
pub mod pair;
mod process;
mod restart;
mod user;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::Instant,
};

pub use self::{
    binaries::{Binaries, Version},
    config::{DATABASE, PORT, ROLE},
    data_dir::write_durably,
    error::StartError,
    network::{Network, PairTls},
    process::Exit,
    restart::RestartBudget,
    user::Account,
};
use self::{data_dir::DataDir, log::Recent, process::Family};

const POLL: Duration = Duration::from_millis(5);
/// A start that asks its leader for WAL which is gone doesn't get on any more: a little time for a leader that is being replaced.
const LACKING: Duration = Duration::from_secs(15);
/// Between two looks at how far a start has got.
const PROGRESS_LOOK: Duration = Duration::from_millis(500);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a PostgreSQL that was told to end at once, and then by force, is waited for.
const IMMEDIATE_DEADLINE: Duration = Duration::from_secs(5);

/// What [`Postgres::start`] needs to know.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Duet's data directory; made when it doesn't exist.
    pub data_dir: PathBuf,
    /// Where the binaries are; None: found.
    pub bin_dir: Option<PathBuf>,
    /// Whom to run as when Duet is root; None: the data's owner, else `postgres`, else a user made for it.
    pub user: Option<String>,
    /// PostgreSQL's own cache; None: a 32nd of the memory, 32 to 512 MiB.
    pub shared_buffers_bytes: Option<u64>,
    /// False (for test suites only) trades the data for speed: a power cut destroys it.
    pub fsync: bool,
    /// How long it may take until it accepts connections, and until it gets on while it recovers from a crash.
    pub start_deadline: Duration,
    /// For a node of a pair: how its peer reaches it. None: it listens on its socket only.
    pub network: Option<Network>,
}

impl PostgresOptions {
    /// The defaults, for `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            bin_dir: None,
            user: None,
            shared_buffers_bytes: None,
            fsync: true,
            start_deadline: Duration::from_secs(60),
            network: None,
        }
    }
}

impl PostgresOptions {
    fn port(&self) -> u16 {
        self.network.as_ref().map_or(PORT, |network| network.listen.port())
    }
}

/// Whether PostgreSQL runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Under way; not accepting connections yet.
    Starting,
    /// Accepts connections.
    Running {
        /// The postmaster's process id.
        pid: u32,
    },
    /// Ended without being asked to.
    Exited(Exit),
    /// Stopped by [`Postgres::stop`].
    Stopped,
}

/// How [`Postgres::stop`] got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// In order, with a checkpoint: the next start needs no recovery.
    Clean,
    /// At once: the next start replays WAL. Nothing acknowledged is lost.
    Immediate,
    /// By force; same consequence.
    Killed,
    /// There was nothing to stop.
    WasNotRunning,
}

/// A running (or ended) PostgreSQL. Dropping it asks PostgreSQL to stop but doesn't wait for that.
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    binaries: Binaries,
    account: Account,
    data_dir: DataDir,
    socket_dir: PathBuf,
    recent: Recent,
    status: Arc<watch::Sender<Status>>,
    /// Held while starting or stopping, so that these never overlap.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    signals: mpsc::Sender<Signal>,
    exit: watch::Receiver<Option<Exit>>,
    /// Set before it is told to stop, so that its end isn't taken for a failure.
    on_purpose: Arc<AtomicBool>,
}

impl Postgres {
    /// Makes the data directory when there is none, ends what an earlier run left, starts PostgreSQL and waits until it
    /// accepts connections.
    pub async fn start(options: PostgresOptions) -> Result<Self, StartError> {
        let postgres = Self::open(options).await?;
        postgres.begin_data().await?;
        let mut running = postgres.running.lock().await;
        postgres.launch(&mut running).await?;
        drop(running);
        Ok(postgres)
    }

    /// Locks the data directory and finds what is needed to run PostgreSQL in it. Starts nothing.
    pub async fn open(options: PostgresOptions) -> Result<Self, StartError> {
        let mut data_dir = DataDir::open(&options.data_dir)?;
        let data_major = data_dir.data_major()?;
        let binaries = Binaries::find(options.bin_dir.as_deref(), data_major, &data_dir.pgdata()).await?;
        let account = Account::choose(options.user.as_deref(), data_dir.data_owner_uid())?;
        initdb::check_access(&binaries, &mut data_dir, &account).await?;
        let socket_dir = data_dir.make_socket_dir(&account)?;
        let recent = Recent::naming(data_dir.names());
        Ok(Self {
            options,
            binaries,
            account,
            data_dir,
            socket_dir,
            recent,
            status: Arc::new(watch::Sender::new(Status::Starting)),
            running: Mutex::new(None),
        })
    }

    /// Makes the data directory when there is none; throws away an initdb that was interrupted.
    pub async fn begin_data(&self) -> Result<(), StartError> {
        initdb::ensure(&self.binaries, &self.data_dir, &self.account, self.options.fsync).await
    }

    /// How to connect: the socket, the role, the database. Contains no secret.
    pub fn connect_config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.options.port())
            .user(ROLE)
            .dbname(DATABASE)
            .connect_timeout(CONNECT_DEADLINE);
        config
    }

    /// The version that runs.
    pub fn version(&self) -> Version {
        self.binaries.version
    }

    /// The user that PostgreSQL runs as.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The directory of its socket (for psql -h).
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Follows whether it runs.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Stops it: in order within `deadline`, else at once, else by force. Does nothing when it doesn't run.
    pub async fn stop(&self, deadline: Duration) -> Stopped {
        let mut running = self.running.lock().await;
        self.halt(&mut running, deadline).await
    }

    /// Waits for a start or a stop that somebody else has begun.
    async fn settled(&self) {
        drop(self.running.lock().await);
    }

    /// Stops it when it runs, then starts it again, after every process of the former one has ended.
    pub async fn restart(&self, stop_deadline: Duration) -> Result<(), StartError> {
        let mut running = self.running.lock().await;
        self.halt(&mut running, stop_deadline).await;
        self.launch(&mut running).await
    }

    /// Starts it again whenever it ends by itself, as `budget` allows. Returns Ok once it was stopped on purpose, and
    /// the last failure when the budget is spent.
    pub async fn keep_running(&self, mut budget: RestartBudget) -> Result<(), StartError> {
        let mut status = self.status();
        let began = Instant::now();
        loop {
            let now = status.borrow_and_update().clone();
            let mut failure = match now {
                Status::Stopped => return Ok(()),
                Status::Exited(exit) => ended(&exit),
                Status::Starting | Status::Running { .. } => {
                    if status.changed().await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
            };
            loop {
                let Some(delay) = budget.spend(began.elapsed()) else { return Err(failure) };
                tracing::warn!(?delay, "PostgreSQL ended, starting it again: {failure}");
                tokio::time::sleep(delay).await;
                // Somebody else may have stopped or started it meanwhile.
                let mut running = self.running.lock().await;
                if !matches!(*self.status.borrow(), Status::Exited(_)) {
                    break;
                }
                match self.launch(&mut running).await {
                    Ok(()) => break,
                    Err(error) => failure = error,
                }
            }
        }
    }

    /// Ends what an earlier run left.
    async fn end_leftovers(&self) -> Result<(), StartError> {
        Family::of(&self.data_dir, &self.account).end().await.map(drop)
    }

    /// Kills the tools that an earlier run left at work.
    fn kill_tools(&self) {
        Family::of(&self.data_dir, &self.account).kill_tools();
    }

    /// Ends it and every process of it: at once, and what hasn't ended after `patience` by force, stopped processes too.
    async fn end_at_once(&self, patience: Duration) {
        let mut running = self.running.lock().await;
        let Some(Running { signals, exit, on_purpose }) = running.as_mut() else {
            self.status.send_replace(Status::Stopped);
            return;
        };
        on_purpose.store(true, Ordering::Release);
        let _ = signals.try_send(Signal::SIGQUIT);
        let family = Family::of(&self.data_dir, &self.account);
        let ended = tokio::time::timeout(patience, exit.wait_for(Option::is_some)).await.is_ok();
        if !(ended && family.has_ended()) {
            family.kill(IMMEDIATE_DEADLINE).await;
        }
        *running = None;
        self.status.send_replace(Status::Stopped);
    }

    async fn launch(&self, running: &mut Option<Running>) -> Result<(), StartError> {
        let pgdata = self.data_dir.pgdata();
        let lock = Family::of(&self.data_dir, &self.account).end().await?;
        process::remove_stale_pid_file(&pgdata, &lock);
        data_dir::clear_socket_dir(&self.socket_dir);
        let shared_buffers_bytes = self.options.shared_buffers_bytes.unwrap_or_else(config::default_shared_buffers_bytes);
        config::write(&self.data_dir, &self.account, shared_buffers_bytes, self.options.network.as_ref())?;

        self.recent.clear();
        self.status.send_replace(Status::Starting);
        let began = Instant::now();
        let child = process::spawn(&self.binaries, &self.data_dir, &self.account, &self.socket_dir, &self.options, lock)?;
        let pid = child.id().unwrap_or_default();
        let (signals, received) = mpsc::channel(4);
        let (exit_sent, exit) = watch::channel(None);
        let on_purpose = Arc::new(AtomicBool::new(false));
        let (recent, status, asked) = (self.recent.clone(), self.status.clone(), on_purpose.clone());
        tokio::spawn(async move {
            let exit = process::watch(child, received, recent).await;
            let stopped = asked.load(Ordering::Acquire);
            status.send_replace(if stopped { Status::Stopped } else { Status::Exited(exit.clone()) });
            exit_sent.send_replace(Some(exit));
        });
        *running = Some(Running { signals, exit: exit.clone(), on_purpose });
        if let Err(error) = self.wait_ready(pid, exit, began).await {
            self.halt(running, Duration::ZERO).await;
            // A failed start is no stop that anybody asked for.
            self.status.send_replace(Status::Exited(Exit { status: None, last_words: self.recent.last_words() }));
            return Err(error);
        }
        self.status.send_if_modified(|status| {
            let starts = *status == Status::Starting;
            if starts {
                *status = Status::Running { pid };
            }
            starts
        });
        tracing::info!(version = %self.binaries.version, pid, took_ms = began.elapsed().as_millis() as u64, "PostgreSQL accepts connections");
        Ok(())
    }

    /// How far a start that takes long has got, for people.
    fn start_progress(&self) -> Option<String> {
        let signs = self.start_signs();
        signs.into_iter().flatten().reduce(|said, title| format!("{said}; {title}"))
    }

    /// What tells of it: what PostgreSQL says, and the title of the process that replays, which is all that a standby tells. Another text is
    /// progress.
    fn start_signs(&self) -> [Option<String>; 2] {
        [self.recent.progress(), Family::of(&self.data_dir, &self.account).replays()]
    }

    async fn wait_ready(&self, pid: u32, mut exit: watch::Receiver<Option<Exit>>, began: Instant) -> Result<(), StartError> {
        let pgdata = self.data_dir.pgdata();
        // A recovery that was ended would begin again where it began before: it is waited for as long as it gets on.
        let (mut got_on, mut signs, mut looked) = (began, [None, None], began);
        while got_on.elapsed() < if self.recent.lacks_wal() { LACKING } else { self.options.start_deadline } {
            if looked.elapsed() > PROGRESS_LOOK {
                looked = Instant::now();
                // One that is silent for a moment has not begun anew.
                for (known, now) in signs.iter_mut().zip(self.start_signs()) {
                    if now.is_some() && *known != now {
                        (got_on, *known) = (looked, now);
                    }
                }
            }
            if exit.borrow_and_update().is_some() {
                let lines = self.recent.lines();
                return Err(log::explain("starting PostgreSQL", &lines, &pgdata, &self.socket_dir, &self.account.name));
            }
            if process::says_ready(&pgdata, pid) {
                // Dropping the client ends the session; a refusal says why in PostgreSQL's own log.
                if let Ok(Ok((_client, _connection))) =
                    tokio::time::timeout(CONNECT_DEADLINE, self.connect_config().connect(tokio_postgres::NoTls)).await
                {
                    return Ok(());
                }
            }
            let _ = tokio::time::timeout(POLL, exit.changed()).await;
        }
        let last_words = self.recent.last_words().unwrap_or_else(|| "none".to_owned());
        Err(StartError::Timeout { waited: began.elapsed(), last_words })
    }

    async fn halt(&self, running: &mut Option<Running>, deadline: Duration) -> Stopped {
        let Some(Running { signals, mut exit, on_purpose }) = running.take() else {
            self.status.send_replace(Status::Stopped);
            return Stopped::WasNotRunning;
        };
        on_purpose.store(true, Ordering::Release);
        let mut how = Stopped::WasNotRunning;
        for (signal, deadline, outcome) in [
            (Signal::SIGINT, deadline, Stopped::Clean),
            (Signal::SIGQUIT, IMMEDIATE_DEADLINE, Stopped::Immediate),
            (Signal::SIGKILL, IMMEDIATE_DEADLINE, Stopped::Killed),
        ] {
            if exit.borrow().is_some() {
                break;
            }
            how = outcome;
            let _ = signals.try_send(signal);
            let _ = tokio::time::timeout(deadline, exit.wait_for(Option::is_some)).await;
        }
        if how == Stopped::Clean && !exit.borrow().as_ref().is_some_and(|e| e.status.is_some_and(|s| s.success())) {
            how = Stopped::Immediate;
        }
        self.status.send_replace(Status::Stopped);
        how
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut().take() {
            running.on_purpose.store(true, Ordering::Release);
            let _ = running.signals.try_send(Signal::SIGINT);
        }
    }
}

fn ended(exit: &Exit) -> StartError {
    let status = exit.status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
    let last_words = exit.last_words.as_deref().unwrap_or("it said nothing");
    StartError::Failed { what: "PostgreSQL".to_owned(), detail: format!("{status}; last words: {last_words}") }
}
