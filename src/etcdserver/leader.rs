//! Whether there is a leader, and for how long there has been none.
//!
//! New requests that require a leader are refused at once; streams that require one end only when there has been none for a while
//! (etcd: three election timeouts), because to reconnect costs clients far more than to wait.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::Role;

/// Whether requests can be expected to be served: there is a writer, here or elsewhere, or one is about to be.
pub(super) fn is_known(role: &Role) -> bool {
    match role {
        Role::Active | Role::Recovering | Role::Following => true,
        Role::Standby | Role::Failed(_) | Role::Stopped => false,
    }
}

/// Tells streams when they have to end.
pub(super) struct Monitor {
    lost: watch::Receiver<bool>,
}

impl Monitor {
    /// Follows `role` until `stop`.
    pub(super) fn start(role: watch::Receiver<Role>, patience: Duration, stop: CancellationToken) -> Self {
        let (sender, lost) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(role, patience, sender) => {}
            }
        });
        Self { lost }
    }

    /// Resolves when there has been no leader for too long; at once if that is so already.
    pub(super) async fn lost(&self) {
        if self.lost.clone().wait_for(|lost| *lost).await.is_err() {
            // The process is stopping, which ends streams for its own reason.
            std::future::pending().await
        }
    }
}

/// Returns when nobody can change the role any more.
async fn follow(mut role: watch::Receiver<Role>, patience: Duration, lost: watch::Sender<bool>) {
    loop {
        if role.wait_for(|role| !is_known(role)).await.is_err() {
            return;
        }
        if tokio::time::timeout(patience, role.wait_for(is_known)).await.is_ok() {
            continue;
        }
        lost.send_replace(true);
        if role.wait_for(is_known).await.is_err() {
            return;
        }
        lost.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streams_end_only_when_there_was_no_leader_for_all_of_the_patience() {
        let (role, seen) = watch::channel(Role::Active);
        let monitor = Monitor::start(seen, Duration::from_secs(3), CancellationToken::new());
        role.send_replace(Role::Standby);
        let early = tokio::time::timeout(Duration::from_millis(2900), monitor.lost()).await;
        assert!(early.is_err(), "lost before its time");
        role.send_replace(Role::Active);
        tokio::task::yield_now().await;
        role.send_replace(Role::Standby);
        let begun = tokio::time::Instant::now();
        monitor.lost().await;
        assert!(begun.elapsed() >= Duration::from_millis(2999), "the patience begins anew with each leader");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_lets_new_streams_live() {
        let (role, seen) = watch::channel(Role::Standby);
        let monitor = Monitor::start(seen, Duration::from_secs(3), CancellationToken::new());
        monitor.lost().await;
        role.send_replace(Role::Active);
        tokio::task::yield_now().await;
        assert!(tokio::time::timeout(Duration::from_secs(60), monitor.lost()).await.is_err());
    }
}
