//! Thousands of seeded runs of a pair in bad weather. A failing seed is printed, and then kept in `REGRESSIONS`.
//!
//! `DUET_SEEDS` sets how many seeds the storm gets, the other tests in proportion; `DUET_SEED` runs one.

mod simulation;

use duet::supervisor::fsm::Third;
use simulation::{Simulation, Weather};

/// Seeds that found something once.
const REGRESSIONS: &[u64] = &[83, 2365];

/// A test's share of the seeds, in hundredths.
fn seeds(share: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("DUET_SEED") {
        Some(seed) => vec![seed],
        None => REGRESSIONS.iter().copied().chain(1..=(number("DUET_SEEDS").unwrap_or(300) * share).div_ceil(100)).collect(),
    }
}

const STORM: Weather =
    Weather { trouble: 30_000, fault_every: 1500, loss: 20, pause_max: 3000, pauses_only: false, third: Third::Witness };

fn run_all(seeds: Vec<u64>, weather: Weather) -> Vec<simulation::Outcome> {
    let run = |seed| {
        let outcome = std::panic::catch_unwind(|| Simulation::new(seed, weather).run());
        outcome.unwrap_or_else(|_| panic!("seed {seed} in {weather:?}: run it alone with DUET_SEED={seed}"))
    };
    seeds.into_iter().map(run).collect()
}

#[test]
fn nothing_is_lost_in_a_storm_and_the_pair_comes_back() {
    let outcomes = run_all(seeds(100), STORM);
    let failovers: u64 = outcomes.iter().map(|outcome| outcome.failovers).sum();
    let acknowledged: u64 = outcomes.iter().map(|outcome| outcome.acknowledged).sum();
    let torn: u64 = outcomes.iter().map(|outcome| outcome.torn).sum();
    let replaced: u64 = outcomes.iter().map(|outcome| outcome.replaced).sum();
    println!("{} runs, {failovers} takeovers, {acknowledged} writes acknowledged", outcomes.len());
    println!("{torn} crashes in the midst of a step, {replaced} disks replaced");
    let few = outcomes.len() < 100;
    assert!(few || torn > 0 && replaced > 0, "{torn} crashes in the midst of a step, {replaced} disks replaced");
    assert!(failovers > outcomes.len() as u64 / 2, "a storm without takeovers tests nothing: {failovers}");
}

#[test]
fn nothing_is_lost_without_a_witness() {
    run_all(seeds(33), Weather { third: Third::Nobody, ..STORM });
}

#[test]
fn nothing_is_lost_with_a_fencing_device() {
    // Shorter than some commands take: nodes have each other put off, too.
    let outcomes = run_all(seeds(67), Weather { third: Third::Fence { delay: 500 }, ..STORM });
    let failovers: u64 = outcomes.iter().map(|outcome| outcome.failovers).sum();
    let fenced: u64 = outcomes.iter().map(|outcome| outcome.fenced).sum();
    println!("{} runs, {fenced} machines put off, {failovers} takeovers begun", outcomes.len());
    let runs = outcomes.len() as u64;
    assert!(
        fenced > runs && failovers > runs / 4,
        "a storm without takeovers tests nothing: {fenced} put off, {failovers} begun"
    );
    // Whoever stands still is put off only if that lasts; a follower that waits longer than any pause takes nothing over.
    let weather = Weather { trouble: 60_000, fault_every: 1000, loss: 50, pause_max: 300, pauses_only: true, ..STORM };
    for outcome in run_all(seeds(5), Weather { third: Third::Fence { delay: 4000 }, ..weather }) {
        assert_eq!(outcome.failovers, 0, "{outcome:?}");
    }
}

#[test]
fn wal_that_keeps_coming_vetoes_a_takeover() {
    for seed in seeds(3) {
        Simulation::new(seed, Weather { fault_every: 0, ..STORM }).lose_heartbeats_only();
    }
}

#[test]
fn short_pauses_and_lost_heartbeats_cause_no_failover() {
    let weather =
        Weather { trouble: 120_000, fault_every: 1000, loss: 50, pause_max: 300, pauses_only: true, third: Third::Witness };
    for outcome in run_all(seeds(5), weather) {
        assert_eq!(outcome.failovers, 0, "{outcome:?}");
    }
}
