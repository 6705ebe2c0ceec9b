//! The node's [`Record`] in a file, durable before whatever rests on it happens.
//!
//! One line of JSON and its CRC-32C, in a new file that is synced and renamed over the old one. A file that doesn't say what it should is
//! refused: to guess who owns the pair would be the end of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::clock;
use crate::supervisor::fsm::{Intent, Mode, NodeId, Record, Register};
use crate::supervisor::postgres::pair::give_up_ballast;
use crate::supervisor::postgres::write_durably;

const FILE: &str = "duet.pair";
const SCRATCH: &str = "duet.pair.tmp";

/// Why the record can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It can't be read or written.
    #[error("can't {what} {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It isn't what was written.
    #[error(
        "{path} holds no record of the pair ({why}). Without it nobody knows whether this node may lead. If the peer is whole, move the file \
         away and start again: this node then follows the peer with a new copy of its data"
    )]
    Spoilt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The directory is another node's.
    #[error(
        "{path} belongs to node {found} of the pair \"{cluster}\", and this is node {wanted} of \"{wanted_cluster}\": check --node, --cluster and --data-dir"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: char,
        /// Whose pair's.
        cluster: String,
        /// Who asks.
        wanted: char,
        /// Of which pair.
        wanted_cluster: String,
    },
}

/// The record's file, open for one node of one pair.
#[derive(Debug)]
pub struct RecordFile {
    dir: PathBuf,
    cluster: String,
    node: NodeId,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    cluster: String,
    node: char,
    seen: Option<StoredRegister>,
    instance: Option<u64>,
    intent: Option<StoredIntent>,
    complete: bool,
    rebuilds_in: Option<i64>,
    #[serde(default)]
    promises: u64,
    process: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct StoredRegister {
    version: u64,
    epoch: i64,
    owner: char,
    mode: StoredMode,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct StoredIntent {
    new: StoredRegister,
    base: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredMode {
    Pair,
    Solo,
    Asym,
}

/// The node's letter.
#[must_use]
pub fn letter(node: NodeId) -> char {
    match node {
        NodeId::A => 'A',
        NodeId::B => 'B',
    }
}

fn node(letter: char) -> Result<NodeId, String> {
    match letter {
        'A' => Ok(NodeId::A),
        'B' => Ok(NodeId::B),
        other => Err(format!("there is no node {other:?}")),
    }
}

impl From<Register> for StoredRegister {
    fn from(register: Register) -> Self {
        let mode = match register.mode {
            Mode::Pair => StoredMode::Pair,
            Mode::Solo => StoredMode::Solo,
            Mode::Asym => StoredMode::Asym,
        };
        Self { version: register.version, epoch: register.epoch, owner: letter(register.owner), mode }
    }
}

impl TryFrom<StoredRegister> for Register {
    type Error = String;

    fn try_from(stored: StoredRegister) -> Result<Self, String> {
        let mode = match stored.mode {
            StoredMode::Pair => Mode::Pair,
            StoredMode::Solo => Mode::Solo,
            StoredMode::Asym => Mode::Asym,
        };
        Ok(Self { version: stored.version, epoch: stored.epoch, owner: node(stored.owner)?, mode })
    }
}

impl RecordFile {
    /// The record of `node` of the pair `cluster` in `dir`, and the process number of this start already in it and on the disk. `None`
    /// among the results: there was none, and a new one was begun.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn open(dir: &Path, cluster: &str, node: NodeId) -> Result<(Self, Record), RecordError> {
        let file = Self { dir: dir.to_path_buf(), cluster: cluster.to_owned(), node };
        // The peer may have heard numbers of this disk's predecessor: a new record begins beyond them.
        let mut record = file.load()?.unwrap_or_default();
        record.process = (record.process + 1).max(if record.process == 0 { clock::unix_ms().unwrap_or(1) } else { 0 });
        file.save(&record)?;
        Ok((file, record))
    }

    /// Makes `record` durable. Blocks until it is. A disk without room for it gets the room of the reserve that lies beside it.
    ///
    /// # Errors
    /// The disk's; the old record is still there then, or the new one, and nothing may be built on either.
    pub fn save(&self, record: &Record) -> Result<(), RecordError> {
        let stored = Stored {
            cluster: self.cluster.clone(),
            node: letter(self.node),
            seen: record.seen.map(StoredRegister::from),
            instance: record.instance,
            intent: record.intent.map(|intent| StoredIntent { new: intent.new.into(), base: intent.base }),
            complete: record.complete,
            rebuilds_in: record.rebuilds_in,
            promises: record.promises,
            process: record.process,
        };
        let line = serde_json::to_string(&stored).expect("numbers and words can be written");
        let text = format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes()));
        let write = || write_durably(&self.dir.join(SCRATCH), &self.path(), &text, 0o600, None);
        let full = |cause: &io::Error| matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match write() {
            // The process ends without it, and so would the next one.
            Err(cause) if full(&cause) && give_up_ballast(&self.dir) => write(),
            written => written,
        }
        .map_err(|cause| self.io("write", cause))
    }

    fn load(&self) -> Result<Option<Record>, RecordError> {
        let text = match fs::read_to_string(self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("read", error)),
        };
        let stored = decode(&text).map_err(|why| self.spoilt(why))?;
        if stored.cluster != self.cluster || stored.node != letter(self.node) {
            return Err(RecordError::Foreign {
                path: self.path(),
                found: stored.node,
                cluster: stored.cluster,
                wanted: letter(self.node),
                wanted_cluster: self.cluster.clone(),
            });
        }
        let record = || -> Result<Record, String> {
            let intent = |stored: StoredIntent| Ok::<_, String>(Intent { new: stored.new.try_into()?, base: stored.base });
            Ok(Record {
                seen: stored.seen.map(Register::try_from).transpose()?,
                instance: stored.instance,
                intent: stored.intent.map(intent).transpose()?,
                complete: stored.complete,
                rebuilds_in: stored.rebuilds_in,
                promises: stored.promises,
                process: stored.process,
            })
        };
        record().map(Some).map_err(|why| self.spoilt(why))
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn io(&self, what: &'static str, cause: io::Error) -> RecordError {
        RecordError::Io { what, path: self.path(), cause }
    }

    fn spoilt(&self, why: String) -> RecordError {
        RecordError::Spoilt { path: self.path(), why }
    }
}

fn decode(text: &str) -> Result<Stored, String> {
    let (line, sum) = text.split_once('\n').ok_or("it is cut off")?;
    if sum.trim_end() != format!("{:08x}", crc32c::crc32c(line.as_bytes())) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(line).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Record {
        let seen = Register { version: 7, epoch: 3, owner: NodeId::B, mode: Mode::Asym };
        let new = Register { version: 9, mode: Mode::Pair, ..seen };
        Record {
            seen: Some(seen),
            instance: Some(u64::MAX),
            intent: Some(Intent { new, base: 7 }),
            complete: true,
            rebuilds_in: Some(2),
            promises: 2500,
            process: 41,
        }
    }

    #[test]
    fn what_was_saved_is_loaded_and_each_start_has_a_greater_number() {
        let dir = tempfile::tempdir().unwrap();
        let (file, first) = RecordFile::open(dir.path(), "edge", NodeId::A).unwrap();
        assert!(first.process > 1_700_000_000_000, "a record that is begun anew begins with the calendar");
        file.save(&full()).unwrap();
        let (_, second) = RecordFile::open(dir.path(), "edge", NodeId::A).unwrap();
        assert_eq!(second, Record { process: 42, ..full() });
        let (_, third) = RecordFile::open(dir.path(), "edge", NodeId::A).unwrap();
        assert_eq!(third.process, 43, "the number is on the disk before anybody hears it");
    }

    #[test]
    fn another_node_s_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        RecordFile::open(dir.path(), "edge", NodeId::A).unwrap();
        for (cluster, node) in [("edge", NodeId::B), ("other", NodeId::A)] {
            let refused = RecordFile::open(dir.path(), cluster, node);
            assert!(matches!(refused, Err(RecordError::Foreign { .. })), "{refused:?}");
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = RecordFile::open(dir.path(), "edge", NodeId::A).unwrap();
        file.save(&full()).unwrap();
        let whole = fs::read(file.path()).unwrap();
        for at in 0..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(file.path(), &damaged).unwrap();
            assert!(RecordFile::open(dir.path(), "edge", NodeId::A).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_crash_while_saving_leaves_the_old_record() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = RecordFile::open(dir.path(), "edge", NodeId::A).unwrap();
        file.save(&full()).unwrap();
        fs::write(dir.path().join(SCRATCH), "{\"cluster\":\"ed").unwrap();
        assert_eq!(RecordFile::open(dir.path(), "edge", NodeId::A).unwrap().1.seen, full().seen);
    }
}
