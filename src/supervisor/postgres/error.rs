//! Why a PostgreSQL of our own could not be started, each in one sentence that ends with the way out.

use std::{io, path::PathBuf, time::Duration};

use super::binaries::Version;

/// Why [`super::Postgres::start`] or [`super::Postgres::restart`] failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No directory with both `postgres` and `initdb`.
    #[error(
        "no PostgreSQL server was found (looked in {looked_in}): install PostgreSQL 15 to 18 \
         (Debian: apt-get install postgresql), or name the directory of its binaries with --pg-bin-dir"
    )]
    BinariesMissing {
        /// The directories that were searched, for people.
        looked_in: String,
    },
    /// A minor version with a bug that loses acknowledged writes.
    #[error(
        "PostgreSQL {found} in {bin_dir} can lose acknowledged writes (fixed in 15.13, 16.9 and 17.5): \
         update it, or name a newer one with --pg-bin-dir"
    )]
    VersionTooOld {
        /// What the binary says that it is.
        found: Version,
        /// Where it is.
        bin_dir: PathBuf,
    },
    /// A major version that Duet was not tested with.
    #[error("PostgreSQL {found} in {bin_dir} is not supported: install 15, 16, 17 or 18, or name one with --pg-bin-dir")]
    VersionUnsupported {
        /// What the binary says that it is.
        found: String,
        /// Where it is.
        bin_dir: PathBuf,
    },
    /// The data was written by another major version than any installed one.
    #[error(
        "the data in {pgdata} was written by PostgreSQL {data_major}, and only {installed} is here: install \
         PostgreSQL {data_major} beside it, or convert the data with pg_upgrade"
    )]
    IncompatibleData {
        /// PostgreSQL's data directory.
        pgdata: PathBuf,
        /// The major version in its PG_VERSION.
        data_major: u32,
        /// The versions found, for people.
        installed: String,
    },
    /// The data directory's layout is from a later Duet.
    #[error(
        "{data_dir} was written by a newer Duet (layout {found}, this one knows {known}): run that Duet, or another --data-dir"
    )]
    DataDirNewer {
        /// The directory.
        data_dir: PathBuf,
        /// Layout version found.
        found: u32,
        /// Newest layout version this program knows.
        known: u32,
    },
    /// The directory holds something that is not Duet's.
    #[error("{data_dir} is not Duet's: it holds {holds}; choose an empty or a new directory with --data-dir")]
    ForeignDataDir {
        /// The directory.
        data_dir: PathBuf,
        /// What was recognised there.
        holds: String,
    },
    /// Another live Duet works on the directory.
    #[error("{data_dir} is in use by another Duet{holder}: stop that one, or choose another --data-dir")]
    Locked {
        /// The directory.
        data_dir: PathBuf,
        /// " (process 123)", or nothing when unknown.
        holder: String,
    },
    /// A PostgreSQL of an earlier run neither stops nor can be seen.
    #[error(
        "a PostgreSQL of an earlier run still works on {pgdata} and did not stop within {waited:?}: stop {who} and start again"
    )]
    StillRunning {
        /// PostgreSQL's data directory.
        pgdata: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// "process 123", or where to look when no process is visible.
        who: String,
    },
    /// PostgreSQL refuses to run as root and nobody suitable was found or could be made.
    #[error("PostgreSQL needs a user to run as: {reason}; name an existing one with --pg-user")]
    NoUser {
        /// What went wrong.
        reason: String,
    },
    /// The user that PostgreSQL runs as can't get at something.
    #[error("{what}: permission denied for user {user}; {way_out}")]
    Permission {
        /// What was tried, with its path.
        what: String,
        /// Who was refused.
        user: String,
        /// What to do.
        way_out: String,
    },
    /// No space left.
    #[error("no space is left on the disk of {path}: free some, then start again (nothing is lost)")]
    DiskFull {
        /// The directory on the full disk.
        path: PathBuf,
    },
    /// The machine refuses shared memory of the asked size.
    #[error("the system gave PostgreSQL too little shared memory: lower --pg-shared-buffers or free memory ({detail})")]
    SharedMemory {
        /// PostgreSQL's words.
        detail: String,
    },
    /// Its socket is taken by somebody else.
    #[error(
        "the socket directory {socket_dir} is in use by another PostgreSQL: stop that one, or choose another --data-dir ({detail})"
    )]
    SocketInUse {
        /// The directory.
        socket_dir: PathBuf,
        /// PostgreSQL's words.
        detail: String,
    },
    /// PostgreSQL can't read its own data.
    #[error("the data in {pgdata} is damaged: {detail}; restore it from a backup, or from the peer")]
    Damaged {
        /// PostgreSQL's data directory.
        pgdata: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Started, but did not accept connections in time.
    #[error(
        "PostgreSQL did not accept connections within {waited:?} (last words: {last_words}); see its log lines above, and start again"
    )]
    Timeout {
        /// How long was waited.
        waited: Duration,
        /// The last line it logged.
        last_words: String,
    },
    /// A failure with no sentence of its own.
    #[error("{what} failed: {detail}")]
    Failed {
        /// Which step.
        what: String,
        /// PostgreSQL's or the system's words.
        detail: String,
    },
}

impl StartError {
    /// The exit code of the process for this kind of failure, one for each kind that asks for a different answer.
    ///
    /// | code | kind |
    /// |---|---|
    /// | 65 | the data directory is foreign |
    /// | 66 | the data is damaged |
    /// | 67 | no user to run PostgreSQL as |
    /// | 69 | no PostgreSQL found |
    /// | 70 | PostgreSQL failed in another way |
    /// | 71 | too little shared memory |
    /// | 72 | PostgreSQL is too old, or not supported |
    /// | 73 | its socket is in use |
    /// | 74 | the disk is full |
    /// | 75 | the data directory is in use by another process |
    /// | 76 | the data is of another version |
    /// | 77 | permission denied |
    /// | 79 | it did not become ready in time |
    ///
    /// Where sysexits.h has a fitting code, it is that one.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ForeignDataDir { .. } => 65,
            Self::Damaged { .. } => 66,
            Self::NoUser { .. } => 67,
            Self::BinariesMissing { .. } => 69,
            Self::Failed { .. } => 70,
            Self::SharedMemory { .. } => 71,
            Self::VersionTooOld { .. } | Self::VersionUnsupported { .. } => 72,
            Self::SocketInUse { .. } => 73,
            Self::DiskFull { .. } => 74,
            Self::Locked { .. } | Self::StillRunning { .. } => 75,
            Self::IncompatibleData { .. } | Self::DataDirNewer { .. } => 76,
            Self::Permission { .. } => 77,
            Self::Timeout { .. } => 79,
        }
    }

    /// Whether it didn't get on because its leader doesn't have the WAL any more that it needs.
    pub(super) fn lacks_wal(&self) -> bool {
        matches!(self, Self::Timeout { last_words, .. } if super::log::is_lack_of_wal(last_words))
    }

    /// Maps a file system error on `path` while doing `what` ("can't create").
    pub(super) fn from_io(what: &str, path: &std::path::Path, user: &str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path: path.to_path_buf() },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission {
                what: format!("{what} {}", path.display()),
                user: user.to_owned(),
                way_out: "give it access, or choose another --data-dir".to_owned(),
            },
            _ => Self::Failed { what: format!("{what} {}", path.display()), detail: error.to_string() },
        }
    }
}
