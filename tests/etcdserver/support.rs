//! A server in this process, and short ways to say what tests say often.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use duet::engine::{self, Engine};
use duet::etcdserver::{Config, EtcdServer};
use duet::proto::etcdserverpb as pb;
use duet::storage::mem::MemLog;
use duet::telemetry::metrics::Metrics;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::request_op::Request as Op;
use pb::watch_client::WatchClient;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A running server; it ends with the test's runtime.
pub struct Server {
    pub engine: Engine,
    pub log: MemLog,
    pub metrics: Metrics,
    pub stop: CancellationToken,
    pub address: String,
    channel: Channel,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut engine::Options, &mut Config)) -> Self {
        let server = Self::unready(adjust).await;
        server.engine.active().await.expect("the engine starts");
        server
    }

    /// A server whose engine may not be active yet.
    pub async fn unready(adjust: impl FnOnce(&mut engine::Options, &mut Config)) -> Self {
        let (mut options, mut config) = (engine::Options::default(), Config::default());
        adjust(&mut options, &mut config);
        let log = MemLog::default();
        let (metrics, stop) = (Metrics::unshared(), CancellationToken::new());
        let engine = Engine::start(options, Arc::new(log.clone()), metrics.clone());
        let server = EtcdServer::new(engine.clone(), config, metrics.clone(), stop.clone());
        // As a process serves that forwards nothing.
        let router = axum::Router::new().fallback_service(server.direct(server.router()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("a bound port"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let channel = Channel::from_shared(address.clone()).expect("a URL").connect().await.expect("the server answers");
        Self { engine, log, metrics, stop, address, channel }
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    pub fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Puts a value and answers the revision.
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        let request = pb::PutRequest { key: b(key), value: b(value), ..Default::default() };
        let response = self.kv().put(request).await.expect("the put succeeds").into_inner();
        response.header.expect("a header").revision
    }

    pub async fn delete(&self, key: &str, range_end: &str) -> pb::DeleteRangeResponse {
        let request = pb::DeleteRangeRequest { key: b(key), range_end: b(range_end), prev_kv: true };
        self.kv().delete_range(request).await.expect("the delete succeeds").into_inner()
    }

    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.kv().range(request).await.map(tonic::Response::into_inner)
    }

    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.kv().txn(request).await.map(tonic::Response::into_inner)
    }

    pub async fn compact(&self, revision: i64) -> Result<pb::CompactionResponse, Status> {
        let request = pb::CompactionRequest { revision, physical: true };
        self.kv().compact(request).await.map(tonic::Response::into_inner)
    }
}

pub fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// All keys with this prefix.
pub fn prefix(prefix: &str) -> pb::RangeRequest {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    pb::RangeRequest { key: b(prefix), range_end: end.into(), ..Default::default() }
}

pub fn key(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: b(key), ..Default::default() }
}

pub fn range_op(request: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(Op::RequestRange(request)) }
}

pub fn put_op(key: &str, value: &str) -> pb::RequestOp {
    let request = pb::PutRequest { key: b(key), value: b(value), ..Default::default() };
    pb::RequestOp { request: Some(Op::RequestPut(request)) }
}

pub fn success(ops: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success: ops, ..Default::default() }
}

/// The code and text of a refusal.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    assert_eq!(refused(answer), (code, text.to_owned()));
}

/// Waits for `future` no longer than a test may hang.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen"),
    }
}
