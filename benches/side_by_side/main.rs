//! Duet and etcd side by side on this machine: the same load to each in turn, several rounds, answers as ratios.
//!
//! Both servers run all the time on data directories of their own and on loopback; only one of them is loaded at a time. Both are
//! durable: fsync is on. The generator shares the cores with the servers. Every figure of a round is paired with the other server's
//! figure of the same round, so that the machine's drift cancels out; the table shows the median of the ratios and their spread.
//!
//!     cargo bench --bench side_by_side -- --etcd PATH [--duet PATH] [--rounds 5] [--seconds 3] [--only cas,get] [--json FILE]

mod load;
mod report;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use load::Phase;
use server::Server;

/// Runs the same load against Duet and etcd in turn and prints the ratios.
#[derive(Parser)]
struct Args {
    /// The etcd binary.
    #[arg(long, env = "ETCD_BIN")]
    etcd: PathBuf,
    /// The Duet binary.
    #[arg(long, env = "DUET_BIN", default_value = env!("CARGO_BIN_EXE_duet"))]
    duet: PathBuf,
    /// How many times each phase runs against each server.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a phase loads one server, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only phases whose name contains one of these (comma-separated).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Writes each measurement as a line of JSON here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// cargo bench passes this on.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let duration = Duration::from_secs(args.seconds);
    let mut etcd = Server::etcd(&args.etcd).await.context("starting etcd")?;
    let mut duet = Server::duet(&args.duet).await.context("starting Duet")?;
    let mut measurements = Vec::new();
    for phase in
        Phase::ALL.iter().filter(|phase| args.only.is_empty() || args.only.iter().any(|part| phase.name().contains(part)))
    {
        for round in 0..args.rounds {
            // The order alternates, so that neither server always comes second.
            let order = if round % 2 == 0 { [&mut etcd, &mut duet] } else { [&mut duet, &mut etcd] };
            for server in order {
                let measured =
                    phase.run(server, duration, round).await.with_context(|| format!("{} on {}", phase.name(), server.name))?;
                eprintln!("{measured}");
                measurements.push(measured);
            }
        }
    }
    report::print(&measurements);
    if let Some(path) = args.json {
        let lines: Vec<String> = measurements.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        std::fs::write(&path, lines.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    duet.stop().await;
    etcd.stop().await;
    Ok(())
}
