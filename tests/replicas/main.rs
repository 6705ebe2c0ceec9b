//! Replicas of `duet serve` over one PostgreSQL that loses what it had committed, as one without synchronous replication does when it is
//! failed over: real processes, whose memory is lost at each restart.

#[path = "../common/mod.rs"]
mod common;
mod ways;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::process::{PATIENCE, Process, serve_with};
use common::scratch;
use duet::proto::duetpb::replica_client::ReplicaClient;
use duet::proto::duetpb::{LookRequest, Seen};
use duet::supervisor::postgres::Postgres;
use etcd_client::Client;
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// Ends a program that must not serve what there is.
const MUST_NOT_BE_SERVED: i32 = 65;
const ANY_PORT: &str = "--listen-client-urls http://127.0.0.1:0";
/// The revisions that the database keeps.
const KEPT: i64 = 4;

/// A PostgreSQL, and directories for replicas.
struct World {
    dir: TempDir,
    postgres: Postgres,
    dsn: String,
}

impl World {
    async fn new() -> Self {
        let dir = scratch();
        let postgres = Postgres::start(common::options(&dir)).await.unwrap();
        let dsn = format!("host={} user=duet dbname=postgres", postgres.socket_dir().display());
        Self { dir, postgres, dsn }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self, name: &str, line: &str) -> Process {
        serve_with(&self.dsn, &self.home(name), line)
    }

    /// What a replica that stood by at the moment of a failover finds: nobody writes, and the newest rows aren't there, nor the newest
    /// epoch.
    async fn lose_what_is_new(&self) {
        let admin = common::connect(&self.postgres.connect_config()).await;
        self.until("the writer's session has ended", async || {
            let sql = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted";
            admin.query_opt(sql, &[]).await.unwrap().is_none()
        })
        .await;
        let lost = admin.execute("DELETE FROM duet.log WHERE rev > $1", &[&KEPT]).await.unwrap();
        assert!(lost > 0);
        admin.batch_execute("UPDATE duet.meta SET epoch = epoch - 1").await.unwrap();
    }

    /// Ends every session that writes or hopes to, as the failover does.
    async fn end_sessions(&self) {
        let admin = common::connect(&self.postgres.connect_config()).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'duet%'";
        admin.query(sql, &[]).await.unwrap();
    }

    async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the replica at `url` knows that clients have been shown `revision`.
    async fn heard(&self, url: &str, revision: i64) {
        self.until("it has heard of it", async || seen(url).await.is_some_and(|seen| seen.revision >= revision)).await;
    }

    /// Waits until a replica's file says so; the file.
    async fn written(&self, name: &str, revision: i64) -> PathBuf {
        let says = format!("\"revision\":{revision},");
        self.until("it is in the file", async || file(&self.home(name)).is_some_and(|file| read(&file).contains(&says))).await;
        file(&self.home(name)).unwrap()
    }

    async fn stop(self) {
        self.postgres.stop(common::STOP).await;
    }
}

fn free_port() -> u16 {
    let [port] = common::peers::free_ports();
    port
}

fn file(home: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(home.join("seen")).ok()?.flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.extension().is_none())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

async fn seen(url: &str) -> Option<Seen> {
    let mut client = ReplicaClient::connect(url.to_owned()).await.unwrap();
    client.look(LookRequest::default()).await.unwrap().into_inner().seen
}

async fn client(url: &str) -> Client {
    Client::connect([url], None).await.unwrap()
}

/// Writes five times; the newest revision.
async fn write(url: &str) -> i64 {
    let mut client = client(url).await;
    let mut newest = 0;
    for _ in 0..5 {
        newest = client.put("k", "v", None).await.unwrap().header().unwrap().revision();
    }
    assert!(newest > KEPT);
    newest
}

/// Waits for its end, which must be a refusal that says all of `parts`.
fn refuses(process: &mut Process, parts: &[&str]) {
    let code = process.ended().code();
    let said = process.said();
    assert_eq!(code, Some(MUST_NOT_BE_SERVED), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} isn't in {said}");
    }
}

#[tokio::test]
async fn a_standby_refuses_a_database_that_lost_what_the_writer_had_shown_and_goes_on_refusing_until_its_file_is_removed() {
    let world = World::new().await;
    let (mut writer, mut standby) = (world.serve("writer", ANY_PORT), world.serve("standby", ANY_PORT));
    // Either may be the writer; from here on they are called what they are.
    let (one, other) = (writer.ready(), standby.ready());
    let newest = write(&one).await;
    let admin = common::connect(&world.postgres.connect_config()).await;
    let urls: Vec<String> = admin.query_one("SELECT advertise FROM duet.meta", &[]).await.unwrap().get(0);
    let (mut name, mut former, mut url) = ("standby", "writer", &other);
    if urls[0] == other {
        std::mem::swap(&mut writer, &mut standby);
        (name, former, url) = ("writer", "standby", &one);
    }
    world.heard(url, newest).await;
    world.written(former, newest).await;

    standby.signal(Signal::SIGSTOP);
    writer.signal(Signal::SIGKILL);
    writer.ended();
    world.lose_what_is_new().await;
    standby.signal(Signal::SIGCONT);
    let (lost, ends) = (format!("revision {newest} had been committed"), format!("it ends at revision {KEPT}"));
    refuses(&mut standby, &["the database has lost committed revisions", &lost, &ends, "remove the file", "remembers"]);

    // The next process knows nothing but what its file says.
    let remembered = file(&world.home(name)).expect("it was written before the end");
    let path = remembered.to_str().unwrap();
    refuses(&mut world.serve(name, ANY_PORT), &["has lost committed revisions", &lost, &format!("as {path} says"), path]);

    // Somebody accepts the loss, on this machine only.
    fs::remove_file(&remembered).unwrap();
    let mut accepting = world.serve(name, ANY_PORT);
    let url = accepting.ready();
    let revision = client(&url).await.put("k", "new", None).await.unwrap().header().unwrap().revision();
    assert_eq!(revision, KEPT + 1);
    // The other one neither serves nor forwards to what its clients would not understand.
    refuses(&mut world.serve(former, ANY_PORT), &["has lost committed revisions", &lost, "remove the file"]);
    fs::remove_file(file(&world.home(former)).unwrap()).unwrap();
    let mut following = world.serve(former, ANY_PORT);
    assert_eq!(client(&following.ready()).await.get("k", None).await.unwrap().kvs()[0].value(), b"new");
    drop((accepting, following));
    world.stop().await;
}

#[tokio::test]
async fn a_writer_that_was_replaced_does_not_forward_to_one_that_has_less_than_it_has_shown() {
    let world = World::new().await;
    // Nobody can ask it what it has shown.
    let url = format!("http://127.0.0.1:{}", free_port());
    let line = format!("--listen-client-urls {url} --advertise-client-urls http://127.0.0.1:1");
    let mut writer = world.serve("writer", &line);
    writer.ready();
    let newest = write(&url).await;
    let mut standby = world.serve("standby", ANY_PORT);
    standby.line("the writer has changed");

    writer.signal(Signal::SIGSTOP);
    standby.signal(Signal::SIGSTOP);
    world.end_sessions().await;
    world.lose_what_is_new().await;
    standby.signal(Signal::SIGCONT);
    let url = standby.ready();
    client(&url).await.put("k", "after the loss", None).await.unwrap();
    writer.signal(Signal::SIGCONT);
    let lost = format!("revision {newest} had been committed");
    refuses(&mut writer, &["has lost committed revisions", &lost, "it ends at revision 5", "remove the file"]);
    let mut again = world.serve("writer", ANY_PORT);
    refuses(&mut again, &["has lost committed revisions", &lost]);
    drop(standby);
    world.stop().await;
}

#[tokio::test]
async fn after_a_failover_with_a_loss_nobody_serves_whoever_is_first() {
    let world = World::new().await;
    let mut writer = world.serve("writer", ANY_PORT);
    let url = writer.ready();
    let newest = write(&url).await;
    let admin = common::connect(&world.postgres.connect_config()).await;
    // While the database fails over nobody has the lock.
    let lock = admin.query_one("SELECT classid::bigint << 32 | objid::bigint FROM pg_locks WHERE locktype = 'advisory'", &[]);
    let lock: i64 = lock.await.unwrap().get(0);
    let waiter = common::connect(&world.postgres.connect_config()).await;
    let waiting = tokio::spawn(async move {
        waiter.execute("SELECT pg_advisory_lock($1)", &[&lock]).await.unwrap();
        waiter
    });
    world
        .until("somebody waits for the lock", async || {
            let sql = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
            admin.query_opt(sql, &[]).await.unwrap().is_some()
        })
        .await;
    world.end_sessions().await;
    let holder = waiting.await.unwrap();
    admin.execute("DELETE FROM duet.log WHERE rev > $1", &[&KEPT]).await.unwrap();
    let mut standby = world.serve("standby", ANY_PORT);
    standby.line("forwarding to the writer");
    holder.execute("SELECT pg_advisory_unlock($1)", &[&lock]).await.unwrap();
    for process in [&mut standby, &mut writer] {
        refuses(process, &["has lost committed revisions", &format!("revision {newest} had been committed")]);
    }
    world.stop().await;
}

#[tokio::test]
async fn a_store_in_the_place_of_the_one_that_clients_have_seen_is_refused_also_after_a_restart() {
    let world = World::new().await;
    let mut writer = world.serve("writer", ANY_PORT);
    write(&writer.ready()).await;
    let mut standby = world.serve("standby", ANY_PORT);
    standby.line("forwarding to the writer");
    standby.signal(Signal::SIGSTOP);
    writer.signal(Signal::SIGKILL);
    writer.ended();
    let admin = common::connect(&world.postgres.connect_config()).await;
    admin.batch_execute("DROP SCHEMA duet CASCADE").await.unwrap();
    standby.signal(Signal::SIGCONT);
    refuses(&mut standby, &["the database now holds another store", "remove the file"]);
    refuses(&mut world.serve("standby", ANY_PORT), &["the database now holds another store", "remove the file"]);
    let is_refused = |path: &PathBuf| read(path).contains("\"in_place_of\":\"");
    let files = fs::read_dir(world.home("standby").join("seen")).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(files.into_iter().find(is_refused).unwrap()).unwrap();
    let mut accepting = world.serve("standby", ANY_PORT);
    assert_eq!(client(&accepting.ready()).await.get("k", None).await.unwrap().count(), 0);
    drop(accepting);
    world.stop().await;
}

#[tokio::test]
async fn a_replica_without_a_place_for_its_memory_says_so_once_and_serves() {
    let world = World::new().await;
    fs::write(world.home("file"), "").unwrap();
    let mut replica = world.serve("file/data", ANY_PORT);
    let url = replica.ready();
    write(&url).await;
    replica.signal(Signal::SIGTERM);
    assert_eq!(replica.ended().code(), Some(0));
    let said = replica.said();
    assert_eq!(said.matches("can't write").count(), 1, "{said}");
    assert!(said.contains("--data-dir"), "{said}");
    world.stop().await;
}
