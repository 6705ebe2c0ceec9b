//! Clients that write, read, watch, hold leases and compact while a test does harm, and take down what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, KeyValue, LeaseGrantOptions,
    PutOptions, Txn, TxnOp, WatchOptions,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::common::process::PATIENCE;
use crate::history::{Change, Evidence, LEASED, Listing, Outcome, Stored, WatchLog, Write};

/// Keys of each writer's own.
const KEYS: u64 = 12;
/// What clients do after an error, instead of asking in a loop.
const BACKOFF: Duration = Duration::from_millis(20);
/// A lease that no test outlives.
const LEASE_TTL: i64 = 600;
/// The last write of a test puts this key below each prefix that is watched.
const END: &str = "end";
/// Texts after which nothing was done, as etcd's own client knows them. All others leave it open.
const REFUSALS: [&str; 3] = ["there is no connection available", "etcdserver: too many requests", "etcdserver: no leader"];

/// The clients of one test.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    watches: JoinSet<WatchLog>,
    watched: Vec<&'static str>,
}

struct Shared {
    seed: u64,
    urls: watch::Sender<Vec<String>>,
    writes: Mutex<Vec<Write>>,
    listings: Mutex<Vec<Listing>>,
    leases: Mutex<Vec<i64>>,
    /// What was acknowledged, newest revision.
    newest: AtomicI64,
    acknowledged: watch::Sender<u64>,
    /// What the watch of everything has got to.
    watched: AtomicI64,
    failed_lists: AtomicU64,
    stream_ends: AtomicU64,
    stop: CancellationToken,
    /// The revision of the last write, when there is one.
    end: watch::Sender<Option<i64>>,
}

impl Load {
    /// Clients of the servers at `urls`; nobody does anything yet. Watches everything from the first revision on.
    pub fn new(seed: u64, urls: Vec<String>) -> Self {
        Self::on(seed, urls, 0)
    }

    /// As [`Load::new`], watching everything at the server number `server`.
    pub fn on(seed: u64, urls: Vec<String>, server: usize) -> Self {
        eprintln!("seed {seed}");
        let shared = Arc::new(Shared {
            seed,
            urls: watch::Sender::new(urls),
            writes: Mutex::default(),
            listings: Mutex::default(),
            leases: Mutex::default(),
            newest: AtomicI64::new(0),
            acknowledged: watch::Sender::new(0),
            watched: AtomicI64::new(0),
            failed_lists: AtomicU64::new(0),
            stream_ends: AtomicU64::new(0),
            stop: CancellationToken::new(),
            end: watch::Sender::new(None),
        });
        let mut load = Self { shared, tasks: JoinSet::new(), watches: JoinSet::new(), watched: Vec::new() };
        load.watch("", 1, server);
        load
    }

    /// A writer of keys of its own, at the server number `server`.
    pub fn write(&mut self, name: &'static str, server: usize) {
        self.tasks.spawn(writer(Arc::clone(&self.shared), name, server));
    }

    /// A client that lists everything below `prefix` again and again, at the server number `server`.
    pub fn list(&mut self, prefix: &'static str, server: usize) {
        self.tasks.spawn(lister(Arc::clone(&self.shared), prefix, server));
    }

    /// A watcher of everything below `prefix` from a revision on.
    pub fn watch(&mut self, prefix: &'static str, from: i64, server: usize) {
        self.watched.push(prefix);
        self.watches.spawn(watcher(Arc::clone(&self.shared), prefix, from, server));
    }

    /// A client that is granted leases and puts keys with them.
    pub fn lease(&mut self) {
        self.tasks.spawn(lessee(Arc::clone(&self.shared)));
    }

    /// A client that compacts whenever so many writes have been acknowledged.
    pub fn compact(&mut self, every: u64) {
        self.tasks.spawn(compactor(Arc::clone(&self.shared), every));
    }

    /// The same servers have other URLs from now on.
    pub fn moved(&self, urls: Vec<String>) {
        self.shared.urls.send_replace(urls);
    }

    /// Waits until so many more writes have been acknowledged; panics when a client has found something wrong.
    pub async fn progress(&mut self, writes: u64) {
        tokio::select! {
            () = self.shared.progress(writes) => {}
            Some(ended) = self.tasks.join_next() => ended.expect("clients go on"),
            Some(ended) = self.watches.join_next() => drop(ended.expect("watchers go on")),
        }
    }

    /// Keys with values of `bytes` bytes below `prefix`, as one client's writes.
    pub async fn fill(&self, prefix: &str, keys: u64, bytes: usize) {
        let mut client = Connection::new(&self.shared, 0);
        for chunk in (0..keys).collect::<Vec<_>>().chunks(64) {
            let token = format!("fill-{prefix}{}", chunk[0]);
            let puts: Vec<Vec<u8>> = chunk.iter().map(|key| format!("{prefix}{key:06}").into()).collect();
            let write = Write { token, puts, deletes: Vec::new(), compared: None, outcome: Outcome::Unknown };
            assert!(client.transact(write, bytes, 0).await.is_some());
        }
    }

    /// Puts a key with a lease that nobody keeps alive, and waits until both are gone.
    pub async fn lease_that_ends(&self, id: i64) {
        let mut client = Connection::new(&self.shared, 0);
        let granted = async |client: &mut Connection| {
            client.client().await.lease_grant(1, Some(LeaseGrantOptions::new().with_id(id))).await
        };
        while let Err(error) = granted(&mut client).await {
            if error.to_string().contains("lease already exists") {
                break;
            }
        }
        let key = [LEASED, b"ends"].concat();
        for attempt in 0.. {
            let token = format!("lease-{id}-{attempt}");
            let write = Write { token, puts: vec![key.clone()], deletes: Vec::new(), compared: None, outcome: Outcome::Unknown };
            if client.transact(write, 0, id).await.is_some() {
                break;
            }
        }
        let began = Instant::now();
        while !client.client().await.get(key.clone(), None).await.is_ok_and(|answer| answer.kvs().is_empty()) {
            assert!(began.elapsed() < PATIENCE, "lease {id} does not end");
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// How many lists have failed.
    pub fn failed_lists(&self) -> u64 {
        self.shared.failed_lists.load(Ordering::Relaxed)
    }

    /// How many times a watcher had to begin a new stream.
    pub fn stream_ends(&self) -> u64 {
        self.shared.stream_ends.load(Ordering::Relaxed)
    }

    /// Ends all clients, lets the watchers catch up, and gathers what everybody saw. The log's rows are the caller's to add.
    pub async fn finish(mut self) -> Evidence {
        self.shared.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let mut client = Connection::new(&self.shared, 0);
        self.watched.sort_unstable();
        self.watched.dedup();
        let puts: Vec<Vec<u8>> = self.watched.iter().map(|prefix| format!("{prefix}{END}").into()).collect();
        for attempt in 0.. {
            let token = format!("{END}-{attempt}");
            let write = Write { token, puts: puts.clone(), deletes: Vec::new(), compared: None, outcome: Outcome::Unknown };
            if let Some(revision) = client.transact(write, 0, 0).await {
                self.shared.end.send_replace(Some(revision));
                break;
            }
        }
        let mut watches: Vec<WatchLog> = Vec::new();
        while let Some(ended) = tokio::time::timeout(PATIENCE, self.watches.join_next()).await.expect("the watchers catch up") {
            watches.push(ended.unwrap());
        }
        watches.sort_by(|left, right| (left.from, &left.prefix).cmp(&(right.from, &right.prefix)));
        let mut listings = std::mem::take(&mut *self.shared.listings.lock().await);
        listings.push(client.list("").await.expect("a list at rest"));
        let leases = client.client().await.leases().await.unwrap();
        let leases_granted = self.shared.leases.lock().await.clone();
        Evidence {
            writes: std::mem::take(&mut *self.shared.writes.lock().await),
            listings,
            watches,
            log: Vec::new(),
            compacted: -1,
            leases_granted,
            leases: leases.leases().iter().map(|lease| lease.id()).collect(),
        }
    }
}

impl Shared {
    fn rng(&self, name: &str) -> SmallRng {
        SmallRng::seed_from_u64(self.seed ^ u64::from(crc32c::crc32c(name.as_bytes())))
    }

    async fn progress(&self, writes: u64) {
        let mut acknowledged = self.acknowledged.subscribe();
        let due = *acknowledged.borrow() + writes;
        let reached = acknowledged.wait_for(|count| *count >= due);
        tokio::time::timeout(PATIENCE, reached).await.expect("writes go on").unwrap();
    }

    /// Waits, but no longer than the test goes on. True: go on.
    async fn pause(&self) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(BACKOFF) => true,
        }
    }
}

/// One client's connection to one of the servers, wherever that is by now.
struct Connection {
    shared: Arc<Shared>,
    server: usize,
    open: Option<(String, Client)>,
}

impl Connection {
    fn new(shared: &Arc<Shared>, server: usize) -> Self {
        Self { shared: Arc::clone(shared), server, open: None }
    }

    async fn client(&mut self) -> Client {
        let url = self.shared.urls.borrow()[self.server].clone();
        if let Some((at, client)) = &self.open
            && *at == url
        {
            return client.clone();
        }
        let client = Client::connect([&url], None).await.expect("connects when it is first used");
        self.open.insert((url, client)).1.clone()
    }

    /// Sends a write, files it with its outcome, and answers the revision if it was acknowledged.
    async fn transact(&mut self, mut write: Write, value_bytes: usize, lease: i64) -> Option<i64> {
        let value = format!("{} {}", write.token, "x".repeat(value_bytes));
        let options = PutOptions::new().with_lease(lease);
        let put = |key: &Vec<u8>| TxnOp::put(key.clone(), value.clone(), Some(options.clone()));
        let mut operations: Vec<TxnOp> = write.puts.iter().map(put).collect();
        operations.extend(write.deletes.iter().map(|key| TxnOp::delete(key.clone(), None::<DeleteOptions>)));
        let compare = |revision| Compare::mod_revision(write.puts[0].clone(), CompareOp::Equal, revision);
        let compares: Vec<Compare> = write.compared.into_iter().map(compare).collect();
        let transaction = Txn::new().when(compares).and_then(operations);
        let mut client = self.client().await;
        let answer = tokio::time::timeout(PATIENCE, client.txn(transaction)).await.expect("every write is answered");
        write.outcome = match answer {
            Ok(answer) => {
                assert!(answer.succeeded(), "{}: compared {:?}, and another value was there", write.token, write.compared);
                Outcome::Acknowledged(answer.header().unwrap().revision())
            }
            Err(Error::GRpcStatus(status)) if REFUSALS.contains(&status.message()) => Outcome::Refused,
            Err(error) => {
                eprintln!("nobody knows what became of {}: {error}", write.token);
                Outcome::Unknown
            }
        };
        let outcome = write.outcome;
        self.shared.writes.lock().await.push(write);
        let Outcome::Acknowledged(revision) = outcome else {
            self.shared.pause().await;
            return None;
        };
        self.shared.newest.fetch_max(revision, Ordering::SeqCst);
        self.shared.acknowledged.send_modify(|count| *count += 1);
        Some(revision)
    }

    /// A linearizable list; None when it failed. It must not be older than what was acknowledged before it was asked for.
    async fn list(&mut self, prefix: &str) -> Option<Listing> {
        let before = self.shared.newest.load(Ordering::SeqCst);
        let options = if prefix.is_empty() { GetOptions::new().with_all_keys() } else { GetOptions::new().with_prefix() };
        let mut client = self.client().await.kv_client().max_decoding_message_size(1 << 30);
        let answer = tokio::time::timeout(PATIENCE, client.get(prefix, Some(options))).await.expect("every list is answered");
        let answer = answer.inspect_err(|error| eprintln!("a list failed: {error}")).ok()?;
        let revision = answer.header().unwrap().revision();
        assert!(revision >= before, "a list showed revision {revision} after {before} had been acknowledged");
        let kvs = answer.kvs().iter().map(|kv| (kv.key().to_vec(), kv.mod_revision(), stored(kv))).collect();
        Some(Listing { revision, prefix: prefix.into(), kvs })
    }
}

fn stored(kv: &KeyValue) -> Stored {
    Stored::new(kv.value(), kv.create_revision(), kv.version(), kv.lease())
}

async fn writer(shared: Arc<Shared>, name: &'static str, server: usize) {
    let mut rng = shared.rng(name);
    let mut client = Connection::new(&shared, server);
    // Mod revisions of the writer's own keys; what became of a write of unknown outcome isn't known here either.
    let mut known: BTreeMap<Vec<u8>, Option<i64>> = BTreeMap::new();
    for number in 0.. {
        if shared.stop.is_cancelled() {
            return;
        }
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for _ in 0..rng.random_range(1..5) {
            let key = format!("{name}/{}", rng.random_range(0..KEYS)).into_bytes();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let deletes = if rng.random_ratio(1, 4) { keys.split_off(1) } else { Vec::new() };
        let compared = if rng.random_ratio(1, 2) { known.get(&keys[0]).copied().unwrap_or(Some(0)) } else { None };
        let write = Write {
            token: format!("{name}-{number}"),
            puts: keys.clone(),
            deletes: deletes.clone(),
            compared,
            outcome: Outcome::Unknown,
        };
        let written = client.transact(write, rng.random_range(0..200), 0).await;
        known.extend(keys.into_iter().map(|key| (key, written)));
        known.extend(deletes.into_iter().map(|key| (key, written.map(|_| 0))));
    }
}

async fn lister(shared: Arc<Shared>, prefix: &'static str, server: usize) {
    let mut client = Connection::new(&shared, server);
    while !shared.stop.is_cancelled() {
        match client.list(prefix).await {
            Some(listing) => shared.listings.lock().await.push(listing),
            None => drop(shared.failed_lists.fetch_add(1, Ordering::Relaxed)),
        }
        if !shared.pause().await {
            return;
        }
    }
}

async fn lessee(shared: Arc<Shared>) {
    let mut client = Connection::new(&shared, 0);
    for id in 1.. {
        match client.client().await.lease_grant(LEASE_TTL, Some(LeaseGrantOptions::new().with_id(id))).await {
            Ok(_) => shared.leases.lock().await.push(id),
            Err(_) if shared.pause().await => continue,
            Err(_) => return,
        }
        let key = [LEASED, id.to_string().as_bytes()].concat();
        let write = Write {
            token: format!("lease-{id}"),
            puts: vec![key],
            deletes: Vec::new(),
            compared: Some(0),
            outcome: Outcome::Unknown,
        };
        client.transact(write, 0, id).await;
        if !shared.pause().await {
            return;
        }
    }
}

async fn compactor(shared: Arc<Shared>, every: u64) {
    let mut client = Connection::new(&shared, 0);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.progress(every) => {}
        }
        // A watcher that has fallen behind must be able to begin again where it was.
        let revision = shared.watched.load(Ordering::SeqCst) - 200;
        if revision > 0 {
            let _ = client.client().await.compact(revision, None::<CompactionOptions>).await;
        }
    }
}

async fn watcher(shared: Arc<Shared>, prefix: &'static str, from: i64, server: usize) -> WatchLog {
    let mut client = Connection::new(&shared, server);
    let mut log = WatchLog { prefix: prefix.into(), from, changes: Vec::new() };
    while follow(&mut client, &mut log).await.is_none() {
        shared.stream_ends.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BACKOFF).await;
    }
    log
}

/// One stream. `Some` when the last write was seen, None when the stream ended before.
async fn follow(client: &mut Connection, log: &mut WatchLog) -> Option<()> {
    let seen = |log: &WatchLog| log.changes.last().map_or(log.from - 1, |change| change.revision);
    let options = WatchOptions::new().with_start_revision(seen(log) + 1);
    let options = if log.prefix.is_empty() { options.with_all_keys() } else { options.with_prefix() };
    let mut etcd = client.client().await.watch_client().max_decoding_message_size(1 << 30);
    let mut stream = etcd.watch(log.prefix.clone(), Some(options)).await.ok()?;
    let mut end = client.shared.end.subscribe();
    loop {
        if end.borrow_and_update().is_some_and(|end| seen(log) >= end) {
            return Some(());
        }
        let response = tokio::select! {
            response = stream.message() => response.ok()??,
            _ = end.changed() => continue,
        };
        assert!(!response.canceled(), "a watch from {} was cancelled: {}", seen(log) + 1, response.cancel_reason());
        for event in response.events() {
            let kv = event.kv().unwrap();
            let put = (event.event_type() == EventType::Put).then(|| stored(kv));
            log.changes.push(Change { revision: kv.mod_revision(), key: kv.key().to_vec(), put });
        }
        if log.prefix.is_empty() {
            client.shared.watched.fetch_max(seen(log), Ordering::SeqCst);
        }
    }
}
