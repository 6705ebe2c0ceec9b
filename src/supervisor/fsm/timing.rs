//! How long each thing may take, by profile.

use crate::types::Millis;

/// All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Millis,
    /// For how long a granted heartbeat lets the leader read.
    pub lease: Millis,
    /// What the leader takes off a lease because the two clocks may run at different speeds.
    pub drift: Millis,
    /// After the last sign of its peer the leader asks to go on alone.
    pub solo_after: Millis,
    /// A peer that is there but whose PostgreSQL doesn't stream is given so long.
    pub stream_grace: Millis,
    /// After the last heartbeat of the leader the follower asks to take over; longer than the lease.
    pub takeover_after: Millis,
    /// A follower that has just started gives the owner so long to come, too.
    pub boot_patience: Millis,
    /// A PostgreSQL that gives no sign of life for so long is ended.
    pub postgres_silence: Millis,
    /// A follower that received WAL so recently is warm: it takes over at once when it is asked to.
    pub warm: Millis,
    /// An owner whose PostgreSQL ended gives the peer so long to take over before it starts its own again.
    pub handover: Millis,
    /// Between two questions to the witness.
    pub ask: Millis,
    /// An unanswered compare-and-swap is sent again after this.
    pub swap_again: Millis,
    /// A witness that hasn't answered for so long is lost.
    pub witness_lost: Millis,
    /// After a failover, the next one that nobody asked for waits.
    pub backoff: Millis,
}

impl Timing {
    /// Two machines in one network: about a second for a lost machine.
    pub const FAST: Self = Self {
        heartbeat: 100,
        lease: 650,
        drift: 10,
        solo_after: 450,
        stream_grace: 400,
        takeover_after: 800,
        boot_patience: 5000,
        postgres_silence: 700,
        warm: 5000,
        handover: 1000,
        ask: 500,
        swap_again: 200,
        witness_lost: 2000,
        backoff: 5000,
    };

    /// Machines that share their disks and processors with others.
    pub const NORMAL: Self = Self {
        heartbeat: 250,
        lease: 2500,
        drift: 30,
        solo_after: 1500,
        stream_grace: 1200,
        takeover_after: 3000,
        boot_patience: 10_000,
        postgres_silence: 2000,
        warm: 10_000,
        handover: 2000,
        ask: 1000,
        swap_again: 500,
        witness_lost: 5000,
        backoff: 15_000,
    };

    /// Two places, with the internet between them.
    pub const WAN: Self = Self {
        heartbeat: 500,
        lease: 6000,
        drift: 60,
        solo_after: 4000,
        stream_grace: 3000,
        takeover_after: 7000,
        boot_patience: 20_000,
        postgres_silence: 4000,
        warm: 20_000,
        handover: 4000,
        ask: 2000,
        swap_again: 1000,
        witness_lost: 10_000,
        backoff: 30_000,
    };
}
