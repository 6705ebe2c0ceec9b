//! A node that is killed for a drill: all of its processes at once, as when its machine loses power, and away for a while before whoever
//! looks after it has it back.
//!
//! It deliberately kills no guardian: that is what brings the node back where no service manager does.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork};

use super::clock;
use crate::types::Millis;

/// Until when the node stays away, in milliseconds of the boot-time clock.
const FILE: &str = "drill.until";
/// No drill keeps a node away for longer, whatever the file says: after a reboot the clock is another one.
pub const AWAY_MAX: Duration = Duration::from_secs(60);
/// For the answer to whoever asked.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How long the child that kills this process may take; then it is done here.
const KILLED_WITHIN: Duration = Duration::from_secs(1);
const PROCESSES_MAX: usize = 100_000;

/// Kills this process and all that it has started, in a moment; its next one stays away for `away`.
///
/// # Errors
/// What the next one must know can't be written. Nothing is killed then.
pub fn die(data_dir: &Path, away: Duration) -> std::io::Result<()> {
    let until = clock::now() + Millis::try_from((LAST_WORDS + away.min(AWAY_MAX)).as_millis()).unwrap_or(0);
    fs::write(data_dir.join(FILE), until.to_string())?;
    std::thread::Builder::new().name("duet-drill".to_owned()).spawn(|| {
        std::thread::sleep(LAST_WORDS);
        kill_all();
    })?;
    Ok(())
}

/// This process first, so that it does nothing about the end of another: a lost machine doesn't ask anybody to take over. So it takes a
/// process more.
fn kill_all() {
    let me = Pid::this();
    let all = descendants(me);
    let end_all = || {
        for pid in &all {
            // One that has ended meanwhile is what was wanted.
            let _ = kill(*pid, Signal::SIGKILL);
        }
    };
    // SAFETY: the child only sends signals to processes in a list that was made before, and ends; both may be done after a fork.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let _ = kill(me, Signal::SIGKILL);
            end_all();
            // SAFETY: it ends the process without running anything of its parent's.
            unsafe { nix::libc::_exit(0) }
        }
        // Until it is killed.
        Ok(ForkResult::Parent { .. }) => std::thread::sleep(KILLED_WITHIN),
        Err(_) => {}
    }
    end_all();
    let _ = kill(me, Signal::SIGKILL);
}

/// How long this node is still to stay away, asked once: what a drill has left is removed.
#[must_use]
pub fn away(data_dir: &Path) -> Option<Duration> {
    let path = data_dir.join(FILE);
    let until: Millis = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
    // A file that stays would keep every start waiting.
    fs::remove_file(&path).ok()?;
    let left = Duration::from_millis(until.saturating_sub(clock::now())).min(AWAY_MAX);
    (!left.is_zero()).then_some(left)
}

/// All processes that `ancestor` has started, directly or not.
#[must_use]
pub fn descendants(ancestor: Pid) -> Vec<Pid> {
    let mut found = vec![ancestor.as_raw()];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied().filter(|_| found.len() < PROCESSES_MAX) {
        next += 1;
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                if !found.contains(&child) {
                    found.push(child);
                }
            }
        }
    }
    found.into_iter().skip(1).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_stays_away_once_and_never_for_long() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(away(dir.path()), None);
        fs::write(dir.path().join(FILE), (clock::now() + 3_600_000).to_string()).unwrap();
        assert_eq!(away(dir.path()), Some(AWAY_MAX), "written before a reboot, perhaps");
        assert_eq!(away(dir.path()), None);
        fs::write(dir.path().join(FILE), "1").unwrap();
        assert_eq!(away(dir.path()), None, "that is over");
    }

    #[test]
    fn grandchildren_are_found() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let found = descendants(Pid::from_raw(i32::try_from(child.id()).unwrap()));
        found.iter().for_each(|pid| kill(*pid, Signal::SIGKILL).unwrap());
        child.wait().unwrap();
        assert_eq!(found.len(), 1);
        assert!(descendants(Pid::from_raw(i32::MAX)).is_empty());
    }
}
