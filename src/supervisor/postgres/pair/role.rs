//! What makes a data directory a primary's or a standby's: `standby.signal` and one small configuration file, against which nothing that
//! somebody set with `ALTER SYSTEM` counts.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::super::config::ROLE_FILE;
use super::super::data_dir::sync_dir;
use super::super::{Postgres, StartError};
use super::{Network, Shared};

const STANDBY_SIGNAL: &str = "standby.signal";
/// Where `ALTER SYSTEM` writes: PostgreSQL reads it after every other file.
const ALTERED: &str = "postgresql.auto.conf";
/// What the role's file sets, and nobody else may.
const OURS: [&str; 3] = ["synchronous_standby_names", "primary_conninfo", "primary_slot_name"];

/// Whom commits wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitFor {
    /// The peer.
    Peer,
    /// Nobody.
    Nobody,
    /// Somebody who doesn't exist: the proof that commits wait.
    Arming,
}

/// Nobody's application_name.
const ARMING: &str = "duet_arming";

impl WaitFor {
    /// The value of `synchronous_standby_names`.
    pub(super) fn names(self, network: &Network) -> String {
        match self {
            Self::Peer => format!("FIRST 1 (\"{}\")", network.peer_name),
            Self::Nobody => String::new(),
            Self::Arming => format!("FIRST 1 (\"{ARMING}\")"),
        }
    }
}

impl Shared {
    /// Writes the role's configuration, and takes back what `ALTER SYSTEM` set of it. The leader's address is in it in either role: a
    /// primary doesn't look at it.
    pub(super) fn write_role(&self, wait_for: WaitFor) -> Result<(), StartError> {
        if wait_for != WaitFor::Peer {
            // Before anybody can read it: from here on it takes a proof to believe that commits wait.
            self.armed.store(false, Ordering::Release);
        }
        self.undo_alter_system()?;
        self.write_role_file(self.role(wait_for))
    }

    /// `ALTER SYSTEM RESET` for what is Duet's, which also works before a start, and where PostgreSQL doesn't allow `ALTER SYSTEM`.
    fn undo_alter_system(&self) -> Result<(), StartError> {
        let path = self.postgres.data_dir.pgdata().join(ALTERED);
        let Some(text) = fs::read_to_string(&path).ok().as_deref().and_then(without_ours) else { return Ok(()) };
        tracing::warn!(settings = ?OURS, "taking back what ALTER SYSTEM set: these are Duet's to set");
        // What is left in it is people's.
        self.write_file(&path, &text, true)
    }

    /// Makes the directory ready for pg_rewind, which begins by recovering a server that was killed, in single-user mode: that refuses to be
    /// a standby, and its checkpoint would throw away the WAL in which pg_rewind then looks for where the two histories part.
    pub(super) fn prepare_rewind(&self) -> Result<(), StartError> {
        self.write_role_file(format!("{}wal_keep_size = '1TB'\n", self.role(WaitFor::Peer)))?;
        self.sign_primary()
    }

    fn role(&self, wait_for: WaitFor) -> String {
        let conninfo = self.network.standby_conninfo(&self.postgres.data_dir);
        format!(
            "# Written by Duet whenever the node's part changes.\n\
             synchronous_standby_names = '{}'\nprimary_conninfo = '{}'\nprimary_slot_name = '{}'\n",
            wait_for.names(&self.network),
            conninfo.replace('\'', "''"),
            self.network.own_name,
        )
    }

    fn write_role_file(&self, text: String) -> Result<(), StartError> {
        let path = self.postgres.data_dir.pgdata().join(ROLE_FILE);
        if fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        // It is written again before every start, and a promotion waits for this.
        self.write_file(&path, &text, false)
    }

    /// Replaces a file of PostgreSQL's configuration.
    fn write_file(&self, path: &Path, text: &str, synced: bool) -> Result<(), StartError> {
        let account = &self.postgres.account;
        let scratch = path.with_extension("conf.duet");
        let written = || -> io::Result<()> {
            fs::write(&scratch, text)?;
            if synced {
                fs::File::open(&scratch)?.sync_all()?;
            }
            fs::set_permissions(&scratch, fs::Permissions::from_mode(0o600))?;
            std::os::unix::fs::chown(&scratch, Some(account.uid), Some(account.gid))?;
            fs::rename(&scratch, path)
        };
        written().map_err(|e| StartError::from_io("can't write", path, &account.name, e))
    }

    /// A start from now on follows the leader: also one that nobody supervises.
    pub(super) fn sign_standby(&self) -> Result<(), StartError> {
        let path = self.postgres.data_dir.pgdata().join(STANDBY_SIGNAL);
        let owner = (self.postgres.account.uid, self.postgres.account.gid);
        let signed = || -> io::Result<()> {
            let file = fs::File::create(&path)?;
            std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
            sync_dir(&self.postgres.data_dir.pgdata())
        };
        signed().map_err(|e| StartError::from_io("can't write", &path, &self.postgres.account.name, e))
    }

    /// The next start is a primary's.
    pub(super) fn sign_primary(&self) -> Result<(), StartError> {
        let path = self.postgres.data_dir.pgdata().join(STANDBY_SIGNAL);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StartError::from_io("can't remove", &path, &self.postgres.account.name, e))
            }
            _ => Ok(()),
        }
    }
}

/// The text of `postgresql.auto.conf` without what is Duet's to set; `None` if there is nothing of that in it.
fn without_ours(text: &str) -> Option<String> {
    // PostgreSQL writes it itself: a setting a line, `name = 'value'`, and no value has a line's end in it.
    let is_ours = |line: &&str| {
        let name = line.trim_start().split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
        OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours))
    };
    text.lines()
        .any(|line| is_ours(&line))
        .then(|| text.lines().filter(|line| !is_ours(line)).map(|line| format!("{line}\n")).collect())
}

/// What pg_control says of a data directory, without a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    pub system_identifier: u64,
    pub timeline: u32,
    /// Such as "in production" or "shut down in recovery".
    pub state: String,
}

impl Control {
    /// Whether the server was a primary when it ended, however it ended.
    pub(super) fn was_primary(&self) -> bool {
        matches!(self.state.as_str(), "in production" | "shut down" | "shutting down" | "in crash recovery" | "starting up")
    }

    /// Reads it with pg_controldata. [`StartError::Damaged`] if that has read it and found no sense in it; anything else may pass.
    pub(super) async fn read(postgres: &Postgres) -> Result<Self, StartError> {
        let program = postgres.binaries.program("pg_controldata");
        let output = super::super::initdb::command(&program, &postgres.account)
            .arg("-D")
            .arg(postgres.data_dir.seen_by_postgres(&postgres.data_dir.pgdata()))
            .output();
        let failed = |detail: String| StartError::Failed { what: program.display().to_string(), detail };
        let output = tokio::time::timeout(std::time::Duration::from_secs(10), output)
            .await
            .map_err(|_| failed("no answer within 10 s".to_owned()))?
            .map_err(|e| failed(e.to_string()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        // It looked, and it isn't there; any other end of its own may be the machine's fault, not the file's.
        let missing = said.contains("pg_control\"") && said.contains("No such file");
        if !output.status.success() && !missing {
            return Err(failed(format!("{}: {}", output.status, said.trim())));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        let parsed = || {
            Some(Self {
                system_identifier: field("Database system identifier:")?.parse().ok()?,
                timeline: field("Latest checkpoint's TimeLineID:")?.parse().ok()?,
                state: field("Database cluster state:")?,
            })
        };
        // It says so when the checksum is wrong, and goes on with what it finds.
        let damaged = [&text, &said].iter().any(|output| output.contains("CRC checksum does not match"));
        parsed().filter(|_| !damaged).ok_or_else(|| StartError::Damaged {
            pgdata: postgres.data_dir.pgdata(),
            detail: format!("pg_controldata: {}", said.trim()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_alter_system_set_is_taken_back_where_it_is_duet_s_and_left_alone_otherwise() {
        let header = "# Do not edit this file manually!\n";
        assert_eq!(without_ours(header), None);
        assert_eq!(without_ours(&format!("{header}jit = 'on'\n")), None);
        let altered = format!("{header}jit = 'on'\nsynchronous_standby_names = ''\nPrimary_Slot_Name='x'\nwork_mem = '5MB'\n");
        assert_eq!(without_ours(&altered), Some(format!("{header}jit = 'on'\nwork_mem = '5MB'\n")));
    }
}
