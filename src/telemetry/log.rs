//! Where log lines go and how they look: text for people, JSON for machines; on standard error unless told otherwise, as
//! etcd's do.
//!
//! It deliberately rotates no file: systemd, container runtimes and logrotate (with `copytruncate`) do that better.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum LogOutput {
    Stderr,
    Stdout,
    /// Appended to; made when it doesn't exist.
    File(PathBuf),
}

impl LogOutput {
    /// The output that is called so, if it isn't systemd's journal; as etcd's zap, a file may also be a URL.
    ///
    /// # Errors
    /// What is wrong and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = match text {
            "default" | "stderr" => return Ok(Self::Stderr),
            "stdout" => return Ok(Self::Stdout),
            text => text.strip_prefix("file://").unwrap_or(text),
        };
        let path = path.strip_prefix("localhost").filter(|_| path.len() < text.len()).unwrap_or(path);
        if path.contains("://") || (path.len() < text.len() && !path.starts_with('/')) {
            return Err(format!("\"{text}\" is no place for log lines; write stderr, stdout or a file's path"));
        }
        Ok(Self::File(path.into()))
    }

    fn open(&self) -> Result<Sink, String> {
        match self {
            Self::Stderr => Ok(Sink::Stderr),
            Self::Stdout => Ok(Sink::Stdout),
            Self::File(path) => {
                let opened = OpenOptions::new().append(true).create(true).open(path);
                opened.map(Sink::File).map_err(|error| unusable(path, &error))
            }
        }
    }

    /// Whether it could be opened, without making a file.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let Self::File(path) = self else { return Ok(()) };
        let known = match OpenOptions::new().append(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
                dir.unwrap_or(Path::new(".")).metadata().map(drop)
            }
            opened => opened.map(drop),
        };
        known.map_err(|error| unusable(path, &error))
    }
}

fn unusable(path: &Path, error: &io::Error) -> String {
    format!("can't write log lines to {}: {error}; check --log-outputs", path.display())
}

/// An open [`LogOutput`].
enum Sink {
    Stderr,
    Stdout,
    File(File),
}

/// All outputs as one: each line goes to every one that takes it.
#[derive(Clone)]
struct Tee(Arc<[Sink]>);

impl Write for Tee {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut outcome = Ok(line.len());
        for sink in &*self.0 {
            let written = match sink {
                Sink::Stderr => io::stderr().write_all(line),
                Sink::Stdout => io::stdout().write_all(line),
                Sink::File(file) => (&*file).write_all(line),
            };
            outcome = written.and(outcome);
        }
        outcome
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging for the whole process, at `level` (`error` to `trace`, or tracing's filter directives such as
/// `info,duet::engine=debug`).
///
/// # Errors
/// The text of what is wrong with `level` or with a file, or that logging was started before.
pub fn start(level: &str, format: LogFormat, outputs: &[LogOutput]) -> Result<(), String> {
    let filter = filter(level)?;
    let sinks = outputs.iter().map(LogOutput::open).collect::<Result<Vec<_>, _>>()?;
    let coloured = match sinks[..] {
        [Sink::Stderr] => io::stderr().is_terminal(),
        [Sink::Stdout] => io::stdout().is_terminal(),
        _ => false,
    };
    let tee = Tee(sinks.into());
    let lines = fmt().with_env_filter(filter).with_writer(move || tee.clone());
    let started = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(coloured).finish().try_init(),
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
    #[test]
    fn an_output_is_a_stream_or_a_file_by_its_path_or_url() {
        let file = |path: &str| Ok(LogOutput::File(path.into()));
        for (text, expected) in [
            ("default", Ok(LogOutput::Stderr)),
            ("stderr", Ok(LogOutput::Stderr)),
            ("stdout", Ok(LogOutput::Stdout)),
            ("/var/log/etcd.log", file("/var/log/etcd.log")),
            ("logs/etcd.log", file("logs/etcd.log")),
            ("localhost", file("localhost")),
            ("file:///var/log/etcd.log", file("/var/log/etcd.log")),
            ("file://localhost/var/log/etcd.log", file("/var/log/etcd.log")),
        ] {
            assert_eq!(LogOutput::parse(text), expected);
        }
        for wrong in ["https://example/log", "file://elsewhere/log", "file://localhostile/log"] {
            assert!(LogOutput::parse(wrong).unwrap_err().contains("a file's path"), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_to_is_told_without_making_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| LogOutput::File(dir.path().join(name));
        assert_eq!(file("new.log").check(), Ok(()));
        assert!(!dir.path().join("new.log").exists());
        for (wrong, why) in [(file("none/new.log"), "No such file"), (LogOutput::File(dir.path().into()), "directory")] {
            assert!(wrong.check().unwrap_err().contains(why), "{wrong:?}");
            assert!(wrong.open().err().unwrap().contains(why), "{wrong:?}");
        }
    }
}
