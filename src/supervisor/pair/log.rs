//! The store's log behind the gate: a session for writing begins only while this node may acknowledge, and ends with that right.

use std::sync::Arc;

use super::gate::Gate;
use crate::storage::{Batch, BoxFuture, Leader, Log, LogError, LogRow, Meta, Reader, Writer};
use crate::types::{Epoch, Revision};

/// See the module.
pub struct GatedLog {
    inner: Arc<dyn Log>,
    gate: Gate,
}

impl GatedLog {
    /// `inner` is the log in this node's own PostgreSQL.
    #[must_use]
    pub fn new(inner: Arc<dyn Log>, gate: Gate) -> Self {
        Self { inner, gate }
    }

    /// Waits until this node may acknowledge.
    async fn opened(&self) -> Result<(), LogError> {
        let mut changes = self.gate.changes();
        let mut owned = false;
        loop {
            let rights = *changes.borrow_and_update();
            let now = super::clock::now();
            if rights.may_acknowledge(now) {
                return Ok(());
            }
            if owned && !rights.owns {
                return Err(not_leader());
            }
            if rights.owns && !owned {
                // While PostgreSQL is promoted.
                self.inner.prepare();
            }
            owned = rights.owns;
            let promise_ends = if rights.open { rights.not_before.saturating_sub(now) } else { u64::MAX };
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                }
                () = sleep(promise_ends) => {}
            }
        }
    }
}

async fn sleep(millis: u64) {
    if millis == u64::MAX {
        return std::future::pending().await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
}

fn not_leader() -> LogError {
    LogError::Deposed("this node doesn't lead the pair any more".to_owned())
}

impl Log for GatedLog {
    fn acquire(&self, wait: bool, advertise: Vec<String>) -> BoxFuture<'_, Result<Box<dyn Writer>, LogError>> {
        Box::pin(async move {
            self.opened().await?;
            let began = self.gate.rights().epoch;
            let acquired = tokio::select! {
                acquired = self.inner.acquire(wait, advertise) => acquired?,
                () = closed(self.gate.clone(), began) => {
                    return Err(if self.gate.rights().owns { LogError::Unavailable(CLOSED.to_owned()) } else { not_leader() });
                }
            };
            if self.gate.rights().epoch != began {
                return Err(not_leader());
            }
            self.gate.begin_session(began);
            Ok(Box::new(GatedWriter { inner: acquired, gate: self.gate.clone(), epoch: began }) as Box<dyn Writer>)
        })
    }

    /// The peer is told by heartbeats who leads, not by the database.
    fn leader(&self) -> BoxFuture<'_, Result<Option<Leader>, LogError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn may_write(&self) -> bool {
        self.gate.rights().owns
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.inner.reader()
    }
}

const CLOSED: &str = "the pair's state doesn't allow to acknowledge anything at the moment";

/// Resolves when the right to acknowledge in `epoch` ends.
async fn closed(gate: Gate, epoch: Epoch) {
    let mut changes = gate.changes();
    // The promise had run out when the session began, and a new one isn't given by a leader. Who was too slow to see the gate closed sees
    // that it isn't open for the same any more.
    let _ = changes.wait_for(|rights| !rights.open || rights.epoch != epoch).await;
}

struct GatedWriter {
    inner: Box<dyn Writer>,
    gate: Gate,
    /// That the session began in.
    epoch: Epoch,
}

impl GatedWriter {
    fn check(&self) -> Result<(), LogError> {
        let rights = self.gate.rights();
        match (rights.open && rights.epoch == self.epoch, rights.owns) {
            (true, _) => Ok(()),
            (false, true) => Err(LogError::Refused(CLOSED.to_owned())),
            (false, false) => Err(not_leader()),
        }
    }
}

impl Writer for GatedWriter {
    fn meta(&self) -> &Meta {
        self.inner.meta()
    }

    fn recover<'a>(
        &'a mut self,
        after: Revision,
        sink: &'a mut (dyn FnMut(Vec<LogRow>) + Send),
    ) -> BoxFuture<'a, Result<(), LogError>> {
        self.inner.recover(after, sink)
    }

    fn append(&mut self, batch: Arc<Batch>) -> BoxFuture<'static, Result<(), LogError>> {
        match self.check() {
            Ok(()) => self.inner.append(batch),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn confirm(&mut self) -> BoxFuture<'static, Result<(), LogError>> {
        self.inner.confirm()
    }

    fn ended(&self) -> BoxFuture<'static, ()> {
        let (inner, gate, epoch) = (self.inner.ended(), self.gate.clone(), self.epoch);
        Box::pin(async move {
            tokio::select! {
                () = inner => {}
                () = closed(gate, epoch) => {}
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}
