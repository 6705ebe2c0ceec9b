//! `duet pair`: a whole pair with its witness on this machine, for trying it: pull a plug, watch the other one take over.
//!
//! Two processes of this program and a `duet-witness` (or a third, where there is none beside it), as `duet init` configures them; one that ends is started again after a while. It survives no
//! machine, and says so.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::args::{self, Takes};
use super::{Failure, pair_init, pair_kill};
use crate::config::redact::redact_dsn;

const USAGE: &str = "duet pair [kill [leader|follower|a|b]] [--data-dir DIR]";
const HELP: &str = "
Runs two nodes and a witness on this machine, each node with a PostgreSQL of its own, to try what a pair does. Clients
connect to http://127.0.0.1:2379 and http://127.0.0.1:2389. A node that is killed is started again after ten seconds.

  kill            Of the pair that runs in DIR: kills all processes of a node at once, as a lost machine would, and tells
                  how the other one goes on. [leader]

  --data-dir DIR  Where everything is; it survives restarts. [/var/lib/duet/pair for root, else ~/.local/share/duet/pair]

One machine is one machine: for a pair that survives one, see duet init.
";
const PARTS: [&str; 3] = ["witness", "a", "b"];
/// How long one that was killed stays away: long enough to look.
const AWAY: Duration = Duration::from_secs(10);
/// How long each may take to stop in order.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Runs the command.
///
/// # Errors
/// Exit code 64 for a wrong command line, 1 when the pair can't be made.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let words = args.iter().take_while(|arg| !arg.starts_with('-')).count();
    let (words, flags) = args.split_at(words);
    let parsed = args::parse(flags, |name| (name == "data-dir").then_some(Takes::Value));
    let parsed = parsed.map_err(|error| Failure::usage(format!("{error}; {USAGE}")))?;
    if parsed.help {
        print!("Usage:\n  {USAGE}\n{HELP}");
        return Ok(());
    }
    let dir = parsed.flags.last().map_or_else(default_dir, |(_, dir)| PathBuf::from(dir));
    let dir = std::path::absolute(&dir).map_err(|error| Failure::usage(format!("--data-dir {}: {error}", dir.display())))?;
    let words: Vec<&str> = words.iter().chain(&parsed.rest).map(String::as_str).collect();
    match words[..] {
        [] => {}
        ["kill"] => return pair_kill::run(&dir, "leader"),
        ["kill", which @ ("leader" | "follower" | "a" | "b")] => return pair_kill::run(&dir, which),
        _ => return Err(Failure::usage(format!("\"{}\": that isn't known; {USAGE}", redact_dsn(&words.join(" "))))),
    }
    if !dir.join("plan.json").exists() {
        let out = dir.display().to_string();
        let line = "--cluster local --a 127.0.0.1 --b 127.0.0.1 --witness 127.0.0.1 --client-port 2379,2389 --peer-port 2380,2390 \
                    --pg-port 5433,5434 --client-tls=false --in-place --out";
        let init: Vec<String> = line.split_whitespace().map(str::to_owned).chain([out]).collect();
        pair_init::make(&init)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::serving(format!("can't start: {error}")))?;
    runtime.block_on(supervise(&dir))
}

fn default_dir() -> PathBuf {
    super::load::default_data_dir("pair")
}

async fn supervise(dir: &Path) -> Result<(), Failure> {
    let catch = |kind| signal(kind).map_err(|error| Failure::serving(format!("can't catch signals: {error}")));
    let (mut interrupt, mut terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    let program = std::env::current_exe().map_err(|error| Failure::serving(format!("this program can't be found: {error}")))?;
    eprintln!("{}", instructions(&program, dir));
    let mut tasks = tokio::task::JoinSet::new();
    let (stop, stopping) = tokio::sync::watch::channel(false);
    for part in PARTS {
        tasks.spawn(keep_running(program.clone(), dir.to_path_buf(), part, stopping.clone()));
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        Some(ended) = tasks.join_next() => {
            stop.send_replace(true);
            while tasks.join_next().await.is_some() {}
            return ended.unwrap_or_else(|error| Err(Failure::serving(error.to_string())));
        }
    }
    eprintln!("stopping");
    stop.send_replace(true);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn instructions(program: &Path, dir: &Path) -> String {
    let (duet, shown) = (program.display(), dir.display());
    let flag = if dir == default_dir() { String::new() } else { format!(" --data-dir {shown}") };
    format!(
        "\nA pair and its witness, all on this machine, in {shown}\n\n\
         kube-apiserver: --etcd-servers=http://127.0.0.1:2379,http://127.0.0.1:2389\n\
         K3s, RKE2:      datastore-endpoint: \"http://127.0.0.1:2379,http://127.0.0.1:2389\"\n\
         etcdctl:        etcdctl --endpoints=http://127.0.0.1:2379,http://127.0.0.1:2389 put greeting hello\n\n\
         In another terminal, once both nodes have everything:\n\
         Look:           {duet} status --watch --config-file {shown}/a/duet.toml\n\
         Pull a plug:    {duet} pair kill{flag}\n\
         Hand over:      {duet} switchover --config-file {shown}/a/duet.toml\n\
         What happened:  {duet} history --config-file {shown}/a/duet.toml\n\
         Stop:           Ctrl-C\n"
    )
}

/// Runs one part until told to stop, again and again. Fails when it can't even begin.
async fn keep_running(
    program: PathBuf,
    dir: PathBuf,
    part: &'static str,
    mut stopping: tokio::sync::watch::Receiver<bool>,
) -> Result<(), Failure> {
    loop {
        let mut child = start(&program, &dir, part)?;
        if let Some(lines) = child.stderr.take() {
            tokio::spawn(async move {
                let mut lines = BufReader::new(lines).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    eprintln!("{part:7} | {line}");
                }
            });
        }
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_err(|error| Failure::serving(format!("{part}: {error}")))?;
                // It refused to start, with a sentence that is above; a signal is somebody's experiment.
                if status.code().is_some_and(|code| code != 0) {
                    return Err(Failure::serving(format!("{part} ended with {status}: see above")));
                }
                eprintln!("{part:7} | ended ({status}); starting it again in {} s", AWAY.as_secs());
            }
            () = told_to(&mut stopping) => return stop(child, part).await,
        }
        tokio::select! {
            () = sleep(AWAY) => {}
            () = told_to(&mut stopping) => return Ok(()),
        }
    }
}

fn start(program: &Path, dir: &Path, part: &str) -> Result<Child, Failure> {
    let (command, file) = if part == "witness" { ("witness", "witness.toml") } else { ("node", "duet.toml") };
    let small = program.with_file_name("duet-witness");
    let mut run = if part == "witness" && small.exists() {
        Command::new(small)
    } else {
        let mut run = Command::new(program);
        run.arg(command);
        run
    };
    run.arg("--config-file").arg(dir.join(part).join(file));
    // A Ctrl-C on the terminal is for this process, which stops the others in order.
    run.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    run.spawn().map_err(|error| Failure::serving(format!("can't start {part}: {error}")))
}

async fn stop(mut child: Child, part: &str) -> Result<(), Failure> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    if timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        eprintln!("{part} doesn't stop: killing it");
        let _ = child.kill().await;
    }
    Ok(())
}

async fn told_to(stop: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
