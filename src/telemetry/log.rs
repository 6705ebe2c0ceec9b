//! Where log lines go and how they look: text for people, JSON for machines; on standard error unless told otherwise, as
//! etcd's do.
//!
//! It deliberately has no file output and no rotation: systemd, container runtimes and shells do that better.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::SubscriberInitExt;

/// The look of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, message, fields; in colour on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum LogOutput {
    Stderr,
    Stdout,
}

impl LogOutput {
    fn writer(self) -> Box<dyn Write> {
        match self {
            LogOutput::Stderr => Box::new(io::stderr()),
            LogOutput::Stdout => Box::new(io::stdout()),
        }
    }

    fn is_terminal(self) -> bool {
        match self {
            LogOutput::Stderr => io::stderr().is_terminal(),
            LogOutput::Stdout => io::stdout().is_terminal(),
        }
    }
}

/// Starts logging for the whole process, at `level` (`error` to `trace`, or tracing's filter directives such as
/// `info,duet::engine=debug`).
///
/// # Errors
/// The text of what is wrong with `level`, or that logging was started before.
pub fn start(level: &str, format: LogFormat, output: LogOutput) -> Result<(), String> {
    let filter = filter(level)?;
    let lines = fmt().with_env_filter(filter).with_writer(move || output.writer());
    let started = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(output.is_terminal()).finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).finish().try_init(),
    };
    started.map_err(|error| error.to_string())
}

/// Parses a level. A bare level concerns Duet itself; its libraries stay at `warn`, because h2 and rustls at `debug`
/// print the traffic.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    let directives = match level {
        // etcd's zap has levels above error; tracing's highest is error.
        "dpanic" | "panic" | "fatal" => "warn,duet=error".to_owned(),
        "error" => "error".to_owned(),
        "trace" | "debug" | "info" | "warn" => format!("warn,duet={level}"),
        other => other.to_owned(),
    };
    EnvFilter::try_new(directives).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_etcd_and_directives_of_tracing_are_understood() {
        for level in ["debug", "info", "warn", "error", "dpanic", "panic", "fatal", "info,duet::engine=debug"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        assert!(filter("duet=loud").is_err());
    }
}
