//! A seeded simulation of a pair and its witness in milliseconds: message delay, loss and duplication, pauses, crashes, partitions,
//! a witness that is slow, down or wiped, PostgreSQLs that take their time. The nodes run the `step` of production.
//!
//! One seed is one run, whatever the machine. Clients write and read all the time; every answer is checked when it is given.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use duet::supervisor::fsm::{
    Action, Answer, Event, Goal, Heartbeat, Mode, NodeId, Note, Phase, Postgres, Record, Register, Setup, State, SwapOutcome,
    Sync, Third, Timing, Wish, step,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What can go wrong in a run.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Milliseconds of trouble.
    pub trouble: u64,
    /// A fault about so often, in milliseconds; 0: none.
    pub fault_every: u64,
    /// Heartbeats lost, in thousandths.
    pub loss: u32,
    /// How long pauses may be.
    pub pause_max: u64,
    /// Only pauses.
    pub pauses_only: bool,
    /// Who decides when the nodes don't hear each other.
    pub third: Third,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Off,
    Primary { sync: bool },
    Standby { receiving: bool },
}

#[derive(Clone, Debug)]
enum What {
    Tick(usize, u64),
    /// To a node's process: one that comes for another is refused, because its key was that one's.
    Heartbeat(usize, u64, Heartbeat),
    /// A fencing device's command reaches the machine of a node; whose command it is, and what is to be told.
    PutOff(usize, u64, Event),
    /// At the witness: from, process, and what is asked.
    Question(usize, u64, Option<(u64, u64, Register)>),
    Reply(usize, u64, Event),
    Report(usize),
    /// PostgreSQL of a node reaches the next stage towards its goal, unless it was disturbed since.
    Postgres(usize, u64),
    Replicate(usize),
    Client,
    Fault,
    Restart(usize),
    Resume(usize),
    Heal,
    WitnessUp,
}

/// A node's own clock: it begins anywhere, and goes by up to 0.7 % too fast or too slowly.
#[derive(Clone, Copy, Debug)]
struct Clock {
    offset: u64,
    /// How much too fast, in millionths.
    fast: i64,
}

impl Clock {
    fn random(rng: &mut StdRng) -> Self {
        // A machine that has just started, or one that has been up for years.
        let offset = if rng.random_range(0..2) == 0 { rng.random_range(0..1000) } else { rng.random_range(0..1 << 37) };
        Self { offset, fast: rng.random_range(-7000..=7000) }
    }

    fn says(self, now: u64) -> u64 {
        self.offset + now.saturating_mul(1_000_000u64.saturating_add_signed(self.fast)) / 1_000_000
    }
}

#[derive(Debug)]
struct Node {
    up: bool,
    paused: bool,
    clock: Clock,
    state: State,
    /// What its disk has: a restart begins with it.
    disk: Record,
    role: Role,
    wal: Vec<u64>,
    /// How much of that there was when it was looked at last, as a standby.
    reported: usize,
    shown: Option<usize>,
    drains: bool,
    /// Events that came while the process was paused.
    waiting: Vec<Event>,
    /// Counts the disturbances of its PostgreSQL, so that what was under way is dropped.
    stage: u64,
    moving: bool,
    /// Where it is moving to; a goal that was set later waits until it is there.
    target: Goal,
    /// A fencing command runs until then.
    fencing_until: u64,
}

impl Node {
    /// Whether its disk was replaced and it hasn't been given a part since, or the owner's.
    fn has_new_disk(&self) -> bool {
        !self.disk.complete && self.disk.seen.is_none_or(|seen| seen.owner == self.state.me())
    }
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub acknowledged: u64,
    pub failovers: u64,
    pub fenced: u64,
    /// Disks that were replaced.
    pub replaced: u64,
    /// Crashes in the midst of what a step asked for.
    pub torn: u64,
    pub longest_gap: u64,
    pub settled_in: u64,
}

pub struct Simulation {
    rng: StdRng,
    weather: Weather,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, What>,
    nodes: [Node; 2],
    witness: Answer,
    witness_up: bool,
    cut: [[bool; 3]; 3],
    next_write: u64,
    known: Vec<u64>,
    /// The greatest epoch in which a write was acknowledged, and by which node.
    acknowledged_in: (i64, usize),
    last_acknowledged_at: u64,
    calm: bool,
    outcome: Outcome,
    history: Vec<String>,
}

const WITNESS: usize = 2;

impl Simulation {
    /// A new pair that doesn't know of any store yet.
    pub fn new(seed: u64, weather: Weather) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut node = |index: usize| {
            let clock = Clock::random(&mut rng);
            Node {
                up: true,
                paused: false,
                clock,
                state: State::new(
                    Setup {
                        me: if index == 0 { NodeId::A } else { NodeId::B },
                        timing: Timing::FAST,
                        third: weather.third,
                        begins: index == 0,
                    },
                    Record { process: 1, ..Record::default() },
                    clock.says(0),
                ),
                disk: Record { process: 1, ..Record::default() },
                role: Role::Off,
                wal: Vec::new(),
                reported: 0,
                shown: None,
                drains: false,
                waiting: Vec::new(),
                stage: 0,
                moving: false,
                target: Goal::Stopped,
                fencing_until: 0,
            }
        };
        let nodes = [node(0), node(1)];
        let mut simulation = Self {
            rng,
            weather,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes,
            witness: Answer { instance: 1, value: None },
            witness_up: true,
            cut: [[false; 3]; 3],
            next_write: 1,
            known: Vec::new(),
            acknowledged_in: (0, 0),
            last_acknowledged_at: 0,
            calm: true,
            outcome: Outcome::default(),
            history: Vec::new(),
        };
        simulation.at(1, What::Tick(0, 1));
        simulation.at(37, What::Tick(1, 1));
        simulation.at(1, What::Client);
        simulation
    }

    /// Runs until PAIR, then through the trouble, then until both are a pair again.
    ///
    /// # Panics
    /// When a rule is broken, or when the pair doesn't come back; the history is in the message.
    pub fn run(mut self) -> Outcome {
        self.form();
        if self.weather.fault_every > 0 {
            self.schedule_fault();
        }
        self.run_for(self.weather.trouble);
        self.make_calm();
        self.decide();
        let settled = self.run_until_settled(120_000);
        assert!(settled.is_some(), "the pair doesn't come back:\n{}", self.tale());
        self.outcome.settled_in = settled.unwrap_or_default();
        for node in &self.nodes {
            let lost: Vec<_> = self.known.iter().filter(|write| node.wal.binary_search(write).is_err()).collect();
            assert!(lost.is_empty(), "lost {lost:?} on {:?}:\n{}", node.state.me(), self.tale());
        }
        self.outcome
    }

    /// Runs until both are a pair; the weather begins then.
    fn form(&mut self) {
        let formed = self.run_until_settled(60_000);
        assert!(formed.is_some(), "the pair never formed:\n{}", self.tale());
        self.calm = false;
        self.last_acknowledged_at = self.now;
    }

    fn run_for(&mut self, time: u64) {
        let end = self.now + time;
        while self.now < end {
            self.advance();
        }
    }

    /// All heartbeats are lost while WAL goes on arriving, and the leader doesn't hear the witness; then WAL stops, too.
    ///
    /// # Panics
    /// When the follower takes over before WAL stops, or doesn't afterwards.
    pub fn lose_heartbeats_only(mut self) {
        self.form();
        let leader = self.nodes.iter().position(|node| node.state.phase == Phase::Leader);
        let Some(leader) = leader else { unreachable!("a pair has a leader") };
        self.weather.loss = 1000;
        self.cut[leader][WITNESS] = true;
        self.cut[WITNESS][leader] = true;
        let acknowledged = self.outcome.acknowledged;
        self.run_for(10_000);
        assert_eq!(self.outcome.failovers, 0, "the leader was alive:\n{}", self.tale());
        assert!(self.outcome.acknowledged > acknowledged, "nothing was written:\n{}", self.tale());
        self.cut[leader][1 - leader] = true;
        self.run_for(3000);
        assert_eq!(self.outcome.failovers, 1, "nothing comes from the leader any more:\n{}", self.tale());
    }

    fn run_until_settled(&mut self, patience: u64) -> Option<u64> {
        let began = self.now;
        while self.now < began + patience {
            self.advance();
            let leads = |node: &Node| node.state.may_read(node.clock.says(self.now)) && node.shown.is_some();
            let leader = self.nodes.iter().position(leads);
            let goal = if self.weather.third == Third::Nobody { Mode::Asym } else { Mode::Pair };
            if let Some(leader) = leader
                && self.nodes[leader].state.mode() == Some(goal)
                && self.nodes[leader].state.record.intent.is_none()
                && self.is_replicated(leader)
                && self.nodes.iter().all(|node| node.disk.complete)
                && self.nodes[1 - leader].state.record.seen == self.nodes[leader].state.record.seen
            {
                return Some(self.now - began);
            }
        }
        None
    }

    /// A right that was given to a node at the moment in which it lost its disk comes back only by an operator's word. So does one that
    /// only a disk and a witness knew of that are both gone.
    fn decide(&mut self) {
        let known = self.nodes.iter().any(|node| node.disk.instance == Some(self.witness.instance));
        let witnessed = self.weather.third == Third::Witness && known;
        if witnessed || !self.nodes.iter().any(Node::has_new_disk) {
            return;
        }
        self.run_for(10_000);
        if let Some(empty) = self.nodes.iter().position(Node::has_new_disk) {
            self.tell(format!("an operator makes {} the owner", 1 - empty));
            self.deliver(1 - empty, Event::Operator(Wish::AcceptDataLoss));
        }
    }

    fn make_calm(&mut self) {
        self.calm = true;
        self.cut = [[false; 3]; 3];
        self.witness_up = true;
        for node in 0..2 {
            if self.nodes[node].paused {
                self.resume(node);
            }
        }
    }

    /// What the node's own clock says.
    fn clock(&self, node: usize) -> u64 {
        self.nodes[node].clock.says(self.now)
    }

    fn at(&mut self, delay: u64, what: What) {
        self.order += 1;
        self.queue.push(Reverse((self.now + delay, self.order)));
        self.events.insert(self.order, what);
    }

    fn tell(&mut self, text: String) {
        self.history.push(format!("{:>7} {text}", self.now));
    }

    fn tale(&self) -> String {
        let from = self.history.len().saturating_sub(120);
        let states = self
            .nodes
            .iter()
            .map(|node| format!("{:?} wal={} shown={:?}\n{:?}", node.role, node.wal.len(), node.shown, node.state));
        format!(
            "{}\nwitness {:?} up={}\n{}",
            self.history[from..].join("\n"),
            self.witness,
            self.witness_up,
            states.collect::<Vec<_>>().join("\n")
        )
    }

    fn chance(&mut self, thousandths: u32) -> bool {
        self.rng.random_range(0..1000) < thousandths
    }

    /// Most messages are quick, some aren't.
    fn delay(&mut self) -> u64 {
        match self.rng.random_range(0..1000) {
            0..900 => self.rng.random_range(0..3),
            900..990 => self.rng.random_range(3..60),
            _ if self.calm => 5,
            _ => self.rng.random_range(60..1500),
        }
    }

    fn advance(&mut self) {
        let Some(Reverse((at, order))) = self.queue.pop() else { unreachable!("ticks never end") };
        self.now = at;
        let Some(what) = self.events.remove(&order) else { unreachable!("every time has its event") };
        match what {
            What::Tick(node, process) => {
                if self.nodes[node].up && self.nodes[node].state.record.process == process {
                    let next = 100 + self.rng.random_range(0..3);
                    self.at(next, What::Tick(node, process));
                    if !self.nodes[node].paused {
                        self.report(node);
                        self.deliver(node, Event::Tick);
                    }
                }
            }
            What::Heartbeat(to, process, heartbeat) => {
                if self.nodes[to].state.record.process == process {
                    self.deliver(to, Event::Heard(heartbeat));
                }
            }
            What::PutOff(from, process, answer) => {
                self.tell(format!("{from} has {} put off", 1 - from));
                self.outcome.fenced += 1;
                self.crash(1 - from);
                let delay = 1 + self.delay();
                self.at(delay, What::Reply(from, process, answer));
            }
            What::Question(from, process, asked) => self.question(from, process, asked),
            What::Reply(node, process, event) => {
                let told = self.nodes[node].state.fences() || !self.cut[WITNESS][node];
                if self.nodes[node].state.record.process == process && told {
                    self.deliver(node, event);
                }
            }
            What::Report(node) => self.report(node),
            What::Postgres(node, stage) => {
                if self.nodes[node].stage == stage {
                    self.nodes[node].moving = false;
                    self.advance_postgres(node);
                }
            }
            What::Replicate(node) => self.replicate(node),
            What::Client => self.client(),
            What::Fault => self.fault(),
            What::Restart(node) => self.restart(node),
            What::Resume(node) => self.resume(node),
            What::Heal => self.cut = [[false; 3]; 3],
            What::WitnessUp => self.witness_up = true,
        }
    }

    fn deliver(&mut self, node: usize, event: Event) {
        if !self.nodes[node].up {
            return;
        }
        if self.nodes[node].paused {
            // A socket's buffer holds only so much; what PostgreSQL is, is asked again.
            if !matches!(event, Event::Postgres(_)) && self.nodes[node].waiting.len() < 100 {
                self.nodes[node].waiting.push(event);
            }
            return;
        }
        let before = self.nodes[node].state.pending;
        let (state, actions) = step(&self.nodes[node].state, event, self.clock(node));
        self.nodes[node].state = state;
        let torn_after = self.torn_after(&actions);
        for action in actions.iter().take(torn_after.unwrap_or(usize::MAX)) {
            // What is sent again rests on what was durable when it was sent first.
            let rests = match action {
                Action::Send(_) => true,
                Action::Swap { new, .. } => before.is_none_or(|before| before.new != *new),
                _ => false,
            };
            let durable = self.nodes[node].disk == self.nodes[node].state.record;
            assert!(durable || !rests, "{node} does {action:?} before its record is durable:\n{}", self.tale());
            self.perform(node, *action);
        }
        if let Some(after) = torn_after {
            self.tell(format!("{node}: the next crash comes after {after} of {actions:?}"));
            self.outcome.torn += 1;
            self.crash(node);
        }
        self.start_postgres(node);
    }

    /// A machine may be lost in the midst of what a step asks for; most often where something was to be durable.
    fn torn_after(&mut self, actions: &[Action]) -> Option<usize> {
        if self.calm || self.weather.pauses_only || self.weather.fault_every == 0 {
            return None;
        }
        let persists = actions.iter().any(|action| matches!(action, Action::Persist(_)));
        let torn = self.chance(if persists { 50 } else { 1 });
        (torn && !actions.is_empty()).then(|| self.rng.random_range(0..actions.len()))
    }

    fn perform(&mut self, node: usize, action: Action) {
        let process = self.nodes[node].state.record.process;
        let disk = self.nodes[node].disk;
        match action {
            Action::Send(heartbeat) => {
                let loss = if self.calm { 0 } else { self.weather.loss };
                for _ in 0..=usize::from(!self.calm && self.chance(20)) {
                    let delay = self.delay();
                    if !self.cut[node][1 - node] && !self.chance(loss) {
                        let to = self.nodes[1 - node].state.record.process;
                        self.at(delay, What::Heartbeat(1 - node, to, heartbeat));
                    }
                }
            }
            Action::Ask => {
                let delay = self.delay();
                self.at(delay, What::Question(node, process, None));
            }
            Action::Swap { instance, new, .. } if self.nodes[node].state.fences() => self.fence(node, instance, new),
            Action::Swap { instance, expected, new } => {
                let delay = self.delay();
                self.at(delay, What::Question(node, process, Some((instance, expected, new))));
            }
            Action::Note(note) => self.note(node, note),
            Action::Drain => self.nodes[node].drains = true,
            Action::Undrain => self.nodes[node].drains = false,
            Action::Persist(record) => self.nodes[node].disk = record,
            Action::Pursue(Goal::Primary { sync: false }) => {
                let solo = disk.seen.is_some_and(|seen| seen.mode == Mode::Solo);
                let me = self.nodes[node].state.me();
                assert!(solo && disk.may_be_alone(me), "{node} goes on alone, which its disk doesn't say:\n{}", self.tale());
            }
            Action::Pursue(_) => {}
        }
    }

    /// One command runs at a time. It takes its time, and may fail.
    fn fence(&mut self, node: usize, ticket: u64, new: Register) {
        if self.now < self.nodes[node].fencing_until {
            return;
        }
        let takes = self.rng.random_range(50..3000);
        self.nodes[node].fencing_until = self.now + takes + 1000;
        if self.calm || !self.chance(200) {
            let answer = Event::Swapped { new, outcome: SwapOutcome::Applied { instance: ticket } };
            let process = self.nodes[node].state.record.process;
            self.at(takes, What::PutOff(node, process, answer));
        }
    }

    fn note(&mut self, node: usize, note: Note) {
        if note == Note::TakesOver {
            self.outcome.failovers += 1;
        }
        let seen = self.nodes[node].state.record.seen;
        self.tell(format!("{node}: {note:?} {seen:?}"));
    }

    fn question(&mut self, from: usize, process: u64, asked: Option<(u64, u64, Register)>) {
        if !self.witness_up || self.cut[from][WITNESS] {
            return;
        }
        let event = match asked {
            None => Event::Read(self.witness),
            Some((instance, expected, new)) => {
                let applies = instance == self.witness.instance && expected == self.witness.version();
                if applies {
                    self.tell(format!("witness: {new:?}"));
                    self.witness.value = Some(new);
                }
                let applied = SwapOutcome::Applied { instance };
                Event::Swapped { new, outcome: if applies { applied } else { SwapOutcome::Refused(self.witness) } }
            }
        };
        let delay = 1 + self.delay();
        self.at(delay, What::Reply(from, process, event));
    }

    fn report(&mut self, node: usize) {
        // What was found while an earlier goal was pursued is never reported.
        if let (Role::Primary { sync }, Goal::Primary { sync: wanted }) = (self.nodes[node].role, self.nodes[node].state.goal)
            && sync != wanted
        {
            return;
        }
        let postgres = match self.nodes[node].role {
            Role::Off if self.nodes[node].moving => Postgres::Busy,
            Role::Off => Postgres::Down,
            Role::Primary { sync: false } => {
                Postgres::Primary(Sync::Off { caught_up: self.nodes[1 - node].role == Role::Standby { receiving: true } })
            }
            Role::Primary { sync: true } if self.is_replicated(node) => Postgres::Primary(Sync::Confirmed),
            Role::Primary { sync: true } => Postgres::Primary(Sync::Waiting),
            Role::Standby { receiving } => {
                let wal = self.nodes[node].wal.len();
                let advanced = wal > std::mem::replace(&mut self.nodes[node].reported, wal);
                let consistent = self.nodes[node].state.record.complete || receiving;
                Postgres::Standby { streaming: receiving, consistent, advanced }
            }
        };
        self.deliver(node, Event::Postgres(postgres));
    }

    fn set_role(&mut self, node: usize, role: Role) {
        let was = self.nodes[node].role;
        self.nodes[node].role = role;
        self.nodes[node].reported = self.nodes[node].wal.len();
        if !matches!((was, role), (Role::Primary { .. }, Role::Primary { .. })) {
            self.nodes[node].shown = None;
            if let Role::Standby { receiving } = &mut self.nodes[1 - node].role {
                *receiving = false;
            }
        }
        self.report(node);
    }

    /// Sets out for the goal, if not under way already.
    fn start_postgres(&mut self, node: usize) {
        let (role, goal) = (self.nodes[node].role, self.nodes[node].state.goal);
        let there = match (role, goal) {
            (Role::Off, Goal::Stopped) => true,
            (Role::Primary { sync }, Goal::Primary { sync: wanted }) => sync == wanted,
            (Role::Standby { receiving }, Goal::Standby { .. }) => receiving,
            _ => false,
        };
        if there || self.nodes[node].moving || !self.nodes[node].up {
            return;
        }
        let takes = match (role, goal) {
            (Role::Off, Goal::Primary { .. }) => self.rng.random_range(100..800),
            (Role::Standby { .. }, Goal::Primary { .. }) => self.rng.random_range(20..125),
            (Role::Primary { .. }, Goal::Primary { .. }) => self.rng.random_range(2..50),
            (Role::Off, Goal::Standby { .. }) => self.rng.random_range(100..400),
            (Role::Standby { .. }, Goal::Standby { rebuild: true }) => self.rng.random_range(1000..4000),
            (Role::Standby { .. }, Goal::Standby { .. }) => self.rng.random_range(20..1500),
            _ => self.rng.random_range(2..60),
        };
        self.nodes[node].moving = true;
        self.nodes[node].target = goal;
        let stage = self.nodes[node].stage;
        self.at(takes, What::Postgres(node, stage));
    }

    fn advance_postgres(&mut self, node: usize) {
        let (role, goal) = (self.nodes[node].role, self.nodes[node].target);
        match (role, goal) {
            (_, Goal::Primary { sync }) => self.set_role(node, Role::Primary { sync }),
            (Role::Off, Goal::Standby { .. }) => self.set_role(node, Role::Standby { receiving: false }),
            (Role::Standby { receiving: false }, Goal::Standby { rebuild }) => self.receive(node, rebuild),
            (Role::Primary { .. }, Goal::Standby { .. }) | (_, Goal::Stopped) => self.set_role(node, Role::Off),
            (Role::Standby { receiving: true }, Goal::Standby { .. }) => {}
        }
        self.start_postgres(node);
    }

    fn receive(&mut self, node: usize, rebuild: bool) {
        let linked = !self.cut[node][1 - node] && !self.cut[1 - node][node];
        if !linked || !matches!(self.nodes[1 - node].role, Role::Primary { .. }) {
            return;
        }
        let leader_wal = self.nodes[1 - node].wal.clone();
        let me = &mut self.nodes[node];
        if rebuild {
            me.wal = leader_wal;
        } else {
            let common = me.wal.iter().zip(&leader_wal).take_while(|(a, b)| a == b).count();
            me.wal.truncate(common);
        }
        me.role = Role::Standby { receiving: true };
        me.reported = me.wal.len();
        self.report(node);
        self.at(1, What::Replicate(node));
    }

    fn replicate(&mut self, node: usize) {
        let (Role::Standby { receiving: true }, Role::Primary { .. }) = (self.nodes[node].role, self.nodes[1 - node].role) else {
            return;
        };
        if self.cut[node][1 - node] || self.cut[1 - node][node] {
            // The connection stays as long as nothing tells it otherwise; what is sent is sent again.
            return self.at(20, What::Replicate(node));
        }
        let (has, wants) = (self.nodes[node].wal.len(), self.nodes[1 - node].wal.len());
        if has != wants {
            // What is received continues what is there: that was checked when the standby connected.
            let new = self.nodes[1 - node].wal[has..].to_vec();
            self.nodes[node].wal.extend(new);
            self.at(1, What::Report(1 - node));
        }
        self.at(2, What::Replicate(node));
    }

    fn is_replicated(&self, node: usize) -> bool {
        let peer = &self.nodes[1 - node];
        peer.role == Role::Standby { receiving: true } && peer.wal.len() == self.nodes[node].wal.len()
    }

    fn commits(&self, node: usize) -> bool {
        match self.nodes[node].role {
            Role::Primary { sync } => !sync || self.is_replicated(node),
            _ => false,
        }
    }

    /// Clients try both nodes: open, read, write, and get what has committed acknowledged.
    fn client(&mut self) {
        for node in 0..2 {
            if !self.nodes[node].up || self.nodes[node].paused {
                continue;
            }
            self.open(node);
            self.acknowledge(node);
            self.read(node);
            self.write(node);
        }
        self.at(5, What::Client);
    }

    fn open(&mut self, node: usize) {
        if self.nodes[node].shown.is_none() && self.nodes[node].state.may_acknowledge(self.clock(node)) && self.commits(node) {
            self.nodes[node].shown = Some(self.nodes[node].wal.len());
        }
    }

    fn write(&mut self, node: usize) {
        let now = self.clock(node);
        let me = &mut self.nodes[node];
        if me.shown == Some(me.wal.len()) && !me.drains && me.state.may_acknowledge(now) {
            me.wal.push(self.next_write);
            self.next_write += 1;
        }
    }

    fn acknowledge(&mut self, node: usize) {
        let me = &self.nodes[node];
        let Some(shown) = me.shown else { return };
        if shown < me.wal.len() && self.commits(node) && me.state.may_acknowledge(self.clock(node)) {
            let epoch = me.state.record.seen.map_or(0, |seen| seen.epoch);
            let (newest, by) = self.acknowledged_in;
            assert!(epoch >= newest, "{node} acknowledges in epoch {epoch}, which has ended:\n{}", self.tale());
            assert!(epoch > newest || node == by, "both acknowledge in epoch {epoch}:\n{}", self.tale());
            self.acknowledged_in = (epoch, node);
            let (new, len) = (self.nodes[node].wal[shown..].to_vec(), self.nodes[node].wal.len());
            self.outcome.acknowledged += new.len() as u64;
            self.known.extend(new);
            self.nodes[node].shown = Some(len);
            if !self.calm {
                self.outcome.longest_gap = self.outcome.longest_gap.max(self.now - self.last_acknowledged_at);
            }
            self.last_acknowledged_at = self.now;
        }
        let me = &self.nodes[node];
        if me.drains && me.shown == Some(me.wal.len()) && me.state.handover.is_some_and(|handover| !handover.drained) {
            self.deliver(node, Event::Drained);
        }
    }

    fn read(&mut self, node: usize) {
        let me = &self.nodes[node];
        let Some(shown) = me.shown.filter(|_| me.state.may_read(self.clock(node))) else { return };
        // Writes are numbered in the order in which they were begun, and a later one is never known without the earlier ones before
        // it in the same log: the newest is enough to look at, and all of them at the end.
        if let Some(newest) = self.known.last()
            && me.wal[..shown].binary_search(newest).is_err()
        {
            panic!("a read on {node} misses {newest}:\n{}", self.tale());
        }
        let from = self.known.last().map_or(0, |newest| me.wal[..shown].partition_point(|write| write <= newest));
        let fresh = me.wal[from..shown].to_vec();
        self.known.extend(fresh);
    }

    fn schedule_fault(&mut self) {
        let delay = self.rng.random_range(1..2 * self.weather.fault_every);
        self.at(delay, What::Fault);
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        self.schedule_fault();
        let node = self.rng.random_range(0..2);
        let kind = if self.weather.pauses_only { 0 } else { self.rng.random_range(0..16) };
        match kind {
            0 | 1 => self.pause(node),
            2 | 3 => self.crash(node),
            4 => self.postgres_crash(node),
            5 => self.cut_links(&[(node, 1 - node), (1 - node, node)]),
            6 => self.cut_links(&[(node, 1 - node)]),
            7 => self.cut_links(&[(node, WITNESS), (WITNESS, node)]),
            8 => self.cut_links(&[(node, WITNESS), (WITNESS, node), (node, 1 - node), (1 - node, node)]),
            9 => {
                self.tell("witness down".to_owned());
                self.witness_up = false;
                let back = self.rng.random_range(100..8000);
                self.at(back, What::WitnessUp);
            }
            // Both at once, an owner's disk and the witness's, leave nobody who knows what holds.
            10 if self.chance(300) && !self.nodes.iter().any(Node::has_new_disk) => {
                self.tell("witness wiped".to_owned());
                self.witness = Answer { instance: self.witness.instance + 1, value: None };
            }
            // Nor may the last copy go.
            10 if self.chance(300) && !self.nodes[1 - node].has_new_disk() => {
                self.tell("copy spoilt".to_owned());
                if let Role::Standby { receiving } = &mut self.nodes[node].role {
                    *receiving = false;
                }
                self.report(node);
                self.deliver(node, Event::RebuildNeeded);
            }
            10 => self.cut_links(&[(WITNESS, node)]),
            11 => {
                self.tell(format!("failover paused on {node}"));
                let until = self.clock(node) + self.rng.random_range(100..6000);
                self.deliver(node, Event::Operator(Wish::Pause { until }));
            }
            12 => {
                self.tell(format!("{node} is told that the other one is in maintenance"));
                let until = self.clock(node) + self.rng.random_range(100..6000);
                self.deliver(node, Event::Operator(Wish::PeerAway { until }));
            }
            13 => {
                self.tell(format!("{node}: its disk stands still"));
                self.deliver(node, Event::Stalled);
            }
            14 if self.chance(400) => self.replace_disk(node),
            14 => {
                let short = !self.nodes[node].state.short_of_disk;
                self.tell(format!("{node}: its disk is {}", if short { "full" } else { "not full any more" }));
                self.deliver(node, Event::Disk { short });
            }
            _ => {
                self.tell(format!("switchover asked of {node}"));
                self.deliver(node, Event::Operator(Wish::Switchover));
            }
        }
    }

    fn cut_links(&mut self, links: &[(usize, usize)]) {
        for (from, to) in links {
            self.cut[*from][*to] = true;
        }
        self.tell(format!("cut {links:?}"));
        let heals = self.rng.random_range(50..6000);
        self.at(heals, What::Heal);
    }

    fn pause(&mut self, node: usize) {
        if !self.nodes[node].up || self.nodes[node].paused {
            return;
        }
        self.tell(format!("{node}: paused"));
        self.nodes[node].paused = true;
        let back = self.rng.random_range(1..self.weather.pause_max.max(2));
        self.at(back, What::Resume(node));
    }

    fn resume(&mut self, node: usize) {
        if self.nodes[node].up && self.nodes[node].paused {
            self.tell(format!("{node}: resumed"));
            self.nodes[node].paused = false;
            for event in std::mem::take(&mut self.nodes[node].waiting) {
                self.deliver(node, event);
            }
        }
    }

    fn postgres_crash(&mut self, node: usize) {
        self.tell(format!("{node}: PostgreSQL crashed"));
        self.nodes[node].stage += 1;
        self.nodes[node].moving = false;
        self.set_role(node, Role::Off);
        self.start_postgres(node);
    }

    fn crash(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        self.tell(format!("{node}: crashed"));
        self.nodes[node].up = false;
        self.nodes[node].paused = false;
        self.nodes[node].drains = false;
        self.nodes[node].waiting.clear();
        self.nodes[node].stage += 1;
        self.nodes[node].moving = false;
        self.set_role(node, Role::Off);
        let back = self.rng.random_range(20..8000);
        self.at(back, What::Restart(node));
    }

    /// A node comes back with a new disk, if its peer has everything and may lead without it.
    fn replace_disk(&mut self, node: usize) {
        if !self.may_lose_disk(node) {
            return;
        }
        self.crash(node);
        self.tell(format!("{node}: gets a new disk"));
        self.outcome.replaced += 1;
        // The calendar's milliseconds are more than any number of starts.
        self.nodes[node].disk = Record { process: 1_000_000_000_000 + self.now, ..Record::default() };
        self.nodes[node].wal.clear();
    }

    fn may_lose_disk(&self, node: usize) -> bool {
        let (me, peer) = (&self.nodes[node], &self.nodes[1 - node]);
        let has_all = self.known.iter().all(|write| peer.wal.binary_search(write).is_ok());
        let known_to = [peer.disk.seen, me.disk.seen, self.witness.value];
        let newest = known_to.into_iter().flatten().max_by_key(|value| value.version);
        let peer_knows = peer.disk.seen.is_some() && peer.disk.seen == newest;
        let owned = newest.is_some_and(|value| value.owner == peer.state.me()) && peer.up;
        let paired = newest.is_some_and(|value| value.mode == Mode::Pair)
            && self.weather.third == Third::Witness
            && self.witness.value == newest
            && peer.disk.instance == Some(self.witness.instance);
        // What this node has asked for may still be granted.
        let asked = self.events.values().any(|what| matches!(what, What::Question(from, _, Some(_)) if *from == node));
        has_all && peer.disk.complete && peer_knows && (owned || paired) && !asked
    }

    fn restart(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        if self.chance(300) {
            // The machine was started anew, and its clock with it.
            self.nodes[node].clock = Clock::random(&mut self.rng);
        }
        let mut record = self.nodes[node].disk;
        record.process += 1;
        let setup = self.nodes[node].state.setup;
        self.nodes[node].up = true;
        self.nodes[node].disk = record;
        self.nodes[node].state = State::new(setup, record, self.clock(node));
        self.tell(format!("{node}: restarted, {:?}", record.seen));
        self.at(1, What::Tick(node, record.process));
    }
}
