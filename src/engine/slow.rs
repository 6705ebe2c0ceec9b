//! Tells people of slow requests, and where their time went. Those that a batch answered are told by [`Answer`](super::answer::Answer), which
//! knows its batch.

use std::time::{Duration, Instant};

use super::answer::WRITER_WAS_BUSY;
use super::{Asked, Error, Role, Shared};

/// A read that is under way.
pub(super) struct Read<'a> {
    /// etcd's name of the request.
    pub request: &'static str,
    /// The first key that it names; empty if it names none.
    pub key: &'a [u8],
    pub asked: Instant,
}

impl<'a> Read<'a> {
    pub fn begin(request: &'static str, key: &'a [u8]) -> Self {
        Self { request, key, asked: Instant::now() }
    }
}

impl Shared {
    /// After a read: `confirmed` is how long it took until it might be answered.
    pub(super) fn tell_slow_read(&self, read: &Read<'_>, confirmed: Duration, failed: bool) {
        let took = read.asked.elapsed();
        if took < self.options.slow_request {
            return;
        }
        self.metrics.engine.slow_requests_total.inc();
        let cause = if confirmed * 2 > took { "confirming the right to read" } else { "reading many or evicted values" };
        let key = read.key.escape_ascii();
        tracing::warn!(request = read.request, %key, ?took, ?confirmed, failed, cause, "apply request took too long");
    }

    /// After a write that no batch has answered.
    pub(super) fn tell_slow_refusal(&self, asked: &Asked, error: &Error) {
        let took = asked.at.elapsed();
        let decided = !matches!(error, Error::Timeout | Error::NotApplied | Error::NoLeader | Error::Storage(_));
        if took < self.options.slow_request || decided {
            return;
        }
        self.metrics.engine.slow_requests_total.inc();
        let cause = if *self.role.borrow() != Role::Active {
            "this process isn't the writer at the moment"
        } else if self.metrics.engine.batches_in_flight.get() > 0 {
            "PostgreSQL hasn't committed the batches that it waits for"
        } else {
            WRITER_WAS_BUSY
        };
        tracing::warn!(request = asked.kind, key = %asked.key.escape_ascii(), ?took, %error, cause, "request failed, and took long");
    }
}
