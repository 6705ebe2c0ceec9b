//! A program that runs, and those that it has started itself: they are killed together when nobody waits for them any more. It must have
//! been started as the leader of a group of its own.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Child;

/// See the module; killed when it is dropped.
pub struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    /// The group that `leader` leads.
    pub fn of(leader: &Child) -> Self {
        Self(leader.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw))
    }

    /// Its leader was waited for: the number may be another's now.
    pub fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}
