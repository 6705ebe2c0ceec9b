//! `--on-role-change`: a program of the operator's, run when this node's part has changed.
//!
//! Invariants: at most one runs at a time; while it does, changes are not queued up: the newest is told next, if it still differs. One
//! that runs too long is killed with everything that it started. Its output goes through Duet's log. Nothing waits for it but the stop
//! of the node, and that no longer than one run may take.
//!
//! It deliberately runs no shell: the program gets the part and the epoch as its two arguments, and the rest in its environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;

use super::clock;
use super::driver::View;
use super::program;
use super::record::letter;
use super::status::mode_name;
use crate::supervisor::fsm::{Phase, State};
use crate::types::Epoch;

/// How long one run may take.
pub const RUN_MAX: Duration = Duration::from_secs(10);

/// What a hook is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// `leader`: it acknowledges writes; `follower`; `none`: neither, not yet or not any more.
    pub role: &'static str,
    /// Grows with each change of the owner; 0 before anything is known.
    pub epoch: Epoch,
    /// PAIR, SOLO or ASYM; empty before anything is known.
    pub mode: &'static str,
}

impl Part {
    /// The part that `state` is, now.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let role = match state.phase {
            Phase::Leader if state.may_acknowledge(clock::now()) => "leader",
            Phase::Follower => "follower",
            Phase::Leader | Phase::Boot => "none",
        };
        let mode = state.mode().map_or("", mode_name);
        Self { role, epoch: state.record.seen.map_or(0, |seen| seen.epoch), mode }
    }

    /// A change of the mode alone is none of the part.
    fn is_told_by(self, told: Option<Self>) -> bool {
        told.is_some_and(|told| (told.role, told.epoch) == (self.role, self.epoch))
    }
}

/// The parts that the driver's views are.
pub async fn follow(mut views: watch::Receiver<View>, parts: watch::Sender<Part>) {
    loop {
        let part = Part::of(&views.borrow_and_update().state);
        parts.send_if_modified(|now| std::mem::replace(now, part) != part);
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// A hook of one node.
#[derive(Clone, Debug)]
pub struct Hook {
    /// What is run.
    pub program: PathBuf,
    /// The pair's name.
    pub cluster: String,
    /// `a` or `b`.
    pub node: char,
    /// How long one run may take.
    pub run_max: Duration,
}

impl Hook {
    /// The hook of a node.
    #[must_use]
    pub fn new(program: &Path, cluster: &str, node: crate::supervisor::fsm::NodeId) -> Self {
        let node = letter(node).to_ascii_lowercase();
        Self { program: program.to_path_buf(), cluster: cluster.to_owned(), node, run_max: RUN_MAX }
    }

    /// Tells every part that is still true when the program can be run again; ends with the parts, after telling that there is none.
    pub async fn run(self, mut parts: watch::Receiver<Part>) {
        let mut told = None;
        let mut ended = false;
        while !ended {
            let mut part = *parts.borrow_and_update();
            if part.is_told_by(told) || part.role.is_empty() {
                if parts.changed().await.is_ok() {
                    continue;
                }
                ended = true;
                part.role = "none";
                if part.is_told_by(told) {
                    return;
                }
            }
            told = Some(part);
            self.tell(part).await;
        }
    }

    async fn tell(&self, part: Part) {
        let mut command = Command::new(&self.program);
        // The names of the options, in the form that those have: a hook may well call duet itself.
        command
            .args([part.role, &part.epoch.to_string()])
            .env("DUET_CLUSTER", &self.cluster)
            .env("DUET_NODE", self.node.to_string())
            .env("DUET_ROLE", part.role)
            .env("DUET_EPOCH", part.epoch.to_string())
            .env("DUET_MODE", part.mode);
        let (program, role, epoch) = (self.program.display(), part.role, part.epoch);
        match program::run(&mut command, self.run_max).await {
            Ok(()) => tracing::debug!(role, epoch, "--on-role-change has run"),
            Err(why) => tracing::warn!(role, epoch, "--on-role-change {program} {why}; it is run again at the next change"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const LEADER: Part = Part { role: "leader", epoch: 3, mode: "PAIR" };

    /// A hook whose program does `body` in `dir`.
    fn hook(dir: &TempDir, body: &str, run_max: Duration) -> Hook {
        let program = dir.path().join("hook");
        let text = format!("#!/bin/sh\ncd {}\n{body}\n", dir.path().display());
        // By another process: a program that this one holds open for writing, in whichever of its forks, can't be run.
        let written = std::process::Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
            .arg(&program)
            .arg(text)
            .status();
        assert!(written.unwrap().success());
        Hook { program, cluster: "edge".to_owned(), node: 'a', run_max }
    }

    fn told(dir: &TempDir) -> String {
        std::fs::read_to_string(dir.path().join("told")).unwrap_or_default()
    }

    #[tokio::test]
    async fn it_is_told_the_part_by_arguments_and_environment_and_that_there_is_none_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let body = "echo $1 $2 $# $DUET_CLUSTER $DUET_NODE $DUET_ROLE $DUET_EPOCH $DUET_MODE >> told";
        let (parts, seen) = watch::channel(LEADER);
        drop(parts);
        hook(&dir, body, RUN_MAX).run(seen).await;
        assert_eq!(told(&dir), "leader 3 2 edge a leader 3 PAIR\nnone 3 2 edge a none 3 PAIR\n");
    }

    #[tokio::test]
    async fn changes_during_a_run_are_not_queued_up_and_the_newest_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, seen) = watch::channel(LEADER);
        // It waits until the test lets it go on.
        let hook = hook(&dir, "echo $1 $2 >> told; until test -e go; do sleep 0.01; done", RUN_MAX);
        let running = tokio::spawn(hook.run(seen));
        while told(&dir).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        parts.send_replace(Part { role: "none", ..LEADER });
        parts.send_replace(Part { role: "follower", epoch: 4, ..LEADER });
        // A change of the mode alone is told with the next part.
        parts.send_replace(Part { role: "follower", epoch: 4, mode: "SOLO" });
        std::fs::write(dir.path().join("go"), "").unwrap();
        drop(parts);
        running.await.unwrap();
        assert_eq!(told(&dir), "leader 3\nfollower 4\nnone 4\n");
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, seen) = watch::channel(LEADER);
        drop(parts);
        let body = "sleep 1000 & echo $! >> told; wait";
        hook(&dir, body, Duration::from_millis(300)).run(seen).await;
        for pid in told(&dir).lines() {
            // The signal was sent; how soon the kernel is done with it is another matter.
            let began = std::time::Instant::now();
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            while !(stat().is_empty() || stat().contains(") Z ")) {
                assert!(began.elapsed() < Duration::from_secs(30), "{pid} goes on: {}", stat());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert_eq!(told(&dir).lines().count(), 2, "the next part is told all the same");
    }

    #[tokio::test]
    async fn one_that_is_not_there_holds_up_nothing() {
        let (parts, seen) = watch::channel(LEADER);
        drop(parts);
        let hook = Hook { program: "/nonexistent/hook".into(), cluster: String::new(), node: 'a', run_max: RUN_MAX };
        hook.run(seen).await;
    }
}
