//! Duet as process 1, which a container's only program is: it must wait for orphans, and pass signals and exit codes on.

mod common;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use common::process::{PATIENCE, Process, READY, duet};
use common::scratch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// (process id, name, state, parent) of every process.
fn processes() -> Vec<(i32, String, char, i32)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (pid, rest) = stat.split_once(" (")?;
            let (name, rest) = rest.rsplit_once(") ")?;
            let mut words = rest.split(' ');
            let state = words.next()?.chars().next()?;
            Some((pid.parse().ok()?, name.to_owned(), state, words.next()?.parse().ok()?))
        })
        .collect()
}

fn children(of: i32) -> Vec<(i32, String, char, i32)> {
    processes().into_iter().filter(|(.., parent)| *parent == of).collect()
}

/// Polls: the end of somebody else's child gives no event to a test.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_refusals_exit_code_gets_through() {
    if !geteuid().is_root() {
        return; // As below.
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(duet()).arg("frobnicate");
    let mut process = Process::spawn(command);
    assert_eq!(process.ended().code(), Some(64));
    assert!(process.said().contains("no such command"));
}

#[test]
fn orphans_are_waited_for_postgresql_is_restarted_and_signals_and_exit_codes_get_through() {
    if !geteuid().is_root() {
        return; // Only root can make the process namespace, and run PostgreSQL as another user in it.
    }
    let dir = scratch();
    // The shell becomes Duet; what it had started before is an orphan from then on.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", "sleep 0.1 & exec \"$@\"", "sh"]).arg(duet());
    command.args(["dev", "--listen-client-urls", "http://127.0.0.1:0", "--data-dir"]).arg(dir.path().join("data"));
    let mut process = Process::spawn(command);
    process.line(READY);
    let init = children(i32::try_from(process.child.id()).unwrap())[0].0;
    until("the orphan is gone", || children(init).iter().all(|(_, name, ..)| name != "sleep").then_some(()));

    let (duet, ..) = children(init).into_iter().find(|(_, name, ..)| name == "duet").expect("the real Duet");
    let (postmaster, ..) = children(duet).into_iter().find(|(_, name, ..)| name == "postgres").expect("its PostgreSQL");
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    process.line("signal: 9"); // its own child's exit status reached Duet
    process.line("PostgreSQL accepts connections");
    until("no dead process is left", || {
        processes().iter().all(|(_, _, state, parent)| *parent != init || *state != 'Z').then_some(())
    });

    kill(Pid::from_raw(init), Signal::SIGTERM).unwrap();
    assert_eq!(process.ended().code(), Some(0), "{}", process.said());
}
