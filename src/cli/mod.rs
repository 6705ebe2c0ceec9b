//! The command line: one file per subcommand.
//!
//! | file | what it is |
//! |---|---|
//! | [`args`] | flags as Go's `flag` package reads them, since etcd's command lines are written for it |
//! | [`help`] | `--help`, from the table of options |
//! | [`load`] | flags, environment and file into a valid configuration |
//! | [`dev`], [`serve`], [`node`], [`etcd`], [`config`] | the subcommands |
//! | [`witness`], `witness_begin`, [`pair_init`], [`pair_demo`], `operate` | a pair's witness, its configuration and certificates, a pair on one machine, its operators |
//! | `peer_port` | who may call a node of a pair on its peer port |
//! | `guardian` | kills a node that stands still |
//! | [`init`] | what process 1 of a container is besides |
//! | `start_pages` | memory that only a start needs |
//! | [`server`] | what `dev`, `serve`, `node` and `etcd` share: from bound sockets to the last connection |
//!
//! Invariant: a wrong command line or configuration ends the process with code 64 before anything is bound or started.

pub mod args;
pub mod config;
pub mod departure;
mod dev;
pub mod etcd;
mod exit;
mod guardian;
mod health;
pub mod help;
mod init;
pub mod load;
pub mod node;
mod operate;
mod pair_certs;
pub mod pair_demo;
pub mod pair_init;
mod pair_kill;
mod peer_port;
pub mod serve;
pub mod server;
mod start_pages;
pub mod witness;
mod witness_begin;

use std::path::Path;
use std::process::ExitCode;

pub use exit::Failure;

use crate::config::redact::redact_dsn;

/// Runs the program whose arguments are `argv`, the program's own name first.
pub fn run(argv: Vec<String>) -> ExitCode {
    if let Some(code) = init::parent_of_all() {
        return code;
    }
    exit_code(dispatch(&argv))
}

/// Runs the program `duet-witness`, whose arguments are those of `duet witness`.
pub fn run_witness(argv: Vec<String>) -> ExitCode {
    if let Some(code) = init::parent_of_all() {
        return code;
    }
    let rest = argv.get(1..).unwrap_or_default();
    if matches!(rest, [only] if ["version", "--version", "-version", "-V"].contains(&only.as_str())) {
        println!("duet-witness {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    exit_code(witness::run_alone(rest))
}

fn exit_code(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                eprintln!("{failure}");
            }
            ExitCode::from(failure.code)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("duet").build();
    built.map_err(|error| Failure::serving(format!("can't start threads: {error}")))
}

fn dispatch(argv: &[String]) -> Result<(), Failure> {
    let program = argv.first().map_or("duet", String::as_str);
    let rest = argv.get(1..).unwrap_or_default();
    if Path::new(program).file_name().is_some_and(|name| name == "etcd") {
        return etcd::run(rest);
    }
    let (command, rest) = rest.split_first().map_or(("help", rest), |(command, rest)| (command.as_str(), rest));
    match command {
        "dev" => dev::run(rest),
        "serve" => serve::run(rest),
        "node" => node::run(rest),
        "witness" => witness::run(rest),
        "pair" => pair_demo::run(rest),
        "init" => pair_init::run(rest),
        "certs" => pair_init::run_certs(rest),
        "etcd" => etcd::run(rest),
        "config" => config::run(rest),
        command if operate::COMMANDS.iter().any(|known| known.name == command) => operate::run(command, rest),
        "version" | "--version" | "-version" | "-V" => {
            println!("duet {} (serves etcd's API {})", env!("CARGO_PKG_VERSION"), crate::telemetry::metrics::ETCD_VERSION);
            Ok(())
        }
        "help" | "--help" | "-help" | "-h" => {
            print!("{}", help::overview());
            Ok(())
        }
        other => Err(Failure::usage(format!("duet {}: there is no such command; duet --help lists them", redact_dsn(other)))),
    }
}
