//! Finds the installed PostgreSQL and refuses the versions that Duet can't keep its promises on.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::process::Command;

use super::error::StartError;

const MAJORS: std::ops::RangeInclusive<u32> = 15..=18;
const CANDIDATES_MAX: usize = 64;
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// A released PostgreSQL version, such as 17.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 17 in 17.5.
    pub major: u32,
    /// 5 in 17.5.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Reads the output of `postgres --version`; None for a development version or a beta.
    pub fn parse(output: &str) -> Option<Self> {
        let word = output.trim().strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
        let (major, minor) = word.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Whether backends can skip the wait for the standby right after a start, which loses acknowledged writes at a
    /// failover (PostgreSQL's release notes of 15.13, 16.9 and 17.5).
    pub fn is_too_old(self) -> bool {
        let first_good = match self.major {
            ..=14 => return true,
            15 => 13,
            16 => 9,
            17 => 5,
            18.. => 0,
        };
        self.minor < first_good
    }
}

/// One installed PostgreSQL.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The directory that holds `postgres` and `initdb`.
    pub bin_dir: PathBuf,
    /// Its version.
    pub version: Version,
}

impl Binaries {
    /// Path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// Finds the PostgreSQL to run: only `bin_dir` when given, else the newest supported one of the distribution, PGDG
    /// and PATH. `data_major` is the major version that existing data demands, `pgdata` its place (for the error).
    pub async fn find(bin_dir: Option<&Path>, data_major: Option<u32>, pgdata: &Path) -> Result<Self, StartError> {
        let path = std::env::var_os("PATH");
        let candidates = match bin_dir {
            Some(dir) => vec![dir.to_path_buf(), dir.join("bin")],
            None => candidates(Path::new("/"), path.as_deref()),
        };
        let mut good: Vec<Self> = Vec::new();
        let mut bad = None;
        let there = candidates.iter().filter(|dir| dir.join("postgres").is_file() && dir.join("initdb").is_file());
        // At once: a node that was killed is waited for.
        for identified in join_all(there.map(|dir| identify(dir))).await {
            match identified {
                Ok(binaries) => good.push(binaries),
                Err(error) => bad = bad.or(Some(error)),
            }
        }
        good.sort_by_key(|b| std::cmp::Reverse(b.version));
        let Some(newest) = good.first() else {
            let looked_in = match bin_dir {
                Some(dir) => dir.display().to_string(),
                None => "/usr/lib/postgresql/*/bin, /usr/pgsql-*/bin and PATH".to_owned(),
            };
            return Err(bad.unwrap_or(StartError::BinariesMissing { looked_in }));
        };
        let Some(major) = data_major else { return Ok(newest.clone()) };
        good.iter().find(|b| b.version.major == major).cloned().ok_or_else(|| StartError::IncompatibleData {
            pgdata: pgdata.to_path_buf(),
            data_major: major,
            installed: good.iter().map(|b| b.version.to_string()).collect::<Vec<_>>().join(", "),
        })
    }
}

async fn identify(bin_dir: &Path) -> Result<Binaries, StartError> {
    let run = Command::new(bin_dir.join("postgres")).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let failed =
        |detail: String| StartError::Failed { what: format!("{} --version", bin_dir.join("postgres").display()), detail };
    let output = tokio::time::timeout(VERSION_DEADLINE, run)
        .await
        .map_err(|_| failed(format!("no answer within {VERSION_DEADLINE:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match Version::parse(&text) {
        Some(version) if version.major < *MAJORS.start() || version.major > *MAJORS.end() => {
            Err(StartError::VersionUnsupported { found: version.to_string(), bin_dir: bin_dir.to_path_buf() })
        }
        Some(found) if found.is_too_old() => Err(StartError::VersionTooOld { found, bin_dir: bin_dir.to_path_buf() }),
        Some(version) => Ok(Binaries { bin_dir: bin_dir.to_path_buf(), version }),
        None => Err(StartError::VersionUnsupported { found: text.trim().to_owned(), bin_dir: bin_dir.to_path_buf() }),
    }
}

/// Directories that may hold PostgreSQL's programs below `root` ("/" but in tests), then those of `path`.
fn candidates(root: &Path, path: Option<&OsStr>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for major in MAJORS.rev() {
        found.push(root.join(format!("usr/lib/postgresql/{major}/bin")));
        found.push(root.join(format!("usr/pgsql-{major}/bin")));
    }
    found.push(root.join("usr/local/pgsql/bin"));
    if let Some(path) = path {
        found.extend(std::env::split_paths(path).filter(|dir| dir.is_absolute()));
    }
    let mut seen = BTreeSet::new();
    found.retain(|dir| dir.canonicalize().is_ok_and(|real| seen.insert(real)));
    found.truncate(CANDIDATES_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_and_of_pgdg_are_read() {
        let parse = |text| Version::parse(text).map(|v| v.to_string());
        assert_eq!(parse("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(), Some("15.18"));
        assert_eq!(parse("postgres (PostgreSQL) 17.5\n").as_deref(), Some("17.5"));
        assert_eq!(parse("postgres (PostgreSQL) 18beta1\n"), None);
        assert_eq!(parse("mysqld 8.0"), None);
    }

    #[test]
    fn minors_that_skip_the_wait_for_the_standby_are_too_old() {
        for (major, first_good) in [(15, 13), (16, 9), (17, 5)] {
            assert!(Version { major, minor: first_good - 1 }.is_too_old());
            assert!(!Version { major, minor: first_good }.is_too_old());
        }
        assert!(!Version { major: 18, minor: 0 }.is_too_old());
        assert!(Version { major: 14, minor: 20 }.is_too_old());
    }

    #[test]
    fn debian_and_pgdg_directories_come_newest_first_and_before_path() {
        let root = tempfile::tempdir().unwrap();
        let make = |dir: &str| {
            let dir = root.path().join(dir);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let debian_15 = make("usr/lib/postgresql/15/bin");
        let pgdg_17 = make("usr/pgsql-17/bin");
        let own = make("opt/pg/bin");
        let path = std::env::join_paths([&own, &debian_15]).unwrap();
        assert_eq!(candidates(root.path(), Some(&path)), [pgdg_17, debian_15, own]);
    }
}
