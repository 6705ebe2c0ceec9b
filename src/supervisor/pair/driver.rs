//! The loop: an event, a step of the state machine, its actions in their order.
//!
//! What the state machine relies on, and where it is kept: actions are done in order, and nothing after a [`Action::Persist`] before
//! the record is durable ([`Driver::perform`]); a report of PostgreSQL's that belongs to an earlier goal is not passed on
//! ([`Driver::reported`]); the gate never allows more than the step before and the step after both do, while actions are under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::clock;
use super::fence::Fence;
use super::gate::{Gate, Rights};
use super::history::History;
use super::link::Link;
use super::record::{RecordError, RecordFile, letter};
use super::status::{NodeStatus, explain};
use super::takeover_clock::TakeoverClock;
use super::virtual_ip::VirtualIpStatus;
use crate::net::drain::Drain;
use crate::supervisor::fsm::{Action, Event, Goal, Mode, Note, Phase, Record, Register, Setup, State, SwapOutcome, Wish, step};
use crate::supervisor::postgres::StartError;
use crate::supervisor::postgres::pair::{PairPostgres, Report};
use crate::types::{Epoch, Millis};
use crate::witness::backend::Witness;

/// Questions that may be under way to the witness at once, and as many compare-and-swaps; more would only queue up behind a witness that is
/// gone. Counted apart, so that questions to a slow one never keep a takeover from it.
const WITNESS_CALLS_MAX: usize = 4;
const ORDERS_MAX: usize = 16;
/// How long a copy that is to be made anew may take to be given up.
const REINIT_DEADLINE: Duration = Duration::from_secs(1);
/// A peer isn't heard any more when so many heartbeats are missing.
const PATIENCE_BEATS: Millis = 3;

/// Why the driver gave up. The node must end then: it can't promise anything any more.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Nothing may be built on a record that isn't durable.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store could not be begun.
    #[error(transparent)]
    Postgres(#[from] StartError),
}

/// An operator's wish and where its answer goes: what will happen, or why nothing does.
pub struct Order {
    wish: Wish,
    answer: oneshot::Sender<Result<String, String>>,
}

/// What the driver works with.
pub struct Parts {
    /// What the node was told.
    pub setup: Setup,
    /// The pair's name.
    pub cluster: String,
    /// The record's file.
    pub file: RecordFile,
    /// What it said at the start.
    pub record: Record,
    /// PostgreSQL.
    pub postgres: Arc<PairPostgres>,
    /// The third party, if there is one.
    pub witness: Option<Arc<dyn Witness>>,
    /// What puts the peer's machine off, if that is what decides.
    pub fence: Option<Fence>,
    /// The way to the peer.
    pub link: Link,
    /// What the rest of the process may do.
    pub gate: Gate,
    /// Holds requests.
    pub drain: Drain,
    /// What happened.
    pub history: Arc<History>,
    /// The engine serves.
    pub serving: watch::Receiver<bool>,
    /// How it is with the virtual IP, if there is one.
    pub virtual_ip: Option<watch::Receiver<VirtualIpStatus>>,
}

/// The rest of the process's hold on the driver.
#[derive(Clone)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    views: watch::Receiver<View>,
    internal: mpsc::Sender<Event>,
    parts: Arc<Seen>,
}

struct Seen {
    cluster: String,
    postgres: Arc<PairPostgres>,
    history: Arc<History>,
    virtual_ip: Option<watch::Receiver<VirtualIpStatus>>,
}

/// What the driver knows, for those who only look.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The state machine's state.
    pub state: State,
}

impl View {
    /// Whether the peer leads, and has said so just now: requests are forwarded to it. While a few heartbeats are missing they are held
    /// instead, because the peer may be gone, and who would then have to take over is this node.
    #[must_use]
    pub fn peer_leads(&self) -> bool {
        let state = &self.state;
        let patience = PATIENCE_BEATS * state.setup.timing.heartbeat;
        state.phase == Phase::Follower
            && state.hears_peer(patience, clock::now())
            && state.peer.is_some_and(|peer| peer.heartbeat.leading)
    }
}

impl View {
    /// Whether the peer is still this process and was heard just now.
    #[must_use]
    pub fn hears(&self, process: u64) -> bool {
        let state = &self.state;
        state.hears_peer(PATIENCE_BEATS * state.setup.timing.heartbeat, clock::now())
            && state.peer.is_some_and(|peer| peer.heartbeat.process == process)
    }

    /// Which leadership of the peer's this is: its epoch, and the process that has it.
    #[must_use]
    pub fn leadership(&self) -> (Epoch, u64) {
        let state = &self.state;
        (state.record.seen.map_or(0, |seen| seen.epoch), state.peer.map_or(0, |peer| peer.heartbeat.process))
    }
}

impl Handle {
    /// Passes a wish on; what will happen, or why nothing does.
    ///
    /// # Errors
    /// Why nothing is done.
    pub async fn order(&self, wish: Wish) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "this node is stopping".to_owned();
        self.orders.send(Order { wish, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Has the follower's copy made anew, as if PostgreSQL had found that it can't be used. Returns when that has begun.
    ///
    /// # Errors
    /// This node doesn't follow a leader, or can't do without its copy at this moment.
    pub async fn reinit(&self) -> Result<String, String> {
        let state = self.views.borrow().state;
        if state.phase != Phase::Follower || !self.views.borrow().peer_leads() {
            return Err(format!("only a node that follows a leader can be made anew. {}", explain(&state, clock::now())));
        }
        let asked = self.internal.try_send(Event::RebuildNeeded);
        asked.map_err(|_| "this node is busy or stopping; try again".to_owned())?;
        let mut views = self.views.clone();
        let begun = tokio::time::timeout(REINIT_DEADLINE, views.wait_for(|view| !view.state.record.complete)).await;
        if !matches!(begun, Ok(Ok(_))) {
            return Err(format!("not at this moment. {}", explain(&self.views.borrow().state, clock::now())));
        }
        Ok("this node's copy is made anew from the leader's; until then the pair can't lose the leader".to_owned())
    }

    /// Follows what the driver knows.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    /// What happened.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.parts.history
    }

    /// Adds to what happened.
    pub fn note(&self, what: &str, text: String) {
        self.parts.history.add(&self.views.borrow().state, what, text, None);
    }

    /// The status of now.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let details = self.parts.postgres.reports().borrow().details.clone();
        let state = self.views.borrow().state;
        let history = &self.parts.history;
        let status =
            NodeStatus::of(&state, &self.parts.cluster, details, history.last_takeover(), history.takeovers(), clock::now());
        NodeStatus { virtual_ip: self.parts.virtual_ip.as_ref().map(|seen| seen.borrow().clone()), ..status }
    }
}

/// See the module.
pub struct Driver {
    parts: Parts,
    state: State,
    goal: u64,
    orders: mpsc::Receiver<Order>,
    views: watch::Sender<View>,
    internal: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    questions: Arc<tokio::sync::Semaphore>,
    swaps: Arc<tokio::sync::Semaphore>,
    /// The command that puts the peer's machine off: its number, and its run.
    fencing: Option<(u64, JoinHandle<()>)>,
    clock: TakeoverClock,
}

impl Driver {
    /// A driver that has done nothing yet, and the hold on it.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, Handle) {
        let mut record = parts.record;
        // A directory that was emptied, or a copy that was interrupted: what the record says of it isn't true any more.
        record.complete &= parts.postgres.has_data();
        if parts.fence.is_some() {
            // What a witness may have held before says nothing any more: should one be asked again, it isn't believed until the owner has
            // written to it.
            record.instance = None;
        }
        let state = State::new(parts.setup, record, clock::now());
        let (orders, orders_rx) = mpsc::channel(ORDERS_MAX);
        let (views, views_rx) = watch::channel(View { state });
        let (internal, events) = mpsc::channel(2 * WITNESS_CALLS_MAX + ORDERS_MAX);
        let seen = Seen {
            cluster: parts.cluster.clone(),
            postgres: Arc::clone(&parts.postgres),
            history: Arc::clone(&parts.history),
            virtual_ip: parts.virtual_ip.clone(),
        };
        let driver = Self {
            goal: 0,
            orders: orders_rx,
            views,
            internal: internal.clone(),
            events,
            questions: Arc::new(tokio::sync::Semaphore::new(WITNESS_CALLS_MAX)),
            swaps: Arc::new(tokio::sync::Semaphore::new(WITNESS_CALLS_MAX)),
            fencing: None,
            clock: TakeoverClock::default(),
            state,
            parts,
        };
        (driver, Handle { orders, views: views_rx, internal, parts: Arc::new(seen) })
    }

    /// Runs until `stop`, or until nothing can be promised any more; the gate is closed then.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DriverError> {
        let gate = self.parts.gate.clone();
        let outcome = self.serve(stop).await;
        gate.set(Rights::default());
        outcome
    }

    async fn serve(&mut self, stop: CancellationToken) -> Result<(), DriverError> {
        if self.state.record != self.parts.record {
            self.parts.file.save(&self.state.record)?;
        }
        self.goal = self.parts.postgres.pursue(Goal::Stopped);
        let mut ticks = tokio::time::interval(Duration::from_millis(self.state.setup.timing.heartbeat));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reports = self.parts.postgres.reports();
        let mut serving = self.parts.serving.clone();
        let link = self.parts.link.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => self.event(Event::Tick).await?,
                heartbeat = link.receive() => self.event(Event::Heard(heartbeat)).await?,
                () = link.introduced_anew() => self.event(Event::Introduced).await?,
                Some(event) = self.events.recv() => self.event(event).await?,
                Ok(()) = reports.changed() => {
                    let report = reports.borrow_and_update().clone();
                    self.reported(report).await?;
                }
                Some(order) = self.orders.recv() => self.ordered(order).await?,
                Ok(()) = serving.changed() => {
                    let serves = *serving.borrow_and_update();
                    self.clock.serving(serves, &self.state, &self.parts.history);
                }
            }
        }
    }

    /// Passes a report on, for as long as it is about the goal in force: each of its events may change that.
    async fn reported(&mut self, report: Report) -> Result<(), DriverError> {
        let events = [
            (report.short_of_disk != self.state.short_of_disk).then_some(Event::Disk { short: report.short_of_disk }),
            Some(Event::Postgres(report.postgres)),
            report.stalled.then_some(Event::Stalled),
            report.rebuild_needed.then_some(Event::RebuildNeeded),
        ];
        for event in events.into_iter().flatten() {
            if report.goal != self.goal {
                break;
            }
            self.event(event).await?;
        }
        Ok(())
    }

    async fn ordered(&mut self, order: Order) -> Result<(), DriverError> {
        let before = self.state;
        self.event(Event::Operator(order.wish)).await?;
        let after = &self.state;
        let epoch = |state: &State| state.record.seen.map_or(0, |seen| seen.epoch);
        let now = clock::now();
        let answer = match order.wish {
            Wish::Switchover if before.handover.is_none() && after.handover.is_some() => {
                Ok("handing over: requests are held until the peer leads".to_owned())
            }
            Wish::Switchover => Err(why_no_switchover(&before, now)),
            Wish::AcceptDataLoss if after.is_owner() && epoch(after) > epoch(&before) => {
                Ok(format!("this node is the owner from epoch {} on", epoch(after)))
            }
            Wish::AcceptDataLoss if before.peer_certainly_leads(now) => {
                let peer = letter(before.me().peer());
                Err(format!(
                    "node {peer} is heard and leads, so its machine isn't off. duet switchover loses nothing; if it can't answer anybody, stop it first"
                ))
            }
            Wish::AcceptDataLoss if before.is_owner() => Err("this node is the owner already".to_owned()),
            Wish::AcceptDataLoss => Err("this node has no whole copy of the data".to_owned()),
            Wish::Pause { until } => Ok(format!("no failover by itself for {} s", until.saturating_sub(now).div_ceil(1000))),
            Wish::Resume => Ok("failover happens by itself again".to_owned()),
            Wish::PeerAway { .. } if after.peer_away_until.is_some() => {
                Ok("goes on alone, and doesn't wait for the peer".to_owned())
            }
            Wish::PeerAway { .. } => Err(why_not_alone(&before, now)),
            Wish::PeerBack if before.peer_away_until.is_some() => {
                Ok("the peer counts again as soon as it has caught up".to_owned())
            }
            Wish::Leave if after.mode() == Some(Mode::Solo) => Ok("the leader may go on alone".to_owned()),
            Wish::Leave => Err("nothing is given up".to_owned()),
            Wish::PeerBack => Err("no maintenance is under way here".to_owned()),
        };
        // An operator who went away is no error.
        let _ = order.answer.send(answer);
        Ok(())
    }

    async fn event(&mut self, event: Event) -> Result<(), DriverError> {
        let now = clock::now();
        let before = Rights::of(&self.state);
        let (next, actions) = step(&self.state, event, now);
        if actions.contains(&Action::Note(Note::Forced)) {
            self.parts.gate.accept_loss(next.record.seen.map_or(0, |seen| seen.epoch));
        }
        let after = Rights::of(&next);
        self.clock.stepped(&next, &actions, now);
        self.state = next;
        self.parts.gate.set(before.and(after));
        self.stop_void_fencing();
        self.perform(actions).await?;
        self.parts.gate.set(after);
        self.views.send_replace(View { state: self.state });
        Ok(())
    }

    async fn perform(&mut self, actions: Vec<Action>) -> Result<(), DriverError> {
        if actions.contains(&Action::Note(Note::Began)) {
            // The record says that the copy is whole: so it must be there before the record is.
            self.parts.postgres.begin_data().await?;
        }
        for action in actions {
            match action {
                Action::Persist(record) => tokio::task::block_in_place(|| self.parts.file.save(&record))?,
                Action::Pursue(goal) => self.goal = self.parts.postgres.pursue(goal),
                Action::Ask => self.ask(),
                Action::Swap { instance, expected, new } => self.swap(instance, expected, new),
                Action::Send(heartbeat) => self.parts.link.send(&heartbeat),
                Action::Drain => self.drain(),
                // When the peer leads now, requests go on once it is known that they go there: see `cli/node.rs`.
                Action::Undrain if self.state.is_owner() => self.parts.drain.release(),
                Action::Undrain => {}
                Action::Note(note) => self.parts.history.note(&self.state, note),
            }
        }
        Ok(())
    }

    fn ask(&self) {
        let Some(witness) = self.parts.witness.clone() else { return };
        let Ok(permit) = Arc::clone(&self.questions).try_acquire_owned() else { return };
        let internal = self.internal.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match witness.read().await {
                Ok(answer) => drop(internal.send(Event::Read(answer)).await),
                Err(error) => tracing::debug!(%error, witness = witness.describe(), "the witness doesn't answer"),
            }
        });
    }

    fn fence(&mut self, fence: Fence, ticket: u64, new: Register) {
        // While another one runs it is as if this had been lost on the way: it is given again.
        if self.fencing.as_ref().is_some_and(|(_, run)| !run.is_finished()) {
            return;
        }
        let internal = self.internal.clone();
        let run = tokio::spawn(async move {
            if fence.put_off().await {
                let outcome = SwapOutcome::Applied { instance: ticket };
                let _ = internal.send(Event::Swapped { new, outcome }).await;
            }
        });
        self.fencing = Some((ticket, run));
    }

    /// Ends a command that counts for nothing any more: it would put off a machine that has been heard since.
    fn stop_void_fencing(&mut self) {
        let wanted = self.state.pending.map(|pending| pending.instance);
        if let Some((_, run)) = self.fencing.take_if(|(ticket, _)| wanted != Some(*ticket)) {
            run.abort();
        }
    }

    fn swap(&mut self, instance: u64, expected: u64, new: Register) {
        if let Some(fence) = self.parts.fence.clone() {
            return self.fence(fence, instance, new);
        }
        let Some(witness) = self.parts.witness.clone() else { return };
        // Without a permit it is as if it had been lost on the way: it is sent again.
        let Ok(permit) = Arc::clone(&self.swaps).try_acquire_owned() else { return };
        let internal = self.internal.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let outcome = witness.swap(instance, expected, new).await;
            if outcome == SwapOutcome::Unknown {
                tracing::debug!(witness = witness.describe(), "nobody knows whether the witness has written");
            }
            let _ = internal.send(Event::Swapped { new, outcome }).await;
        });
    }

    fn drain(&self) {
        self.parts.drain.hold();
        let (drain, internal) = (self.parts.drain.clone(), self.internal.clone());
        // A switchover that is given up releases the hold, and this ends with it sooner or later; a late report is passed over.
        tokio::spawn(async move {
            drain.drained().await;
            let _ = internal.send(Event::Drained).await;
        });
    }
}

fn why_no_switchover(state: &State, now: Millis) -> String {
    if state.phase != Phase::Leader {
        return format!("this node doesn't lead; ask node {}", letter(state.me().peer()));
    }
    if state.handover.is_some() {
        return "a switchover is under way already".to_owned();
    }
    if state.peer_away_until.is_some() {
        return format!("node {} is in maintenance; duet maintenance --end brings it back", letter(state.me().peer()));
    }
    if !state.peer_is_synchronous(now) {
        return format!("the peer is not in step, so it can't take over. {}", explain(state, now));
    }
    format!("not at this moment. {}", explain(state, now))
}

fn why_not_alone(state: &State, now: Millis) -> String {
    if state.phase != Phase::Leader {
        return format!("this node doesn't lead; ask node {}", letter(state.me().peer()));
    }
    if state.handover.is_some() {
        return "a switchover is under way".to_owned();
    }
    format!("not at this moment. {}", explain(state, now))
}
