//! `duet config check`: every option in force, its value and where it came from.
//!
//! It takes the flags, environment and file that a server would, and judges them the same way, so that its exit code
//! tells whether a server would start with them; etcd's YAML files included.

use std::fmt::Write;

use super::load::Loaded;
use super::{Failure, args, etcd, load};
use crate::config::raw::printable;
use crate::config::{Origin, Raw};

const USAGE: &str = "duet config check [flags]";

/// Runs the command.
///
/// # Errors
/// Exit code 64 when a server would refuse the configuration.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let Some((first, flags)) = args.split_first().filter(|(first, _)| *first == "check") else {
        return Err(Failure::usage(format!("the command is {USAGE}")));
    };
    debug_assert_eq!(first, "check");
    let Some(loaded) = loaded(flags)? else { return Ok(()) };
    print!("{}", explain(&loaded.raw));
    for warning in &loaded.raw.warnings {
        eprintln!("duet: warning: {warning}");
    }
    Ok(())
}

/// A file that is etcd's by its name is judged as `duet etcd` would judge it.
fn loaded(flags: &[String]) -> Result<Option<Loaded>, Failure> {
    if let Ok(parsed) = args::parse(flags, etcd::takes)
        && parsed.rest.is_empty()
        && !parsed.help
    {
        let env = load::environment();
        if load::config_file(&parsed.flags, &env, &["DUET"])?.is_some_and(|(path, _)| load::is_yaml(&path)) {
            return etcd::load(parsed.flags, env).map(Some);
        }
    }
    load::load(flags, USAGE)
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
