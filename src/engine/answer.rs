//! Answers that wait for what they rest on.

use std::time::Instant;

use tokio::sync::oneshot;

use super::metrics::Applied;
use super::proposal::{Proposal, is_decided};
use super::{Asked, Error, QueuedBytes};
use crate::sequencer::Reply;

/// Why a request took long that PostgreSQL didn't hold up.
pub(super) const WRITER_WAS_BUSY: &str = "the writer was busy with earlier requests, or values had to be read back";

/// A decided request, whose answer waits until everything that it rests on is published.
pub(super) struct Answer {
    pub reply: Option<oneshot::Sender<Result<Reply, Error>>>,
    pub result: Result<Reply, Error>,
    pub asked: Asked,
    /// What is counted of it once it is certain.
    pub applied: Applied,
    /// As in the request.
    pub proposal: Option<Proposal>,
    /// Its share of the queue's bytes, until it is given: storage may keep all answers waiting for long.
    pub _queued: Option<QueuedBytes>,
    pub staged: Instant,
}

impl Answer {
    /// Whether it says what the writer has decided, and not why it couldn't.
    pub fn is_decided(&self) -> bool {
        is_decided(&self.result)
    }

    pub fn give(self) {
        if let Some(proposal) = self.proposal {
            proposal.end(&self.result);
        }
        if let Some(reply) = self.reply {
            // A client that went away is no error.
            let _ = reply.send(self.result);
        }
    }

    /// The same of one that nothing had to be stored for.
    pub fn tell_slow_unbatched(&self) {
        tracing::warn!(
            request = self.asked.kind,
            key = %self.asked.key.escape_ascii(),
            took = ?self.asked.at.elapsed(),
            cause = WRITER_WAS_BUSY,
            "apply request took too long"
        );
    }

    /// Tells people where the time of a slow request went.
    pub fn tell_slow(&self, sent: Instant, rows: usize) {
        let took = self.asked.at.elapsed();
        let waited = self.staged.saturating_duration_since(self.asked.at);
        let gathered = sent.saturating_duration_since(self.staged);
        let committed = sent.max(self.asked.at).elapsed();
        let cause = if committed >= waited.max(gathered) {
            "PostgreSQL took long to commit"
        } else if waited >= gathered {
            WRITER_WAS_BUSY
        } else {
            "the batches before it took long to commit"
        };
        tracing::warn!(
            request = self.asked.kind,
            key = %self.asked.key.escape_ascii(),
            ?took,
            ?waited,
            ?gathered,
            ?committed,
            batch_rows = rows,
            cause,
            "apply request took too long"
        );
    }
}

pub(super) fn refuse(answers: Vec<Answer>, error: Error) {
    for mut answer in answers {
        // A request that was refused on its own merits may have been refused because of what is now undone.
        answer.result = Err(if answer.result.is_err() { Error::NotApplied } else { error.clone() });
        answer.give();
    }
}
