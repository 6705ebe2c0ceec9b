//! From the process' arguments, environment and files to a valid configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Failure;
use super::args::{self, Takes};
use super::help;
use crate::config::options::{self, env_name};
use crate::config::redact::redact_dsn;
use crate::config::{Config, Kind, Raw, Sources, validate};
use crate::telemetry::log;

/// A configuration and what to tell the user about it.
#[derive(Debug)]
pub struct Loaded {
    /// Valid.
    pub config: Config,
    /// As written, with origins.
    pub raw: Raw,
}

impl Loaded {
    /// Starts logging as configured, and tells the warnings first of all.
    ///
    /// # Errors
    /// Logging was started before.
    pub fn start_logging(&self) -> Result<(), Failure> {
        let logging = &self.config.logging;
        log::start(&logging.level, logging.format, &logging.outputs).map_err(Failure::usage)?;
        for warning in &self.raw.warnings {
            tracing::warn!("{warning}");
        }
        Ok(())
    }
}

/// Reads the flags of `args` and everything else that they lead to. `None`: help was asked for, and printed.
///
/// # Errors
/// Exit code 64 and everything that is wrong.
pub fn load(args: &[String], usage: &str) -> Result<Option<Loaded>, Failure> {
    let parsed = args::parse(args, takes).map_err(Failure::usage)?;
    if parsed.help {
        print!("{}", help::flags(usage));
        return Ok(None);
    }
    if let Some(extra) = parsed.rest.first() {
        return Err(Failure::usage(format!("\"{}\" is not a flag; {usage}", redact_dsn(extra))));
    }
    let env = environment();
    let file = config_file(&parsed.flags, &env, &["DUET"])?;
    if let Some((path, _)) = file.as_ref().filter(|(path, _)| is_yaml(path)) {
        return Err(Failure::usage(format!(
            "--config-file {}: YAML files are etcd's, for duet etcd; write lines such as data-dir = \"/var/lib/duet\" in a file \
             whose name ends with .toml",
            path.display()
        )));
    }
    let flags = parsed.flags.into_iter().filter(|(name, _)| name != "config-file").collect();
    let sources = Sources { flags, env, env_prefixes: vec!["DUET"], file, ..Sources::default() };
    finish(sources, default_data_dir).map(Some)
}

/// Layers and validates; an unset data directory is chosen by `data_dir` from the name.
pub(super) fn finish(sources: Sources, data_dir: impl Fn(&str) -> PathBuf) -> Result<Loaded, Failure> {
    let mut raw = Raw::layer(&sources)?;
    if raw.get("data-dir").value.is_empty() {
        let chosen = data_dir(&raw.get("name").value);
        raw.choose_default("data-dir", chosen.to_string_lossy().into_owned());
    }
    let mut config = validate::validate(&raw)?;
    raw.warnings.append(&mut config.warnings);
    Ok(Loaded { config, raw })
}

/// What follows a flag of Duet's own.
pub(super) fn takes(name: &str) -> Option<Takes> {
    if name == "config-file" {
        return Some(Takes::Value);
    }
    options::find(name).map(|opt| if opt.kind == Kind::Bool { Takes::Bool } else { Takes::Value })
}

/// The process environment, without what isn't UTF-8: no option can be there.
pub(super) fn environment() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// The file that `--config-file` or the environment names.
pub(super) fn config_file(
    flags: &[(String, String)],
    env: &BTreeMap<String, String>,
    prefixes: &[&str],
) -> Result<Option<(PathBuf, String)>, Failure> {
    let flag = flags.iter().rev().find(|(name, _)| name == "config-file").map(|(_, path)| path);
    let variable =
        || prefixes.iter().find_map(|prefix| env.get(&env_name(prefix, "config-file")).filter(|path| !path.is_empty()));
    let Some(path) = flag.or_else(variable) else { return Ok(None) };
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("can't read the configuration file {path}: {error}; check --config-file")))?;
    Ok(Some((PathBuf::from(path), text)))
}

/// Whether a configuration file is, by its name, one of etcd's.
pub(super) fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext == "yml" || ext == "yaml")
}

/// Where data goes when nobody says: the system's place for root, the user's own otherwise.
pub(super) fn default_data_dir(name: &str) -> PathBuf {
    let home = || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".local/share"));
    let base = if nix::unistd::Uid::effective().is_root() {
        PathBuf::from("/var/lib")
    } else {
        let xdg = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        xdg.or_else(home).unwrap_or_else(|| PathBuf::from("."))
    };
    base.join("duet").join(name)
}
