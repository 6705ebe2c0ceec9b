//! What a node knows at a moment, and what it may do with it.

use super::event::{Goal, Grant, Heartbeat, Postgres, Sync};
use super::register::{Answer, Mode, NodeId, Record, Register};
use super::timing::Timing;
use crate::types::Millis;

/// What a node is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Which of the two it is.
    pub me: NodeId,
    /// How long things take.
    pub timing: Timing,
    /// Who decides when the two can't see each other.
    pub third: Third,
    /// Begins the store when neither node and no witness knows of one. One of the two has this.
    pub begins: bool,
}

/// Who decides when the two nodes can't see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Third {
    /// Nobody: only the owner may go on alone.
    Nobody,
    /// A witness with a register.
    Witness,
    /// A device that puts a machine off.
    Fence {
        /// How much longer than for a witness's the follower waits, so that of two nodes that are cut off from each other the leader is the one
        /// that stays.
        delay: Millis,
    },
}

/// The node's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Just started: nobody but this node's own disk has said anything that counts yet.
    Boot,
    /// Owner of the register.
    Leader,
    /// The peer is the owner.
    Follower,
}

/// The peer, as it last described itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its newest heartbeat.
    pub heartbeat: Heartbeat,
    /// When that was received.
    pub heard_at: Millis,
}

/// A compare-and-swap whose outcome isn't known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// See [`Action::Swap`](super::Action::Swap).
    pub instance: u64,
    /// See [`Action::Swap`](super::Action::Swap).
    pub expected: u64,
    /// See [`Action::Swap`](super::Action::Swap).
    pub new: Register,
    /// When it was sent last.
    pub sent_at: Millis,
}

/// How far a switchover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handover {
    /// When it was asked for.
    pub since: Millis,
    /// Nothing is under way any more: the lease has been given up.
    pub drained: bool,
}

/// Everything a node knows. All times are on the node's own boot-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What it was told.
    pub setup: Setup,
    /// What its disk has.
    pub record: Record,
    /// Its part.
    pub phase: Phase,
    /// When this process started.
    pub started_at: Millis,
    /// The last tick.
    pub ticked_at: Millis,
    /// The peer; `None` before it was heard.
    pub peer: Option<Peer>,
    /// Forgiven until: what went unheard before this counts for nothing.
    pub forgiven_at: Millis,
    /// The witness's last answer.
    pub answer: Option<Answer>,
    /// When that came.
    pub answered_at: Millis,
    /// When this process last took a value as the newest. What the witness answered before may be older, which is nothing bad.
    pub adopted_at: Millis,
    /// When the witness was asked last.
    pub asked_at: Option<Millis>,
    /// A compare-and-swap under way.
    pub pending: Option<Pending>,
    /// An ASYM value that the peer hasn't agreed to yet.
    pub proposal: Option<Register>,
    /// The greatest version that this process has given out.
    pub issued: u64,
    /// As leader: until when it may read by the peer's promise.
    pub lease_until: Millis,
    /// As leader: the newest heartbeat of its own that the peer has granted, which proves that both directions work.
    pub granted_sent_at: Millis,
    /// Grants for heartbeats sent up to this moment are void: the lease was given up then.
    pub released_at: Option<Millis>,
    /// As follower: until when it has promised not to take over.
    pub promised_until: Millis,
    /// As follower: the newest heartbeat that the promise covers; `None` from the moment when a takeover may have been asked for.
    pub granted: Option<Grant>,
    /// What PostgreSQL is.
    pub postgres: Postgres,
    /// Since when it is something other than a primary, for a leader.
    pub down_since: Millis,
    /// Since when the peer is waited for and doesn't confirm, for a leader; `None`: it confirms, or isn't waited for.
    pub unconfirmed_since: Option<Millis>,
    /// A peer that was waited for in vain isn't waited for again before this.
    pub pair_again_at: Millis,
    /// When WAL from the leader was seen to arrive last.
    pub advanced_at: Option<Millis>,
    /// When the leader's WAL was streamed last.
    pub streamed_at: Option<Millis>,
    /// What PostgreSQL is to be.
    pub goal: Goal,
    /// Everything that PostgreSQL shows is safe: the peer has it, or doesn't count.
    pub opened: bool,
    /// A switchover under way.
    pub handover: Option<Handover>,
    /// When this node took over last.
    pub took_over_at: Option<Millis>,
    /// The version that it asked for then.
    pub takeover_asked: u64,
    /// No failover by itself until then.
    pub paused_until: Option<Millis>,
    /// As leader: the peer is in maintenance until then, and not waited for.
    pub peer_away_until: Option<Millis>,
    /// This process is going to be stopped: it agrees to nothing any more.
    pub leaving: bool,
    /// The peer has heard this process.
    pub known_to_peer: bool,
    /// How many commands this process has given to put the peer's machine off.
    pub fenced: u64,
    /// There is too little room on this node's disk for it to be chosen for leading.
    pub short_of_disk: bool,
    /// After a handover that nobody took up, none is begun unasked before this.
    pub hands_over_again_at: Millis,
}

impl State {
    /// A process that has just started and read its record.
    pub fn new(setup: Setup, record: Record, now: Millis) -> Self {
        Self {
            setup,
            record,
            phase: Phase::Boot,
            started_at: now,
            ticked_at: now,
            peer: None,
            forgiven_at: now,
            answer: None,
            answered_at: now,
            adopted_at: now,
            asked_at: None,
            pending: None,
            proposal: None,
            issued: record.intent.map_or(record.version(), |intent| intent.new.version.max(record.version())),
            lease_until: 0,
            granted_sent_at: 0,
            released_at: None,
            // An earlier process of this node may have promised something just before it ended.
            promised_until: now + setup.timing.lease.max(record.promises),
            granted: None,
            postgres: Postgres::Down,
            down_since: now,
            unconfirmed_since: None,
            pair_again_at: now,
            advanced_at: None,
            streamed_at: None,
            goal: Goal::Stopped,
            opened: false,
            handover: None,
            took_over_at: None,
            takeover_asked: 0,
            paused_until: None,
            peer_away_until: None,
            leaving: false,
            known_to_peer: false,
            fenced: 0,
            short_of_disk: false,
            hands_over_again_at: now,
        }
    }

    /// This node's id.
    pub fn me(&self) -> NodeId {
        self.setup.me
    }

    /// Whether this node is the register's owner, as far as it knows.
    pub fn is_owner(&self) -> bool {
        self.record.seen.is_some_and(|seen| seen.owner == self.me())
    }

    /// The mode that it must behave by: PAIR from the moment when PAIR may have been sent.
    pub fn mode(&self) -> Option<Mode> {
        if self.record.intent.is_some() { Some(Mode::Pair) } else { self.record.seen.map(|seen| seen.mode) }
    }

    /// Whether it may go on without asking anybody.
    pub fn may_be_alone(&self) -> bool {
        self.record.may_be_alone(self.me())
    }

    /// Whether a write that PostgreSQL has committed may be acknowledged, and a session for writing be opened. Needs no clock but
    /// for the promises that this node itself gave as a follower.
    pub fn may_acknowledge(&self, now: Millis) -> bool {
        let replicates = match self.postgres {
            Postgres::Primary(Sync::Off { .. }) => self.mode() == Some(Mode::Solo),
            Postgres::Primary(Sync::Waiting | Sync::Confirmed) => true,
            Postgres::Down | Postgres::Busy | Postgres::Standby { .. } => false,
        };
        let leads = self.phase == Phase::Leader && self.is_owner() && self.opened;
        leads && replicates && now >= self.promised_until && !self.has_released()
    }

    /// Whether what is published may be shown as the newest.
    pub fn may_read(&self, now: Millis) -> bool {
        self.may_acknowledge(now) && (self.may_be_alone() || now < self.lease_until)
    }

    /// Whether it has given up its lease for the peer to take over.
    pub fn has_released(&self) -> bool {
        self.handover.is_some_and(|handover| handover.drained)
    }

    /// Whether the peer was heard within `patience`. A silence that this process slept through doesn't count.
    pub fn hears_peer(&self, patience: Millis, now: Millis) -> bool {
        self.peer.is_some_and(|peer| now < peer.heard_at.max(self.forgiven_at) + patience)
    }

    /// Whether the witness answered lately.
    pub fn hears_witness(&self, now: Millis) -> bool {
        self.setup.third == Third::Witness && self.answer.is_some() && now < self.answered_at + self.setup.timing.witness_lost
    }

    /// Whether the witness answers and has the register that this node knows. Its last answer may be older than what the peer has told since,
    /// which is nothing bad.
    pub fn witness_is_there(&self, now: Millis) -> bool {
        self.hears_witness(now) && self.answer.is_some_and(|answer| self.record.instance == Some(answer.instance))
    }

    /// Whether the peer follows this node, has everything, and confirms it.
    pub fn peer_is_synchronous(&self, now: Millis) -> bool {
        self.postgres == Postgres::Primary(Sync::Confirmed) && self.peer_is_ready(now)
    }

    /// Whether the peer says that it could take over.
    pub fn peer_is_ready(&self, now: Millis) -> bool {
        self.hears_peer(self.setup.timing.solo_after, now) && self.peer.is_some_and(|peer| peer.heartbeat.ready)
    }

    /// Whether the peer says that it has a copy which it could promote, however old that may be.
    pub fn peer_is_able(&self, now: Millis) -> bool {
        self.hears_peer(self.setup.timing.solo_after, now) && self.peer.is_some_and(|peer| peer.heartbeat.able)
    }

    /// Whether what the witness says is a continuation of what this node knows: the same register, and not an old copy of it.
    pub fn believes(&self, answer: Answer) -> bool {
        let least = self.record.intent.map_or(self.record.version(), |intent| intent.base.min(self.record.version()));
        self.record.instance == Some(answer.instance) && answer.version() >= least
    }
}
