//! `--fence-command`: a program of the operator's that puts the peer's machine off, and ends with 0 once that is certain.
//!
//! Invariant: at most one runs at a time, and whose answer it is is never in doubt: a command that was given while another one still runs is
//! given again.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use super::program;
use super::record::letter;
use crate::supervisor::fsm::NodeId;

/// How long one run may take.
const RUN_MAX: Duration = Duration::from_secs(60);
/// After one that failed, before the next.
const AGAIN: Duration = Duration::from_secs(1);

/// What puts the peer's machine off.
#[derive(Clone, Debug)]
pub struct Fence {
    /// What is run.
    pub program: PathBuf,
    /// The pair's name.
    pub cluster: String,
    /// Whose machine it is.
    pub peer: NodeId,
}

impl Fence {
    /// Whether the peer's machine is certainly off. Takes its time, after a failure too.
    pub async fn put_off(&self) -> bool {
        let peer = letter(self.peer).to_ascii_lowercase().to_string();
        let mut command = Command::new(&self.program);
        command.arg(&peer).env("DUET_CLUSTER", &self.cluster).env("DUET_PEER", &peer);
        let program = self.program.display();
        match program::run(&mut command, RUN_MAX).await {
            Ok(()) => {
                tracing::info!(peer, "--fence-command {program} says that the peer's machine is off");
                true
            }
            Err(why) => {
                tracing::warn!(peer, "--fence-command {program} {why}; it is tried again while the peer isn't heard");
                tokio::time::sleep(AGAIN).await;
                false
            }
        }
    }
}
