//! Makes a script that shows a difference shorter, as long as it still shows one.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::random::{plainer_watch, smaller_txns};
use crate::script::{Case, Request, Step};
use crate::server::Pair;

/// Replays that one shrinking may take, and the time after which no other is begun.
const REPLAYS_MAX: usize = 250;
const TIME_MAX: Duration = Duration::from_secs(120);

/// A shrunk case and the difference that it shows.
pub struct Shrunk {
    pub case: Case,
    pub difference: String,
}

/// Shrinks `case`, which has shown the difference `first`.
pub async fn shrink(pair: &mut Pair, case: Case, first: &str) -> Result<Shrunk> {
    let mut replays = 0;
    let started = Instant::now();
    let difference = crate::compare_on(pair, &case)
        .await?
        .unwrap_or_else(|| format!("  the difference doesn't show every time; the first time:\n{first}"));
    let mut best = Shrunk { case, difference };
    let mut chunk = best.case.steps.len();
    while chunk > 0 {
        let mut from = 0;
        while from < best.case.steps.len() && replays < REPLAYS_MAX && started.elapsed() < TIME_MAX {
            replays += 1;
            let mut steps = best.case.steps.clone();
            steps.drain(from..(from + chunk).min(steps.len()));
            if !attempt(pair, &mut best, steps).await? {
                from += chunk;
            }
        }
        chunk /= 2;
    }
    while replays < REPLAYS_MAX && started.elapsed() < TIME_MAX && simplify(pair, &mut best, &mut replays).await? {}
    Ok(best)
}

/// Takes `steps` if they still differ.
async fn attempt(pair: &mut Pair, best: &mut Shrunk, steps: Vec<Step>) -> Result<bool> {
    let case = Case { steps, ..best.case.clone() };
    match crate::compare_on(pair, &case).await? {
        Some(difference) => {
            *best = Shrunk { case, difference };
            Ok(true)
        }
        None => Ok(false),
    }
}

/// Tries smaller forms of each step; true when one still differs.
async fn simplify(pair: &mut Pair, best: &mut Shrunk, replays: &mut usize) -> Result<bool> {
    for i in 0..best.case.steps.len() {
        for step in smaller(&best.case.steps[i]) {
            *replays += 1;
            let mut steps = best.case.steps.clone();
            steps[i] = step;
            if attempt(pair, best, steps).await? {
                return Ok(true);
            }
            if *replays >= REPLAYS_MAX {
                return Ok(false);
            }
        }
    }
    Ok(false)
}

fn smaller(step: &Step) -> Vec<Step> {
    match step {
        Step::Call(Request::Txn(txn)) => smaller_txns(txn).into_iter().map(|txn| Step::Call(Request::Txn(txn))).collect(),
        Step::Send(stream, request) => plainer_watch(request).map(|request| Step::Send(*stream, request)).into_iter().collect(),
        _ => Vec::new(),
    }
}
