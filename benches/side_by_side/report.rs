//! Ratios, round by round, and their medians.

use crate::load::Measured;

/// Prints a Markdown table for each server but the first: for each phase both medians, and the median, least and greatest ratio over the
/// rounds.
pub fn print(measurements: &[Measured], servers: &[&str]) {
    let Some((baseline, others)) = servers.split_first() else { return };
    for other in others {
        table(measurements, baseline, other);
    }
}

fn table(measurements: &[Measured], baseline: &str, other: &str) {
    println!("\n| phase | figure | {baseline} | {other} | ratio {other} / {baseline} (median) | min | max |");
    println!("|---|---|---|---|---|---|---|");
    let mut phases: Vec<&str> = Vec::new();
    for measured in measurements {
        if !phases.contains(&measured.phase.as_str()) {
            phases.push(&measured.phase);
        }
    }
    for phase in phases {
        for (figure, pick) in figures(phase) {
            row(measurements, [baseline, other], phase, figure, *pick);
        }
    }
}

type Pick = fn(&Measured) -> f64;

fn figures(phase: &str) -> &'static [(&'static str, Pick)] {
    const THROUGHPUT: (&str, Pick) = ("operations/s", Measured::per_second);
    const P50: (&str, Pick) = ("P50 µs", |measured| measured.p50_us as f64);
    const P99: (&str, Pick) = ("P99 µs", |measured| measured.p99_us as f64);
    const CPU: (&str, Pick) = ("server CPU µs/op", |measured| measured.cpu_seconds * 1e6 / measured.operations.max(1) as f64);
    if phase == "watch" { &[P50, P99, CPU] } else { &[THROUGHPUT, P50, P99, CPU] }
}

fn row(measurements: &[Measured], servers: [&str; 2], phase: &str, figure: &str, pick: Pick) {
    let of = |server: &str| -> Vec<f64> {
        let mut rounds: Vec<&Measured> = measurements.iter().filter(|m| m.phase == phase && m.server == server).collect();
        rounds.sort_by_key(|measured| measured.round);
        rounds.into_iter().map(pick).collect()
    };
    let [baseline, other] = servers.map(of);
    let ratios: Vec<f64> = other.iter().zip(&baseline).map(|(other, baseline)| other / baseline).collect();
    let (low, high) = ratios.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
    println!(
        "| {phase} | {figure} | {:.0} | {:.0} | **{:.2}** | {low:.2} | {high:.2} |",
        median(baseline),
        median(other),
        median(ratios)
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
