//! What has to be right for a pair to keep its promises, looked at before the first start and while it runs: the contents of
//! `duet check`.
//!
//! | file | what it is |
//! |---|---|
//! | `machine` | disk, memory, clock, directory, ports: what any process of the machine can see |
//! | `certificates` | the pair's certificates: whose, whose CA's, how long |
//! | `reach` | whether the peer and the witness can be reached from here |
//! | `postgres` | what PostgreSQL runs with, and its replication |
//! | `node` | all of it, as a running node sees it: a service on the peer port |
//!
//! Each finding says what was found and, unless it is well, what to do. It deliberately repairs nothing, and leaves nothing behind.

mod certificates;
mod machine;
pub mod node;
mod postgres;
mod reach;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use machine::ports;
pub use reach::{WITNESS, reach_peer, reach_witness};

use crate::config::{ListenUrl, PairConfig, TlsConfig};

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and should be seen to.
    Warn,
    /// A promise of the pair's doesn't hold, or won't.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What, in a word.
    pub check: String,
    /// How well it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do; `None` when it is well.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &str, text: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level: Level::Ok, text: text.into(), fix: None }
    }

    /// Works, and should be seen to.
    pub fn warn(check: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level: Level::Warn, text: text.into(), fix: Some(fix.into()) }
    }

    /// A promise doesn't hold, or won't.
    pub fn fail(check: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level: Level::Fail, text: text.into(), fix: Some(fix.into()) }
    }
}

/// A node, as its configuration describes it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its place in the pair.
    pub pair: PairConfig,
    /// Its data.
    pub data_dir: PathBuf,
    /// Where its PostgreSQL's programs are, if that was said.
    pub bin_dir: Option<PathBuf>,
    /// Where clients reach it.
    pub listen_client: Vec<ListenUrl>,
    /// The certificates that clients see.
    pub client_tls: Option<TlsConfig>,
}

impl Subject {
    /// What can be seen of the node and its machine whether it runs or not.
    pub async fn outside(&self) -> Vec<Finding> {
        let subject = self.clone();
        // A slow disk takes its time.
        let seen = tokio::task::spawn_blocking(move || {
            let mut found = certificates::of_node(&subject);
            found.extend(machine::all(&subject.data_dir));
            found
        });
        let mut found = seen.await.unwrap_or_else(|error| vec![Finding::fail("machine", error.to_string(), "try again")]);
        found.push(postgres::programs(self).await);
        found
    }
}
