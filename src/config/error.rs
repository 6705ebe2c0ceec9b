//! What is wrong with a configuration: where, which key, what, and what to do.

use std::fmt;
use std::ops::Range;

use super::raw::Origin;
use super::redact::redact_dsn;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Which source said it.
    pub origin: Origin,
    /// The option; empty when the whole file is meant.
    pub key: String,
    /// What is wrong, as the rest of a sentence that begins with the key.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.key.as_str()) {
            (Origin::Flag(name), _) => write!(f, "--{name} ")?,
            (Origin::Env(name), _) => write!(f, "{name} (environment) ")?,
            (Origin::File(path), "") => write!(f, "{} ", path.display())?,
            (Origin::File(path), key) => write!(f, "{}: {key} ", path.display())?,
            (Origin::Default, key) => write!(f, "--{key} ")?,
        }
        // What is wrong may quote a value, whose writer may have put a connection string where it doesn't belong.
        write!(f, "{}: {}", redact_dsn(&self.problem), self.fix)
    }
}

impl std::error::Error for ConfigError {}

/// " at line 2, column 7" for the beginning of `span` in `text`. Instead of the line itself, which may hold a password.
pub(super) fn place(text: &str, span: Option<Range<usize>>) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else { return String::new() };
    let line = before.rsplit('\n').next().unwrap_or_default();
    format!(" at line {}, column {}", before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// The same of a YAML file. The parser's own words hold the values that it found.
pub(crate) fn yaml_place(error: &serde_saphyr::Error) -> String {
    error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column())).unwrap_or_default()
}
