//! Duet as process 1 of a container.
//!
//! The kernel gives process 1 every orphan of the container, among them the children of a PostgreSQL that was killed, and keeps their
//! entries in the process table until it has waited for them. Duet itself must only wait for children of its own, whose exit statuses
//! it needs. So process 1 becomes a small parent that starts the real Duet, passes signals on and waits for everybody. It deliberately
//! isn't a supervisor: it ends when its child does, with its exit code.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// In process 1: runs this program as a child until that ends. In any other process it only sees to it that signals arrive. Only before
/// there are threads.
pub(super) fn parent_of_all() -> Option<ExitCode> {
    if std::process::id() != 1 {
        // What a parent blocks its child is born with, and process 1 blocks them all.
        let _ = awaited().thread_unblock();
        return None;
    }
    match start() {
        Ok((child, signals)) => Some(ExitCode::from(wait_for(child, &signals))),
        Err(error) => {
            eprintln!("duet: can't start a child of process 1 ({error}); orphans will stay in the process table");
            None
        }
    }
}

fn awaited() -> SigSet {
    PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect()
}

fn start() -> io::Result<(Pid, SigSet)> {
    let mut words = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    // A process group of its own: what a terminal sends to the group reaches process 1 only, and is passed on once.
    command.arg0(words.next().unwrap_or_default()).args(words).process_group(0);
    let signals = awaited();
    // Whoever started this process may have ignored it, and then children vanish without a word.
    // SAFETY: no handler is installed, and there is only this thread.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    // From now on they wait until they are asked for.
    signals.thread_block()?;
    let spawned = command.spawn().and_then(|child| i32::try_from(child.id()).map_err(io::Error::other));
    if spawned.is_err() {
        signals.thread_unblock()?;
    }
    Ok((Pid::from_raw(spawned?), signals))
}

fn wait_for(child: Pid, signals: &SigSet) -> u8 {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    return code;
                }
            }
            // It may have ended just now, which is told by the next SIGCHLD.
            Ok(signal) => drop(kill(child, signal)),
            Err(_) => {}
        }
    }
}

/// Waits for all that have ended; the exit code when `child` is among them, as a shell would give it.
fn reap(child: Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Some(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Some(128 + signal as u8),
            Ok(WaitStatus::StillAlive) => return None,
            // Nobody is left, `child` neither.
            Err(Errno::ECHILD) => return Some(1),
            // Somebody else, or one who ended by a signal that has no name here.
            Ok(_) | Err(_) => {}
        }
    }
}
