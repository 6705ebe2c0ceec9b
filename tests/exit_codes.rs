//! What `duet dev` says when it can't start, and the exit code by which a supervisor or a script tells one reason from another: the real
//! program each time. The sentence must be one, the last thing that it says, and end with the way out.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use common::process::{Process, args, dev, duet};
use common::{SmallDisk, fake_binaries, scratch};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

/// `duet dev` over `data`, with `more` flags.
fn start(data: &Path, more: &str) -> Process {
    let line = format!("dev --listen-client-urls http://127.0.0.1:0 --data-dir {} {more}", data.display());
    let bin_dir = common::bin_dir().filter(|_| !more.contains("--pg-bin-dir"));
    let bin_dir = bin_dir.map_or_else(String::new, |dir| format!(" --pg-bin-dir {}", dir.display()));
    Process::start(&duet(), &args(&(line + &bin_dir)))
}

/// Asserts that it ends by itself with this code; the one sentence that says why.
fn refused(mut process: Process, code: i32) -> String {
    let ended = process.ended();
    let said = process.said();
    assert_eq!(ended.code(), Some(code), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("duet: ")).count(), 1, "{said}");
    let last = said.lines().last().and_then(|line| line.strip_prefix("duet: "));
    last.unwrap_or_else(|| panic!("the reason isn't the last thing it said: {said}")).to_owned()
}

fn assert_refused(process: Process, code: i32, sentence: &str) {
    assert_eq!(refused(process, code), sentence);
}

/// For a sentence with PostgreSQL's own words, or this machine's names, in its middle.
fn assert_refused_around(process: Process, code: i32, begins: &str, ends: &str) {
    let sentence = refused(process, code);
    assert!(sentence.starts_with(begins) && sentence.ends_with(ends), "{sentence}");
}

/// Makes the data that a first start makes.
fn begin(data: &Path) {
    let mut process = start(data, "");
    process.ready();
    process.signal(Signal::SIGTERM);
    assert!(process.ended().success(), "{}", process.said());
}

#[test]
fn the_codes_that_the_program_lists_are_those_that_the_readme_explains() {
    let help = Command::new(duet()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, listed) = help.split_once("Exit codes:\n").unwrap();
    let listed: BTreeSet<u8> = listed.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    let readme = include_str!("../README.md");
    let (_, table) = readme.split_once("## Exit codes\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let explained: BTreeSet<u8> = table.split('|').filter_map(|cell| cell.trim().parse().ok()).collect();
    assert!(listed.len() > 15, "{help}");
    assert_eq!(listed, explained);
}

#[test]
fn a_directory_of_somebody_else_is_code_65_and_stays_as_it_is() {
    for (entry, holds) in [
        ("member", "the data of an etcd"),
        ("PG_VERSION", "a PostgreSQL data directory"),
        ("holiday.jpg", "holiday.jpg (and no duet.identity)"),
    ] {
        let dir = scratch();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join(entry), "x").unwrap();
        let way_out = "choose an empty or a new directory with --data-dir";
        assert_refused(start(&data, ""), 65, &format!("{} is not Duet's: it holds {holds}; {way_out}", data.display()));
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing was written");
    }
}

#[test]
fn a_used_client_port_is_code_68_before_any_data_is_made() {
    let dir = scratch();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (data, url) = (dir.path().join("data"), format!("http://{}", taken.local_addr().unwrap()));
    let process = start(&data, &format!("--listen-client-urls {url}"));
    let way_out = "; stop the other process (is an etcd or another Duet running?) or choose another URL";
    assert_refused_around(process, 68, &format!("can't listen on {url}: Address already in use"), way_out);
    assert!(!data.exists());
}

#[test]
fn no_postgresql_where_it_was_said_to_be_is_code_69() {
    let dir = scratch();
    let process = start(&dir.path().join("data"), &format!("--pg-bin-dir {}", dir.path().display()));
    let sentence = format!(
        "no PostgreSQL server was found (looked in {}): install PostgreSQL 15 to 18 (Debian: apt-get install postgresql), or name the \
         directory of its binaries with --pg-bin-dir",
        dir.path().display()
    );
    assert_refused(process, 69, &sentence);
}

#[test]
fn a_postgresql_that_is_too_old_or_not_supported_is_code_72() {
    for (version, sentence, way_out) in [
        (
            "15.12",
            "can lose acknowledged writes (fixed in 15.13, 16.9 and 17.5)",
            "update it, or name a newer one with --pg-bin-dir",
        ),
        ("14.20", "is not supported", "install 15, 16, 17 or 18, or name one with --pg-bin-dir"),
    ] {
        let dir = scratch();
        let bin_dir = fake_binaries(dir.path(), version);
        let process = start(&dir.path().join("data"), &format!("--pg-bin-dir {}", bin_dir.display()));
        assert_refused(process, 72, &format!("PostgreSQL {version} in {} {sentence}: {way_out}", bin_dir.display()));
    }
}

#[test]
fn a_full_disk_is_code_74_before_and_after_there_is_data_and_room_mends_it() {
    if !geteuid().is_root() {
        return; // Only root can mount the small disk.
    }
    let dir = scratch();
    let assert_full = |data: &Path| {
        let begins = format!("no space is left on the disk of {}", data.display());
        assert_refused_around(start(data, ""), 74, &begins, ": free some, then start again (nothing is lost)");
    };
    let disk = SmallDisk::mount(&dir.path().join("small"), "16m");
    let data = disk.0.join("data");
    assert_full(&data);
    drop(disk);

    let disk = SmallDisk::mount(&dir.path().join("larger"), "200m");
    let data = disk.0.join("data");
    begin(&data);
    let ballast = disk.fill();
    assert_full(&data);
    fs::remove_file(ballast).unwrap();
    begin(&data);
}

#[test]
fn a_directory_in_use_is_code_75_and_the_other_process_goes_on() {
    let dir = scratch();
    let mut first = dev(&dir, "");
    first.ready();
    let sentence = format!(
        "{} is in use by another Duet (process {}): stop that one, or choose another --data-dir",
        dir.path().join("data").display(),
        first.child.id()
    );
    assert_refused(dev(&dir, ""), 75, &sentence);
    assert!(first.child.try_wait().unwrap().is_none());
}

#[test]
fn data_of_a_postgresql_that_is_not_here_is_code_76() {
    let dir = scratch();
    let data = dir.path().join("data");
    begin(&data);
    let (version, pgdata) = (data.join("postgres/PG_VERSION"), data.join("postgres"));
    let made_by = fs::read_to_string(&version).unwrap();
    fs::write(&version, "11\n").unwrap();
    let begins = format!("the data in {} was written by PostgreSQL 11, and only ", pgdata.display());
    let ends = " is here: install PostgreSQL 11 beside it, or convert the data with pg_upgrade";
    assert_refused_around(start(&data, ""), 76, &begins, ends);
    fs::write(&version, made_by).unwrap();
    begin(&data);
}

#[test]
fn data_of_a_newer_duet_is_code_76() {
    let dir = scratch();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("duet.identity"), "layout = 99\nmade_by = \"9.0.0\"\n").unwrap();
    let sentence = "was written by a newer Duet (layout 99, this one knows 1): run that Duet, or another --data-dir";
    assert_refused(start(&data, ""), 76, &format!("{} {sentence}", data.display()));
}

#[test]
fn what_postgresqls_user_may_not_reach_is_code_77() {
    if !geteuid().is_root() {
        return; // Without root there is no other user that could be kept out.
    }
    let dir = scratch();
    let bin_dir = fake_binaries(dir.path(), "15.16");
    fs::set_permissions(&bin_dir, fs::Permissions::from_mode(0o700)).unwrap();
    let process = start(&dir.path().join("data"), &format!("--pg-bin-dir {}", bin_dir.display()));
    let sentence = refused(process, 77);
    let way_out = format!("chmod o+x {}", bin_dir.display());
    assert!(sentence.contains(": permission denied for user ") && sentence.contains(&way_out), "{sentence}");

    let data = dir.path().join("owned");
    begin(&data);
    chown(data.join("postgres"), Some(0), Some(0)).unwrap();
    let sentence = refused(start(&data, ""), 77);
    assert!(sentence.contains(": permission denied for user ") && sentence.contains("; chown -R "), "{sentence}");
}

#[test]
fn a_directory_that_this_user_may_not_make_is_code_77() {
    if geteuid().is_root() {
        return; // Root may make it anywhere.
    }
    let data = Path::new("/duet-of-nobody");
    let begins = format!("can't create {}: permission denied for user ", data.display());
    assert_refused_around(start(data, ""), 77, &begins, "; give it access, or choose another --data-dir");
}

#[test]
fn a_user_that_is_not_there_is_code_67() {
    let dir = scratch();
    let process = start(&dir.path().join("data"), "--pg-user nobody-at-all");
    assert_refused_around(process, 67, "PostgreSQL needs a user to run as: ", "; name an existing one with --pg-user");
}

#[test]
fn damaged_data_is_code_66() {
    let dir = scratch();
    let data = dir.path().join("data");
    begin(&data);
    fs::remove_file(data.join("postgres/global/pg_control")).unwrap();
    let begins = format!("the data in {} is damaged: ", data.join("postgres").display());
    assert_refused_around(start(&data, ""), 66, &begins, "; restore it from a backup, or from the peer");
}
