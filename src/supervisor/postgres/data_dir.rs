//! Duet's data directory: whose it is, who works on it now, and where things are in it.
//!
//! | name | what |
//! |---|---|
//! | `duet.identity` | says that the directory is Duet's, and the version of its layout |
//! | `duet.lock` | locked by the live Duet; holds its process id for people |
//! | `postgres/` | PostgreSQL's data, complete from the moment that it has this name |
//! | `postgres.initdb/` | an initdb under way, or one that was interrupted: thrown away at the next start |
//! | `postgres.lock` | locked by every process of a running PostgreSQL (they inherit it): free = all are gone |
//! | `postgres.user.conf` | optional, a person's own PostgreSQL settings |
//! | `fixtures/` | the certificate that `--auto-tls` made |
//! | `seen/` | what clients of a `duet serve` with the same data directory were shown |
//! | `socket/` | PostgreSQL's socket, unless the path is too long for one |
//!
//! Invariant: the two locks belong to open files, so that the kernel frees them however the processes end.
//!
//! The directory may lie below one that PostgreSQL's user must not enter (a test suite's, made by root with mode 0700). Nobody's
//! directory is opened up for that: Duet opens its own ([`DataDir::open_door`]) and PostgreSQL inherits the open directory, which it
//! addresses through `/proc/self/fd`. The kernel checks permissions from there on downwards only.

use std::{
    borrow::Cow,
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::fd::AsRawFd,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::{error::StartError, user::Account};

const LAYOUT: u32 = 1;
const IDENTITY: &str = "duet.identity";
const IDENTITY_SCRATCH: &str = "duet.identity.tmp";
const LOCK: &str = "duet.lock";
/// Where `--auto-tls` keeps its certificate, which may be made before anything else.
const AUTO_TLS: &str = "fixtures";
/// Where `duet serve` keeps what its clients were shown; the two may have the same default directory.
const SEEN: &str = "seen";
/// sockaddr_un's path has 108 bytes, the last of them 0.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Where a process finds its own open files by number.
pub const DOORS: &str = "/proc/self/fd/";
/// The longest that PostgreSQL's socket can be called: its port is part of the name.
const SOCKET_NAME: &str = ".s.PGSQL.65535";
const SOCKET_PREFIX: &str = ".s.PGSQL.";
/// Names beyond this many are not needed to tell that a directory is foreign.
const ENTRIES_MAX: usize = 1000;

#[derive(serde::Serialize, serde::Deserialize)]
struct Identity {
    layout: u32,
    made_by: String,
}

/// What PostgreSQL calls the data directory, and what people call it, where these differ.
#[derive(Debug, Clone, Default)]
pub struct Names(Option<(String, String)>);

impl Names {
    /// What PostgreSQL says, in people's words.
    pub fn for_people<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.0 {
            Some((theirs, ours)) => Cow::Owned(text.replace(theirs, ours)),
            None => Cow::Borrowed(text),
        }
    }
}

/// An opened, locked data directory; dropping it frees the lock.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    lock: File,
    /// Inherited by PostgreSQL's processes, see [`DataDir::open_door`].
    door: Option<File>,
}

impl DataDir {
    /// Makes the directory when it doesn't exist, checks that it is Duet's or empty, and locks it.
    pub fn open(path: &Path) -> Result<Self, StartError> {
        let io = |what: &str, e| StartError::from_io(what, path, &whoami(), e);
        // 0711: PostgreSQL's user must get through to postgres/, nobody need list what is here.
        fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(|e| io("can't create", e))?;
        let root = path.canonicalize().map_err(|e| io("can't open", e))?;
        let is_ours = root.join(IDENTITY).exists();
        if !is_ours {
            refuse_foreign(&root)?;
        }
        let lock = lock(&root)?;
        if root.join(IDENTITY).exists() {
            check_identity(&root)?;
        } else {
            write_identity(&root).map_err(|e| io("can't write to", e))?;
        }
        let_through(&root).map_err(|e| io("can't open to PostgreSQL's user", e))?;
        Ok(Self { root, lock, door: None })
    }

    /// The directory's real path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Lets PostgreSQL, whoever it runs as, get here without passing the directories above. Every process that this one starts from
    /// now on inherits the right to pass through this directory (not to list it).
    pub fn open_door(&mut self) -> io::Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let door = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&self.root)?;
        fcntl(&door, FcntlArg::F_SETFD(FdFlag::empty()))?;
        self.door = Some(door);
        Ok(())
    }

    /// Undoes [`DataDir::open_door`] for processes that start from now on.
    pub fn close_door(&mut self) {
        self.door = None;
    }

    /// The name by which PostgreSQL's processes reach `path`.
    pub fn seen_by_postgres(&self, path: &Path) -> PathBuf {
        match (&self.door, path.strip_prefix(&self.root)) {
            (Some(door), Ok(below)) => Path::new(DOORS).join(door.as_raw_fd().to_string()).join(below),
            _ => path.to_path_buf(),
        }
    }

    /// What this directory is called on either side of its door.
    pub fn names(&self) -> Names {
        let names = |door: &File| (format!("{DOORS}{}/", door.as_raw_fd()), format!("{}/", self.root.display()));
        Names(self.door.as_ref().map(names))
    }

    /// PostgreSQL's data directory.
    pub fn pgdata(&self) -> PathBuf {
        self.root.join("postgres")
    }

    /// Where initdb works until its result is complete and on disk.
    pub fn initdb_scratch(&self) -> PathBuf {
        self.root.join("postgres.initdb")
    }

    /// The lock that PostgreSQL's processes inherit.
    pub fn postgres_lock(&self) -> PathBuf {
        self.root.join("postgres.lock")
    }

    /// A name for this directory's PostgreSQL in process titles, unique on the machine for all practical purposes.
    pub fn cluster_name(&self) -> String {
        format!("duet-{:08x}", short_hash(&self.root))
    }

    /// The major version of the data there is; None when there is none yet.
    pub fn data_major(&self) -> Result<Option<u32>, StartError> {
        let file = self.pgdata().join("PG_VERSION");
        match fs::read_to_string(&file) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| StartError::Damaged { pgdata: self.pgdata(), detail: format!("PG_VERSION says {:?}", text.trim()) }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if fs::read_dir(self.pgdata()).is_ok_and(|mut entries| entries.next().is_some()) {
                    return Err(StartError::Damaged { pgdata: self.pgdata(), detail: "PG_VERSION is missing".to_owned() });
                }
                Ok(None)
            }
            Err(e) => Err(StartError::from_io("can't read", &file, &whoami(), e)),
        }
    }

    /// The user id that owns the data there is.
    pub fn data_owner_uid(&self) -> Option<u32> {
        fs::metadata(self.pgdata()).ok().map(|m| m.uid())
    }

    /// Makes the directory for PostgreSQL's socket: `socket/` here, or, when that path is too long for a socket, one
    /// below /run (root), the user's runtime directory or /tmp, that nobody else can have made.
    pub fn make_socket_dir(&self, account: &Account) -> Result<PathBuf, StartError> {
        let near = self.root.join("socket");
        let fits = |dir: &Path| dir.as_os_str().len() + 1 + SOCKET_NAME.len() <= SOCKET_PATH_BYTES_MAX;
        let dir = if fits(&near) {
            near
        } else {
            let base = if account.switch { Some(OsString::from("/run")) } else { std::env::var_os("XDG_RUNTIME_DIR") };
            let base = base.map(PathBuf::from).filter(|dir| dir.is_dir()).unwrap_or_else(|| PathBuf::from("/tmp"));
            let dir = base.join(self.cluster_name());
            if fits(&dir) { dir } else { Path::new("/tmp").join(self.cluster_name()) }
        };
        let io = |e| StartError::from_io("can't create", &dir, &account.name, e);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => std::os::unix::fs::chown(&dir, Some(account.uid), Some(account.gid)).map_err(io)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let found = fs::symlink_metadata(&dir).map_err(io)?;
                if !found.is_dir() || found.uid() != account.uid || found.mode() & 0o077 != 0 {
                    return Err(StartError::Permission {
                        what: format!("{} is not a directory that only {} can write to", dir.display(), account.name),
                        user: account.name.clone(),
                        way_out: "remove it and start again".to_owned(),
                    });
                }
            }
            Err(e) => return Err(io(e)),
        }
        Ok(dir)
    }
}

impl Drop for DataDir {
    /// Closing the file would free the lock only once the last copy of it is closed, and a process that is being started just now holds
    /// one until its exec.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

/// Removes what a killed PostgreSQL left in its socket directory. Only while the data directory and PostgreSQL's own
/// lock are held: then nobody listens there.
pub fn clear_socket_dir(socket_dir: &Path) {
    let Ok(entries) = fs::read_dir(socket_dir) else { return };
    for entry in entries.take(ENTRIES_MAX).flatten() {
        if entry.file_name().to_string_lossy().starts_with(SOCKET_PREFIX) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Root's Duet runs PostgreSQL as another user, who must get through a directory that was made for etcd (kubeadm and envtest make
/// theirs 0700). Through, not in: nobody else can list or write it, and what is below keeps its own mode.
fn let_through(root: &Path) -> io::Result<()> {
    let meta = fs::metadata(root)?;
    if nix::unistd::geteuid().is_root() && meta.uid() == 0 && meta.mode() & 0o001 == 0 {
        fs::set_permissions(root, fs::Permissions::from_mode(meta.mode() & 0o7777 | 0o011))?;
    }
    Ok(())
}

fn refuse_foreign(root: &Path) -> Result<(), StartError> {
    let entries = fs::read_dir(root).map_err(|e| StartError::from_io("can't list", root, &whoami(), e))?;
    let mut names: Vec<OsString> = entries
        .take(ENTRIES_MAX)
        .filter_map(|entry| entry.ok().map(|e| e.file_name()))
        .filter(|name| ![LOCK, IDENTITY_SCRATCH, AUTO_TLS, SEEN, "lost+found"].iter().any(|own| name == own))
        .collect();
    names.sort();
    let has = |name: &str| names.iter().any(|n| n == name);
    let holds = match names.first() {
        None => return Ok(()),
        Some(_) if has("PG_VERSION") => "a PostgreSQL data directory".to_owned(),
        Some(_) if has("member") => "the data of an etcd".to_owned(),
        Some(first) => format!("{} (and no {IDENTITY})", first.display()),
    };
    Err(StartError::ForeignDataDir { data_dir: root.to_path_buf(), holds })
}

fn lock(root: &Path) -> Result<File, StartError> {
    let io = |e| StartError::from_io("can't lock", root, &whoami(), e);
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(root.join(LOCK)).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {
            // For people only: the lock is what counts, so that a full disk is no reason to stop here.
            let _ = file.set_len(0);
            let _ = writeln!(file, "{}", std::process::id());
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.take(32).read_to_string(&mut text);
            let holder = text.trim().parse::<u32>().map(|pid| format!(" (process {pid})")).unwrap_or_default();
            Err(StartError::Locked { data_dir: root.to_path_buf(), holder })
        }
        Err(TryLockError::Error(e)) => Err(io(e)),
    }
}

fn check_identity(root: &Path) -> Result<(), StartError> {
    let path = root.join(IDENTITY);
    let text = fs::read_to_string(&path).map_err(|e| StartError::from_io("can't read", &path, &whoami(), e))?;
    let identity: Identity = toml::from_str(&text).map_err(|e| StartError::ForeignDataDir {
        data_dir: root.to_path_buf(),
        holds: format!("a {IDENTITY} that is not one of Duet's ({})", e.message()),
    })?;
    if identity.layout > LAYOUT {
        return Err(StartError::DataDirNewer { data_dir: root.to_path_buf(), found: identity.layout, known: LAYOUT });
    }
    Ok(())
}

fn write_identity(root: &Path) -> io::Result<()> {
    let identity = Identity { layout: LAYOUT, made_by: env!("CARGO_PKG_VERSION").to_owned() };
    let text = format!(
        "# This directory is a Duet's data. Don't remove this file: Duet refuses a directory without it.\n{}",
        toml::to_string(&identity).map_err(io::Error::other)?
    );
    write_durably(&root.join(IDENTITY_SCRATCH), &root.join(IDENTITY), &text, 0o644, None)
}

/// Replaces `path` by `text` so that after a crash there is the old file or the new one, never a part.
pub fn write_durably(scratch: &Path, path: &Path, text: &str, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let _ = fs::remove_file(scratch);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(scratch)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(scratch, path)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes renames and new names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn whoami() -> String {
    Account::own_name().unwrap_or_else(|_| nix::unistd::geteuid().to_string())
}

/// FNV-1a: the same in every version of this program, unlike the standard library's hash.
fn short_hash(path: &Path) -> u32 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
