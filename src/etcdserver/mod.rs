//! The façade: etcd's gRPC services over the engine.
//!
//! | part | what it is |
//! |---|---|
//! | [`error`] | etcd's codes and texts |
//! | [`validate`] | what can be said of a request by looking at it alone; pure |
//! | `kv`, `range_stream`, `watch`, `lease`, `cluster`, `maintenance` | one service each |
//! | `direct` | the KV service's way past the router |
//! | `gate` | what is checked before a service sees a request: a leader, message sizes |
//! | `leader` | whether streams that require a leader must end |
//!
//! A request passes, in etcd's order: the gate (size on the wire, require-leader), the space quota, its field checks, its size as
//! etcd would log it, alarms, and then the engine, which decides everything that depends on the store. Every response header is
//! completed here, because only the façade knows which process answers.
//!
//! Deliberately absent: any decision that needs the store, SQL, sockets (`net` listens), and the services that don't exist yet: Auth,
//! Lock, Election and Snapshot answer Unimplemented, because a client must not take a stub for the thing.

mod cluster;
mod cluster_urls;
mod direct;
pub mod error;
mod gate;
mod health;
mod kv;
mod leader;
mod lease;
mod maintenance;
mod range_stream;
pub mod validate;
mod version;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::Builder;

use crate::engine::{self, Engine, Role};
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::etcdserverpb::watch_server::WatchServer;
use crate::proto::etcdserverpb::{AlarmType, ResponseHeader};
use crate::storage::AlarmRow;
use crate::telemetry::grpc::GrpcMetricsLayer;
use crate::telemetry::metrics::{Metrics, RequestKind};
pub use direct::Direct;
use error::Error;

/// What gRPC's own framing may add to a request, in bytes: etcd's `grpcOverheadBytes`.
const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

/// What the façade is told at start. Names are those of etcd's options.
#[derive(Clone, Debug)]
pub struct Config {
    /// The member's name, shown in MemberList.
    pub name: String,
    /// What MemberList shows as the member's peer URLs; nobody connects to them.
    pub peer_urls: Vec<String>,
    /// `--advertise-client-urls`.
    pub client_urls: Vec<String>,
    /// Where else clients find the store: at the other node of a pair.
    pub more_client_urls: tokio::sync::watch::Receiver<Vec<String>>,
    /// `--max-txn-ops`.
    pub max_txn_ops: usize,
    /// `--max-request-bytes`: how large a write may be.
    pub max_request_bytes: usize,
    /// The space quota that Status shows, in bytes; the engine enforces it.
    pub quota_bytes: u64,
    /// `--warning-unary-request-duration`: requests that take longer are logged.
    pub slow_request: Duration,
    /// How long there may be no leader before streams that require one end (etcd: three election timeouts).
    pub leaderless_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            peer_urls: vec!["http://localhost:2380".to_owned()],
            client_urls: vec!["http://localhost:2379".to_owned()],
            more_client_urls: tokio::sync::watch::channel(Vec::new()).1,
            max_txn_ops: 128,
            max_request_bytes: 3 << 19,
            quota_bytes: 2 << 30,
            slow_request: Duration::from_millis(300),
            leaderless_max: Duration::from_secs(3),
        }
    }
}

/// The services, over one engine; clones share it.
#[derive(Clone)]
pub struct EtcdServer {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    config: Config,
    metrics: Metrics,
    stop: CancellationToken,
    leader: leader::Monitor,
}

impl EtcdServer {
    /// Services over `engine`. When `stop` is cancelled, open streams end with "server stopped", after which clients go elsewhere.
    ///
    /// Must be called within a tokio runtime: a task follows the engine's role.
    pub fn new(engine: Engine, config: Config, metrics: Metrics, stop: CancellationToken) -> Self {
        let leader = leader::Monitor::start(engine.role(), config.leaderless_max, stop.clone());
        Self { inner: Arc::new(Inner { engine, config, metrics, stop, leader }) }
    }

    /// All gRPC routes, to be served beside the HTTP ones on the client port, and counted.
    pub fn router(&self) -> axum::Router {
        self.routes().layer(GrpcMetricsLayer::new(self.inner.metrics.clone()))
    }

    /// The routes alone, for a process that counts what it forwards, too.
    pub fn routes(&self) -> axum::Router {
        let limit = self.message_bytes_max();
        Services::default()
            .add(KvServer::new(self.clone()).max_decoding_message_size(limit))
            .add(WatchServer::new(self.clone()).max_decoding_message_size(limit))
            .add(LeaseServer::new(self.clone()).max_decoding_message_size(limit))
            .add(ClusterServer::new(self.clone()).max_decoding_message_size(limit))
            .add(MaintenanceServer::new(self.clone()).max_decoding_message_size(limit))
            .add(health::service(self.inner.stop.clone()))
            .with_reflection()
            .router(self.inner.engine.role(), limit)
    }

    /// The KV service without the detour of a router before `rest`, which serves all other paths.
    pub fn direct(&self, rest: axum::Router) -> Direct {
        Direct::new(self, rest)
    }

    /// How large a message may be on the wire, in bytes.
    fn message_bytes_max(&self) -> usize {
        self.inner.config.max_request_bytes + GRPC_OVERHEAD_BYTES
    }

    /// A header that shows `revision`.
    fn header(&self, revision: i64) -> ResponseHeader {
        let (cluster_id, member_id) = self.inner.engine.ids();
        let raft_term = u64::try_from(self.inner.engine.epoch()).unwrap_or(0);
        ResponseHeader { cluster_id, member_id, revision, raft_term }
    }

    /// Completes the engine's header, which shows only the revision of its answer.
    fn fill(&self, header: &mut Option<ResponseHeader>) {
        let answered = header.as_ref().map_or(0, |header| header.revision);
        let revision = if answered == 0 { self.inner.engine.revision() } else { answered };
        *header = Some(self.header(revision));
    }

    fn is_alarmed(&self, alarm: AlarmType) -> bool {
        self.inner.engine.alarms().iter().any(|raised| raised.alarm == alarm as i32)
    }

    /// The space quota, etcd's first look at a write: one that doesn't fit any more raises the NOSPACE alarm, which stays until it is
    /// disarmed. What costs nothing always passes: deletes and compactions are how one gets room back.
    async fn admit(&self, cost: i64) -> Result<(), Status> {
        let engine = &self.inner.engine;
        if cost == 0 || engine.has_room(usize::try_from(cost).unwrap_or(usize::MAX)) {
            return Ok(());
        }
        if !self.is_alarmed(AlarmType::Nospace) {
            let alarm = AlarmRow { member_id: engine.ids().1, alarm: AlarmType::Nospace as i32 };
            match engine.alarm_activate(alarm).await {
                Ok(_) => tracing::error!(
                    "the store is over its quota: writes are refused until history is compacted and the NOSPACE alarm is disarmed \
                     (etcdctl compact, etcdctl alarm disarm), or the quota is raised"
                ),
                Err(error) => tracing::warn!(%error, "could not raise the NOSPACE alarm"),
            }
        }
        Err(Error::NoSpace.into())
    }

    /// What raised alarms forbid: CORRUPT every write, NOSPACE those that take room.
    fn refuse_if_alarmed(&self, cost: i64) -> Result<(), Status> {
        if self.is_alarmed(AlarmType::Corrupt) {
            return Err(Error::Corrupt.into());
        }
        if cost > 0 && self.is_alarmed(AlarmType::Nospace) {
            return Err(Error::NoSpace.into());
        }
        Ok(())
    }

    /// Awaits the engine's answer, and tells people when that takes long.
    async fn timed<T>(
        &self,
        kind: RequestKind,
        answer: impl Future<Output = Result<T, engine::Error>>,
    ) -> Result<T, engine::Error> {
        let begun = Instant::now();
        let answer = answer.await;
        let took = begun.elapsed();
        if took > self.inner.config.slow_request {
            tracing::warn!(?kind, ?took, failed = answer.is_err(), "request took long");
        }
        answer
    }

    /// Resolves when a stream has to end, to the status that it ends with.
    async fn stream_end(&self, requires_leader: bool) -> Status {
        tokio::select! {
            () = self.inner.stop.cancelled() => Error::Stopped.into(),
            () = self.inner.leader.lost(), if requires_leader => Error::NoLeader.into(),
        }
    }
}

/// Routes, and the names of the services behind them.
#[derive(Default)]
struct Services {
    routes: Routes,
    names: Vec<&'static str>,
}

impl Services {
    fn add<S>(mut self, service: S) -> Self
    where
        S: tower::Service<http::Request<tonic::body::Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Adds the reflection of what is served here and of nothing else that the descriptors describe, in grpc-go's order.
    fn with_reflection(self) -> Self {
        let mut names = self.names.clone();
        names.extend([v1::server_reflection_server::SERVICE_NAME, v1alpha::server_reflection_server::SERVICE_NAME]);
        names.sort_unstable();
        let builder = || {
            let sets = [
                FILE_DESCRIPTOR_SET,
                tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
                tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            ];
            let builder = sets.into_iter().fold(Builder::configure(), Builder::register_encoded_file_descriptor_set);
            names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
        };
        self.add(builder().build_v1().expect("the descriptors are built with the program"))
            .add(builder().build_v1alpha().expect("the descriptors are built with the program"))
    }

    fn router(self, role: tokio::sync::watch::Receiver<Role>, message_bytes_max: usize) -> axum::Router {
        self.routes.into_axum_router().layer(gate::GateLayer::new(role, message_bytes_max, self.names))
    }
}

/// Whether the client wants to be refused by a process that knows no leader.
fn requires_leader(metadata: &tonic::metadata::MetadataMap) -> bool {
    metadata.get(gate::REQUIRE_LEADER).is_some_and(|value| value.as_bytes() == b"true")
}
