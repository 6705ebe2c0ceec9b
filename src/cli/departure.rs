//! What a node of a pair does before it stops: a leader hands over, a follower says that it goes.

use std::time::Duration;

use tokio::sync::watch;

use crate::supervisor::fsm::Wish;
use crate::supervisor::pair::driver::Handle;
use crate::supervisor::pair::gate::Rights;

/// How long a stop waits for the peer to take over.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a stopping follower waits until the leader has heard that.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// Gives the leadership away, if there is somebody to take it.
pub(super) async fn hand_over(handle: Handle, mut rights: watch::Receiver<Rights>) {
    if !rights.borrow().owns {
        leave(&handle).await;
        return;
    }
    match handle.order(Wish::Switchover).await {
        Ok(text) => {
            tracing::info!("{text}");
            if tokio::time::timeout(HANDOVER_PATIENCE, rights.wait_for(|rights| !rights.owns)).await.is_err() {
                tracing::warn!("the peer did not take over in time; stopping all the same");
            }
        }
        Err(why) => tracing::info!(why, "stopping without handing over"),
    }
}

/// Tells a leader with a fencing device that this follower goes on purpose, and waits a moment until it has heard that.
async fn leave(handle: &Handle) {
    if handle.order(Wish::Leave).await.is_err() {
        return;
    }
    let mut views = handle.views();
    let heard = views.wait_for(|view| {
        let state = &view.state;
        state.peer.is_some_and(|peer| peer.heartbeat.seen == state.record.seen)
    });
    let _ = tokio::time::timeout(LEAVE_PATIENCE, heard).await;
}
