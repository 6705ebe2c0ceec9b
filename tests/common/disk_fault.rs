//! Programs whose disk stands still, or fails to keep what was written, when a test says so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use duet::supervisor::postgres::Binaries;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/disk_fault.c");

/// What such programs run with, and what their disk is told to do.
pub struct DiskFault {
    shim: PathBuf,
    told: PathBuf,
    /// Of a PostgreSQL whose disk it is, if there is one.
    bin_dir: PathBuf,
}

impl DiskFault {
    /// Makes it in `dir`. Nothing is wrong yet.
    pub fn build(dir: &Path) -> Self {
        let (bin_dir, told, shim) = (dir.join("bin"), dir.join("disk-fault"), dir.join("disk-fault.so"));
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&shim, Path::new(SOURCE)]).arg("-ldl").status();
        assert!(built.unwrap().success(), "cc can't build {SOURCE}");
        let fault = Self { shim, told, bin_dir };
        fault.clear();
        fault
    }

    /// As [`DiskFault::build`], with the binaries of a PostgreSQL whose disk it is, around the installed ones. `dir` must be one that
    /// PostgreSQL's user can reach.
    pub async fn install(dir: &Path) -> Self {
        let fault = Self::build(dir);
        let found = Binaries::find(super::bin_dir().as_deref(), None, dir).await.unwrap();
        let real = found.program("postgres");
        fs::create_dir(&fault.bin_dir).unwrap();
        for entry in fs::read_dir(real.parent().unwrap()).unwrap().map(Result::unwrap) {
            if entry.file_name() != "postgres" {
                symlink(entry.path(), fault.bin_dir.join(entry.file_name())).unwrap();
            }
        }
        let environment = fault.environment().map(|(name, value)| format!("{name}={}", value.display())).join(" ");
        super::script(&fault.bin_dir.join("postgres"), &format!("{environment} exec {} \"$@\"", real.display()));
        fault
    }

    /// What a program runs with whose disk it is.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.shim), ("DISK_FAULT", &self.told)]
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
