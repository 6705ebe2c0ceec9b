//! Two nodes, a witness and what can befall them. The nodes run the very `step` that runs in production; PostgreSQL, the network and
//! the witness's disk are as simple here as their promises allow.
//!
//! Abstractions: a node's WAL is the list of writes that it has flushed; a standby receives all or nothing new at a time; heartbeats
//! arrive in the tick in which they are sent, or are lost with the link, but for a copy of one that may come later; what can be acknowledged is, and what may be read is read at once; compare-and-swaps can be under way for any time, arrive, and
//! have their answer lost.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use duet::supervisor::fsm::{
    Action, Answer, Event, Goal, Grant, Heartbeat, Mode, NodeId, Phase, Postgres, Record, Register, Setup, State, SwapOutcome,
    Sync, Third, Timing, Wish, step,
};

/// One tick is one heartbeat interval; everything else keeps its proportions.
pub const TIMING: Timing = Timing {
    heartbeat: 1,
    lease: 3,
    drift: 0,
    solo_after: 2,
    stream_grace: 2,
    takeover_after: 4,
    boot_patience: 5,
    postgres_silence: 0,
    warm: 4,
    handover: 2,
    ask: 1,
    swap_again: 2,
    witness_lost: 2,
    backoff: 0,
};

/// The nodes' clocks: where each begins, and how far it goes in a tick. Neither knows anything of the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    pub offsets: [u64; 2],
    pub rates: [u64; 2],
    pub timing: Timing,
}

/// Clocks that say different things, and go at the same speed.
pub const EVEN: Clocks = Clocks { offsets: [1_000_000, 3], rates: [1, 1], timing: TIMING };

/// A's clock goes by a tenth too slowly, which is what the drift allows for; B takes over as soon as its promise has run out.
pub const APART: Clocks = Clocks {
    offsets: [0, 5000],
    rates: [9, 10],
    timing: Timing {
        heartbeat: 10,
        lease: 30,
        drift: 3,
        solo_after: 20,
        stream_grace: 20,
        takeover_after: 30,
        boot_patience: 50,
        postgres_silence: 0,
        warm: 40,
        handover: 20,
        ask: 9,
        swap_again: 20,
        witness_lost: 20,
        backoff: 0,
    },
};

/// Why a world is broken in which something was done before the record that it rests on was durable.
pub const UNDURABLE: &str = "something was done that rests on a record that isn't on the disk";

/// Ages beyond so many heartbeats make no difference to anything.
const OLD: u64 = 8;

/// Rules that can be broken on purpose, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// `synchronous_standby_names` is cleared when SOLO is asked for, not when it holds.
    ClearsBeforeSolo,
    /// PAIR that was asked for counts for nothing until it is confirmed.
    ForgetsPair,
    /// Reads need no lease.
    ReadsWithoutLease,
    /// A cancelled wait for the standby counts as a commit.
    AcknowledgesCancelled,
    /// The follower goes on granting while it asks to take over.
    GrantsWhileTakingOver,
    /// A witness that was restored from a copy says that it is the same as ever.
    HidesRestore,
    /// A restarted primary opens before its peer has confirmed what it shows.
    OpensUnconfirmed,
    /// A copy that isn't whole may take over.
    PromotesIncomplete,
    /// The nodes' agreement on ASYM isn't kept across a restart.
    ForgetsAsym,
    /// A node that nobody has heard since it started has its peer put off.
    FencesUnheard,
    /// The command's answer counts even though the peer was heard since.
    BelievesLateFence,
    /// The two clocks are taken to go at the same speed.
    IgnoresDrift,
    /// A lease is counted from when its grant came, not from when the heartbeat that it grants was sent.
    CountsFromReceipt,
    /// PAIR is asked for although the peer hasn't flushed anything that was written since it is waited for.
    PairsUnconfirmed,
    /// A follower that asks to take over leads before it is told that it may.
    PromotesUnconfirmed,
    /// A new owner opens while its own promise not to take over still holds.
    OpensBeforePromiseEnds,
    /// A leader that learns that the other one has taken over leads on.
    LeadsOn,
    /// The record is made durable when everything else is done.
    PersistsLast,
    /// A takeover goes on in the epoch of the former owner.
    KeepsEpoch,
}

/// How often each kind of trouble may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub writes: u8,
    pub crashes: u8,
    /// Crashes in the midst of what a step asks for.
    pub torn: u8,
    /// Crashes that cost the disk, when the peer has everything and may lead without this node.
    pub replaced: u8,
    pub postgres_crashes: u8,
    pub cuts: u8,
    pub lost_answers: u8,
    pub pauses: u8,
    pub restores: u8,
    pub switchovers: u8,
    pub rebuilds: u8,
    /// An operator's, each begun or ended: of failover, and of a node that is in maintenance.
    pub wishes: u8,
    /// Heartbeats of which the network keeps a copy, which arrives at any later time.
    pub late: u8,
    /// Disks that stand still or become full, or have room again.
    pub disks: u8,
    pub versions: u64,
    pub ticks: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Off,
    Primary { sync: bool },
    Standby { receiving: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub up: bool,
    pub paused: bool,
    pub state: State,
    /// What its disk has: a restart begins with it.
    pub disk: Record,
    /// Its machine is lost in the midst of what a step asks for, after so many actions.
    pub torn_after: Option<usize>,
    pub role: Role,
    /// What is flushed.
    pub wal: Vec<u8>,
    /// The engine has a session for writing, and shows this much of the WAL.
    pub shown: Option<usize>,
    pub drains: bool,
    /// A copy of the leader's data is being made; what was there before is gone.
    pub copying: bool,
    /// How much WAL it had when it was looked at last, as a standby.
    pub reported: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Swap {
    pub from: usize,
    pub process: u64,
    pub instance: u64,
    pub expected: u64,
    pub new: Register,
    /// A fencing device's command has put the other machine off, and its answer is under way.
    pub landed: bool,
}

/// Directed links between the nodes, and each node's link to the witness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cuts {
    pub to: [bool; 2],
    pub witness: [bool; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    pub now: u64,
    clocks: Clocks,
    pub nodes: [Node; 2],
    pub witness: Answer,
    /// A copy of the witness's state that somebody made.
    pub copy: Answer,
    pub swaps: Vec<Swap>,
    pub cuts: Cuts,
    /// The newest heartbeat that each node sent, whether it arrived or not; only where a late one is explored.
    sent: [Option<Heartbeat>; 2],
    /// A heartbeat that the network has kept, and for which process.
    kept: Option<(Heartbeat, u64)>,
    pub budget: Budget,
    /// Writes that were acknowledged or shown.
    pub known: Vec<u8>,
    pub next_write: u8,
    /// The greatest epoch in which a write was acknowledged, and by which node.
    pub acknowledged_in: Option<(i64, usize)>,
    pub broken: Option<&'static str>,
    pub mutation: Option<Mutation>,
    /// What is on its way to a node within the present happening, in order; the first is being taken.
    events: VecDeque<(usize, Event)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happening {
    Tick,
    Move(usize),
    Write(usize),
    Crash(usize),
    /// This node is lost after so many actions of the next step that asks for more.
    Tear(usize, usize),
    Restart(usize),
    /// This node is lost with its disk, and is given a new one.
    Replace(usize),
    PostgresCrash(usize),
    Pause(usize),
    Resume(usize),
    CutPair,
    CutOneWay(usize),
    CutWitness(usize),
    Heal,
    SwapArrives(usize, bool),
    RestoreWitness,
    Switchover(usize),
    Rebuild(usize),
    /// Failover is paused on this node, or not any more.
    Hold(usize),
    /// To this node the other one is in maintenance, or not any more.
    Maintenance(usize),
    /// The network keeps a copy of the newest heartbeat of this node.
    Keep(usize),
    /// What it has kept arrives.
    KeptArrives,
    /// This node is going to be stopped on purpose.
    Leave(usize),
    /// An operator makes this node the owner, whatever is lost. Not among those that are explored: the rules don't hold then.
    Force(usize),
    /// This node's disk takes nothing for long.
    Stall(usize),
    /// This node's disk has no room, or has some again.
    Fill(usize),
}

pub fn id(node: usize) -> NodeId {
    if node == 0 { NodeId::A } else { NodeId::B }
}

impl World {
    /// Both nodes up and in step, owned by A in this mode; nothing has happened yet.
    pub fn steady(mode: Mode, third: Third, clocks: Clocks, budget: Budget, mutation: Option<Mutation>) -> Self {
        let seen = Register { version: 1, epoch: 1, owner: NodeId::A, mode };
        // ASYM is agreed on when the witness is lost: what the witness has is older.
        let version = if mode == Mode::Asym { 2 } else { 1 };
        let stored = Register { mode: if mode == Mode::Asym { Mode::Pair } else { mode }, ..seen };
        let seen = Register { version, ..seen };
        let instance = (third == Third::Witness).then_some(1);
        let record = Record {
            seen: Some(seen),
            instance,
            intent: None,
            complete: true,
            rebuilds_in: None,
            promises: TIMING.lease,
            process: 1,
        };
        let Clocks { timing, offsets, .. } = clocks;
        let node = |index: usize| Node {
            up: true,
            paused: false,
            state: State::new(Setup { me: id(index), timing, third, begins: index == 0 }, record, offsets[index]),
            disk: record,
            torn_after: None,
            role: Role::Off,
            wal: Vec::new(),
            shown: None,
            drains: false,
            copying: false,
            reported: 0,
        };
        let witness = Answer { instance: 1, value: Some(stored) };
        let mut world = Self {
            now: 0,
            clocks,
            nodes: [node(0), node(1)],
            witness,
            copy: witness,
            swaps: Vec::new(),
            cuts: Cuts::default(),
            sent: [None; 2],
            kept: None,
            budget,
            known: Vec::new(),
            next_write: 1,
            acknowledged_in: None,
            broken: None,
            mutation,
            events: VecDeque::new(),
        };
        world.cuts.witness = [mode != Mode::Pair; 2];
        // Until both are up, in step, and no promise of an earlier life is left.
        for _ in 0..8 {
            world.tick();
            for node in 0..2 {
                world.advance_postgres(node);
            }
            world.settle();
        }
        assert!(world.nodes[0].state.may_read(world.clock(0)) && world.is_replicated(0), "the model begins with a working pair");
        world.cuts = Cuts::default();
        world
    }

    /// What the node's own clock says.
    pub fn clock(&self, node: usize) -> u64 {
        self.clocks.offsets[node] + self.now * self.clocks.rates[node]
    }

    pub fn happenings(&self) -> Vec<Happening> {
        use Happening::*;
        let budget = &self.budget;
        let mut all = Vec::new();
        if self.broken.is_some() {
            return all;
        }
        if budget.ticks > 0 {
            all.push(Tick);
        }
        for i in 0..2 {
            let node = &self.nodes[i];
            if !node.up {
                all.push(Restart(i));
                continue;
            }
            if node.paused {
                all.push(Resume(i));
            } else {
                all.push(Move(i));
                if budget.writes > 0 {
                    all.push(Write(i));
                }
                if budget.switchovers > 0 {
                    all.push(Switchover(i));
                }
                if budget.pauses > 0 {
                    all.push(Pause(i));
                }
                if budget.rebuilds > 0 {
                    all.push(Rebuild(i));
                }
                if budget.disks > 0 {
                    all.extend([Stall(i), Fill(i)]);
                }
                if budget.wishes > 0 {
                    all.extend([Hold(i), Maintenance(i), Leave(i)]);
                }
            }
            if budget.crashes > 0 {
                all.push(Crash(i));
            }
            if budget.replaced > 0 {
                all.push(Replace(i));
            }
            if budget.torn > 0 && node.torn_after.is_none() {
                all.extend((1..=4).map(|actions| Tear(i, actions)));
            }
            if budget.postgres_crashes > 0 && node.role != Role::Off {
                all.push(PostgresCrash(i));
            }
            if budget.cuts > 0 {
                all.push(CutOneWay(i));
                all.push(CutWitness(i));
            }
        }
        if budget.cuts > 0 {
            all.push(CutPair);
        }
        if self.cuts != Cuts::default() {
            all.push(Heal);
        }
        if budget.late > 0 && self.kept.is_none() {
            all.extend([Keep(0), Keep(1)]);
        }
        if self.kept.is_some() {
            all.push(KeptArrives);
        }
        if budget.restores > 0 {
            all.push(RestoreWitness);
        }
        for index in 0..self.swaps.len() {
            all.push(SwapArrives(index, true));
            if budget.lost_answers > 0 {
                all.push(SwapArrives(index, false));
            }
        }
        all
    }

    /// What the world is after that; `None` when nothing changed.
    pub fn after(&self, happening: Happening) -> Option<Self> {
        use Happening::*;
        let mut world = self.clone();
        match happening {
            Tick => {
                world.budget.ticks -= 1;
                world.tick();
            }
            Move(node) => world.advance_postgres(node),
            Write(node) => world.write(node),
            Crash(node) => {
                world.budget.crashes -= 1;
                world.crash(node);
            }
            Tear(node, actions) => {
                world.budget.torn -= 1;
                world.nodes[node].torn_after = Some(actions);
            }
            Restart(node) => world.restart(node),
            Replace(node) => {
                if world.may_lose_disk(node) {
                    world.budget.replaced -= 1;
                    world.lose_disk(node);
                }
            }
            PostgresCrash(node) => {
                world.budget.postgres_crashes -= 1;
                world.set_role(node, Role::Off);
                if !world.nodes[node].paused {
                    world.deliver(node, Event::Postgres(Postgres::Down));
                }
            }
            Pause(node) => {
                world.budget.pauses -= 1;
                world.nodes[node].paused = true;
            }
            Resume(node) => world.nodes[node].paused = false,
            CutPair => {
                world.budget.cuts -= 1;
                world.cuts.to = [true, true];
            }
            CutOneWay(node) => {
                world.budget.cuts -= 1;
                world.cuts.to[node] = true;
            }
            CutWitness(node) => {
                world.budget.cuts -= 1;
                world.cuts.witness[node] = true;
            }
            Heal => world.cuts = Cuts::default(),
            SwapArrives(index, answered) => world.swap_arrives(index, answered),
            RestoreWitness => {
                world.budget.restores -= 1;
                let instance = if world.mutation == Some(Mutation::HidesRestore) {
                    world.witness.instance
                } else {
                    world.witness.instance + 1
                };
                world.witness = Answer { instance, value: world.copy.value };
            }
            Switchover(node) => {
                world.budget.switchovers -= 1;
                world.deliver(node, Event::Operator(Wish::Switchover));
            }
            Hold(node) => {
                world.budget.wishes -= 1;
                let held = world.nodes[node].state.paused_until.is_some();
                world.deliver(node, Event::Operator(if held { Wish::Resume } else { Wish::Pause { until: u64::MAX } }));
            }
            Maintenance(node) => {
                world.budget.wishes -= 1;
                let away = world.nodes[node].state.peer_away_until.is_some();
                world.deliver(node, Event::Operator(if away { Wish::PeerBack } else { Wish::PeerAway { until: u64::MAX } }));
            }
            Keep(node) => {
                if let Some(heartbeat) = world.sent[node] {
                    world.budget.late -= 1;
                    world.kept = Some((heartbeat, world.nodes[1 - node].state.record.process));
                }
            }
            KeptArrives => {
                if let Some((heartbeat, process)) = world.kept.take() {
                    let to = usize::from(heartbeat.from == id(0));
                    let node = &world.nodes[to];
                    // One that comes for another process is refused, because its key was that one's.
                    if node.up && !node.paused && node.state.record.process == process {
                        world.deliver(to, Event::Heard(heartbeat));
                    }
                }
            }
            Leave(node) => {
                world.budget.wishes -= 1;
                world.deliver(node, Event::Operator(Wish::Leave));
            }
            Force(node) => world.deliver(node, Event::Operator(Wish::AcceptDataLoss)),
            Stall(node) => {
                world.budget.disks -= 1;
                world.deliver(node, Event::Stalled);
            }
            Fill(node) => {
                world.budget.disks -= 1;
                let short = !world.nodes[node].state.short_of_disk;
                world.deliver(node, Event::Disk { short });
            }
            Rebuild(node) => {
                world.budget.rebuilds -= 1;
                // What is broken doesn't follow any more.
                if let Role::Standby { receiving } = &mut world.nodes[node].role {
                    *receiving = false;
                }
                world.report(node);
                world.deliver(node, Event::RebuildNeeded);
            }
        }
        world.settle();
        (world != *self && world.witness.version() <= self.budget.versions).then_some(world)
    }

    /// What happens by itself, as soon as it can: data flows, sessions open, commits are acknowledged, clients read. That it doesn't
    /// happen for a while is what cuts and pauses are for.
    fn settle(&mut self) {
        for node in 0..2 {
            self.replicate(node);
        }
        for node in 0..2 {
            if self.nodes[node].up && !self.nodes[node].paused {
                self.open(node);
                self.acknowledge(node);
                self.read(node);
            }
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        for node in 0..2 {
            if self.nodes[node].up && !self.nodes[node].paused {
                self.report(node);
                self.deliver(node, Event::Tick);
            }
        }
    }

    /// Lets a node take an event, and then everybody what follows from it at once.
    fn deliver(&mut self, node: usize, event: Event) {
        self.events.push_back((node, event));
        if self.events.len() > 1 {
            return;
        }
        while let Some((node, event)) = self.events.front().copied() {
            if self.nodes[node].up {
                self.take(node, event);
            }
            self.events.pop_front();
        }
    }

    /// One step, and what it asks for, in order.
    fn take(&mut self, node: usize, event: Event) {
        let before = self.nodes[node].state.pending;
        let event = match event {
            Event::Postgres(Postgres::Primary(Sync::Waiting)) if self.mutation == Some(Mutation::PairsUnconfirmed) => {
                Event::Postgres(Postgres::Primary(Sync::Confirmed))
            }
            event => event,
        };
        let (mut state, mut actions) = step(&self.nodes[node].state, event, self.clock(node));
        self.mutate(node, &mut state, &mut actions);
        self.nodes[node].state = state;
        actions.retain(|action| !matches!(action, Action::Note(_)));
        let torn_after = self.nodes[node].torn_after.filter(|after| *after < actions.len());
        for action in actions.into_iter().take(torn_after.unwrap_or(usize::MAX)) {
            // What is sent again rests on what was durable when it was sent first.
            let rests = match action {
                Action::Send(_) => true,
                Action::Swap { new, .. } => before.is_none_or(|before| before.new != new),
                _ => false,
            };
            if rests && self.nodes[node].disk != self.nodes[node].state.record {
                self.broken = Some(UNDURABLE);
            }
            self.perform(node, action);
        }
        if torn_after.is_some() {
            self.crash(node);
        }
    }

    fn perform(&mut self, node: usize, action: Action) {
        match action {
            Action::Send(heartbeat) => self.heartbeat(node, heartbeat),
            Action::Ask => {
                if !self.cuts.witness[node] {
                    self.deliver(node, Event::Read(self.witness));
                }
            }
            Action::Swap { instance, expected, new } => {
                let process = self.nodes[node].state.record.process;
                let swap = Swap { from: node, process, instance, expected, new, landed: false };
                // One command at a time; a fencing device has ways of its own.
                let under_way = self.swaps.iter().any(|other| Swap { landed: false, ..*other } == swap);
                if !under_way && (self.fences() || !self.cuts.witness[node]) {
                    self.swaps.push(swap);
                }
            }
            Action::Drain => self.nodes[node].drains = true,
            Action::Undrain => self.nodes[node].drains = false,
            Action::Persist(record) => self.nodes[node].disk = record,
            Action::Pursue(Goal::Primary { sync: false }) => {
                let disk = self.nodes[node].disk;
                if !disk.may_be_alone(id(node)) || disk.seen.is_none_or(|seen| seen.mode != Mode::Solo) {
                    self.broken = Some(UNDURABLE);
                }
            }
            // The goal is read from the state.
            Action::Pursue(_) | Action::Note(_) => {}
        }
    }

    fn heartbeat(&mut self, from: usize, heartbeat: Heartbeat) {
        let to = 1 - from;
        if self.budget.late > 0 {
            self.sent[from] = Some(heartbeat);
        }
        if self.nodes[to].up && !self.nodes[to].paused && !self.cuts.to[to] {
            self.deliver(to, Event::Heard(heartbeat));
        }
    }

    fn fences(&self) -> bool {
        self.nodes[0].state.fences()
    }

    /// A command puts the other machine off, whatever has become of who gave it; its answer comes later.
    fn fence_arrives(&mut self, index: usize, answered: bool) {
        let Swap { from, process, instance, new, landed, .. } = self.swaps[index];
        if !landed && answered {
            self.swaps[index].landed = true;
            if self.nodes[1 - from].up {
                self.crash(1 - from);
            }
            return;
        }
        self.swaps.remove(index);
        let node = &self.nodes[from];
        if !answered {
            self.budget.lost_answers -= 1;
        } else if node.up && !node.paused && node.state.record.process == process {
            self.deliver(from, Event::Swapped { new, outcome: SwapOutcome::Applied { instance } });
        }
    }

    fn swap_arrives(&mut self, index: usize, answered: bool) {
        if self.fences() {
            return self.fence_arrives(index, answered);
        }
        let swap = self.swaps.remove(index);
        let applied = swap.instance == self.witness.instance && swap.expected == self.witness.version();
        if applied {
            self.copy = self.witness;
            self.witness.value = Some(swap.new);
        }
        let node = &self.nodes[swap.from];
        let heard = node.up && !node.paused && node.state.record.process == swap.process && !self.cuts.witness[swap.from];
        if !answered {
            self.budget.lost_answers -= 1;
        } else if heard {
            let instance = self.witness.instance;
            let outcome = if applied { SwapOutcome::Applied { instance } } else { SwapOutcome::Refused(self.witness) };
            self.deliver(swap.from, Event::Swapped { new: swap.new, outcome });
        }
    }

    fn crash(&mut self, node: usize) {
        self.set_role(node, Role::Off);
        let crashed = &mut self.nodes[node];
        crashed.up = false;
        crashed.paused = false;
        crashed.drains = false;
        crashed.torn_after = None;
    }

    /// The node comes back with a new disk.
    pub fn lose_disk(&mut self, node: usize) {
        self.crash(node);
        let node = &mut self.nodes[node];
        node.disk = Record { process: node.disk.process + 100, ..Record::default() };
        node.wal.clear();
        node.copying = false;
    }

    /// Whether the peer has everything, and nothing that holds or may still be granted keeps it from leading.
    fn may_lose_disk(&self, node: usize) -> bool {
        let (me, peer) = (&self.nodes[node], &self.nodes[1 - node]);
        let has_all = self.known.iter().all(|write| peer.wal.contains(write));
        let newest = [peer.disk.seen, me.disk.seen, self.witness.value].into_iter().flatten().max_by_key(|value| value.version);
        let peer_knows = peer.disk.seen.is_some() && peer.disk.seen == newest;
        let owned = newest.is_some_and(|value| value.owner == id(1 - node)) && peer.up;
        let paired = newest.is_some_and(|value| value.mode == Mode::Pair) && self.witness.value == newest && !self.fences();
        let asked = self.swaps.iter().any(|swap| swap.from == node);
        has_all && peer.disk.complete && peer_knows && (owned || paired) && !asked
    }

    fn restart(&mut self, node: usize) {
        let mut record = self.nodes[node].disk;
        record.process += 1;
        if self.mutation == Some(Mutation::ForgetsAsym)
            && let Some(seen) = record.seen.as_mut().filter(|seen| seen.mode == Mode::Asym)
        {
            seen.mode = Mode::Pair;
            seen.version = 1;
        }
        let setup = self.nodes[node].state.setup;
        self.nodes[node].up = true;
        self.nodes[node].disk = record;
        self.nodes[node].state = State::new(setup, record, self.clock(node));
    }

    fn set_role(&mut self, node: usize, role: Role) {
        let was = self.nodes[node].role;
        self.nodes[node].role = role;
        self.nodes[node].reported = if matches!(role, Role::Standby { .. }) { self.nodes[node].wal.len() } else { 0 };
        if !matches!((was, role), (Role::Primary { .. }, Role::Primary { .. })) {
            self.nodes[node].shown = None;
            // Whoever received from it doesn't any more.
            if let Role::Standby { receiving } = &mut self.nodes[1 - node].role {
                *receiving = false;
            }
        }
    }

    /// One step of PostgreSQL's towards its goal.
    fn advance_postgres(&mut self, node: usize) {
        let goal = self.nodes[node].state.goal;
        let role = self.nodes[node].role;
        match (role, goal) {
            (Role::Primary { .. }, Goal::Primary { sync }) => self.set_role(node, Role::Primary { sync }),
            (Role::Off | Role::Standby { .. }, Goal::Primary { sync }) => self.set_role(node, Role::Primary { sync }),
            (Role::Off, Goal::Standby { .. }) => self.set_role(node, Role::Standby { receiving: false }),
            (Role::Standby { receiving: false }, Goal::Standby { rebuild }) => self.receive(node, rebuild),
            (Role::Primary { .. }, Goal::Standby { .. }) | (_, Goal::Stopped) => self.set_role(node, Role::Off),
            (Role::Standby { receiving: true }, Goal::Standby { .. }) => {}
        }
        self.report(node);
    }

    /// A standby connects to its leader: what diverged is rewound, what isn't whole is copied anew.
    fn receive(&mut self, node: usize, rebuild: bool) {
        let peer = &self.nodes[1 - node];
        if !matches!(peer.role, Role::Primary { .. }) || self.cuts.to[node] || self.cuts.to[1 - node] {
            return;
        }
        let leader_wal = peer.wal.clone();
        let me = &mut self.nodes[node];
        if rebuild && !me.copying {
            me.wal.clear();
            me.copying = true;
            return;
        }
        if std::mem::take(&mut me.copying) {
            // The copy becomes whole with the WAL up to its end.
            me.wal = leader_wal;
        } else {
            let common = me.wal.iter().zip(&leader_wal).take_while(|(a, b)| a == b).count();
            me.wal.truncate(common);
        }
        me.role = Role::Standby { receiving: true };
    }

    fn replicate(&mut self, node: usize) {
        if self.cuts.to[node] || self.cuts.to[1 - node] || !self.nodes[1 - node].up {
            return;
        }
        if matches!((self.nodes[node].role, self.nodes[1 - node].role), (Role::Standby { receiving: true }, Role::Primary { .. }))
        {
            self.nodes[node].wal = self.nodes[1 - node].wal.clone();
        }
    }

    pub fn is_replicated(&self, node: usize) -> bool {
        self.nodes[1 - node].role == Role::Standby { receiving: true } && self.nodes[1 - node].wal == self.nodes[node].wal
    }

    fn report(&mut self, node: usize) {
        let postgres = match self.nodes[node].role {
            Role::Off => Postgres::Down,
            Role::Primary { sync: false } => {
                Postgres::Primary(Sync::Off { caught_up: self.nodes[1 - node].role == Role::Standby { receiving: true } })
            }
            Role::Primary { sync: true } if self.is_replicated(node) => Postgres::Primary(Sync::Confirmed),
            Role::Primary { sync: true } => Postgres::Primary(Sync::Waiting),
            Role::Standby { receiving } => {
                let whole = self.nodes[node].state.record.complete || receiving;
                let wal = self.nodes[node].wal.len();
                let advanced = wal > std::mem::replace(&mut self.nodes[node].reported, wal);
                Postgres::Standby { streaming: receiving, consistent: whole, advanced }
            }
        };
        if self.nodes[node].state.postgres != postgres || matches!(postgres, Postgres::Standby { streaming: true, .. }) {
            self.deliver(node, Event::Postgres(postgres));
        }
    }

    /// A commit that waits for the peer is safe to acknowledge.
    fn commits(&self, node: usize) -> bool {
        match self.nodes[node].role {
            Role::Primary { sync: false } => true,
            Role::Primary { sync: true } => self.is_replicated(node) || self.mutation == Some(Mutation::AcknowledgesCancelled),
            _ => false,
        }
    }

    /// The engine's session for writing begins with a write of its own.
    fn open(&mut self, node: usize) {
        let me = &self.nodes[node];
        let unconfirmed = self.mutation == Some(Mutation::OpensUnconfirmed);
        if me.shown.is_none() && me.state.may_acknowledge(self.clock(node)) && (self.commits(node) || unconfirmed) {
            self.nodes[node].shown = Some(self.nodes[node].wal.len());
        }
    }

    fn write(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        // One under way at a time is enough to see every order.
        if me.shown == Some(me.wal.len()) && !me.drains && matches!(me.role, Role::Primary { .. }) {
            me.wal.push(self.next_write);
            self.next_write += 1;
            self.budget.writes -= 1;
        }
    }

    fn acknowledge(&mut self, node: usize) {
        let me = &self.nodes[node];
        let Some(shown) = me.shown else { return };
        if shown < me.wal.len() && self.commits(node) && me.state.may_acknowledge(self.clock(node)) {
            let epoch = me.state.record.seen.map_or(0, |seen| seen.epoch);
            self.known.extend(&me.wal[shown..]);
            self.known.sort_unstable();
            match self.acknowledged_in {
                Some((newest, _)) if epoch < newest => {
                    self.broken = Some("a write was acknowledged in an epoch that had ended");
                }
                Some((newest, other)) if epoch == newest && other != node => {
                    self.broken = Some("both nodes acknowledged writes in one epoch");
                }
                _ => {}
            }
            self.acknowledged_in = Some((epoch, node));
            let len = self.nodes[node].wal.len();
            self.nodes[node].shown = Some(len);
        }
        let me = &mut self.nodes[node];
        if me.drains && me.shown == Some(me.wal.len()) && me.state.handover.is_some_and(|handover| !handover.drained) {
            self.deliver(node, Event::Drained);
        }
    }

    fn read(&mut self, node: usize) {
        let me = &self.nodes[node];
        let may = if self.mutation == Some(Mutation::ReadsWithoutLease) {
            me.state.may_acknowledge(self.clock(node))
        } else {
            me.state.may_read(self.clock(node))
        };
        let Some(shown) = me.shown.filter(|_| may) else { return };
        let seen = &me.wal[..shown.min(me.wal.len())];
        if self.known.iter().any(|write| !seen.contains(write)) {
            self.broken = Some("a read misses what had been acknowledged or shown");
        }
        self.known.extend(seen);
        self.known.sort_unstable();
        self.known.dedup();
    }

    fn aged_heartbeat(&self, mut heartbeat: Heartbeat) -> Heartbeat {
        let from = usize::from(heartbeat.from != id(0));
        let past = |node: usize, at: u64| {
            let old = OLD * self.clocks.timing.heartbeat;
            old - self.clock(node).saturating_sub(at).min(old)
        };
        heartbeat.sent_at = past(from, heartbeat.sent_at);
        if let Some(grant) = heartbeat.grant.as_mut() {
            grant.sent_at = past(1 - from, grant.sent_at);
        }
        heartbeat
    }

    /// Changes what a node remembers, in memory and on its disk.
    fn remember(&mut self, node: usize, state: &mut State, actions: &mut [Action], change: fn(&mut Record)) {
        change(&mut state.record);
        change(&mut self.nodes[node].disk);
        for action in actions {
            if let Action::Persist(record) = action {
                change(record);
            }
        }
    }

    fn mutate(&mut self, node: usize, state: &mut State, actions: &mut Vec<Action>) {
        match self.mutation {
            Some(Mutation::ClearsBeforeSolo) => {
                let asks = actions.iter().any(|action| {
                    matches!(action, Action::Swap { new, .. } if new.mode == Mode::Solo && new.owner == id(node) && state.is_owner())
                });
                if asks {
                    self.set_role(node, Role::Primary { sync: false });
                }
            }
            Some(Mutation::ForgetsPair) => self.remember(node, state, actions, |record| record.intent = None),
            Some(Mutation::GrantsWhileTakingOver) if state.pending.is_some() => {
                state.granted = state.peer.map(|peer| Grant {
                    process: peer.heartbeat.process,
                    sent_at: peer.heartbeat.sent_at,
                    lasts: state.setup.timing.lease,
                });
                state.promised_until = 0;
            }
            Some(Mutation::PromotesIncomplete) if self.nodes[node].copying => {
                self.remember(node, state, actions, |record| record.complete = true);
            }
            Some(Mutation::CountsFromReceipt) => {
                let timing = state.setup.timing;
                if state.lease_until > self.nodes[node].state.lease_until {
                    state.lease_until = self.clock(node) + timing.lease - timing.drift;
                }
            }
            Some(Mutation::PromotesUnconfirmed) => {
                for action in actions.iter() {
                    if let Action::Swap { instance, new, .. } = *action
                        && new.owner == id(node)
                        && !state.is_owner()
                    {
                        let outcome = SwapOutcome::Applied { instance };
                        self.events.push_back((node, Event::Swapped { new, outcome }));
                    }
                }
            }
            Some(Mutation::OpensBeforePromiseEnds) if state.is_owner() => state.promised_until = 0,
            Some(Mutation::LeadsOn) => {
                let before = self.nodes[node].state;
                if before.phase == Phase::Leader && state.phase == Phase::Follower {
                    let seen = state.record.seen.map(|seen| Register { owner: id(node), ..seen });
                    *state = before;
                    state.record.seen = seen;
                    *actions = vec![Action::Persist(state.record)];
                }
            }
            Some(Mutation::IgnoresDrift) => state.setup.timing.drift = 0,
            Some(Mutation::PersistsLast) => actions.sort_by_key(|action| matches!(action, Action::Persist(_))),
            Some(Mutation::FencesUnheard) => state.known_to_peer = true,
            Some(Mutation::BelievesLateFence) => {
                let pending = self.nodes[node].state.pending;
                if let Some(pending) = pending.filter(|pending| state.record.version() < pending.new.version) {
                    state.pending.get_or_insert(pending);
                }
            }
            Some(Mutation::KeepsEpoch) => {
                let epoch = state.record.seen.map_or(0, |seen| seen.epoch);
                for action in actions {
                    if let Action::Swap { new, .. } = action {
                        new.epoch = epoch;
                    }
                }
                if let Some(pending) = state.pending.as_mut() {
                    pending.new.epoch = epoch;
                }
            }
            Some(Mutation::OpensUnconfirmed) if matches!(state.postgres, Postgres::Primary(_)) => state.opened = true,
            _ => {}
        }
    }
}

/// Worlds that differ only in how old things are, beyond what matters, are the same.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for (index, node) in self.nodes.iter().enumerate() {
            (node.up, node.paused, node.role, &node.wal, node.shown, node.drains, node.copying).hash(hasher);
            (node.disk, node.torn_after, node.reported).hash(hasher);
            aged(&node.state, self.clock(index), self.clock(1 - index)).hash(hasher);
        }
        self.sent.map(|sent| sent.map(|sent| self.aged_heartbeat(sent))).hash(hasher);
        self.kept.map(|(kept, process)| (self.aged_heartbeat(kept), process)).hash(hasher);
        (self.witness, self.copy, &self.swaps, self.cuts, self.budget).hash(hasher);
        (&self.known, self.next_write, self.acknowledged_in, self.broken).hash(hasher);
    }
}

/// The state in ages instead of moments; `now` is on the node's own clock, `peers` on its peer's.
fn aged(state: &State, now: u64, peers: u64) -> State {
    let old = OLD * state.setup.timing.heartbeat;
    let before = |now: u64, at: u64| old - now.saturating_sub(at).min(old);
    let past = |at: u64| before(now, at);
    let future = |at: u64| at.saturating_sub(now).min(old);
    let mut aged = *state;
    aged.started_at = past(state.started_at);
    aged.ticked_at = past(state.ticked_at);
    aged.forgiven_at = past(state.forgiven_at);
    aged.answered_at = past(state.answered_at);
    let behind = state.answer.is_none_or(|answer| answer.version() < state.record.version());
    aged.adopted_at = if behind { past(state.adopted_at) } else { 0 };
    aged.asked_at = state.asked_at.map(past);
    if let Some(pending) = aged.pending.as_mut() {
        pending.sent_at = past(pending.sent_at);
    }
    if let Some(peer) = aged.peer.as_mut() {
        peer.heard_at = past(peer.heard_at);
        peer.heartbeat.sent_at = before(peers, peer.heartbeat.sent_at);
        if let Some(grant) = peer.heartbeat.grant.as_mut() {
            grant.sent_at = past(grant.sent_at);
        }
    }
    if let Some(grant) = aged.granted.as_mut() {
        grant.sent_at = before(peers, grant.sent_at);
    }
    // A lease's age matters for a while after its end.
    aged.lease_until = (state.lease_until + old).saturating_sub(now).min(2 * old);
    aged.released_at = state.released_at.map(past);
    aged.promised_until = future(state.promised_until);
    aged.down_since = past(state.down_since);
    aged.unconfirmed_since = state.unconfirmed_since.map(past);
    aged.pair_again_at = future(state.pair_again_at);
    aged.hands_over_again_at = future(state.hands_over_again_at);
    aged.advanced_at = state.advanced_at.map(past);
    aged.streamed_at = state.streamed_at.map(past);
    if let Some(handover) = aged.handover.as_mut() {
        handover.since = past(handover.since);
    }
    aged.took_over_at = state.took_over_at.map(past);
    aged
}
