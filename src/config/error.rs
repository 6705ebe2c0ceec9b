//! What is wrong with a configuration: where, which key, what, and what to do.

use std::fmt;

use super::raw::Origin;

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
        write!(f, "{}: {}", self.problem, self.fix)
    }
}

impl std::error::Error for ConfigError {}
