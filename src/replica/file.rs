//! What is remembered of a store, in the file `seen/CLUSTER-ID` of the data directory: one line of JSON and its CRC-32C.
//!
//! One file for each store, so that replicas of several databases can share a directory, and replicas of one database, too: a file is
//! never replaced by one that says less.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::engine::Seen;
use crate::supervisor::postgres::write_durably;

/// Below the data directory.
const FOLDER: &str = "seen";
/// Files beyond this many aren't listed.
const FILES_MAX: usize = 1000;

/// What a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The newest that clients have seen.
    pub seen: Seen,
    /// The store is refused: it was found in the place of this other one.
    pub in_place_of: Option<u64>,
}

/// Why there is nothing to be had from a file.
#[derive(Debug)]
pub enum Unread {
    /// The system's reason.
    Io(io::Error),
    /// It isn't what was written.
    Spoilt(String),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    cluster_id: String,
    revision: i64,
    digest: Option<u32>,
    in_place_of: Option<String>,
}

/// The folder of these files.
#[derive(Debug)]
pub struct Files(PathBuf);

impl Files {
    /// Makes the folder below `data_dir`, and finds out whether it can be written to.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        // As duet dev makes it.
        DirBuilder::new().recursive(true).mode(0o711).create(data_dir)?;
        let files = Self(data_dir.join(FOLDER));
        DirBuilder::new().recursive(true).mode(0o700).create(&files.0)?;
        let scratch = files.scratch();
        fs::write(&scratch, "")?;
        fs::remove_file(&scratch)?;
        Ok(files)
    }

    /// Where it is said what clients of this store have seen.
    pub fn path(&self, cluster_id: u64) -> PathBuf {
        self.0.join(name(cluster_id))
    }

    /// Replicas that share the folder don't share this, even if containers give them the same process id.
    fn scratch(&self) -> PathBuf {
        self.0.join(format!("tmp.{:016x}", super::random()))
    }

    /// Waits for the others that share the folder.
    fn lock(&self) -> io::Result<Flock<fs::File>> {
        Flock::lock(fs::File::open(&self.0)?, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    }

    /// Whether stores other than this one are remembered.
    pub fn has_others(&self, cluster_id: u64) -> bool {
        let Ok(entries) = fs::read_dir(&self.0) else { return false };
        let names = entries.take(FILES_MAX).flatten().map(|entry| entry.file_name());
        names.into_iter().any(|found| found.to_str().is_some_and(|found| found.len() == 16 && found != name(cluster_id)))
    }

    /// What is remembered of a store; `None`: nothing.
    pub fn load(&self, cluster_id: u64) -> Result<Option<Remembered>, Unread> {
        match fs::read_to_string(self.path(cluster_id)) {
            Ok(text) => decode(&text, cluster_id).map(Some).map_err(Unread::Spoilt),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Unread::Spoilt("it is no text".to_owned())),
            Err(error) => Err(Unread::Io(error)),
        }
    }

    /// Remembers, unless the file says as much already. Blocks until it is durable.
    pub fn save(&self, remembered: &Remembered) -> io::Result<()> {
        let Remembered { seen, in_place_of } = remembered;
        let _turn = self.lock()?;
        if let Ok(Some(there)) = self.load(seen.cluster_id)
            && (there == *remembered
                || there.in_place_of.is_some()
                || there.seen.revision > seen.revision && in_place_of.is_none())
        {
            return Ok(());
        }
        let stored = Stored {
            cluster_id: name(seen.cluster_id),
            revision: seen.revision,
            digest: seen.digest,
            in_place_of: in_place_of.map(name),
        };
        let line = serde_json::to_string(&stored).map_err(io::Error::other)?;
        let text = format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes()));
        write_durably(&self.scratch(), &self.path(seen.cluster_id), &text, 0o600, None)
    }
}

fn name(cluster_id: u64) -> String {
    format!("{cluster_id:016x}")
}

fn number(name: &str) -> Result<u64, String> {
    u64::from_str_radix(name, 16).map_err(|_| format!("{name:?} is no cluster id"))
}

fn decode(text: &str, cluster_id: u64) -> Result<Remembered, String> {
    let (line, sum) = text.trim_end().split_once('\n').ok_or("it is cut short")?;
    if u32::from_str_radix(sum, 16) != Ok(crc32c::crc32c(line.as_bytes())) {
        return Err("its checksum is wrong".to_owned());
    }
    let stored: Stored = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if number(&stored.cluster_id)? != cluster_id {
        return Err("it is of another store".to_owned());
    }
    let seen = Seen { cluster_id, revision: stored.revision, digest: stored.digest };
    Ok(Remembered { seen, in_place_of: stored.in_place_of.as_deref().map(number).transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(revision: i64) -> Remembered {
        Remembered { seen: Seen { cluster_id: 0xC1, revision, digest: Some(7) }, in_place_of: None }
    }

    #[test]
    fn what_was_saved_is_loaded_and_never_replaced_by_less() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(&dir.path().join("data")).unwrap();
        assert!(files.load(0xC1).unwrap().is_none() && !files.has_others(0));
        files.save(&remembered(6)).unwrap();
        files.save(&remembered(5)).unwrap();
        assert_eq!(files.load(0xC1).unwrap(), Some(remembered(6)));
        assert!(files.load(0xC2).unwrap().is_none() && files.has_others(0xC2) && !files.has_others(0xC1));

        let refused = Remembered { in_place_of: Some(u64::MAX), ..remembered(1) };
        files.save(&refused).unwrap();
        files.save(&remembered(9)).unwrap();
        assert_eq!(files.load(0xC1).unwrap(), Some(refused), "a refused store stays so until somebody removes the file");
    }

    #[test]
    fn a_file_that_was_changed_is_told_from_one_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        files.save(&remembered(6)).unwrap();
        let good = fs::read_to_string(files.path(0xC1)).unwrap();
        for bad in [good.replace(":6", ":5"), String::new(), good.lines().next().unwrap().to_owned()] {
            fs::write(files.path(0xC1), bad).unwrap();
            assert!(matches!(files.load(0xC1), Err(Unread::Spoilt(_))));
        }
        fs::write(files.path(0xC2), good).unwrap();
        assert!(matches!(files.load(0xC2), Err(Unread::Spoilt(why)) if why.contains("another store")));
    }
}
