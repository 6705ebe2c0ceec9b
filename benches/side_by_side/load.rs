//! The phases: what is sent, and what is measured.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use duet::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use duet::proto::etcdserverpb::kv_client::KvClient;
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::watch_client::WatchClient;
use duet::proto::etcdserverpb::watch_request::RequestUnion;
use duet::proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest};
use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint};

use crate::server::Server;

/// Bytes of a value.
const VALUE_BYTES: usize = 1024;
/// Keys that each client writes in turn.
const KEYS_PER_CLIENT: usize = 16;
/// Keys of the list phases, and bytes of their values.
const LIST_KEYS: usize = 10_000;
const LIST_VALUE_BYTES: usize = 2048;
const PAGE: i64 = 500;
/// Watchers of the watch phase, and writes a second.
const WATCHERS: usize = 100;
const WATCH_WRITES_PER_SECOND: u64 = 200;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Put(usize),
    Cas(usize),
    Get(usize),
    List,
    PagedList,
    Watch,
}

/// What one phase of one round measured on one server.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub phase: String,
    pub server: &'static str,
    pub round: usize,
    pub operations: u64,
    pub seconds: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    pub cpu_seconds: f64,
    pub pss_bytes: u64,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.seconds
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<14} {:<5} round {}: {:>9.0}/s  P50 {:>7} µs  P99 {:>7} µs  server CPU {:>6.1} µs/op",
            self.phase,
            self.server,
            self.round,
            self.per_second(),
            self.p50_us,
            self.p99_us,
            self.cpu_seconds * 1e6 / self.operations.max(1) as f64
        )
    }
}

impl Phase {
    pub const ALL: [Self; 11] = [
        Self::Put(1),
        Self::Put(64),
        Self::Put(256),
        Self::Cas(1),
        Self::Cas(64),
        Self::Cas(256),
        Self::Get(1),
        Self::Get(64),
        Self::List,
        Self::PagedList,
        Self::Watch,
    ];

    pub fn name(self) -> String {
        match self {
            Self::Put(clients) => format!("put-{clients}"),
            Self::Cas(clients) => format!("cas-{clients}"),
            Self::Get(clients) => format!("get-{clients}"),
            Self::List => "list-whole".into(),
            Self::PagedList => "list-paged".into(),
            Self::Watch => "watch".into(),
        }
    }

    pub async fn run(self, server: &Server, duration: Duration, round: usize) -> anyhow::Result<Measured> {
        self.prepare(server).await?;
        let cpu_before = server.cpu_seconds();
        let begun = Instant::now();
        let latencies = match self {
            Self::Put(clients) => closed_loop(server, clients, duration, Kind::Put).await?,
            Self::Cas(clients) => closed_loop(server, clients, duration, Kind::Cas).await?,
            Self::Get(clients) => closed_loop(server, clients, duration, Kind::Get).await?,
            Self::List => closed_loop(server, 1, duration, Kind::List(0)).await?,
            Self::PagedList => closed_loop(server, 1, duration, Kind::List(PAGE)).await?,
            Self::Watch => watch(server, duration).await?,
        };
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Measured {
            phase: self.name(),
            server: server.name,
            round,
            operations: latencies.len(),
            seconds,
            p50_us: latencies.value_at_quantile(0.5),
            p99_us: latencies.value_at_quantile(0.99),
            p999_us: latencies.value_at_quantile(0.999),
            max_us: latencies.max(),
            cpu_seconds: server.cpu_seconds() - cpu_before,
            pss_bytes: server.pss_bytes(),
        })
    }

    async fn prepare(self, server: &Server) -> anyhow::Result<()> {
        match self {
            Self::List | Self::PagedList => fill_list(server).await,
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Put,
    Cas,
    Get,
    List(i64),
}

/// Whether the server answers a read.
pub async fn answers(url: &str) -> bool {
    let Ok(channel) = connect(url).await else { return false };
    KvClient::new(channel).range(get(Bytes::from_static(b"health"))).await.is_ok()
}

async fn connect(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).initial_stream_window_size(1 << 20);
    Ok(endpoint.initial_connection_window_size(1 << 24).connect().await?)
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn get(key: Bytes) -> RangeRequest {
    RangeRequest { key, ..RangeRequest::default() }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("fixed bounds are valid")
}

/// Bytes that don't compress, the same in every run.
fn value(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state as u8
    };
    (0..bytes).map(|_| next(&mut state)).collect()
}

/// `clients` tasks that send one request after the other. About eight clients share a connection.
async fn closed_loop(server: &Server, clients: usize, duration: Duration, kind: Kind) -> anyhow::Result<Histogram<u64>> {
    let mut channels = Vec::new();
    for _ in 0..clients.div_ceil(8) {
        channels.push(connect(&server.url).await?);
    }
    let mut loops = Vec::new();
    let deadline = Instant::now() + duration;
    for client in 0..clients {
        let channel = channels[client % channels.len()].clone();
        loops.push(tokio::spawn(client_loop(kv(channel), client, deadline, kind)));
    }
    let mut merged = histogram();
    for running in loops {
        merged.add(running.await??)?;
    }
    Ok(merged)
}

async fn client_loop(mut kv: KvClient<Channel>, client: usize, deadline: Instant, kind: Kind) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = histogram();
    let keys: Vec<Bytes> = (0..KEYS_PER_CLIENT).map(|n| Bytes::from(format!("/registry/bench/c{client:04}/k{n:02}"))).collect();
    let value = value(VALUE_BYTES, client as u64 + 1);
    let mut revisions = vec![0; keys.len()];
    if matches!(kind, Kind::Cas | Kind::Get) {
        for (key, revision) in keys.iter().zip(&mut revisions) {
            let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
            *revision = kv.put(put).await?.into_inner().header.context("a header")?.revision;
        }
    }
    for turn in 0.. {
        let sent = Instant::now();
        if sent >= deadline {
            break;
        }
        let at = turn % keys.len();
        match kind {
            Kind::Put => {
                kv.put(PutRequest { key: keys[at].clone(), value: value.clone(), ..PutRequest::default() }).await?;
            }
            Kind::Cas => revisions[at] = cas(&mut kv, &keys[at], &value, revisions[at]).await?,
            Kind::Get => {
                let answer = kv.range(get(keys[at].clone())).await?.into_inner();
                ensure!(answer.kvs.len() == 1, "the key that was put is there");
            }
            Kind::List(page) => list(&mut kv, page).await?,
        }
        latencies.record(u64::try_from(sent.elapsed().as_micros())?.max(1))?;
    }
    Ok(latencies)
}

/// Kubernetes' update: put if the key still has the revision that was read.
async fn cas(kv: &mut KvClient<Channel>, key: &Bytes, value: &Bytes, revision: i64) -> anyhow::Result<i64> {
    let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
    let request = TxnRequest {
        compare: vec![Compare {
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(get(key.clone()))) }],
    };
    let answer = kv.txn(request).await?.into_inner();
    ensure!(answer.succeeded, "nobody else writes this key");
    Ok(answer.header.context("a header")?.revision)
}

async fn fill_list(server: &Server) -> anyhow::Result<()> {
    let mut client = kv(connect(&server.url).await?);
    let count = RangeRequest { count_only: true, ..list_request(Bytes::from_static(b"/registry/list/")) };
    if client.range(count).await?.into_inner().count == LIST_KEYS as i64 {
        return Ok(());
    }
    let mut puts = Vec::new();
    for n in 0..LIST_KEYS {
        let mut client = client.clone();
        let put = PutRequest {
            key: Bytes::from(format!("/registry/list/object-{n:06}")),
            value: value(LIST_VALUE_BYTES, n as u64 + 1),
            ..PutRequest::default()
        };
        puts.push(tokio::spawn(async move { client.put(put).await }));
        if puts.len() == 64 {
            for put in puts.drain(..) {
                put.await??;
            }
        }
    }
    for put in puts {
        put.await??;
    }
    Ok(())
}

fn list_request(from: Bytes) -> RangeRequest {
    RangeRequest { key: from, range_end: Bytes::from_static(b"/registry/list0"), ..RangeRequest::default() }
}

/// The whole list, in pages as Kubernetes pages (the first page's revision pinned), or at once for a page of 0.
async fn list(kv: &mut KvClient<Channel>, page: i64) -> anyhow::Result<()> {
    let mut from = Bytes::from_static(b"/registry/list/");
    let mut revision = 0;
    let mut seen = 0;
    loop {
        let answer = kv.range(RangeRequest { limit: page, revision, ..list_request(from) }).await?.into_inner();
        seen += answer.kvs.len();
        revision = answer.header.context("a header")?.revision;
        if !answer.more {
            ensure!(seen == LIST_KEYS, "the list is complete: {seen}");
            return Ok(());
        }
        let last = answer.kvs.last().context("a page has keys")?;
        from = [last.key.as_ref(), b"\0"].concat().into();
    }
}

/// Watchers on one prefix, writes on schedule; from the moment a write should have been sent to the moment each watcher has it.
async fn watch(server: &Server, duration: Duration) -> anyhow::Result<Histogram<u64>> {
    let begun = Instant::now();
    let writes = duration.as_secs() * WATCH_WRITES_PER_SECOND;
    let due: Arc<Vec<AtomicU64>> = Arc::new((0..writes).map(|_| AtomicU64::new(0)).collect());
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let stream = open_watch(server).await?;
        watchers.push(tokio::spawn(follow(stream, Arc::clone(&due), begun)));
    }
    let mut client = kv(connect(&server.url).await?);
    let start = Instant::now();
    for n in 0..writes {
        let at = start + Duration::from_secs_f64(n as f64 / WATCH_WRITES_PER_SECOND as f64);
        tokio::time::sleep_until(at.into()).await;
        due[usize::try_from(n)?].store(u64::try_from((at - begun).as_micros())?, Ordering::Relaxed);
        let mut client = client.clone();
        let put = PutRequest {
            key: Bytes::from(format!("/registry/watched/{n:08}")),
            value: value(VALUE_BYTES, n + 1),
            ..PutRequest::default()
        };
        tokio::spawn(async move { client.put(put).await });
    }
    let mut merged = histogram();
    for watcher in watchers {
        merged.add(
            tokio::time::timeout(duration + Duration::from_secs(30), watcher).await.context("a watcher got every event")???,
        )?;
    }
    let delete = duet::proto::etcdserverpb::DeleteRangeRequest {
        key: Bytes::from_static(b"/registry/watched/"),
        range_end: Bytes::from_static(b"/registry/watched0"),
        ..Default::default()
    };
    client.delete_range(delete).await?;
    Ok(merged)
}

async fn open_watch(server: &Server) -> anyhow::Result<tonic::Streaming<duet::proto::etcdserverpb::WatchResponse>> {
    let create = WatchCreateRequest {
        key: Bytes::from_static(b"/registry/watched/"),
        range_end: Bytes::from_static(b"/registry/watched0"),
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures_util::StreamExt::chain(futures_util::stream::iter([request]), futures_util::stream::pending());
    let mut stream = WatchClient::new(connect(&server.url).await?).watch(requests).await?.into_inner();
    ensure!(stream.message().await?.context("a created response")?.created, "the watch was created");
    Ok(stream)
}

async fn follow(
    mut stream: tonic::Streaming<duet::proto::etcdserverpb::WatchResponse>,
    due: Arc<Vec<AtomicU64>>,
    begun: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = histogram();
    while latencies.len() < due.len() as u64 {
        let response = stream.message().await?.context("the watch goes on")?;
        let now = u64::try_from(begun.elapsed().as_micros())?;
        for event in response.events {
            let kv = event.kv.context("an event has a key")?;
            let number: usize = std::str::from_utf8(&kv.key)?.rsplit('/').next().context("a name")?.parse()?;
            latencies.record(now.saturating_sub(due[number].load(Ordering::Relaxed)).max(1))?;
        }
    }
    Ok(latencies)
}
