//! How much room storage takes, as last asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use super::{Role, Shared};

/// How often it is asked for, and how long an answer may take.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often while there is no answer: a follower's storage begins later than its memory.
const AGAIN: Duration = Duration::from_millis(500);

/// The answers.
#[derive(Debug, Default)]
pub(super) struct DiskUsage {
    bytes: AtomicI64,
    /// Whether the last time there was an answer.
    known: AtomicBool,
}

impl DiskUsage {
    /// The last answer, in bytes; 0 before the first.
    pub fn last(&self) -> i64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The answer, if the last question had one.
    pub fn known(&self) -> Option<i64> {
        self.known.load(Ordering::Acquire).then(|| self.last())
    }
}

impl Shared {
    /// Asks.
    pub(super) async fn refresh_disk_usage(&self) {
        let answer = tokio::time::timeout(INTERVAL, self.log.reader().disk_usage()).await;
        let known = match answer {
            Ok(Ok(usage)) => {
                self.disk_usage.bytes.store(usage.total, Ordering::Relaxed);
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "could not ask for the store's size");
                false
            }
            Err(_) => false,
        };
        self.disk_usage.known.store(known, Ordering::Release);
    }
}

/// Asks again and again while this process shows what storage holds; a follower's storage is its own.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut role = shared.role.subscribe();
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            Ok(()) = role.changed() => {}
        }
        let shows = matches!(*role.borrow_and_update(), Role::Active | Role::Recovering | Role::Following);
        if shows {
            tokio::select! {
                () = shared.stop.cancelled() => return,
                () = shared.refresh_disk_usage() => {}
            }
        } else {
            shared.disk_usage.known.store(false, Ordering::Release);
        }
        pause = if shows && shared.disk_usage.known().is_none() { AGAIN } else { INTERVAL };
    }
}
