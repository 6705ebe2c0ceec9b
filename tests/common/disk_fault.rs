//! A PostgreSQL whose disk stands still, or fails to keep what was written, when a test says so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use duet::supervisor::postgres::Binaries;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/disk_fault.c");

/// The binaries of such a PostgreSQL, and what its disk is told to do.
pub struct DiskFault {
    bin_dir: PathBuf,
    told: PathBuf,
}

impl DiskFault {
    /// Makes them in `dir`, which PostgreSQL's user must be able to reach, around the installed ones. Nothing is wrong yet.
    pub async fn install(dir: &Path) -> Self {
        let found = Binaries::find(super::bin_dir().as_deref(), None, dir).await.unwrap();
        let real = found.program("postgres");
        let (bin_dir, told, shim) = (dir.join("bin"), dir.join("disk-fault"), dir.join("disk-fault.so"));
        fs::create_dir(&bin_dir).unwrap();
        for entry in fs::read_dir(real.parent().unwrap()).unwrap().map(Result::unwrap) {
            if entry.file_name() != "postgres" {
                symlink(entry.path(), bin_dir.join(entry.file_name())).unwrap();
            }
        }
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&shim, Path::new(SOURCE)]).arg("-ldl").status();
        assert!(built.unwrap().success(), "cc can't build {SOURCE}");
        let run = format!("LD_PRELOAD={} DISK_FAULT={} exec {} \"$@\"", shim.display(), told.display(), real.display());
        super::script(&bin_dir.join("postgres"), &run);
        let fault = Self { bin_dir, told };
        fault.clear();
        fault
    }

    /// The flag that makes a Duet use it.
    pub fn flag(&self) -> String {
        format!("--pg-bin-dir={}", self.bin_dir.display())
    }

    /// From now on nothing that is written gets to the disk.
    pub fn stand_still(&self) {
        fs::write(&self.told, "s").unwrap();
    }

    /// From now on the disk says that it failed.
    pub fn fail(&self) {
        fs::write(&self.told, "f").unwrap();
    }

    /// The disk is as good as new.
    pub fn clear(&self) {
        fs::write(&self.told, "-").unwrap();
    }
}
