//! Where requests are answered: here while this process is the writer, else wherever the writer is.
//!
//! The writer's URLs stand beside its lock. Which of them works from here only trying tells: each is asked who is there, and requests go
//! to the first one that leads to the writer. It is asked again and again, so that another one takes its place when it dies, and so that
//! this replica knows what clients are shown. A writer that doesn't have what this replica remembers ends it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::look::{Instance, Looked, look};
use super::{Memory, Source, urls};
use crate::engine::{Engine, Holds, Role};
use crate::net::proxy::{Answering, Upstream};
use crate::net::tls::ClientTls;
use crate::storage::{Leader, Log};
use crate::telemetry::metrics::Metrics;

/// How often the database is asked who the writer is.
const DATABASE_INTERVAL: Duration = Duration::from_millis(500);
/// How long its answer may take.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the writer is asked. What it has shown to clients in the meantime is unknown if it is lost together with its database.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// For how long it may be out of reach before somebody is told, and it is asked less often.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK_INTERVAL_AFTERWARDS: Duration = Duration::from_secs(1);
/// How long a former writer may take for its last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What following needs.
pub struct Follow {
    /// This process'.
    pub engine: Engine,
    /// Says who the writer is.
    pub log: Arc<dyn Log>,
    /// What clients have been shown.
    pub memory: Arc<Memory>,
    /// This process.
    pub instance: Instance,
    /// For URLs that need it.
    pub tls: Option<ClientTls>,
    /// Changes of the writer are counted here.
    pub metrics: Metrics,
    /// Kept true.
    pub answering: watch::Sender<Answering>,
}

/// A way to the writer.
#[derive(Clone)]
struct Way {
    url: String,
    upstream: Upstream,
}

/// The way that is used.
struct Chosen {
    way: Way,
    instance: Instance,
    /// The writer has what this replica remembers: requests go there.
    is_good: bool,
}

/// The writer as it is known at the moment.
#[derive(Default)]
struct Writer {
    leader: Option<Leader>,
    ways: Vec<Way>,
    chosen: Option<Chosen>,
    /// Since when no way leads to it; and whether that has been told.
    lost: Option<(Instant, bool)>,
}

impl Writer {
    /// The store's cluster id.
    fn store(&self) -> u64 {
        self.leader.as_ref().map_or(0, |leader| leader.cluster_id)
    }

    fn is_good(&self) -> bool {
        self.chosen.as_ref().is_some_and(|chosen| chosen.is_good)
    }
}

impl Follow {
    /// Follows until the engine has ended.
    ///
    /// # Errors
    /// The explanation why the writer's store must not be shown to clients.
    pub async fn run(self) -> Result<(), String> {
        let mut role = self.engine.role();
        loop {
            if matches!(*role.borrow_and_update(), Role::Active | Role::Recovering) {
                self.answering.send_replace(Answering::Here);
                if role.changed().await.is_err() {
                    return Ok(());
                }
                self.answering.send_replace(Answering::Nobody);
                continue;
            }
            let mut writer = Writer::default();
            let (found, leader) = watch::channel(None);
            let outcome = tokio::select! {
                // This process may have become the writer in the middle of a look at one that doesn't answer.
                changed = role.changed() => changed.map_err(|_| None),
                why = self.stand_by(leader, &mut writer) => Err(Some(why)),
                never = ask_database(self.log.as_ref(), &found) => match never {},
            };
            retire(writer.chosen);
            match outcome {
                Ok(()) => {}
                Err(None) => return Ok(()),
                Err(Some(why)) => {
                    self.answering.send_replace(Answering::Nobody);
                    return Err(why);
                }
            }
        }
    }

    /// Forwards to whoever is the `leader`; the explanation why it mustn't.
    async fn stand_by(&self, mut leader: watch::Receiver<Option<Leader>>, writer: &mut Writer) -> String {
        loop {
            let now = leader.borrow_and_update().clone();
            if now != writer.leader {
                let urls = now.as_ref().map_or(&[][..], |leader| &leader.urls);
                tracing::info!(writer = now.as_ref().map(|_| urls.join(",")), "the writer has changed");
                self.metrics.server.leader_changes_seen_total.inc_by(u64::from(now.is_some()));
                retire(writer.chosen.take());
                *writer = Writer { ways: self.ways(urls), leader: now, ..Writer::default() };
                self.answer(writer);
            }
            if writer.leader.is_some() {
                let looked = tokio::select! {
                    looked = self.look_around(writer) => looked,
                    // There is another one: what the former one says, if it still says anything, doesn't matter any more.
                    _ = leader.changed() => continue,
                };
                self.answer(writer);
                if let Err(why) = looked {
                    return why;
                }
            }
            let is_long_lost = writer.lost.is_some_and(|(since, _)| since.elapsed() >= PATIENCE);
            tokio::select! {
                _ = leader.changed() => {}
                () = sleep(if is_long_lost { LOOK_INTERVAL_AFTERWARDS } else { LOOK_INTERVAL }) => {}
            }
        }
    }

    /// Has requests go where they may.
    fn answer(&self, writer: &Writer) {
        let upstream = writer.chosen.as_ref().filter(|chosen| chosen.is_good).map(|chosen| &chosen.way.upstream);
        self.answering.send_if_modified(|now| {
            let next = match (&*now, upstream) {
                (Answering::There(present), Some(upstream)) if present.is(upstream) => return false,
                (Answering::Nobody, None) => return false,
                (_, Some(upstream)) => Answering::There(upstream.clone()),
                (_, None) => Answering::Nobody,
            };
            *now = next;
            true
        });
    }

    /// One look at the writer.
    async fn look_around(&self, writer: &mut Writer) -> Result<(), String> {
        let present = match &writer.chosen {
            Some(chosen) => {
                let looked = look(chosen.way.upstream.channel(), writer.store(), None).await;
                let is_present =
                    |looked: &Looked| looked.instance == chosen.instance && self.objection(looked, writer.store()).is_none();
                if looked.as_ref().is_ok_and(is_present) {
                    writer.lost = None;
                    looked.ok()
                } else {
                    self.choose_another(writer, looked.is_ok()).await
                }
            }
            None => self.choose_another(writer, true).await,
        };
        match (present, &mut writer.chosen) {
            (Some(looked), Some(chosen)) => self.heed(&looked, chosen).await?,
            _ => return Ok(()),
        }
        if let Some(leader) = writer.leader.as_ref().filter(|_| writer.is_good()) {
            self.memory.set_last_writer(leader.urls.clone());
        }
        Ok(())
    }

    /// What speaks against whoever has answered being the writer of the store in the database: a URL with a loopback address leads to
    /// whatever there is on this machine.
    fn objection(&self, looked: &Looked, store: u64) -> Option<&'static str> {
        match looked {
            looked if looked.instance == self.instance => Some("this replica itself"),
            looked if !looked.writes => Some("a replica that isn't the writer"),
            looked if ![0, store].contains(&looked.cluster_id) => Some("a replica of another database"),
            _ => None,
        }
    }

    /// Connections to each URL, in the order in which they are to be tried.
    fn ways(&self, found: &[String]) -> Vec<Way> {
        let way = |url: String| match Upstream::fresh(&url, self.tls.clone()) {
            Ok(upstream) => Some(Way { url, upstream }),
            Err(error) => {
                tracing::warn!(error, "can't forward to the writer's URL");
                None
            }
        };
        urls::in_order(found).into_iter().filter_map(way).collect()
    }

    /// Takes the first way that leads to the writer. If there is none, the present one stays unless it `is_wrong`: a writer that stands
    /// still may go on.
    async fn choose_another(&self, writer: &mut Writer, is_wrong: bool) -> Option<Looked> {
        let store = writer.store();
        let asked = writer.ways.iter().map(|way| async move { (way, look(way.upstream.channel(), store, None).await) });
        let mut asked: FuturesOrdered<_> = asked.collect();
        let mut found = None;
        let mut reasons = Vec::new();
        while let Some((way, answer)) = asked.next().await {
            match answer.map(|looked| (self.objection(&looked, writer.store()), looked)) {
                Ok((None, looked)) => {
                    found = Some((way.clone(), looked));
                    break;
                }
                Ok((Some(objection), _)) => reasons.push(format!("{} leads to {objection}", way.url)),
                Err(error) => reasons.push(format!("{}: {error}", way.url)),
            }
        }
        drop(asked);
        let Some((way, looked)) = found else {
            if is_wrong {
                retire(writer.chosen.take());
            }
            let (since, told) = writer.lost.get_or_insert((Instant::now(), false));
            // One that is just taking over or going away is no news.
            if since.elapsed() >= PATIENCE && !std::mem::replace(told, true) {
                tracing::warn!(
                    reasons = reasons.join("; "),
                    "none of the writer's URLs leads to it from here; what it advertises is its --advertise-client-urls"
                );
            }
            return None;
        };
        writer.lost = None;
        let former = writer.chosen.take();
        // Over another way to the same writer nothing has to be proved again, and what still comes over the old one is as good.
        let is_good = former.as_ref().is_some_and(|former| former.is_good && former.instance == looked.instance);
        match former {
            Some(former) if is_good => {
                if former.way.url != way.url {
                    tracing::info!(url = way.url, "forwarding to the writer's other URL");
                }
            }
            former => retire(former),
        }
        writer.chosen = Some(Chosen { way, instance: looked.instance, is_good });
        Some(looked)
    }

    /// Learns what the writer has shown to clients, after it has proved that it goes on from what this replica remembers.
    async fn heed(&self, looked: &Looked, chosen: &mut Chosen) -> Result<(), String> {
        if looked.cluster_id == 0 {
            return Ok(());
        }
        let url = &chosen.way.url;
        let expected = self.memory.expects(looked.cluster_id)?;
        let is_odd =
            expected.is_some_and(|seen| seen.cluster_id != looked.cluster_id || looked.active && looked.revision < seen.revision);
        if let Some(seen) = expected.filter(|_| is_odd || !chosen.is_good) {
            if !looked.active {
                return Ok(());
            }
            let asked = look(chosen.way.upstream.channel(), looked.cluster_id, Some(seen)).await;
            match asked.ok().filter(|asked| asked.instance == chosen.instance).and_then(|asked| asked.verdict) {
                Some(Holds::Yes) => {}
                Some(Holds::Lacks(last)) => return Err(self.memory.lacks(seen, last)),
                Some(Holds::Differs) => return Err(self.memory.differs(seen)),
                Some(Holds::OtherStore(found)) => return Err(self.memory.replaced(seen.cluster_id, found)),
                None => return Ok(()),
            }
        }
        if !std::mem::replace(&mut chosen.is_good, true) {
            tracing::info!(url, "forwarding to the writer");
        }
        if let Some(seen) = looked.seen.filter(|seen| seen.cluster_id == looked.cluster_id) {
            self.memory.learn(seen, Source::Replica(url.clone()));
        }
        Ok(())
    }
}

/// Keeps `found` true. A database that doesn't answer says nothing of the writer.
async fn ask_database(log: &dyn Log, found: &watch::Sender<Option<Leader>>) -> Infallible {
    loop {
        if let Ok(Ok(leader)) = timeout(DATABASE_TIMEOUT, log.leader()).await {
            found.send_if_modified(|known| {
                let is_new = *known != leader;
                *known = leader;
                is_new
            });
        }
        sleep(DATABASE_INTERVAL).await;
    }
}

/// Gives a former writer time for its last answers; nobody waits longer for them.
fn retire(former: Option<Chosen>) {
    if let Some(former) = former {
        tokio::spawn(async move {
            sleep(LAST_ANSWERS).await;
            former.way.upstream.retire();
        });
    }
}
