//! Files beside the data directory that say something of it across restarts: each is durable when it is set, and when it is gone.

use std::fs;
use std::io;
use std::path::Path;

use super::super::data_dir::{sync_dir, write_durably};

/// One of them, by its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(&'static str);

/// The data directory isn't whole: a rewind or a copy is, or was, at work.
pub(super) const HALF_DONE: Mark = Mark("postgres.half-done");
/// An unreliable disk may have changed the data: it isn't followed with, and goes with the copy that it is in.
pub(super) const DISTRUSTED: Mark = Mark("postgres.distrusted");

impl Mark {
    pub fn is_set(self, root: &Path) -> bool {
        root.join(self.0).exists()
    }

    /// `text` is for people.
    pub fn set(self, root: &Path, text: &str) -> io::Result<()> {
        write_durably(&root.join(format!("{}.tmp", self.0)), &root.join(self.0), text, 0o644, None)
    }

    pub fn clear(self, root: &Path) -> io::Result<()> {
        match fs::remove_file(root.join(self.0)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(root),
        }
    }
}
