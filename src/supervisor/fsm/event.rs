//! What the state machine is told, and what it asks for.

use super::register::{Answer, NodeId, Record, Register};
use crate::types::Millis;

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time passed. Comes once a heartbeat interval; one that comes late tells that this process was stopped.
    Tick,
    /// The peer said something.
    Heard(Heartbeat),
    /// The peer can hear this node from now on.
    Introduced,
    /// The witness answered a question.
    Read(Answer),
    /// The witness answered a compare-and-swap that would have written `new`.
    Swapped {
        /// What was to be written.
        new: Register,
        /// Whether it was.
        outcome: SwapOutcome,
    },
    /// What PostgreSQL is now, with the newest goal in force: what was found while an earlier one was pursued is never reported.
    Postgres(Postgres),
    /// The data directory can't be used to follow the leader as it is, and must be made anew.
    RebuildNeeded,
    /// All requests that were under way are answered, and new ones are held.
    Drained,
    /// PostgreSQL's disk takes nothing of what this leader writes, for long; the peer has everything that it took.
    Stalled,
    /// How much room PostgreSQL's disk has.
    Disk {
        /// Too little to be chosen for leading.
        short: bool,
    },
    /// An operator's wish.
    Operator(Wish),
}

/// What came of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SwapOutcome {
    /// It was written, in the register of this instance.
    Applied {
        /// See [`Answer::instance`].
        instance: u64,
    },
    /// It certainly was not; this is what the register holds.
    Refused(Answer),
    /// Nobody knows, not yet: it may even be written later.
    Unknown,
}

/// What PostgreSQL is, as its supervisor sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Postgres {
    /// It doesn't run, or doesn't answer.
    #[default]
    Down,
    /// On its way to its goal: starting, stopping, promoting, rewinding, copying.
    Busy,
    /// Takes writes.
    Primary(Sync),
    /// Replays what the leader writes.
    Standby {
        /// It receives WAL from the leader now.
        streaming: bool,
        /// It has reached a consistent state.
        consistent: bool,
        /// WAL from the leader arrived after the last report.
        advanced: bool,
    },
}

/// How far a primary waits for its standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sync {
    /// `synchronous_standby_names` is empty and in force.
    Off {
        /// The peer streams, and lags so little that to wait for it wouldn't be noticed.
        caught_up: bool,
    },
    /// It names the peer; the peer isn't there, or hasn't confirmed anything yet.
    Waiting,
    /// It names the peer, and the peer has flushed a position that was taken after this was in force, and streams.
    Confirmed,
}

/// What an operator can ask of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    /// Hand the ownership over (the leader only).
    Switchover,
    /// Take the ownership although acknowledged writes may be lost; the peer is certainly off.
    AcceptDataLoss,
    /// No failover by itself until then.
    Pause {
        /// On this node's clock.
        until: Millis,
    },
    /// End the pause.
    Resume,
    /// Go on alone until then, whatever the peer does: it is in maintenance (the leader only).
    PeerAway {
        /// On this node's clock.
        until: Millis,
    },
    /// The peer counts again.
    PeerBack,
    /// This follower is going to be stopped: its peer may go on alone, and needn't have its machine put off (fencing device only).
    Leave,
}

/// What one node tells the other, ten times a second and when something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// Who says it.
    pub from: NodeId,
    /// The sender's [`Record::process`].
    pub process: u64,
    /// When it was sent, on the sender's clock: names the heartbeat in the answer.
    pub sent_at: Millis,
    /// The sender's [`Record::seen`].
    pub seen: Option<Register>,
    /// The sender's [`Record::instance`].
    pub instance: Option<u64>,
    /// The sender leads and uses the leases that it is granted.
    pub leading: bool,
    /// The sender owns the register but doesn't use any lease, and asks the peer to take over.
    pub released: bool,
    /// What was released is handed over on purpose: an operator's wish, which a pause of failover doesn't hold up.
    pub handing_over: bool,
    /// "I won't take over for so long, counted from when I received this heartbeat of yours."
    pub grant: Option<Grant>,
    /// An ASYM value that the owner wants agreed.
    pub proposal: Option<Register>,
    /// The process of the receiver's that the sender has heard last.
    pub hears: Option<u64>,
    /// A fencing device decides for the sender. Nodes for which different ones decide don't hear each other.
    pub fences: bool,
    /// The witness answers the sender, for what operators are told of the pair.
    pub hears_witness: bool,
    /// Failover is paused at the sender, for what operators are told of the pair.
    pub paused: bool,
    /// There is too little room on the sender's disk for it to be chosen for leading.
    pub short_of_disk: bool,
    /// The sender has a whole copy and receives WAL: it can take over, and can be paired with.
    pub ready: bool,
    /// The sender has a whole copy that it could promote, though it may be long since it received anything: for a leader that can't go on.
    pub able: bool,
}

/// Names a heartbeat of the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Of the process that sent it.
    pub process: u64,
    /// Its [`Heartbeat::sent_at`].
    pub sent_at: Millis,
    /// How long the promise lasts, by the clock of who gave it. The leader's own setting may be another one.
    pub lasts: Millis,
}

/// What is to be done, in this order. Whatever follows [`Action::Persist`] is done only once the record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make this durable.
    Persist(Record),
    /// Bring PostgreSQL there; a later goal replaces it.
    Pursue(Goal),
    /// Ask the witness.
    Ask,
    /// Ask the witness to replace the value of version `expected` in the register `instance` with `new`.
    Swap {
        /// See [`Answer::instance`].
        instance: u64,
        /// 0: there is no value.
        expected: u64,
        /// The new value.
        new: Register,
    },
    /// Tell the peer.
    Send(Heartbeat),
    /// Hold new requests and report [`Event::Drained`] when all others are answered.
    Drain,
    /// Go on with the requests that were held.
    Undrain,
    /// For the history that operators read.
    Note(Note),
}

/// What PostgreSQL is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// Not running; stopped at once.
    #[default]
    Stopped,
    /// Takes writes; with `sync`, each commit waits for the peer.
    Primary {
        /// `synchronous_standby_names` names the peer.
        sync: bool,
    },
    /// Follows the peer; what diverged is rewound.
    Standby {
        /// The data directory may be made anew: the record says that it isn't complete.
        rebuild: bool,
    },
}

/// Why something was done: the moments that the history shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Note {
    /// The store was begun here.
    Began,
    /// This node follows now.
    Follows,
    /// This node leads now.
    Leads,
    /// Requests are answered from now on.
    Opened,
    /// The peer is gone; asked to go on alone.
    PeerLost,
    /// The owner goes on alone.
    Solo,
    /// Both have the data and the register says so.
    Paired,
    /// The nodes agreed that only the owner goes on alone.
    AgreedAsym,
    /// The leader is gone or has given up; asked to take over.
    TakesOver,
    /// An operator has made this node the owner, whatever may be lost.
    Forced,
    /// An operator doesn't want failovers for a while.
    Paused,
    /// A pause has ended, or an operator has ended it.
    Resumed,
    /// Has the peer's machine put off, to go on alone.
    Fences,
    /// The peer has taken over: stops at once.
    Demoted,
    /// This process was stopped for a while; what it suspected meanwhile is forgotten.
    WasLate,
    /// Another process than this one changed what the rules rest on: `synchronous_standby_names` isn't what it was set to.
    Tampered,
    /// Requests are held for a switchover.
    HandsOver,
    /// This leader's disk takes nothing any more: asks the peer to take over.
    DiskStalls,
    /// This leader's disk has no room, and the peer's has: hands over.
    HandsOverFullDisk,
    /// The peer didn't take over in time.
    HandoverFailed,
    /// The peer is in maintenance: goes on alone.
    PeerAway,
    /// The peer's maintenance has ended.
    PeerBack,
    /// The data directory is made anew.
    Rebuilds,
    /// The register names this node, whose copy of the data isn't whole: it can't lead, and nobody else may without the operator's word.
    OwnsNothing,
}
