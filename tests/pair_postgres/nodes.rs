//! Two nodes' PostgreSQLs and their certificates, in a directory of a test's own; in this process, or in one that can be killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet::storage::pg::PgOptions;
use duet::supervisor::fsm::{Goal, NodeId, Postgres, Sync};
use duet::supervisor::postgres::pair::{PairOptions, PairPostgres, PairTls, Report};
use duet::supervisor::postgres::{Binaries, PostgresOptions, StartError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::common::peers::free_ports;
use crate::common::process::PATIENCE;
use crate::common::{STOP, bin_dir, connect, scratch, script, show_log};

pub const A: usize = 0;
pub const B: usize = 1;
const LETTERS: [&str; 2] = ["a", "b"];
/// Where the other process finds what it is to do: the directory, the ports, the node, the goal.
const VARIABLE: &str = "DUET_TEST_PAIR_POSTGRES";
const POLL: Duration = Duration::from_millis(1);

pub fn is_waiting(report: &Report) -> bool {
    report.postgres == Postgres::Primary(Sync::Waiting)
}

pub fn is_confirmed(report: &Report) -> bool {
    report.postgres == Postgres::Primary(Sync::Confirmed)
}

pub fn is_streaming(report: &Report) -> bool {
    matches!(report.postgres, Postgres::Standby { streaming: true, .. })
}

/// See the module.
pub struct Nodes {
    dir: TempDir,
    ports: [u16; 2],
    authority: Issuer<'static, KeyPair>,
}

/// A CA of its own, whose certificate is `file` from now on.
fn authority(file: &Path) -> Issuer<'static, KeyPair> {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.distinguished_name.push(DnType::CommonName, "test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    fs::write(file, authority.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(authority, key)
}

/// A certificate of `name`, in `home`.
fn certificate(authority: &Issuer<'static, KeyPair>, name: &str, home: &Path) {
    fs::create_dir(home).unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    fs::write(home.join("node.crt"), params.signed_by(&key, authority).unwrap().pem()).unwrap();
    fs::write(home.join("node.key"), key.serialize_pem()).unwrap();
}

fn goal_name(goal: Goal) -> &'static str {
    match goal {
        Goal::Stopped => "stopped",
        Goal::Primary { sync: true } => "lead",
        Goal::Primary { sync: false } => "solo",
        Goal::Standby { rebuild: true } => "copy",
        Goal::Standby { rebuild: false } => "follow",
    }
}

/// What the other process is to do, if this is it.
pub fn helped() -> Option<(PairOptions, Goal)> {
    let text = std::env::var(VARIABLE).ok()?;
    let [dir, a, b, node, goal] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let goals = [
        Goal::Stopped,
        Goal::Primary { sync: true },
        Goal::Primary { sync: false },
        Goal::Standby { rebuild: true },
        Goal::Standby { rebuild: false },
    ];
    let goal = *goals.iter().find(|known| goal_name(**known) == goal).unwrap();
    Some((options(Path::new(dir), [a, b].map(|port| port.parse().unwrap()), node.parse().unwrap()), goal))
}

fn options(dir: &Path, ports: [u16; 2], node: usize) -> PairOptions {
    let home = dir.join(LETTERS[node]);
    let wrapped = home.join("bin");
    let postgres = PostgresOptions {
        shared_buffers_bytes: Some(32 << 20),
        bin_dir: if wrapped.exists() { Some(wrapped) } else { bin_dir() },
        ..PostgresOptions::new(home.join("data"))
    };
    PairOptions {
        postgres,
        me: [NodeId::A, NodeId::B][node],
        cluster: "test".to_owned(),
        listen: ([127, 0, 0, 1], ports[node]).into(),
        peer: ("127.0.0.1".to_owned(), ports[1 - node]),
        tls: PairTls { cert_file: home.join("node.crt"), key_file: home.join("node.key"), ca_file: dir.join("ca.crt") },
        silence_max: std::time::Duration::from_millis(duet::supervisor::fsm::Timing::FAST.postgres_silence),
    }
}

impl Nodes {
    pub fn new() -> Self {
        show_log();
        let dir = scratch();
        let authority = authority(&dir.path().join("ca.crt"));
        for letter in LETTERS {
            certificate(&authority, &format!("{letter}.test.duet"), &dir.path().join(letter));
        }
        let public = dir.path().join("public");
        fs::create_dir(&public).unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(0o777)).unwrap();
        Self { dir, ports: free_ports(), authority }
    }

    /// A session over the network at `node`, as another machine would ask for it; why it gets none.
    pub async fn reach(&self, node: usize, user: &str, tls: Option<&Path>) -> Result<(), tokio_postgres::Error> {
        let to = format!("host=127.0.0.1 port={} user={user} dbname=postgres connect_timeout=2", self.ports[node]);
        let dir = self.dir.path().display();
        let tls = match tls {
            None => "sslmode=disable".to_owned(),
            Some(home) if home.as_os_str().is_empty() => format!("sslmode=verify-full sslrootcert={dir}/ca.crt"),
            Some(home) => {
                let home = home.display();
                format!("sslmode=verify-full sslrootcert={dir}/ca.crt sslcert={home}/node.crt sslkey={home}/node.key")
            }
        };
        match PgOptions::from_dsn(&format!("{to} {tls}"), None).unwrap().connect().await {
            Ok(_) => Ok(()),
            // It was let in, and looked.
            Err(error) if duet::storage::pg::text(&error).contains("does not allow writes") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where a certificate of this node's is.
    pub fn home(&self, node: usize) -> PathBuf {
        self.dir.path().join(LETTERS[node])
    }

    /// Where a new certificate of `name` is, of the pair's CA or of another that calls itself the same.
    pub fn stranger(&self, name: &str, of_the_pair: bool) -> PathBuf {
        let home = self.dir.path().join(format!("stranger-{name}-{of_the_pair}"));
        if of_the_pair {
            certificate(&self.authority, name, &home);
        } else {
            certificate(&authority(&self.dir.path().join(format!("other-{name}.crt"))), name, &home);
        }
        home
    }

    /// Where PostgreSQL's user may write, too.
    pub fn public(&self) -> PathBuf {
        self.dir.path().join("public")
    }

    pub fn data(&self, node: usize) -> PathBuf {
        self.dir.path().join(LETTERS[node]).join("data")
    }

    pub fn pgdata(&self, node: usize) -> PathBuf {
        self.data(node).join("postgres")
    }

    /// Has the node run a shell script in place of one of PostgreSQL's programs; `$REAL` is where those are.
    pub async fn wrap(&self, node: usize, program: &str, text: &str) {
        let wrapped = self.dir.path().join(LETTERS[node]).join("bin");
        let real = Binaries::find(bin_dir().as_deref(), None, &wrapped).await.unwrap().bin_dir;
        if !wrapped.exists() {
            fs::create_dir(&wrapped).unwrap();
            for entry in fs::read_dir(&real).unwrap() {
                let entry = entry.unwrap();
                std::os::unix::fs::symlink(entry.path(), wrapped.join(entry.file_name())).unwrap();
            }
        }
        let at = wrapped.join(program);
        fs::remove_file(&at).unwrap();
        script(&at, &format!("REAL={}\n{text}", real.display()));
    }

    /// Undoes [`Nodes::wrap`].
    pub async fn unwrap(&self, node: usize, program: &str) {
        self.wrap(node, program, &format!("exec $REAL/{program} \"$@\"")).await;
    }

    pub async fn open(&self, node: usize) -> PairPostgres {
        open(options(self.dir.path(), self.ports, node)).await
    }

    /// As [`Nodes::open`], with another way to the peer's port.
    pub async fn open_by_way_of(&self, node: usize, port: u16) -> PairPostgres {
        let mut options = options(self.dir.path(), self.ports, node);
        options.peer.1 = port;
        open(options).await
    }

    /// A way to `node` on which everything takes longer by so much.
    pub async fn slow_way_to(&self, node: usize, longer: Duration) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (way, to) = (listener.local_addr().unwrap().port(), self.ports[node]);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let far = tokio::net::TcpStream::connect(("127.0.0.1", to)).await?;
                    let ((mut asks, mut gets), (mut answers, mut takes)) = (near.into_split(), far.into_split());
                    let back = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut gets).await });
                    let mut buffer = vec![0; 65536];
                    loop {
                        let length = asks.read(&mut buffer).await?;
                        if length == 0 {
                            break;
                        }
                        tokio::time::sleep(longer).await;
                        takes.write_all(&buffer[..length]).await?;
                    }
                    drop(takes);
                    back.await?
                });
            }
        });
        way
    }

    /// A leads a new store, alone.
    pub async fn alone(&self) -> PairPostgres {
        let a = self.open(A).await;
        a.begin_data().await.unwrap();
        a.pursue(Goal::Primary { sync: false });
        until(&a, "it leads", |report| matches!(report.postgres, Postgres::Primary(_))).await;
        a
    }

    /// A leads and B confirms.
    pub async fn paired(&self) -> (PairPostgres, PairPostgres) {
        let (a, b) = (self.alone().await, self.open(B).await);
        b.pursue(Goal::Standby { rebuild: true });
        until(&b, "it follows", is_streaming).await;
        a.pursue(Goal::Primary { sync: true });
        until(&a, "the peer confirms", is_confirmed).await;
        (a, b)
    }

    /// A has led, and is gone; B leads alone.
    pub async fn led_by_b(&self) -> PairPostgres {
        let (a, b) = self.paired().await;
        a.shutdown(STOP).await;
        drop(a);
        b.pursue(Goal::Primary { sync: false });
        until(&b, "it leads", |report| matches!(report.postgres, Postgres::Primary(Sync::Off { .. }))).await;
        b
    }

    /// A process of its own that has this node pursue a goal.
    pub fn process(&self, node: usize, goal: Goal) -> Child {
        let [a, b] = self.ports;
        let what = format!("{} {a} {b} {node} {}", self.dir.path().display(), goal_name(goal));
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper_that_pursues_a_goal_until_it_is_killed"])
            .env(VARIABLE, what)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// What `ALTER SYSTEM` has set.
    pub fn altered(&self, node: usize) -> String {
        fs::read_to_string(self.pgdata(node).join("postgresql.auto.conf")).unwrap()
    }

    /// Does what `ALTER SYSTEM` would do with the names.
    pub fn alter(&self, node: usize, names: &str) {
        let text = format!("{}synchronous_standby_names = '{names}'\n", self.altered(node));
        fs::write(self.pgdata(node).join("postgresql.auto.conf"), text).unwrap();
    }

    /// Stops them, the leader last: a standby's end in order waits for nobody.
    pub async fn end<const N: usize>(&self, nodes: [PairPostgres; N]) {
        for node in nodes.iter().rev() {
            node.shutdown(Duration::ZERO).await;
        }
    }
}

/// Opens it, as soon as whoever had it before has let go of it.
pub async fn open(options: PairOptions) -> PairPostgres {
    let began = Instant::now();
    loop {
        match PairPostgres::open(options.clone()).await {
            Ok(postgres) => return postgres,
            Err(StartError::Locked { .. }) if began.elapsed() < PATIENCE => tokio::time::sleep(POLL).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits for a report.
pub async fn until(postgres: &PairPostgres, what: &str, condition: impl FnMut(&Report) -> bool) -> Report {
    let mut reports = postgres.reports();
    if let Ok(found) = tokio::time::timeout(PATIENCE, reports.wait_for(condition)).await {
        return found.unwrap().clone();
    }
    panic!("not in time: {what}: {:?}", postgres.reports().borrow());
}

/// Waits for what gives no event.
pub async fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(POLL).await;
    }
}

pub async fn asks(client: &Client, sql: &str) -> bool {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

pub async fn until_true(client: &Client, sql: &str) {
    let began = Instant::now();
    while !asks(client, sql).await {
        assert!(began.elapsed() < PATIENCE, "not in time: {sql}");
        tokio::time::sleep(POLL).await;
    }
}

pub async fn checkpointer(client: &Client) -> Pid {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    Pid::from_raw(client.query_one(sql, &[]).await.unwrap().get(0))
}

/// Catches the checkpointer in the midst of a checkpoint's sync, where a slow disk would keep it, and stops it there. Checkpoint goes on
/// after checkpoint until the task is aborted.
pub async fn stop_in_a_sync(postgres: &PairPostgres) -> (Pid, JoinHandle<()>) {
    let (client, checkpoints) = (connect(&postgres.connect_config()).await, connect(&postgres.connect_config()).await);
    let checkpointer = checkpointer(&client).await;
    let dirtying =
        "SET synchronous_commit = local; CREATE TABLE public.t AS SELECT 1 AS x; CREATE TABLE public.u AS SELECT 1 AS x";
    checkpoints.batch_execute(dirtying).await.unwrap();
    let writing = tokio::spawn(async move {
        while checkpoints.batch_execute("UPDATE public.t SET x = 2; UPDATE public.u SET x = 2; CHECKPOINT").await.is_ok() {}
    });
    let syncs =
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'checkpointer' AND wait_event = 'DataFileSync')";
    let caught = async {
        loop {
            kill(checkpointer, Signal::SIGSTOP).unwrap();
            if asks(&client, syncs).await {
                return;
            }
            kill(checkpointer, Signal::SIGCONT).unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, caught).await.expect("it syncs now and then");
    (checkpointer, writing)
}

/// A commit under way, seen waiting for the standby.
pub async fn commit(postgres: &PairPostgres, text: &str) -> JoinHandle<()> {
    let client = connect(&postgres.connect_config()).await;
    let other = connect(&postgres.connect_config()).await;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let sql = format!("SELECT pg_logical_emit_message(true, 'test', '{text}')");
    let committed = tokio::spawn(async move { client.batch_execute(&sql).await.unwrap() });
    let waits = format!("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep')");
    until_true(&other, &waits).await;
    committed
}

/// The living processes that work below `dir`.
pub fn processes(dir: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let below = entries.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir)));
    below.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw).collect()
}

/// The machine is gone: the process, and all of PostgreSQL's.
pub async fn kill_all(mut process: Child, data: &Path) {
    process.kill().unwrap();
    process.wait().unwrap();
    soon("everything has ended", || {
        let left = processes(data);
        for pid in &left {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        left.is_empty()
    })
    .await;
}
