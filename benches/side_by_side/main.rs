//! Duet and etcd side by side on this machine: the same load to each in turn, several rounds, answers as ratios.
//!
//! All servers run all the time on data directories of their own and on loopback; only one of them is loaded at a time. All are
//! durable: fsync is on. The generator shares the cores with the servers. Every figure of a round is paired with the first server's
//! figure of the same round, so that the machine's drift cancels out; the table shows the median of the ratios and their spread.
//!
//!     cargo bench --bench side_by_side -- --etcd PATH [--duet PATH] [--rounds 5] [--seconds 3] [--only cas,get] [--json FILE]
//!     cargo bench --bench side_by_side -- --servers duet,leader,follower

mod load;
mod report;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use load::Phase;
use server::{Kind, Server};

/// Runs the same load against several servers in turn and prints the ratios.
#[derive(Parser)]
struct Args {
    /// What is compared: each of the others with the first one.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "etcd,duet")]
    servers: Vec<Kind>,
    /// The etcd binary, if etcd is among them.
    #[arg(long, env = "ETCD_BIN", default_value = "etcd")]
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
    let servers = server::start(&args.servers, &args.etcd, &args.duet).await?;
    let mut measurements = Vec::new();
    for phase in
        Phase::ALL.iter().filter(|phase| args.only.is_empty() || args.only.iter().any(|part| phase.name().contains(part)))
    {
        for round in 0..args.rounds {
            // The order rotates, so that none of them always comes second.
            for at in 0..servers.len() {
                let server = &servers[(at + round) % servers.len()];
                let measured =
                    phase.run(server, duration, round).await.with_context(|| format!("{} on {}", phase.name(), server.name))?;
                eprintln!("{measured}");
                measurements.push(measured);
            }
        }
    }
    let names: Vec<&str> = servers.iter().map(|server| server.name).collect();
    report::print(&measurements, &names);
    if let Some(path) = args.json {
        let lines: Vec<String> = measurements.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        std::fs::write(&path, lines.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Server::stop(servers).await;
    Ok(())
}
