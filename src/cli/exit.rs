//! Exit codes, one for each kind of failure that asks for a different answer.

use std::fmt;

use crate::config::ConfigError;
use crate::net::BindError;
use crate::net::tls::TlsError;
use crate::supervisor::postgres::StartError;

/// Codes and their meanings, for `--help`. Where sysexits.h has a fitting code, it is that one; those of a PostgreSQL that
/// doesn't start are [`StartError::exit_code`]'s.
pub(super) const CODES: &[(u8, &str)] = &[
    (0, "stopped when asked to"),
    (1, "failed while serving"),
    (64, "the command line or the configuration is wrong; nothing was started"),
    (65, "the data directory is foreign, or the store must not be served"),
    (66, "the data is damaged"),
    (67, "there is no user to run PostgreSQL as"),
    (68, "a listen URL can't be bound"),
    (69, "no PostgreSQL was found"),
    (70, "PostgreSQL failed in another way"),
    (71, "too little shared memory"),
    (72, "PostgreSQL is too old, or of a version that isn't supported"),
    (73, "PostgreSQL's socket is in use"),
    (74, "the disk is full"),
    (75, "the data directory is in use by another process"),
    (76, "the data is of another version"),
    (77, "permission denied"),
    (79, "PostgreSQL did not become ready in time"),
];

const USAGE: u8 = 64;
const UNUSABLE: u8 = 65;
const BIND: u8 = 68;
const LOCKED: u8 = 75;

/// Something that was to be done didn't come to its end.
const SERVING: u8 = 1;

/// Why the program ends, in words for a user, and its exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    text: String,
}

impl Failure {
    /// A wrong command line or configuration.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { code: USAGE, text: text.into() }
    }

    /// Storage that must not be served.
    pub fn unusable(text: impl Into<String>) -> Self {
        Self { code: UNUSABLE, text: text.into() }
    }

    /// A listen URL that can't be bound.
    pub fn bind(text: impl Into<String>) -> Self {
        Self { code: BIND, text: text.into() }
    }

    /// A data directory that another process uses.
    pub fn locked(text: impl Into<String>) -> Self {
        Self { code: LOCKED, text: text.into() }
    }

    /// The same failure, told of `whom`.
    pub fn of(self, whom: &str) -> Self {
        Self { text: format!("{whom}: {}", self.text), ..self }
    }

    /// A failure that somebody else has told of.
    pub fn silent(code: u8) -> Self {
        Self { code, text: String::new() }
    }

    /// Whether there is nothing to say.
    pub fn is_silent(&self) -> bool {
        self.text.is_empty()
    }

    /// A failure while serving.
    pub fn serving(text: impl Into<String>) -> Self {
        Self { code: SERVING, text: text.into() }
    }

    /// Whether it is one of [`Failure::serving`].
    pub fn is_serving(&self) -> bool {
        self.code == SERVING
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "duet: {}", self.text)
    }
}

impl From<Vec<ConfigError>> for Failure {
    fn from(errors: Vec<ConfigError>) -> Self {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Self::usage(lines.join("\nduet: "))
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        Self { code: BIND, text: error.to_string() }
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self { code: error.exit_code(), text: error.to_string() }
    }
}
