//! What `duet dev`, `duet serve` and `duet etcd` share: from bound sockets to the last connection.
//!
//! [`Prepared`] is everything that can fail for reasons outside of storage (certificates, sockets), done before storage
//! is touched: a used port must not cost an initdb. [`Prepared::run`] serves until told to stop and ends in order:
//! clients are told first, the engine stores what it has, storage goes last.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::health::ServerHealth;
use super::peer_port::OnlyCallers;
use crate::config::{Config, TlsConfig};
use crate::engine::replication::Leader;
use crate::engine::{Engine, Options, ReadRight, Recall, Role, shown_quota};
use crate::etcdserver::{self, EtcdServer};
use crate::mvcc::StoreOptions;
use crate::net::drain::Drain;
use crate::net::http::{Health, client_routes, metrics_routes, not_found};
use crate::net::local::{Local, TellRevision};
use crate::net::proxy::{Answering, ProxyLayer};
use crate::net::self_signed;
use crate::net::tls::{self, ClientTls, Tls};
use crate::net::{Drained, HOLD_MAX, Listeners, ServeOptions, SocketOptions, serve};
use crate::storage::{BoxFuture, Log};
use crate::telemetry::grpc::GrpcMetricsLayer;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::systemd::Systemd;
use crate::watch::WatchConfig;

/// How long the engine may take to end: it only finishes batches that are under way.
const ENGINE_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the announcement that clients can come waits for what a follower is told by its leader.
const IDS_TIMEOUT: Duration = Duration::from_secs(1);

/// SIGINT, SIGTERM, and SIGHUP (a closed terminal) where that doesn't mean "read the certificates again".
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    hangup_stops: bool,
}

impl StopSignals {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// The system refused.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| Failure::serving(format!("can't catch signals: {error}")));
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
            hangup_stops: config.tls.is_none(),
        })
    }

    /// Waits for the next one; its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv(), if self.hangup_stops => "SIGHUP",
        }
    }
}

/// What a node of a pair has besides.
pub struct PairSide {
    /// Holds requests while a switchover goes on.
    pub drain: Drain,
    /// Where the peer and operators call.
    pub port: PeerPort,
    /// Where clients reach the peer.
    pub peer_client_urls: watch::Receiver<Vec<String>>,
    /// Done after a stop signal, before anything ends: the leader hands over.
    pub before_stop: BoxFuture<'static, ()>,
}

/// The port that the two nodes of a pair call each other on. It also answers etcd's API, for requests that the peer forwards.
pub struct PeerPort {
    /// Bound.
    pub listeners: Listeners,
    /// Certificates; it must ask for the client's.
    pub tls: Tls,
    /// What is served besides etcd's API.
    pub services: axum::Router,
    /// The common names of the certificates that may call.
    pub callers: Arc<[String]>,
}

/// Bound and certified, but not serving.
pub struct Prepared {
    config: Config,
    metrics: Metrics,
    tls: Option<Tls>,
    advertised: Vec<String>,
    sockets: Sockets,
    pair: Option<PairSide>,
    /// Served to clients, too, and never forwarded.
    besides: Option<axum::Router>,
    systemd: Systemd,
}

/// Bound listen URLs by what is served on them.
#[derive(Default)]
struct Sockets {
    client: Listeners,
    client_http: Listeners,
    metrics: Listeners,
}

impl Prepared {
    /// Loads certificates and binds sockets.
    ///
    /// # Errors
    /// Exit code 64 for certificates, 68 for sockets.
    pub fn new(config: Config) -> Result<Self, Failure> {
        raise_open_files_limit();
        let metrics = Metrics::new(&prometheus::Registry::new(), config.metrics_extensive)
            .map_err(|error| Failure::serving(format!("can't register metrics: {error}")))?;
        let load = |files: TlsConfig| Tls::load(files, metrics.clone());
        let (given, own): (Option<TlsConfig>, Option<TlsConfig>) = match config.tls.clone() {
            Some(files) if files.self_signed.is_some() => (None, Some(files)),
            files => (files, None),
        };
        let mut tls = given.map(load).transpose()?;
        let floating = config.pair.as_ref().and_then(|pair| pair.virtual_ip.as_ref()).map(|ip| ip.address);
        let options = SocketOptions { reuse_port: config.socket_reuse_port, floating };
        let bind = |urls| Listeners::bind(urls, options);
        let sockets = Sockets {
            client: bind(&config.listen_client)?,
            client_http: bind(&config.listen_client_http)?,
            metrics: bind(&config.listen_metrics)?,
        };
        if let Some(files) = own {
            // Only now: a used port must not cost a certificate.
            self_signed::ensure(&files)?;
            tls = Some(load(files)?);
        }
        let advertised = if config.advertise_client.is_empty() { sockets.client.urls() } else { config.advertise_client.clone() };
        Ok(Self { config, metrics, tls, advertised, sockets, pair: None, besides: None, systemd: Systemd::from_environment() })
    }

    /// Serves as a node of a pair.
    pub fn join_pair(&mut self, side: PairSide) {
        self.pair = Some(side);
    }

    /// Serves `router` to clients, too: never forwarded, whoever the writer is.
    pub fn serve_besides(&mut self, router: axum::Router) {
        self.besides = Some(router);
    }

    /// How to connect to others that have certificates of the same CA; `None` without TLS.
    ///
    /// # Errors
    /// What is wrong with the certificates' files.
    pub fn client_tls(&self) -> Result<Option<ClientTls>, Failure> {
        Ok(self.tls.as_ref().map(Tls::client).transpose()?)
    }

    /// Where figures go.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What clients are told to connect to.
    pub fn advertised(&self) -> &[String] {
        &self.advertised
    }

    /// The engine over `log`, as the configuration says.
    ///
    /// `leader` is the way to another process that is the writer, for one that follows what that publishes.
    pub fn engine(&self, log: Arc<dyn Log>, read_right: ReadRight, leader: Option<Arc<dyn Leader>>) -> Engine {
        Engine::start(Options { leader, ..self.options(read_right) }, log, self.metrics.clone())
    }

    /// The engine of a replica over a `log` that others may write to, too; `recall` knows what a log must have in it.
    pub fn engine_of_replica(&self, log: Arc<dyn Log>, recall: Arc<dyn Recall>) -> Engine {
        Engine::start(Options { recall: Some(recall), ..self.options(ReadRight::Confirm) }, log, self.metrics.clone())
    }

    fn options(&self, read_right: ReadRight) -> Options {
        let (config, defaults) = (&self.config, Options::default());
        let quota_bytes = config.limits.quota_backend_bytes.map_or(0, |quota| quota.0);
        self.metrics.server.quota_backend_bytes.set(shown_quota(quota_bytes));
        Options {
            store: StoreOptions { value_budget: config.value_cache_bytes.as_usize(), ..defaults.store },
            quota_bytes,
            // Only a pair's node has a peer to which its clients could go.
            hold: matches!(read_right, ReadRight::Lease(_)).then_some(HOLD_MAX),
            read_right,
            auto_compaction: config.compaction.auto,
            slow_request: config.warning_apply_duration,
            advertise_client_urls: self.advertised.clone(),
            compaction_batch_keys: config.compaction.batch_limit,
            compaction_pause: config.compaction.sleep_interval,
            watch: WatchConfig {
                progress_interval: config.watch_progress_notify_interval,
                fragment_bytes: config.limits.max_request_bytes.as_usize() + (512 << 10),
                ..defaults.watch
            },
            ..defaults
        }
    }

    /// Serves until a stop signal, until `storage` resolves (storage has failed for good), or until the engine gives up.
    ///
    /// `answering` says whether requests are answered here or forwarded; without it, always here.
    ///
    /// # Errors
    /// Why serving ended, if nobody asked for it.
    pub async fn run(
        mut self,
        engine: Engine,
        answering: Option<watch::Receiver<Answering>>,
        storage: impl Future<Output = Failure>,
        signals: &mut StopSignals,
    ) -> Result<(), Failure> {
        let stop = CancellationToken::new();
        let sockets = std::mem::take(&mut self.sockets);
        if self.pair.is_none() {
            // A node of a pair has two runtimes, and a proof of life of its own.
            tokio::spawn(self.systemd.clone().keep_alive());
        }
        let mut facade = self.facade_config();
        let (hold, port, before_stop) = match self.pair.take() {
            Some(PairSide { drain, port, peer_client_urls, before_stop }) => {
                facade.more_client_urls = peer_client_urls;
                (Some(drain), Some(port), before_stop)
            }
            None => (None, None, Box::pin(std::future::ready(())) as BoxFuture<'static, ()>),
        };
        let facade = EtcdServer::new(engine.clone(), facade, self.metrics.clone(), stop.clone());
        let mut served = self.start_serving(sockets, &facade, &engine, answering.clone(), (hold, port), &stop);
        let outcome = tokio::select! {
            name = signals.next() => {
                self.systemd.stopping();
                tracing::info!(signal = name, "stopping");
                tokio::select! {
                    () = before_stop => {}
                    name = signals.next() => tracing::warn!(signal = name, "told to stop again: not handing over"),
                }
                Ok(())
            }
            failure = storage => Err(failure),
            failure = gave_up(&engine) => Err(failure),
            never = self.announce(&engine, answering) => match never {},
        };
        stop.cancel();
        drain(&mut served, signals).await;
        if timeout(ENGINE_STOP_TIMEOUT, engine.stop()).await.is_err() {
            tracing::warn!("the engine did not end in time; the next start takes over from what is stored");
        }
        outcome
    }

    fn start_serving(
        &self,
        sockets: Sockets,
        facade: &EtcdServer,
        engine: &Engine,
        answering: Option<watch::Receiver<Answering>>,
        (drain, port): (Option<Drain>, Option<PeerPort>),
        stop: &CancellationToken,
    ) -> JoinSet<Drained> {
        let mut grpc = facade.routes();
        if let Some(answering) = answering.clone() {
            let (role, shown, published) = (engine.role(), engine.clone(), engine.clone());
            let shows = move |revision| {
                let engine = shown.clone();
                Box::pin(async move { engine.shows(revision).await }) as BoxFuture<'static, ()>
            };
            let local = Local::new(move || *role.borrow() == Role::Following, shows);
            if drain.is_some() {
                // The other replicas of `duet serve` answer nothing by themselves.
                grpc = grpc.layer(TellRevision::new(move || published.revision()));
            }
            grpc = grpc.layer(ProxyLayer::new(answering, self.metrics.clone()).with_local(local));
        }
        if let Some(drain) = drain {
            grpc = grpc.layer(drain);
        }
        // Outermost: what is forwarded to the writer is a request of this process's clients, as at etcd's followers.
        let mut grpc = grpc.layer(GrpcMetricsLayer::new(self.metrics.clone()));
        let mut served = JoinSet::new();
        if let Some(port) = port {
            let options = ServeOptions::new(&self.config, Some(port.tls.clone()), self.metrics.clone());
            let router = grpc.clone().merge(port.services).fallback(not_found).layer(OnlyCallers(port.callers));
            served.spawn(serve(port.listeners, router, stop.clone(), options));
            tokio::spawn(port.tls.keep_fresh(stop.clone()));
        }
        if let Some(besides) = self.besides.clone() {
            grpc = grpc.merge(besides);
        }
        let health: Arc<dyn Health> = Arc::new(ServerHealth::new(engine.clone(), answering.clone()));
        let http = client_routes(Arc::clone(&health), self.metrics.clone());
        let client = if self.config.listen_client_http.is_empty() { grpc.merge(http.clone()) } else { grpc };
        let options = ServeOptions::new(&self.config, self.tls.clone(), self.metrics.clone());
        let client = client.fallback(not_found);
        if answering.is_none() {
            served.spawn(serve(sockets.client, facade.direct(client), stop.clone(), options.clone()));
        } else {
            served.spawn(serve(sockets.client, client, stop.clone(), options.clone()));
        }
        let routers = [(sockets.client_http, http), (sockets.metrics, metrics_routes(health, self.metrics.clone()))];
        for (listeners, router) in routers {
            served.spawn(serve(listeners, router.fallback(not_found), stop.clone(), options.clone()));
        }
        if let Some(tls) = self.tls.clone() {
            tokio::spawn(tls.keep_fresh(stop.clone()));
        }
        served
    }

    /// Says once that clients can come, in the words that programs which start an etcd wait for.
    async fn announce(&self, engine: &Engine, answering: Option<watch::Receiver<Answering>>) -> Infallible {
        let forwarding = async {
            match answering {
                Some(mut answering) => drop(answering.wait_for(|now| matches!(now, Answering::There(_))).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = engine.active() => {}
            () = forwarding => {}
            else => {} // it gave up, and that is another's to tell
        }
        if matches!(*engine.role().borrow(), Role::Failed(_) | Role::Stopped) {
            return std::future::pending().await;
        }
        // A follower learns its ids from the leader, if that tells.
        let _ = timeout(IDS_TIMEOUT, engine.recovered()).await;
        let (cluster_id, member_id) = engine.ids();
        self.metrics.server.set_server_id(member_id);
        self.systemd.ready().await;
        tracing::info!(
            cluster_id = format!("{cluster_id:x}"),
            member_id = format!("{member_id:x}"),
            revision = engine.revision(),
            endpoints = self.advertised.join(","),
            "ready to serve client requests"
        );
        if let Some(url) = self.advertised.first().filter(|_| std::io::stderr().is_terminal()) {
            eprintln!(
                "\nTry:  etcdctl --endpoints={url} put greeting hello\nor:   kube-apiserver --etcd-servers={url} …\nStop: Ctrl-C\n"
            );
        }
        std::future::pending().await
    }

    fn facade_config(&self) -> etcdserver::Config {
        let config = &self.config;
        etcdserver::Config {
            name: config.name.clone(),
            client_urls: self.advertised.clone(),
            peer_urls: config.advertise_peer.clone(),
            max_txn_ops: config.limits.max_txn_ops,
            max_request_bytes: config.limits.max_request_bytes.as_usize(),
            quota_bytes: config.limits.quota_backend_bytes.map_or(0, |quota| quota.0),
            slow_request: config.warning_unary_request_duration,
            ..etcdserver::Config::default()
        }
    }
}

/// Refuses certificates that can't be used, before anything is bound.
pub(super) fn check(config: &Config) -> Result<(), Failure> {
    match &config.tls {
        // Made at the start where there is none.
        Some(files) if files.self_signed.is_some() && !(files.cert_file.exists() && files.key_file.exists()) => Ok(()),
        Some(files) => Ok(tls::check(files)?),
        None => Ok(()),
    }
}

/// Resolves when the engine has given up.
async fn gave_up(engine: &Engine) -> Failure {
    let mut role = engine.role();
    loop {
        if let Role::Failed(why) = &*role.borrow_and_update() {
            return Failure::unusable(why.clone());
        }
        if role.changed().await.is_err() {
            return Failure::serving("the engine ended without being asked to");
        }
    }
}

/// Waits for all connections; a second signal cuts them off.
async fn drain(served: &mut JoinSet<Drained>, signals: &mut StopSignals) {
    let mut forced = 0;
    loop {
        tokio::select! {
            ended = served.join_next() => match ended {
                Some(Ok(Drained::Forced(connections))) => forced += connections,
                Some(_) => {}
                None => break,
            },
            _ = signals.next() => {
                tracing::warn!("told to stop again: not waiting for connections");
                served.shutdown().await;
                break;
            }
        }
    }
    if forced > 0 {
        tracing::warn!(connections = forced, "cut off connections that did not end in time");
    }
}

/// An API server opens a connection for each resource: take as many files as the system allows.
fn raise_open_files_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
}
