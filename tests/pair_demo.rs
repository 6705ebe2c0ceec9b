//! What the README begins with: `duet pair`, and a plug that is pulled.

mod common;

use std::fs;
use std::process::{Command, Output};
use std::time::Instant;

use common::peers::free_ports;
use common::process::{PATIENCE, Process, READY, duet};
use common::scratch;
use nix::sys::signal::Signal;

fn run(line: &str) -> Output {
    Command::new(duet()).args(line.split_whitespace()).output().unwrap()
}

#[test]
fn a_pair_on_one_machine_loses_its_leader_and_the_other_one_leads() {
    let dir = scratch();
    let at = dir.path().join("pair").display().to_string();
    let [ca, cb, pa, pb, ga, gb, witness] = free_ports::<7>();
    // The ports that `duet pair` takes by itself may be in use here.
    let made = run(&format!(
        "init --cluster local --a 127.0.0.1 --b 127.0.0.1 --witness 127.0.0.1 --client-port {ca},{cb} --peer-port {pa},{pb} \
         --pg-port {ga},{gb} --witness-port {witness} --client-tls=false --in-place --out {at}"
    ));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let refused = run(&format!("pair kill --data-dir {at}"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is duet pair running?"));

    let mut pair = Process::start(&duet(), &["pair", "--data-dir", &at].map(str::to_owned));
    pair.line("Pull a plug:");
    for _ in 0..2 {
        pair.line(READY);
    }
    let began = Instant::now();
    let postmasters =
        || ["a", "b"].map(|node| fs::read_to_string(format!("{at}/{node}/data/postgres/postmaster.pid")).unwrap_or_default());
    let mut before;
    let told = loop {
        before = postmasters();
        let killed = run(&format!("pair kill --data-dir {at}"));
        if killed.status.success() {
            break String::from_utf8(killed.stdout).unwrap();
        }
        // Not before both nodes have everything.
        let why = String::from_utf8(killed.stderr).unwrap();
        let early = why.contains("can't lose") || why.contains("no node leader");
        assert!(early && began.elapsed() < PATIENCE, "{why}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    // One that nobody has waited for has ended all the same.
    let runs = |file: &&String| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", file.lines().next().unwrap()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    assert_eq!(before.iter().filter(runs).count(), 1, "the leader's PostgreSQL was killed, and the other one wasn't");
    assert!(told.contains("its PostgreSQL among them") && told.contains("leads after"), "{told}");
    pair.line("starting it again in 10 s");
    let history = run(&format!("history --config-file {at}/a/duet.toml"));
    assert!(String::from_utf8_lossy(&history.stdout).contains("took over in"));
    pair.signal(Signal::SIGTERM);
    assert!(pair.ended().success());
    assert!(pair.said().contains("stopping"));
}
