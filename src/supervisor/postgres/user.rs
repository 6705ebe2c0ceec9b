//! Whom PostgreSQL runs as: oneself, or, since it refuses root, a suitable user when Duet is root.

use std::process::Stdio;

use nix::unistd::{User, geteuid};

use super::error::StartError;

/// Made when Duet is root and the machine has no user `postgres`.
const OWN_USER: &str = "duet";

/// The system user that PostgreSQL runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name in the user database.
    pub name: String,
    /// Its numeric id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Whether Duet must switch to it (Duet is root).
    pub switch: bool,
}

impl Account {
    /// Chooses the user: `wanted` (`--pg-user`), else whoever owns the data already, else `postgres`, else a system user
    /// made for it. Without root there is only oneself.
    pub fn choose(wanted: Option<&str>, data_owner_uid: Option<u32>) -> Result<Self, StartError> {
        let euid = geteuid();
        if !euid.is_root() {
            let me = by_uid(euid.as_raw())?;
            return match wanted {
                Some(name) if name != me.name => {
                    Err(no_user(format!("only root can run it as {name}, and this process runs as {}", me.name)))
                }
                _ => Ok(me),
            };
        }
        let account = match (wanted, data_owner_uid) {
            (Some(name), _) => by_name(name)?.ok_or_else(|| no_user(format!("there is no user {name}")))?,
            (None, Some(uid)) if uid != 0 => by_uid(uid)?,
            (None, _) => match by_name("postgres")? {
                Some(account) => account,
                None => own_user()?,
            },
        };
        if account.uid == 0 {
            return Err(no_user("it refuses to run as root".to_owned()));
        }
        Ok(Self { switch: true, ..account })
    }

    /// Makes `command` run as this user, in a process group of its own so that Ctrl-C reaches Duet only.
    pub fn apply(&self, command: &mut tokio::process::Command) {
        command.process_group(0);
        if self.switch {
            // The standard library drops all supplementary groups when it switches the user.
            command.gid(self.gid).uid(self.uid);
        }
    }

    /// The name of the user that Duet itself runs as, for PostgreSQL's peer authentication.
    pub fn own_name() -> Result<String, StartError> {
        by_uid(geteuid().as_raw()).map(|a| a.name)
    }
}

fn no_user(reason: String) -> StartError {
    StartError::NoUser { reason }
}

fn from_entry(user: User) -> Account {
    Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), switch: false }
}

fn by_uid(uid: u32) -> Result<Account, StartError> {
    // PostgreSQL itself insists on an entry, too.
    match User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => Ok(from_entry(user)),
        Ok(None) => Err(no_user(format!("user id {uid} has no entry in the system's user database"))),
        Err(errno) => Err(no_user(format!("the system's user database can't be read ({errno})"))),
    }
}

fn by_name(name: &str) -> Result<Option<Account>, StartError> {
    match User::from_name(name) {
        Ok(found) => Ok(found.map(from_entry)),
        Err(errno) => Err(no_user(format!("the system's user database can't be read ({errno})"))),
    }
}

fn own_user() -> Result<Account, StartError> {
    if let Some(account) = by_name(OWN_USER)? {
        return Ok(account);
    }
    // shadow-utils (most distributions), then BusyBox (Alpine).
    let makers: [(&str, &[&str]); 2] = [
        (
            "useradd",
            &[
                "--system",
                "--user-group",
                "--no-create-home",
                "--home-dir",
                "/nonexistent",
                "--shell",
                "/usr/sbin/nologin",
                OWN_USER,
            ],
        ),
        ("adduser", &["-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin", OWN_USER]),
    ];
    for (program, arguments) in makers {
        let made = std::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if made.is_ok_and(|status| status.success())
            && let Some(account) = by_name(OWN_USER)?
        {
            tracing::info!(user = OWN_USER, "made a system user to run PostgreSQL as");
            return Ok(account);
        }
    }
    Err(no_user(format!("Duet is root, there is no user postgres, and making the user {OWN_USER} failed")))
}
