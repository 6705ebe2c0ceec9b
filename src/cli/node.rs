//! `duet node`: one of a pair. A PostgreSQL of its own, the engine, the façade, and the supervisor that decides with the peer and the
//! witness who leads.
//!
//! The supervisor has threads of its own, so that no load on the API delays a heartbeat.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::guardian::{self, Part, Pulse};
use super::load::{self, Loaded};
use super::server::{self, PairSide, PeerPort, Prepared, StopSignals};
use super::{Failure, departure, dev, runtime};
use crate::check::Subject;
use crate::check::node::CheckService;
use crate::config::{Config, ListenAddress, ListenUrl, PairConfig};
use crate::engine::{ReadLease, ReadRight, Role};
use crate::net::drain::Drain;
use crate::net::proxy::{Answering, Upstream};
use crate::net::tls::{self, Tls};
use crate::net::{HOLD_MAX, Listeners, SocketOptions};
use crate::proto::duetpb::admin_server::AdminServer;
use crate::proto::duetpb::check_server::CheckServer;
use crate::proto::duetpb::peer_server::PeerServer;
use crate::proto::duetpb::replication_server::ReplicationServer;
use crate::storage::pg::{PgLog, PgOptions};
use crate::supervisor::fsm::{NodeId, Setup, Third};
use crate::supervisor::pair::admin::AdminService;
use crate::supervisor::pair::clock;
use crate::supervisor::pair::drill;
use crate::supervisor::pair::driver::{Driver, Handle, Parts, View};
use crate::supervisor::pair::fence::Fence;
use crate::supervisor::pair::gate::Gate;
use crate::supervisor::pair::history::History;
use crate::supervisor::pair::hooks::{self, Hook};
use crate::supervisor::pair::link::{Link, PeerService, certificate_name};
use crate::supervisor::pair::log::GatedLog;
use crate::supervisor::pair::metrics::PairCollector;
use crate::supervisor::pair::record::{RecordError, RecordFile};
use crate::supervisor::pair::replication::{PeerLeader, ReplicationService};
use crate::supervisor::pair::status::explain;
use crate::supervisor::pair::virtual_ip;
use crate::supervisor::postgres::StartError;
use crate::supervisor::postgres::pair::{PairOptions, PairPostgres, PairTls};
use crate::telemetry::systemd::{Signs, Systemd};
use crate::types::Epoch;
use crate::witness::backend;

const USAGE: &str = "duet node --config-file FILE [flags]";
/// How long PostgreSQL may take to stop in order.
const POSTGRES_STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long answers of a former leader may take after another one has been found: in any case, and while it is heard.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
const LAST_ANSWERS_OF_THE_LIVING: Duration = Duration::from_secs(10);
/// How long the virtual IP may take to go; it goes by itself, too.
const VIRTUAL_IP_STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at whether systemd is to be told something else.
const NEWS: Duration = Duration::from_millis(200);
/// How long a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// Threads of the supervisor: heartbeats go on while one of them waits for a disk.
const SUPERVISOR_THREADS: usize = 2;

/// Runs the command.
///
/// # Errors
/// Exit codes as `--help` lists them.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let Some(loaded) = load::load(args, USAGE)? else { return Ok(()) };
    let pair = pair_of(&loaded.config)?;
    let pulse = if pair.guardian {
        match guardian::guard(pair.virtual_ip.as_ref()) {
            Part::Ended(outcome) => return outcome,
            Part::Runs(pulse) => pulse,
        }
    } else {
        None
    };
    serve(loaded, pair, pulse)
}

/// The node's place in its pair.
fn pair_of(config: &Config) -> Result<PairConfig, Failure> {
    if config.external.is_some() {
        return Err(Failure::usage("--database belongs to duet serve; duet node runs a PostgreSQL of its own"));
    }
    config.pair.clone().ok_or_else(|| {
        Failure::usage("the pair is not configured; duet init writes the configuration of both nodes and the witness")
    })
}

/// Refuses what this command can't start with, as far as that can be seen without a start.
pub(super) fn check(config: &Config) -> Result<(), Failure> {
    let pair = pair_of(config)?;
    server::check(config)?;
    let files = pair.tls.config();
    tls::check(&files)?;
    if let Some(url) = &pair.witness {
        // It connects to nothing, but makes what will, and that wants to be within a runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::serving(format!("can't start: {error}")))?;
        let _entered = runtime.enter();
        backend::connect(url, &pair.cluster, tls::client_config(&files)?, backend::deadline(pair.timing))
            .map_err(|error| Failure::usage(error.to_string()))?;
    }
    Ok(())
}

fn serve(loaded: Loaded, pair: PairConfig, pulse: Option<Pulse>) -> Result<(), Failure> {
    check(&loaded.config)?;
    loaded.start_logging()?;
    let supervisor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SUPERVISOR_THREADS)
        .enable_all()
        .thread_name("duet-pair")
        .build()
        .map_err(|error| Failure::serving(format!("can't start threads: {error}")))?;
    let runtime = runtime()?;
    let guarded = pulse.is_some();
    let systemd = Systemd::from_environment();
    let signs = systemd.signs();
    if guarded || signs.is_some() {
        let (alive, seen) = watch::channel(());
        supervisor.spawn(async move {
            while alive.send(()).is_ok() {
                tokio::time::sleep(guardian::BEAT).await;
            }
        });
        runtime.spawn(beat(pulse, signs, seen));
    }
    runtime.block_on(node(loaded.config, pair, supervisor.handle(), guarded, systemd))
}

/// Shows the guardian and systemd that both runtimes go on.
async fn beat(mut pulse: Option<Pulse>, mut signs: Option<Signs>, mut supervisor: watch::Receiver<()>) {
    while supervisor.changed().await.is_ok() {
        pulse.iter_mut().for_each(Pulse::beat);
        signs.iter_mut().for_each(Signs::alive);
    }
}

/// Says what this node does, whenever that changes.
async fn tell_systemd(systemd: Systemd, mut views: watch::Receiver<View>) {
    let mut told = String::new();
    loop {
        let text = explain(&views.borrow_and_update().state, clock::now());
        if text != told && systemd.status(&text) {
            told = text;
        }
        tokio::time::sleep(NEWS).await;
        if views.changed().await.is_err() {
            return;
        }
    }
}

async fn node(
    config: Config,
    pair: PairConfig,
    supervisor: &tokio::runtime::Handle,
    guarded: bool,
    systemd: Systemd,
) -> Result<(), Failure> {
    let mut signals = StopSignals::new(&config)?;
    if let Some(away) = drill::away(&config.data_dir) {
        tracing::warn!(?away, "staying away for a drill");
        tokio::select! {
            () = tokio::time::sleep(away) => {}
            _ = signals.next() => return Ok(()),
        }
    }
    let mut prepared = Prepared::new(config)?;
    let peer_tls = pair.tls.config();
    let port_tls = Tls::load(peer_tls.clone(), prepared.metrics().clone())?;
    let client_tls = tls::client_config(&peer_tls)?;
    let listen = [ListenUrl { address: ListenAddress::Tcp(pair.listen_peer), tls: true }];
    let listeners = Listeners::bind(&listen, SocketOptions::default())?;

    let gate = Gate::default();
    let drain = Drain::default();
    let stop = CancellationToken::new();
    let (serving, serves) = watch::channel(false);
    let started = Started {
        gate: gate.clone(),
        drain: drain.clone(),
        serves,
        client_urls: prepared.advertised().to_vec(),
        client_tls: Arc::clone(&client_tls),
        stop: stop.clone(),
    };
    let options = pair_options(prepared.config(), &pair);
    let subject = subject(prepared.config(), &pair);
    let data_dir = subject.data_dir.clone();
    let starting = supervisor.spawn(started.start(options, pair.clone()));
    let supervised = tokio::select! {
        supervised = starting => supervised.map_err(|error| Failure::serving(error.to_string()))??,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before the supervisor was up");
            return Ok(());
        }
    };
    let Supervised { postgres, handle, link, virtual_ip, ended } = supervised;
    tokio::spawn(tell_systemd(systemd, handle.views()));
    let looked_at = handle.clone();
    PairCollector::new(move || looked_at.status())
        .and_then(|figures| prepared.metrics().register(Box::new(figures)))
        .map_err(|error| Failure::serving(format!("can't register metrics: {error}")))?;

    let log = PgOptions::local(postgres.connect_config())
        .map_err(|error| error.to_string())
        .and_then(|options| PgLog::new(options.reading_standby()).map_err(|error| error.to_string()))
        .map_err(Failure::serving)?;
    let log = Arc::new(GatedLog::new(Arc::new(log), gate.clone()));
    let leader_of = upstream_of(&pair, Arc::clone(&client_tls));
    let leader = Arc::new(PeerLeader::new(handle.views(), move || leader_of().channel()));
    let engine = prepared.engine(log, ReadRight::Lease(Arc::new(gate.clone())), Some(leader));
    tokio::spawn(tell_serving(engine.role(), serving));
    let upstream = upstream_of(&pair, Arc::clone(&client_tls));
    let (answering, answers) = watch::channel(Answering::Nobody);
    tokio::spawn(answer(engine.role(), handle.views(), gate.clone(), drain.clone(), upstream, answering));

    let peer_client_urls = link.client_urls();
    let hook = start_hook(&pair, &handle);
    let peer_name = certificate_name(pair.node.peer(), &pair.cluster);
    let leaving = CancellationToken::new();
    let checks = CheckService::new(subject, handle.clone(), Arc::clone(&postgres), Arc::clone(&client_tls), guarded);
    let replication = ReplicationService::new(engine.clone(), leaving.clone());
    // Not tonic's own router: its fallback would be a second one beside the façade's.
    let services = axum::Router::new()
        .route_service("/duetpb.Peer/{*rest}", PeerServer::new(PeerService::new(link, peer_name.clone(), leaving.clone())))
        .route_service("/duetpb.Replication/{*rest}", ReplicationServer::new(replication))
        .route_service("/duetpb.Admin/{*rest}", AdminServer::new(AdminService::new(handle.clone(), data_dir)))
        .route_service("/duetpb.Check/{*rest}", CheckServer::new(checks));
    let port = PeerPort {
        listeners,
        tls: port_tls,
        services,
        callers: Arc::from([certificate_name(pair.node, &pair.cluster), peer_name]),
    };
    let handing_over = departure::hand_over(handle.clone(), gate.changes());
    let before_stop = Box::pin(async move {
        handing_over.await;
        // The peer's calls that last would keep the port open until the deadline.
        leaving.cancel();
    });
    prepared.join_pair(PairSide { drain, port, peer_client_urls, before_stop });

    let gave_up = async move { ended.await.unwrap_or_else(|_| Failure::serving("the supervisor ended without being asked to")) };
    let outcome = prepared.run(engine, Some(answers), gave_up, &mut signals).await;
    stop.cancel();
    if let Some(holder) = virtual_ip {
        let _ = tokio::time::timeout(VIRTUAL_IP_STOP_TIMEOUT, holder).await;
    }
    if let Some((following, hook)) = hook {
        following.abort();
        let _ = tokio::time::timeout(hooks::RUN_MAX, hook).await;
    }
    let stopped = supervisor.spawn(async move { postgres.shutdown(POSTGRES_STOP_TIMEOUT).await }).await;
    tracing::info!(postgres = ?stopped.ok(), "stopped");
    outcome
}

/// Starts telling the operator's program, if there is one: who follows the parts, and who tells them. Not on the supervisor's threads.
fn start_hook(pair: &PairConfig, handle: &Handle) -> Option<(JoinHandle<()>, JoinHandle<()>)> {
    let hook = Hook::new(pair.on_role_change.as_ref()?, &pair.cluster, pair.node);
    let (parts, told) = watch::channel(hooks::Part::default());
    Some((tokio::spawn(hooks::follow(handle.views(), parts)), tokio::spawn(hook.run(told))))
}

/// What the supervisor's start needs.
struct Started {
    gate: Gate,
    drain: Drain,
    serves: watch::Receiver<bool>,
    client_urls: Vec<String>,
    client_tls: Arc<rustls::ClientConfig>,
    stop: CancellationToken,
}

/// A supervisor that runs.
struct Supervised {
    postgres: Arc<PairPostgres>,
    handle: Handle,
    link: Link,
    /// Ends without the virtual IP.
    virtual_ip: Option<JoinHandle<()>>,
    /// Tells why it ended, if it ends by itself.
    ended: oneshot::Receiver<Failure>,
}

impl Started {
    /// Runs on the supervisor's own threads, and so does everything that it starts.
    async fn start(self, options: PairOptions, pair: PairConfig) -> Result<Supervised, Failure> {
        let data_dir = options.postgres.data_dir.clone();
        let postgres = Arc::new(open(options).await?);
        let (file, record) = RecordFile::open(&data_dir, &pair.cluster, pair.node).map_err(record_failure)?;
        let link = Link::bind(pair.listen_peer, (pair.peer.host.clone(), pair.peer.port)).await;
        let link = link.map_err(|error| Failure::bind(error.to_string()))?;
        let deadline = backend::deadline(pair.timing);
        let connect = |url| backend::connect(url, &pair.cluster, Arc::clone(&self.client_tls), deadline);
        let witness = pair.witness.as_ref().map(connect).transpose().map_err(|error| Failure::usage(error.to_string()))?;
        let third = match (&pair.fence, &witness) {
            (Some((_, delay)), _) => Third::Fence { delay: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) },
            (None, Some(_)) => Third::Witness,
            (None, None) => Third::Nobody,
        };
        let setup = Setup { me: pair.node, timing: pair.timing, third, begins: pair.node == NodeId::A };
        let puts_off =
            |(program, _): (PathBuf, Duration)| Fence { program, cluster: pair.cluster.clone(), peer: pair.node.peer() };
        let holder = pair.virtual_ip.clone().map(|ip| virtual_ip::start(ip, self.gate.changes(), self.stop.clone()));
        let (virtual_ip_status, virtual_ip) = holder.unzip();
        let parts = Parts {
            setup,
            cluster: pair.cluster.clone(),
            file,
            record,
            postgres: Arc::clone(&postgres),
            witness,
            fence: pair.fence.clone().map(puts_off),
            link: link.clone(),
            gate: self.gate,
            drain: self.drain,
            history: Arc::new(History::open(&data_dir)),
            serving: self.serves,
            virtual_ip: virtual_ip_status,
        };
        let (driver, handle) = Driver::new(parts);
        let (tell, ended) = oneshot::channel();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            if let Err(error) = driver.run(stop).await {
                tracing::error!("{error}");
                let _ = tell.send(Failure::serving(error.to_string()));
            }
        });
        let upstream = upstream_of(&pair, self.client_tls);
        tokio::spawn(link.clone().introduce(move || upstream().channel(), self.client_urls, self.stop));
        Ok(Supervised { postgres, handle, link, virtual_ip, ended })
    }
}

/// Opens the data directory; a Duet that was killed a moment ago may still hold its lock.
async fn open(options: PairOptions) -> Result<PairPostgres, StartError> {
    let began = Instant::now();
    loop {
        match PairPostgres::open(options.clone()).await {
            Err(StartError::Locked { .. }) if began.elapsed() < LOCK_PATIENCE => tokio::time::sleep(LOCK_RETRY).await,
            opened => return opened,
        }
    }
}

fn record_failure(error: RecordError) -> Failure {
    match error {
        RecordError::Io { .. } => Failure::serving(error.to_string()),
        RecordError::Spoilt { .. } | RecordError::Foreign { .. } => Failure::unusable(error.to_string()),
    }
}

/// The node as `duet check` looks at it.
pub(super) fn subject(config: &Config, pair: &PairConfig) -> Subject {
    Subject {
        pair: pair.clone(),
        data_dir: config.data_dir.clone(),
        bin_dir: config.embedded.bin_dir.clone(),
        listen_client: config.listen_client.clone(),
        client_tls: config.tls.clone(),
    }
}

fn pair_options(config: &Config, pair: &PairConfig) -> PairOptions {
    PairOptions {
        postgres: dev::postgres_options(config),
        me: pair.node,
        cluster: pair.cluster.clone(),
        listen: pair.pg_listen,
        peer: (pair.pg_peer.host.clone(), pair.pg_peer.port),
        tls: PairTls {
            cert_file: pair.tls.cert_file.clone(),
            key_file: pair.tls.key_file.clone(),
            ca_file: pair.tls.trusted_ca_file.clone(),
        },
        silence_max: Duration::from_millis(pair.timing.postgres_silence),
    }
}

/// New connections to the peer: those of an earlier leadership may lead to a machine that is gone.
fn upstream_of(pair: &PairConfig, tls: Arc<rustls::ClientConfig>) -> impl Fn() -> Upstream + Send + Sync + 'static + use<> {
    let url = format!("https://{}", pair.peer);
    move || Upstream::new(&url, Some(Arc::clone(&tls))).expect("the peer's URL was checked with the configuration")
}

/// Says where requests are answered: here while this node leads, at the peer while that one says that it does.
async fn answer(
    mut role: watch::Receiver<Role>,
    mut views: watch::Receiver<View>,
    gate: Gate,
    drain: Drain,
    upstream: impl Fn() -> Upstream,
    answering: watch::Sender<Answering>,
) {
    let mut peer: Option<((Epoch, u64), Upstream)> = None;
    // Since when the peer hasn't been heard to lead, and nobody does in its place.
    let mut unled: Option<tokio::time::Instant> = None;
    loop {
        let here = gate.rights().owns && matches!(*role.borrow_and_update(), Role::Active | Role::Recovering);
        let (there, leadership) = {
            let view = views.borrow_and_update();
            (view.peer_leads(), view.leadership())
        };
        // A leader that isn't heard for a moment keeps its connections; one that was replaced doesn't.
        if let Some(((_, process), former)) = peer.take_if(|(of, _)| here || *of != leadership) {
            tokio::spawn(retire(former, process, views.clone()));
        }
        if there && !here && peer.is_none() {
            peer = Some((leadership, upstream()));
        }
        unled = if here || there || peer.is_none() { None } else { unled.or_else(|| Some(tokio::time::Instant::now())) };
        if unled.is_some_and(|since| since.elapsed() >= HOLD_MAX)
            && let Some((_, silent)) = peer.take()
        {
            silent.retire();
            unled = None;
        }
        answering.send_if_modified(|now| {
            let next = match (&*now, here, there) {
                (Answering::Here, true, _) | (Answering::Nobody, false, false) => return false,
                (Answering::There(of), false, true) if peer.as_ref().is_some_and(|(_, peer)| peer.is(of)) => return false,
                (_, true, _) => Answering::Here,
                (_, false, true) => peer.as_ref().map_or(Answering::Nobody, |(_, peer)| Answering::There(peer.clone())),
                (_, false, false) => Answering::Nobody,
            };
            *now = next;
            true
        });
        if !gate.rights().owns {
            // Requests that were held for a switchover find their way from here on.
            drain.release();
        }
        let ended = tokio::select! {
            changed = role.changed() => changed.is_err(),
            changed = views.changed() => changed.is_err(),
            () = tokio::time::sleep_until(unled.unwrap_or_else(tokio::time::Instant::now) + HOLD_MAX), if unled.is_some() => false,
        };
        if ended {
            answering.send_replace(Answering::Nobody);
            return;
        }
    }
}

/// Gives a former leader time for its last answers. One that has handed over holds requests until this node answers them.
async fn retire(former: Upstream, process: u64, mut views: watch::Receiver<View>) {
    tokio::time::sleep(LAST_ANSWERS).await;
    let gone = views.wait_for(|view| !view.hears(process));
    let _ = tokio::time::timeout(LAST_ANSWERS_OF_THE_LIVING, gone).await;
    former.retire();
}

/// Tells the supervisor when requests are really answered, for the figures of a takeover.
async fn tell_serving(mut role: watch::Receiver<Role>, serving: watch::Sender<bool>) {
    loop {
        let serves = *role.borrow_and_update() == Role::Active;
        serving.send_if_modified(|now| std::mem::replace(now, serves) != serves);
        if role.changed().await.is_err() {
            return;
        }
    }
}

impl ReadLease for Gate {
    fn may_read(&self) -> bool {
        Gate::may_read(self)
    }

    fn may_acknowledge(&self) -> bool {
        Gate::may_acknowledge(self)
    }

    fn may_lose_published(&self) -> bool {
        Gate::may_lose_published(self)
    }
}
