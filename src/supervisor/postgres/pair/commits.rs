//! Commits and the peer: whether it confirms them, and whether those are let go that need not wait for it any more.

use std::time::Duration;

use tokio::time::Instant;

use super::probe::{Seen, Session};

/// How long the postmaster may take to take over a changed configuration.
pub(super) const RELOAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long the checkpointer may, while it is busy: it doesn't before it has synced what a checkpoint has written.
pub(super) const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(60);
/// Whether it takes over nothing at the moment. It does when it waits for something to do, and when it spreads a checkpoint's writes.
const CHECKPOINTER_IS_BUSY: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'checkpointer' \
     AND coalesce(wait_event NOT IN ('CheckpointerMain', 'CheckpointWriteDelay'), true))";
/// A standby that flushes nothing new for so long, while there is something, doesn't confirm.
const CONFIRM_MAX: Duration = Duration::from_millis(300);

/// Whether the peer keeps confirming: it has flushed a position that was taken after commits began to wait, and goes on doing so.
#[derive(Default)]
pub(super) struct Confirming {
    /// A position, and when it was taken; `None` before the first.
    mark: Option<(u64, Instant)>,
    confirmed: bool,
}

impl Confirming {
    pub(super) fn confirms(&mut self, seen: &Seen) -> bool {
        let Some(flushed) = seen.peer_flushed else {
            *self = Self::default();
            return false;
        };
        let (mark, taken) = *self.mark.get_or_insert((seen.edge, Instant::now()));
        if flushed >= mark {
            self.confirmed = true;
            // From here on only what this node's own disk has taken counts: nobody can have got more.
            self.mark = Some((seen.flushed, Instant::now()));
        } else if taken.elapsed() > CONFIRM_MAX {
            self.confirmed = false;
        }
        self.confirmed
    }
}

/// Commits that go on waiting for the peer after they were let go.
#[derive(Default)]
pub(super) struct Held {
    /// Since when, and since when the checkpointer could have let them go.
    since: Option<(Instant, Instant)>,
}

impl Held {
    /// After a look that has found so many: the checkpointer lets them go, if it has the time.
    ///
    /// # Errors
    /// They won't be let go any more.
    pub(super) async fn see(&mut self, session: &Session, waiting: i64) -> Result<(), String> {
        if waiting == 0 {
            self.since = None;
            return Ok(());
        }
        let now = Instant::now();
        let (since, mut idle) = self.since.unwrap_or((now, now));
        // Starting again would take longer than what it is at: the same once more, after a recovery. Who can't be asked is gone, which the
        // next look tells.
        if session.asks(CHECKPOINTER_IS_BUSY).await.unwrap_or(false) {
            idle = now;
        }
        self.since = Some((since, idle));
        if idle.elapsed() > RELOAD_DEADLINE || since.elapsed() > CHECKPOINT_DEADLINE {
            return Err(format!("commits still wait for the peer {:?} after they were let go", since.elapsed()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(edge: u64, peer_flushed: Option<u64>) -> Seen {
        Seen { edge, flushed: edge, peer_flushed, ..Seen::default() }
    }

    #[test]
    fn only_a_position_taken_since_counts_and_a_peer_that_leaves_confirms_nothing() {
        let mut confirming = Confirming::default();
        assert!(!confirming.confirms(&seen(100, Some(99))), "less than there was when commits began to wait");
        assert!(confirming.confirms(&seen(120, Some(100))));
        assert!(confirming.confirms(&seen(130, Some(101))), "it is on its way");
        assert!(!confirming.confirms(&seen(130, None)));
        assert!(!confirming.confirms(&seen(140, Some(130))), "after it has come back, a new position counts");
        assert!(confirming.confirms(&seen(140, Some(140))));
    }
}
