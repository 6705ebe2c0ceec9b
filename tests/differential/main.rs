//! The differential suite: the same scripts, played to etcd 3.7.3 and to Duet, answers compared field by field.
//!
//! `cases/` holds scripts written by hand, each with a name that is a sentence; `random.rs` makes any number of others from seeds. A
//! difference is printed with the steps that led to it; a random script is shrunk first. At the end of each script what both servers have
//! counted under etcd's metric names is compared, too.
//!
//! Deliberately not compared: cluster and member ids, raft terms, the seconds that a lease has left, the order in which different watches
//! of a stream get their responses. What differs for a reason stands in `known.rs`, and fails when it stops differing.
//!
//!     cargo test --test differential [-- TEXT…]     cases whose area or name has one of these texts
//!     ETCD_BIN=PATH                                  the reference, if not where tests/tools/build.sh puts it
//!     DUET_DIFF_SUBJECT=etcd                         compare etcd with itself
//!     DUET_DIFF_SEEDS=N | A..B                       how many random scripts, or which
//!     DUET_DIFF_STEPS=N                              steps of each
//!     DUET_DIFF_DUET_FLAGS="…"                       more flags for Duet, such as --value-cache-bytes
//!     DUET_DIFF_SHOW=1                               print every step and the reference's answer

mod cases;
mod figures;
mod known;
mod normalise;
mod play;
mod random;
mod raw;
mod report;
mod script;
mod selfcheck;
mod server;
mod shrink;
mod transcript;
mod watch;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::report::Report;
use crate::script::{Case, Store};
use crate::server::Pair;

fn main() -> ExitCode {
    // One thread: the servers do the work, and a server's parent must outlive it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |case: &Case| {
        filters.is_empty() || filters.iter().any(|text| case.area.contains(text.as_str()) || case.name.contains(text.as_str()))
    };
    let cases: Vec<Case> = cases::all().into_iter().filter(wanted).collect();
    let seeds = match random::Seeds::from_env() {
        Ok(seeds) => seeds.filter(filters.is_empty() || filters.iter().any(|text| text == "random")),
        Err(error) => {
            eprintln!("differential: {error:#}");
            return ExitCode::from(64);
        }
    };
    if std::env::args().any(|arg| arg == "--list") {
        for case in &cases {
            println!("{}: {}: test", case.area, case.name);
        }
        return ExitCode::SUCCESS;
    }
    match runtime.block_on(run(cases, seeds)) {
        Ok(report) => report.finish(),
        Err(error) => {
            eprintln!("differential: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cases: Vec<Case>, seeds: random::Seeds) -> Result<Report> {
    let mut report = Report::default();
    let (shared, fresh): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|case| case.store == Store::Shared);
    if !shared.is_empty() || !seeds.is_empty() {
        let mut pair = Pair::start(false, &[]).await?;
        for case in &shared {
            report.case(case, compare(&mut pair, case).await?);
        }
        if !seeds.is_empty() {
            selfcheck::run(&mut pair, &mut report).await?;
        }
        random::run(&mut pair, &seeds, &mut report).await?;
        known::unimplemented(&mut pair.subject, &mut report).await?;
        pair.stop().await?;
    }
    for case in &fresh {
        let Store::Fresh(flags) = &case.store else { unreachable!("partitioned above") };
        let mut pair = Pair::start(true, flags).await?;
        report.case(case, compare(&mut pair, case).await?);
        pair.stop().await?;
    }
    Ok(report)
}

/// The difference that a case shows, if any: on `shared`, or on servers of its own if it needs a fresh store.
async fn compare_on(shared: &mut Pair, case: &Case) -> Result<Option<String>> {
    let Store::Fresh(flags) = &case.store else {
        return compare(shared, case).await;
    };
    let mut pair = Pair::start(true, flags).await?;
    let difference = compare(&mut pair, case).await?;
    pair.stop().await?;
    Ok(difference)
}

/// The difference that a case shows on these servers, if any.
async fn compare(pair: &mut Pair, case: &Case) -> Result<Option<String>> {
    let exact = case.store != Store::Shared;
    let reference = play::play(&mut pair.reference, &case.steps, exact, None)
        .await
        .with_context(|| format!("the reference, at {}: {}", case.name, pair.reference.log()))?;
    if let Some(entry) = transcript::unanswered(&reference) {
        return Ok(Some(format!("  the case is wrong, the reference doesn't answer:\n  {entry}")));
    }
    let mut subject = play::play(&mut pair.subject, &case.steps, exact, Some(&reference))
        .await
        .with_context(|| format!("the subject, at {}: {}", case.name, pair.subject.log()))?;
    if let Some(fault) = pair.fault {
        for entry in &mut subject.0 {
            fault(&entry.step, &mut entry.answer);
        }
    }
    if std::env::var_os("DUET_DIFF_SHOW").is_some() {
        for entry in &reference.0 {
            println!("    {}\n        {}", transcript::short(&format!("{:?}", entry.step)), transcript::short(&entry.answer));
        }
    }
    Ok(transcript::difference(&reference, &subject))
}
