//! A request on its way to the writer: what is asked, whose it is at the moment, and where its answer goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Error;
use super::proposal::Proposal;
use crate::mvcc::Loaded;
use crate::sequencer::{Command, Reply};
use crate::telemetry::metrics::Metrics;

/// One request on its way to the writer task.
pub(super) struct Request {
    pub command: Command,
    pub queued: Option<QueuedBytes>,
    pub reply: Undecided,
    pub loaded: Loaded,
    pub loads: usize,
    pub asked: Asked,
    /// That of the engine's own requests; a client's is where its answer is waited for.
    pub proposal: Option<Proposal>,
}

/// What is remembered of a request for the case that it turns out slow.
#[derive(Clone)]
pub(super) struct Asked {
    pub kind: &'static str,
    /// The first key that it names.
    pub key: Bytes,
    pub at: Instant,
}

impl Asked {
    pub fn of(command: &Command) -> Self {
        Self { kind: command.kind(), key: command.first_key(), at: Instant::now() }
    }
}

impl Request {
    pub fn new(
        command: Command,
        asked: Asked,
        queued: Option<QueuedBytes>,
        reply: Option<oneshot::Sender<Result<Reply, Error>>>,
    ) -> Self {
        let reply = Undecided { reply, claim: Claim::default() };
        Self { command, queued, reply, loaded: Loaded::new(), loads: 0, asked, proposal: None }
    }

    /// One of the engine's own, which nobody waits for.
    pub fn internal(command: Command, metrics: &Metrics) -> Self {
        let proposal = Proposal::begin(metrics, &command);
        let asked = Asked::of(&command);
        Self { proposal: Some(proposal), ..Self::new(command, asked, None, None) }
    }

    pub fn refuse(self, error: Error) {
        if let Some(reply) = self.reply.decide() {
            // A client that went away is no error.
            let _ = reply.send(Err(error));
        }
    }
}

/// Whose a request is: its client's, who may withdraw it, until the writer takes it in hand.
#[derive(Clone, Default)]
pub(super) struct Claim(Arc<AtomicU8>);

impl Claim {
    const OPEN: u8 = 0;
    const TAKEN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    /// The writer's: nobody can withdraw it any more. `false` if somebody has.
    pub fn take(&self) -> bool {
        let taken = self.0.compare_exchange(Self::OPEN, Self::TAKEN, Ordering::AcqRel, Ordering::Acquire);
        taken.is_ok() || taken == Err(Self::TAKEN)
    }

    /// Nobody's: it will certainly not be applied. `false` if the writer has it.
    pub fn withdraw(&self) -> bool {
        self.0.compare_exchange(Self::OPEN, Self::WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Where a request's answer goes, while nothing has been decided about it; `None` for the engine's own requests, which nobody waits for.
/// A request that is dropped like this, with the session that had it in hand, has certainly not been applied.
pub(super) struct Undecided {
    pub reply: Option<oneshot::Sender<Result<Reply, Error>>>,
    pub claim: Claim,
}

impl Undecided {
    /// The writer takes the request in hand. `false` if its client has gone away, or was told that it isn't applied.
    pub fn take(&self) -> bool {
        !self.reply.as_ref().is_some_and(oneshot::Sender::is_closed) && self.claim.take()
    }

    /// From here on whoever has the sender answers for the request.
    pub fn decide(mut self) -> Option<oneshot::Sender<Result<Reply, Error>>> {
        self.reply.take()
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(Err(Error::NotApplied));
        }
    }
}

/// A request's share of the queue's bytes, given back when the request has been decided or dropped.
pub(super) struct QueuedBytes(pub Arc<AtomicUsize>, pub usize);

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}
