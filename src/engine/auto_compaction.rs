//! Compaction without being asked: etcd's `--auto-compaction-mode` and `--auto-compaction-retention`.
//!
//! As in etcd, `periodic` keeps the history of the last so-and-so long (looked at ten times per period, at least ten times an hour),
//! and `revision` keeps so many revisions (looked at every five minutes).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Role, Shared};
use crate::mvcc::ReadView;
use crate::sequencer::Command;
use crate::types::Revision;

/// etcd never compacts less often than this by time.
const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// How many looks a period has.
const LOOKS_PER_PERIOD: u32 = 10;
/// How often the revision mode looks.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// What history is kept without anybody asking for compactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// All of it.
    #[default]
    Off,
    /// That of the last so long.
    Periodic(Duration),
    /// So many revisions.
    Revisions(i64),
}

/// Compacts as `mode` says until the engine is stopped. Only the writer compacts; a process that waits just keeps looking.
pub(super) async fn run(shared: Arc<Shared>, mode: AutoCompaction) {
    let (interval, mut policy) = match mode {
        AutoCompaction::Off => return,
        AutoCompaction::Periodic(retention) => Policy::periodic(retention),
        AutoCompaction::Revisions(retention) => (REVISION_INTERVAL, Policy::Revision { retention }),
    };
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if *shared.role.borrow() != Role::Active {
            continue;
        }
        let (current, compacted) = {
            let store = shared.store.read();
            (store.current(), store.compacted())
        };
        let Some(revision) = policy.look(current).filter(|revision| *revision > compacted.max(0)) else { continue };
        match shared.submit(Command::Compact { revision }).await {
            Ok(_) => tracing::info!(revision, ?mode, "compacted automatically"),
            // Somebody else's compaction was faster.
            Err(Error::Compacted) => {}
            Err(error) => tracing::warn!(%error, revision, "automatic compaction failed; it will be tried again"),
        }
    }
}

/// Decides, look by look, what may go. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Policy {
    Periodic {
        /// The newest revision at each of the last looks, oldest first.
        seen: VecDeque<Revision>,
        /// How many looks make up the retention.
        looks: usize,
        /// Looks since the last compaction.
        since: u32,
    },
    Revision {
        retention: i64,
    },
}

impl Policy {
    /// How often to look, and the policy.
    fn periodic(retention: Duration) -> (Duration, Self) {
        let interval = retention.min(PERIOD_MAX) / LOOKS_PER_PERIOD;
        let interval = interval.max(Duration::from_millis(1));
        let looks = usize::try_from(retention.as_nanos() / interval.as_nanos()).unwrap_or(usize::MAX).max(1);
        (interval, Self::Periodic { seen: VecDeque::new(), looks, since: LOOKS_PER_PERIOD })
    }

    /// Takes note of the newest revision; answers the revision to compact to, if it is time.
    fn look(&mut self, current: Revision) -> Option<Revision> {
        match self {
            Self::Revision { retention } => Some(current - *retention).filter(|revision| *revision > 0),
            Self::Periodic { seen, looks, since } => {
                seen.push_back(current);
                *since = since.saturating_add(1);
                if seen.len() <= *looks {
                    return None;
                }
                let oldest = seen.pop_front()?;
                if *since < LOOKS_PER_PERIOD {
                    return None;
                }
                *since = 0;
                Some(oldest)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_periodic_mode_keeps_what_is_younger_than_its_retention() {
        let (interval, mut policy) = Policy::periodic(Duration::from_secs(600));
        assert_eq!(interval, Duration::from_secs(60));
        let decided: Vec<Option<Revision>> = (1..=30).map(|minute| policy.look(minute * 100)).collect();
        let compactions: Vec<(usize, Revision)> =
            decided.iter().enumerate().filter_map(|(at, revision)| revision.map(|revision| (at + 1, revision))).collect();
        assert_eq!(compactions, [(11, 100), (21, 1100)], "at minute 11 the revision of minute 1, and so on");
    }

    #[test]
    fn a_long_retention_is_compacted_hourly() {
        let (interval, mut policy) = Policy::periodic(Duration::from_secs(5 * 3600));
        assert_eq!(interval, Duration::from_secs(360));
        let compactions = (1..=100).filter(|look| policy.look(*look).is_some()).collect::<Vec<_>>();
        assert_eq!(compactions, [51, 61, 71, 81, 91]);
    }

    #[test]
    fn the_revision_mode_keeps_so_many_revisions() {
        let mut policy = Policy::Revision { retention: 1000 };
        assert_eq!(policy.look(900), None);
        assert_eq!(policy.look(1500), Some(500));
    }
}
