//! A register's value as it is written down: in the daemon's files, and in the objects of other stores.

use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::supervisor::fsm::{Mode, NodeId, Register};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredMode {
    Pair,
    Solo,
    Asym,
}

/// See the module.
#[derive(Serialize, Deserialize)]
pub struct StoredValue {
    version: u64,
    epoch: i64,
    owner: char,
    mode: StoredMode,
}

impl From<Register> for StoredValue {
    fn from(value: Register) -> Self {
        let owner = match value.owner {
            NodeId::A => 'A',
            NodeId::B => 'B',
        };
        let mode = match value.mode {
            Mode::Pair => StoredMode::Pair,
            Mode::Solo => StoredMode::Solo,
            Mode::Asym => StoredMode::Asym,
        };
        Self { version: value.version, epoch: value.epoch, owner, mode }
    }
}

impl StoredValue {
    /// The value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn register(&self) -> Result<Register, String> {
        let owner = match self.owner {
            'A' => NodeId::A,
            'B' => NodeId::B,
            other => return Err(format!("owner {other:?}")),
        };
        let mode = match self.mode {
            StoredMode::Pair => Mode::Pair,
            StoredMode::Solo => Mode::Solo,
            StoredMode::Asym => Mode::Asym,
        };
        Ok(Register { version: self.version, epoch: self.epoch, owner, mode })
    }
}

/// For instances of new histories: no two are ever the same.
///
/// # Errors
/// The system has no random bytes.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
