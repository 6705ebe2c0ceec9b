//! Registers in files, one for each pair. A change is a new file that is synced, renamed over the old one, and the directory synced,
//! before it is answered.
//!
//! Each file says which inode it was written to, and when that was made. A file that was restored from a copy is another inode; one
//! that was written back in place holds what an older inode held. Either way it begins a new history: see [`Answer::instance`]. (A whole
//! machine that is rolled back takes its inodes with it: docs/adr/0004-pair-state-machine.md.)

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::register::{Refusal, swap};
use super::stored::{StoredValue, random};
use crate::supervisor::fsm::{Answer, Register};

/// How many pairs one witness serves at most.
const REGISTERS_MAX: usize = 1000;
/// A pair's name is a file's name.
const NAME_BYTES_MAX: usize = 64;
/// No register is larger; what is isn't one.
const FILE_BYTES_MAX: u64 = 4096;
const SUFFIX: &str = ".register";
const SCRATCH: &str = "scratch";

/// Why a register can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file in it can't be used.
    #[error("{what} {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Another process uses the directory.
    #[error("{0} is in use by another witness; give each its own --data-dir")]
    Locked(PathBuf),
    /// A file doesn't hold a register.
    #[error("{path} holds no register ({why}); move it away to begin anew: the pair's owner then writes to it")]
    Spoilt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Not a name for a pair.
    #[error("a cluster's name has 1 to {NAME_BYTES_MAX} letters, digits, dots and hyphens, and begins with a letter or a digit")]
    Name,
    /// See [`REGISTERS_MAX`].
    #[error("this witness serves {REGISTERS_MAX} clusters already")]
    TooMany,
}

/// What came of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It is written and durable.
    Applied(Answer),
    /// It certainly isn't.
    Refused(Refusal),
}

/// All registers of a witness. One process has them open at a time.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    registers: BTreeMap<String, Stored>,
    /// Instances of new histories; random, so that no two are ever the same.
    random: fn() -> io::Result<u64>,
    _lock: File,
}

#[derive(Clone, Copy, Debug)]
struct Stored {
    answer: Answer,
    identity: Identity,
}

/// Which file it is. Made anew with each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    /// When the inode was made, in nanoseconds since 1970; 0 where the file system doesn't tell.
    born_ns: u64,
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born_ns = born.and_then(|born| u64::try_from(born.as_nanos()).ok()).unwrap_or(0);
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), born_ns })
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    instance: u64,
    value: Option<StoredValue>,
    identity: Identity,
}

impl Store {
    /// Opens the registers in `dir`, which is made if it doesn't exist. What was restored from a copy is written anew, as a new history.
    ///
    /// # Errors
    /// [`StoreError::Locked`], `Io`, `Spoilt`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, random)
    }

    /// [`Store::open`] with another source of instances, for tests.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: &Path, random: fn() -> io::Result<u64>) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|cause| io_error("can't make", dir, cause))?;
        let lock_path = dir.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|cause| io_error("can't open", &lock_path, cause))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(dir.to_path_buf())),
            Err(TryLockError::Error(cause)) => return Err(io_error("can't lock", &lock_path, cause)),
        }
        let mut store = Self { dir: dir.to_path_buf(), registers: BTreeMap::new(), random, _lock: lock };
        let entries = fs::read_dir(dir).map_err(|cause| io_error("can't list", dir, cause))?;
        for entry in entries.take(2 * REGISTERS_MAX) {
            let path = entry.map_err(|cause| io_error("can't list", dir, cause))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(name) = name.filter(|name| is_name(name)) {
                store.load(name.to_owned(), &path)?;
            }
        }
        Ok(store)
    }

    /// What a pair's register holds. A pair that was never heard of has an empty one, of a new history.
    ///
    /// # Errors
    /// `Name`, `TooMany`, `Io`.
    pub fn read(&mut self, cluster: &str) -> Result<Answer, StoreError> {
        if let Some(stored) = self.registers.get(cluster) {
            return Ok(stored.answer);
        }
        if !is_name(cluster) {
            return Err(StoreError::Name);
        }
        if self.registers.len() >= REGISTERS_MAX {
            return Err(StoreError::TooMany);
        }
        let instance = self.new_instance()?;
        // Durable before it is said: a restart must not make another one of it.
        self.write(cluster, Answer { instance, value: None })
    }

    /// Replaces the value of version `expected` with `new`, if that is what the register of this history holds.
    ///
    /// # Errors
    /// As [`Store::read`]. After `Io` nobody knows whether it was written: the caller asks again.
    pub fn swap(&mut self, cluster: &str, instance: u64, expected: u64, new: Register) -> Result<Swapped, StoreError> {
        let present = self.read(cluster)?;
        match swap(present, instance, expected, new) {
            Err(refusal) => Ok(Swapped::Refused(refusal)),
            Ok(answer) => {
                self.check_untouched(cluster)?;
                self.write(cluster, answer).map(Swapped::Applied)
            }
        }
    }

    fn path(&self, cluster: &str) -> PathBuf {
        self.dir.join(format!("{cluster}{SUFFIX}"))
    }

    fn new_instance(&self) -> Result<u64, StoreError> {
        (self.random)().map_err(|cause| io_error("can't read random bytes for", &self.dir, cause))
    }

    fn load(&mut self, cluster: String, path: &Path) -> Result<(), StoreError> {
        let read = |cause| io_error("can't read", path, cause);
        let file = File::open(path).map_err(read)?;
        let mut text = Vec::new();
        (&file).take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(read)?;
        let spoilt = |why: String| StoreError::Spoilt { path: path.to_path_buf(), why };
        let contents = decode(&text).map_err(spoilt)?;
        let value = contents.value.map(|value| value.register()).transpose().map_err(spoilt)?;
        let identity = Identity::of(&file).map_err(read)?;
        let answer = Answer { instance: contents.instance, value };
        if contents.identity == identity {
            self.registers.insert(cluster, Stored { answer, identity });
            return Ok(());
        }
        tracing::warn!(
            cluster,
            version = answer.version(),
            "{} is a copy: the register begins a new history, which counts once the pair's owner has written to it",
            path.display()
        );
        let instance = self.new_instance()?;
        self.write(&cluster, Answer { instance, ..answer }).map(|_| ())
    }

    /// Somebody who puts another file in place of ours while we run must not be overwritten as if nothing had happened.
    fn check_untouched(&self, cluster: &str) -> Result<(), StoreError> {
        let path = self.path(cluster);
        let identity =
            File::open(&path).and_then(|file| Identity::of(&file)).map_err(|cause| io_error("can't read", &path, cause))?;
        match self.registers.get(cluster) {
            Some(stored) if stored.identity == identity => Ok(()),
            _ => Err(StoreError::Spoilt { path, why: "it was replaced while the witness ran; start it again".to_owned() }),
        }
    }

    fn write(&mut self, cluster: &str, answer: Answer) -> Result<Answer, StoreError> {
        let (scratch, path) = (self.dir.join(SCRATCH), self.path(cluster));
        let failed = |cause| io_error("can't write", &path, cause);
        match fs::remove_file(&scratch) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(cause)),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&scratch).map_err(failed)?;
        let identity = Identity::of(&file).map_err(failed)?;
        let contents = Contents { instance: answer.instance, value: answer.value.map(StoredValue::from), identity };
        file.write_all(encode(&contents).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&scratch, &path).map_err(failed)?;
        // From here on the file may be found after a crash: what is remembered must not be older.
        self.registers.insert(cluster.to_owned(), Stored { answer, identity });
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(answer)
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let begins = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain)
}

/// One line for people and serde, one with its CRC-32C.
fn encode(contents: &Contents) -> String {
    let line = serde_json::to_string(contents).expect("numbers and words can be written");
    format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes()))
}

fn decode(text: &[u8]) -> Result<Contents, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let (line, sum) = text.split_once('\n').ok_or("it is cut off")?;
    if sum.trim_end() != format!("{:08x}", crc32c::crc32c(line.as_bytes())) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(line).map_err(|error| error.to_string())
}

fn io_error(what: &'static str, path: &Path, cause: io::Error) -> StoreError {
    StoreError::Io { what, path: path.to_path_buf(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::fsm::{Mode, NodeId};

    fn value(version: u64) -> Register {
        Register { version, epoch: 1, owner: NodeId::B, mode: Mode::Solo }
    }

    fn written(dir: &Path, version: u64) -> Answer {
        let mut store = Store::open(dir).expect("opens");
        let present = store.read("edge").expect("reads");
        match store.swap("edge", present.instance, present.version(), value(version)).expect("writes") {
            Swapped::Applied(answer) => answer,
            Swapped::Refused(refusal) => panic!("{refusal:?}"),
        }
    }

    fn reopened(dir: &Path) -> Answer {
        Store::open(dir).expect("opens").read("edge").expect("reads")
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_in_the_same_history() {
        let dir = tempfile::tempdir().expect("a directory");
        let empty = reopened(dir.path());
        assert_eq!((empty.value, reopened(dir.path())), (None, empty), "an empty register has its history, too");
        let answer = written(dir.path(), 1);
        assert_eq!(answer, Answer { instance: empty.instance, value: Some(value(1)) });
        assert_eq!(reopened(dir.path()), answer);
    }

    #[test]
    fn pairs_have_registers_of_their_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let answer = written(dir.path(), 1);
        let mut store = Store::open(dir.path()).expect("opens");
        let other = store.read("other").expect("reads");
        assert!(other.value.is_none() && other.instance != answer.instance);
        assert!(matches!(store.read("../edge"), Err(StoreError::Name)));
        assert!(matches!(store.read(""), Err(StoreError::Name)));
    }

    #[test]
    fn a_wiped_register_begins_a_new_history() {
        let dir = tempfile::tempdir().expect("a directory");
        let before = written(dir.path(), 1);
        fs::remove_file(dir.path().join("edge.register")).expect("removed");
        let after = reopened(dir.path());
        assert!(after.value.is_none() && after.instance != before.instance);
    }

    #[test]
    fn a_register_restored_as_a_new_file_begins_a_new_history() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edge.register");
        let old = written(dir.path(), 1);
        let backup = fs::read(&path).expect("a backup");
        written(dir.path(), 2);
        fs::remove_file(&path).expect("removed");
        fs::write(&path, backup).expect("restored");
        let after = reopened(dir.path());
        assert_eq!(after.value, old.value);
        assert_ne!(after.instance, old.instance);
        assert_eq!(reopened(dir.path()), after, "a new history is a history");
    }

    #[test]
    fn a_register_written_back_in_place_begins_a_new_history() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edge.register");
        let old = written(dir.path(), 1);
        let backup = fs::read(&path).expect("a backup");
        written(dir.path(), 2);
        fs::write(&path, backup).expect("the same inode, the old contents");
        assert_ne!(reopened(dir.path()).instance, old.instance);
    }

    #[test]
    fn a_register_replaced_under_a_running_witness_is_not_written_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edge.register");
        let answer = written(dir.path(), 1);
        let mut store = Store::open(dir.path()).expect("opens");
        let backup = fs::read(&path).expect("a backup");
        fs::remove_file(&path).expect("removed");
        fs::write(&path, backup).expect("restored");
        let swapped = store.swap("edge", answer.instance, 1, value(2));
        assert!(matches!(swapped, Err(StoreError::Spoilt { .. })), "{swapped:?}");
    }

    #[test]
    fn what_a_crash_left_half_written_is_not_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let answer = written(dir.path(), 1);
        fs::write(dir.path().join(SCRATCH), "{\"instance\":").expect("written");
        assert_eq!(reopened(dir.path()), answer);
        assert_eq!(written(dir.path(), 2).version(), 2);
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edge.register");
        written(dir.path(), 1);
        let whole = fs::read(&path).expect("read");
        for at in 0..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).expect("written");
            assert!(matches!(Store::open(dir.path()), Err(StoreError::Spoilt { .. })), "byte {at}");
        }
    }

    #[test]
    fn two_witnesses_don_t_share_a_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let _first = Store::open(dir.path()).expect("opens");
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked(_))));
    }
}
