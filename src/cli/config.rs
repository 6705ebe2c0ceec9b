//! `duet config check`: every option in force, its value and where it came from, and whether a command would take them.
//!
//! It takes the flags, environment and file that the command would, and has it judge them, so that its exit code tells whether the command
//! would start with them; etcd's YAML files included. It deliberately starts, binds and makes nothing: whether a port is free, or PostgreSQL
//! answers, only a start can tell.

use std::fmt::Write;

use super::load::{self, Loaded};
use super::{Failure, args, dev, etcd, node, serve, witness};
use crate::config::raw::printable;
use crate::config::{Config, Origin, Raw};
use crate::telemetry::log::LogOutput;

const USAGE: &str = "duet config check [dev|serve|node|witness|etcd] [flags]";
/// The commands that take a configuration.
const COMMANDS: [&str; 5] = ["dev", "serve", "node", "witness", "etcd"];

/// Runs the command.
///
/// # Errors
/// Exit code 64 when the command that is meant would refuse the configuration.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let Some(args) = args.strip_prefix(&["check".to_owned()]) else {
        return Err(Failure::usage(format!("the command is {USAGE}")));
    };
    let named = args.first().and_then(|first| COMMANDS.into_iter().find(|command| command == first));
    let flags = if named.is_some() { &args[1..] } else { args };
    let Some((loaded, command, because)) = loaded(named, flags)? else { return Ok(()) };
    print!("{}", explain(&loaded.raw));
    for warning in &loaded.raw.warnings {
        eprintln!("duet: warning: {warning}");
    }
    judge(command, &loaded.config).map_err(|failure| failure.of(&format!("duet {command} ({because})")))?;
    println!(
        "\nduet {command} ({because}) would take this. What only a start can tell, such as whether a port is free, is not checked."
    );
    Ok(())
}

/// What is meant: a configuration, the command that it is for, and why that one.
type Meant = (Loaded, &'static str, &'static str);

/// A file that is etcd's by its name is judged as `duet etcd` would judge it.
fn loaded(named: Option<&'static str>, flags: &[String]) -> Result<Option<Meant>, Failure> {
    let is_etcds = named.is_none_or(|named| named == "etcd");
    if is_etcds
        && let Ok(parsed) = args::parse(flags, etcd::takes)
        && parsed.rest.is_empty()
        && !parsed.help
    {
        let env = load::environment();
        let is_yaml = load::config_file(&parsed.flags, &env, &["DUET"])?.is_some_and(|(path, _)| load::is_yaml(&path));
        if is_yaml || named.is_some() {
            let because = if named.is_some() { NAMED } else { "the file is etcd's" };
            return etcd::load(parsed.flags, env).map(|loaded| Some((loaded, "etcd", because)));
        }
    }
    Ok(load::load(flags, USAGE)?.map(|loaded| {
        let (command, because) = named.map_or_else(|| guessed(&loaded.config), |named| (named, NAMED));
        (loaded, command, because)
    }))
}

const NAMED: &str = "as named";

/// Whom a configuration is for, by what only one of the commands uses.
fn guessed(config: &Config) -> (&'static str, &'static str) {
    if config.external.is_some() {
        ("serve", "for there is a --database")
    } else if config.pair.is_some() {
        ("node", "for there is a --peer-url")
    } else if config.pair_tls.is_some() {
        ("witness", "for there is a --pair-cert-file and no --peer-url")
    } else {
        ("dev", "for there is no --database and no --peer-url")
    }
}

fn judge(command: &str, config: &Config) -> Result<(), Failure> {
    config.logging.outputs.iter().try_for_each(LogOutput::check).map_err(Failure::usage)?;
    match command {
        "serve" => serve::check(config).map(drop),
        "node" => node::check(config),
        "witness" => witness::check(config).map(drop),
        "etcd" => super::server::check(config),
        _ => dev::check(config),
    }
}

/// A line for each option: those that somebody set first.
fn explain(raw: &Raw) -> String {
    let (set, unset): (Vec<_>, Vec<_>) = raw.iter().partition(|(_, setting)| setting.origin != Origin::Default);
    let names = raw.iter().map(|(opt, _)| opt.name.len());
    let values = raw.iter().map(|(_, setting)| printable(setting).chars().count());
    let (name_width, value_width) = (names.max().unwrap_or(0), values.max().unwrap_or(0).min(60));
    let mut out = String::new();
    for (opt, setting) in set.into_iter().chain(unset) {
        let value = printable(setting);
        let value = if value.is_empty() { "-".to_owned() } else { value };
        let _ = writeln!(out, "{:name_width$}  {value:value_width$}  {}", opt.name, setting.origin); // a String can't fail
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OPTIONS, Sources};

    #[test]
    fn every_option_is_explained_with_its_origin_and_no_secret() {
        let mut sources = Sources { env_prefixes: vec!["DUET"], ..Sources::default() };
        sources.env.insert("DUET_DATABASE".into(), "postgres://duet:s3cret@db/duet".into());
        sources.file = Some(("/etc/duet.toml".into(), "max-txn-ops = 256".into()));
        let text = explain(&Raw::layer(&sources).unwrap());
        assert_eq!(text.lines().count(), OPTIONS.len());
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(line("database ").contains("duet:***@db") && line("database ").ends_with("environment DUET_DATABASE"));
        assert!(line("max-txn-ops").contains("256") && line("max-txn-ops").ends_with("file /etc/duet.toml"));
        assert!(line("listen-client-urls").ends_with("default"));
        assert!(!text.contains("s3cret"));
    }
}
