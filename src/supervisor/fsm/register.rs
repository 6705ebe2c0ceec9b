//! The register that decides who may go on alone, and what a node remembers of it on its own disk.

use crate::types::{Epoch, Millis};

/// One of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeId {
    /// The node that is named first in the configuration.
    A,
    /// The other one.
    B,
}

impl NodeId {
    /// The other node.
    pub const fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// What each node may do when it can't see the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Replication is synchronous; either may go on alone, and the register decides which.
    Pair,
    /// Only the owner has the data; the peer may not take over.
    Solo,
    /// Replication is synchronous, but only the owner may go on alone: there is no witness, or it was lost while both agreed.
    Asym,
}

/// The register's value. Each change has a greater version than the value that it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register {
    /// Grows with every change; 0 is no value.
    pub version: u64,
    /// Grows with every change of the owner.
    pub epoch: Epoch,
    /// Who may acknowledge writes.
    pub owner: NodeId,
    /// What the peer may do.
    pub mode: Mode,
}

/// A witness's answer: which register this is, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// Identifies the register's unbroken history. A witness that was wiped, or restored from a copy, has a new one, and what it
    /// says isn't believed until the owner has written to it.
    pub instance: u64,
    /// `None`: never written.
    pub value: Option<Register>,
}

impl Answer {
    /// The value's version; 0 when there is none.
    pub fn version(&self) -> u64 {
        self.value.map_or(0, |value| value.version)
    }
}

/// A change that was sent to the witness, or may have been, and isn't known to have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Intent {
    /// The value that it writes.
    pub new: Register,
    /// The version that it replaces.
    pub base: u64,
}

/// What a node keeps on its disk, durable before anything that rests on it happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// The newest value that is known to hold, or to have held. One that never was in the witness's register is an agreement
    /// between the nodes ([`Mode::Asym`]), or what the owner did on the strength of one.
    pub seen: Option<Register>,
    /// The register's instance that `seen` belongs to; `None` before a witness was ever written to.
    pub instance: Option<u64>,
    /// PAIR, while it is unknown whether it holds: from sending it the owner behaves as if it did.
    pub intent: Option<Intent>,
    /// Whether the data directory holds a whole copy of the store: false while it is being made, or made anew.
    pub complete: bool,
    /// The epoch in which a copy that was whole was given up to be made anew; `None`: never.
    pub rebuilds_in: Option<Epoch>,
    /// How long the promises last that this node gives as a follower, in milliseconds; 0 before the first.
    pub promises: Millis,
    /// Grows with each start of this node's process, so that messages of an earlier one can be told. A record that is begun anew begins
    /// with the calendar's milliseconds: the peer has heard smaller ones of the disk before.
    pub process: u64,
}

impl Record {
    /// The version of `seen`; 0 when there is none.
    pub fn version(&self) -> u64 {
        self.seen.map_or(0, |seen| seen.version)
    }

    /// Whether `me` may go on without asking anybody.
    pub fn may_be_alone(&self, me: NodeId) -> bool {
        self.intent.is_none() && self.seen.is_some_and(|seen| seen.owner == me && seen.mode != Mode::Pair)
    }
}
