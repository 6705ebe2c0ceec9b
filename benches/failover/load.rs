//! An open loop of writes to all nodes in turn, from the client's namespace: one goes out every few milliseconds whatever became of the others.
//! Each has a key of its own; at the end it looks whether every acknowledged one is there, with the revision that it was acknowledged with.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etcd_client::{Client, ConnectOptions, DeleteOptions, Error, GetOptions};
use tokio::sync::mpsc;

const EVERY: Duration = Duration::from_millis(5);
/// A write that isn't answered by then has failed.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long what is stored may take to be read at the end.
const READ_PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: &str = "load/";
/// Counts the loads: what of an earlier one arrives late, its outcome unknown, is no write of this one's.
static LOADS: AtomicUsize = AtomicUsize::new(0);
/// What clientv3 sends again: certainly not applied.
const RETRIABLE: &str = "there is no connection available";

/// One write.
struct Write {
    key: String,
    sent: Instant,
    answered: Instant,
    /// Of an acknowledged one.
    revision: Option<i64>,
}

/// What was written, and the revision that each key has at the end.
struct Written {
    writes: Vec<Write>,
    stored: BTreeMap<String, i64>,
}

/// See the module.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Written>,
}

/// What clients noticed.
pub struct Gap {
    /// The longest time without an acknowledgement.
    pub longest: Duration,
    /// How long before it was looked for that ended.
    ended_ago: Duration,
    /// Writes that were answered with anything else.
    pub failed: usize,
    /// From the event to the first of those: when a client of a lost node learns of it.
    pub first_failed: Option<Duration>,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = (SystemTime::now() - self.ended_ago).duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(f, "longest gap {:?} until {:.6}, {} failed", self.longest, ended.as_secs_f64(), self.failed)?;
        self.first_failed.map_or(Ok(()), |first| write!(f, " from {first:?} on"))
    }
}

impl Load {
    /// Begins it on the machine to which `enter` leads.
    pub fn start(urls: Vec<String>, enter: impl Fn() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(writes(urls, stopping))
        });
        Self { stop, thread }
    }

    pub fn run_until(&self, end: Instant) {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    /// From the event to the first acknowledged write that was sent after it was `effective`; and the longest gap since `began`.
    pub fn finish(self, began: Instant, effective: Instant) -> (Duration, Gap) {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.thread.join().unwrap();
        written.check();
        let writes = written.writes;
        let mut acknowledged: Vec<&Write> = writes.iter().filter(|write| write.revision.is_some()).collect();
        acknowledged.sort_by_key(|write| write.answered);
        let first = acknowledged.iter().find(|write| write.sent >= effective).expect("somebody answers again");
        let since: Vec<Instant> = acknowledged.iter().map(|write| write.answered).filter(|at| *at >= began).collect();
        let from_first = since.first().map(|first| (*first - began, *first));
        let gaps = since.windows(2).map(|pair| (pair[1] - pair[0], pair[1])).chain(from_first);
        let (longest, ended) = gaps.max().unwrap_or((Duration::ZERO, began));
        let failures = writes.iter().filter(|write| write.revision.is_none() && write.answered >= began);
        let first_failed = failures.clone().map(|write| write.answered - began).min();
        let failed = failures.count();
        (first.answered - effective, Gap { longest, ended_ago: ended.elapsed(), failed, first_failed })
    }
}

impl Written {
    /// Panics when an acknowledged write is lost, or two have one revision.
    fn check(&self) {
        let mut revisions = BTreeSet::new();
        for Write { key, revision, .. } in &self.writes {
            let Some(revision) = revision else { continue };
            assert!(revisions.insert(revision), "two acknowledged writes have revision {revision}");
            let stored = self.stored.get(key);
            assert_eq!(stored, Some(revision), "{key} as it was acknowledged and as it is there");
        }
    }
}

async fn writes(urls: Vec<String>, stop: Arc<AtomicBool>) -> Written {
    let connect = |url: String| async move {
        let options =
            ConnectOptions::new().with_keep_alive(Duration::from_secs(1), Duration::from_secs(1)).with_tcp_keepalive(PATIENCE);
        Client::connect([url], Some(options)).await.unwrap()
    };
    let mut clients = Vec::new();
    for url in urls {
        clients.push(connect(url).await);
    }
    let load = LOADS.fetch_add(1, Ordering::Relaxed);
    let (done, mut finished) = mpsc::unbounded_channel();
    let mut ticks = tokio::time::interval(EVERY);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        number += 1;
        let (mut client, done) = (clients[number % clients.len()].clone(), done.clone());
        let sent = Instant::now();
        tokio::spawn(async move {
            let key = format!("{PREFIX}{load}/{number}");
            let put = async {
                loop {
                    match client.put(key.as_str(), vec![b'x'; 512], None).await {
                        Ok(answer) => return answer.header().map(etcd_client::ResponseHeader::revision),
                        Err(Error::GRpcStatus(status)) if status.message() == RETRIABLE => tokio::time::sleep(EVERY).await,
                        Err(_) => return None,
                    }
                }
            };
            let revision = tokio::time::timeout(PATIENCE, put).await.unwrap_or(None);
            let _ = done.send(Write { key, sent, answered: Instant::now(), revision });
        });
    }
    drop(done);
    let mut writes = Vec::new();
    while let Some(write) = finished.recv().await {
        writes.push(write);
    }
    let stored = tokio::time::timeout(READ_PATIENCE, stored(clients)).await.expect("somebody answers a read");
    Written { writes, stored }
}

/// What is there now, as whoever answers first says it; it is removed for the next run.
async fn stored(mut clients: Vec<Client>) -> BTreeMap<String, i64> {
    loop {
        for client in &mut clients {
            let asked = client.get(PREFIX, Some(GetOptions::new().with_prefix().with_keys_only()));
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, asked).await {
                let key = |kv: &etcd_client::KeyValue| String::from_utf8_lossy(kv.key()).into_owned();
                client.delete(PREFIX, Some(DeleteOptions::new().with_prefix())).await.expect("what was written can be removed");
                return answer.kvs().iter().map(|kv| (key(kv), kv.mod_revision())).collect();
            }
        }
    }
}
