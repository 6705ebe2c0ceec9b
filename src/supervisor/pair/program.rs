//! Running a program of the operator's: to its end, or until it has taken too long; then it is killed with everything that it started. Its
//! output goes through Duet's log. No shell is run.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::supervisor::process_group::ProcessGroup;
use crate::telemetry::systemd::VARIABLES;

/// How long output is read after the program's end: what it started may still hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Of one line of its output.
const LINE_BYTES_MAX: u64 = 4096;

/// Runs `command`.
///
/// # Errors
/// What people need to know: it could not be run, it failed, or it took longer than `run_max`.
pub(super) async fn run(command: &mut Command, run_max: Duration) -> Result<(), String> {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in VARIABLES {
        command.env_remove(name);
    }
    let mut child = command.spawn().map_err(|error| format!("can't be run: {error}"))?;
    let group = ProcessGroup::of(&child);
    let mut output = tokio::task::JoinSet::new();
    output.spawn(log(child.stdout.take().map(BufReader::new)));
    output.spawn(log(child.stderr.take().map(BufReader::new)));
    let ended = match timeout(run_max, child.wait()).await {
        Ok(Ok(status)) => {
            group.ended();
            if status.success() { Ok(()) } else { Err(format!("ended with {status}")) }
        }
        Ok(Err(error)) => Err(format!("can't be waited for: {error}")),
        Err(_) => {
            drop(group);
            let _ = timeout(LAST_WORDS, child.wait()).await;
            Err(format!("took more than {run_max:?}: killed"))
        }
    };
    let _ = timeout(LAST_WORDS, async { while output.join_next().await.is_some() {} }).await;
    ended
}

/// Line by line; a longer one in pieces.
async fn log(pipe: Option<impl AsyncBufRead + Unpin>) {
    let Some(mut pipe) = pipe else { return };
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut pipe).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => tracing::info!(target: "duet::hook", "{}", String::from_utf8_lossy(&line).trim_end()),
        }
    }
}
