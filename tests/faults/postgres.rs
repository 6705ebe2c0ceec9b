//! Duet's PostgreSQL from the outside: its sessions, its processes, and the log's rows as they are stored.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio_postgres::{Client, Config};

use crate::common::process::{PATIENCE, family};
use crate::history::{Change, Evidence, Stored};

/// How often something is looked at that gives no event.
const POLL: Duration = Duration::from_millis(1);
/// How long the answer to a question about a stopped backend is waited for: it may have been stopped while it held what is asked.
const ANSWER: Duration = Duration::from_secs(2);

/// The PostgreSQL of the `duet dev` whose data is in `dir`.
pub struct Database {
    config: Config,
    pgdata: PathBuf,
}

impl Database {
    /// Of the duet dev that [`common::process::dev`] starts.
    pub fn of_dev(dir: &TempDir) -> Self {
        let data = dir.path().join("data");
        let mut config = Config::new();
        config.host_path(data.join("socket")).user("duet").dbname("postgres");
        Self { config, pgdata: data.join("postgres") }
    }

    /// Of a node of a pair, whose data is in `data` and whose PostgreSQL has the port `port`.
    #[allow(dead_code, reason = "tests/pair uses it")]
    pub fn of_node(data: &Path, port: u16) -> Self {
        let mut config = Config::new();
        config.host_path(data.join("socket")).port(port).user("duet").dbname("postgres");
        Self { config, pgdata: data.join("postgres") }
    }

    /// A session; tried again while PostgreSQL starts.
    pub async fn connect(&self) -> Client {
        let began = Instant::now();
        loop {
            match self.config.connect(tokio_postgres::NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a session of Duet's is seen that `condition` is true of (a condition over pg_stat_activity); its process id.
    pub async fn session(&self, condition: &str) -> Pid {
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'duet%' AND {condition} LIMIT 1");
        let client = self.connect().await;
        let statement = client.prepare(&sql).await.unwrap();
        let began = Instant::now();
        loop {
            if let Some(row) = client.query_opt(&statement, &[]).await.unwrap() {
                return Pid::from_raw(row.get(0));
            }
            assert!(began.elapsed() < PATIENCE, "no session was seen with {condition}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills a session's process with kill -9 while it does what `condition` says.
    pub async fn kill_backend(&self, condition: &str) {
        loop {
            let pid = self.session(condition).await;
            // It may have gone on meanwhile: stand it still, look again, and only then kill it.
            kill(pid, Signal::SIGSTOP).unwrap();
            let client = self.connect().await;
            let sql = format!("SELECT FROM pg_stat_activity WHERE pid = {pid} AND {condition}");
            let still = tokio::time::timeout(ANSWER, client.query_opt(&sql, &[])).await;
            if matches!(still, Ok(Ok(None))) {
                kill(pid, Signal::SIGCONT).unwrap();
                continue;
            }
            return kill(pid, Signal::SIGKILL).unwrap();
        }
    }

    /// The postmaster's process id.
    pub fn postmaster(&self) -> i32 {
        let file = fs::read_to_string(self.pgdata.join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    /// Adds what only the database knows.
    pub async fn testify(&self, evidence: &mut Evidence) {
        testify(&self.connect().await, evidence).await;
    }
}

/// Stops every process of a PostgreSQL, the postmaster first, so that no new one comes; answers them all.
pub fn freeze(postmaster: i32) -> Vec<Pid> {
    let postmaster = Pid::from_raw(postmaster);
    kill(postmaster, Signal::SIGSTOP).unwrap();
    wait_until_stopped(postmaster);
    let all = family(postmaster.as_raw());
    for pid in &all[1..] {
        // One that has just ended is as still as can be.
        assert!(matches!(kill(*pid, Signal::SIGSTOP), Ok(()) | Err(Errno::ESRCH)));
    }
    all.iter().for_each(|pid| wait_until_stopped(*pid));
    all
}

/// Lets them go on.
pub fn thaw(processes: &[Pid]) {
    for pid in processes.iter().rev() {
        let _ = kill(*pid, Signal::SIGCONT);
    }
}

fn wait_until_stopped(pid: Pid) {
    let began = Instant::now();
    while let Ok(stat) = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")) {
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z'])) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{pid} does not stop");
        std::thread::sleep(POLL);
    }
}

/// Adds the log's rows and the compact revision.
pub async fn testify(client: &Client, evidence: &mut Evidence) {
    let sql = "SELECT rev, key, value, create_rev, version, lease FROM duet.log ORDER BY rev, sub";
    let rows = client.query(sql, &[]).await.unwrap();
    evidence.log = rows
        .iter()
        .map(|row| Change {
            revision: row.get(0),
            key: row.get(1),
            put: row.get::<_, Option<&[u8]>>(2).map(|value| Stored::new(value, row.get(3), row.get(4), row.get(5))),
        })
        .collect();
    evidence.compacted = client.query_one("SELECT compacted FROM duet.meta", &[]).await.unwrap().get(0);
}
