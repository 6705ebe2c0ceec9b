//! What happened to the pair, as this node saw it: a bounded file of JSON lines that operators read (`duet history`), and the newest
//! entries in memory. A takeover is told by phase: how long it took to notice, to decide, to promote and to open.
//!
//! Invariant: nobody waits for the file. A thread of its own writes it: what is told to the peer in the same moment must not wait for a disk
//! that stands still.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::clock;
use super::record::letter;
use crate::supervisor::fsm::{Note, State};
use crate::types::{Epoch, Millis};

const FILE: &str = "history.jsonl";
const OLDER: &str = "history.1.jsonl";
/// Then the file becomes the older one, and that one goes.
const FILE_BYTES_MAX: u64 = 1 << 20;
const IN_MEMORY_MAX: usize = 200;
/// Entries that wait for the disk; those beyond are in memory only.
const WAITING_MAX: usize = 1000;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since 1970 by the calendar of this node.
    pub at_ms: u64,
    /// Which node saw it.
    pub node: char,
    /// The epoch that it belongs to.
    pub epoch: Epoch,
    /// What, in one word for programs.
    pub what: String,
    /// What, for people.
    pub text: String,
    /// The takeover that ended with this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub takeover: Option<Takeover>,
}

/// How long a takeover took, by phase, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// Nobody asked for it: the leader was missed.
    pub unplanned: bool,
    /// From the leader's last sign of life, or its request, to the decision to ask for the ownership.
    pub detect_ms: Millis,
    /// To the witness's answer.
    pub decide_ms: Millis,
    /// To PostgreSQL taking writes.
    pub promote_ms: Millis,
    /// To the gate's opening.
    pub open_ms: Millis,
    /// To the first request that can be answered: the rest of the log has been read.
    pub serve_ms: Millis,
}

impl Takeover {
    /// Names and milliseconds of the phases, in their order.
    #[must_use]
    pub fn phases(&self) -> [(&'static str, Millis); 5] {
        [
            ("detect", self.detect_ms),
            ("decide", self.decide_ms),
            ("promote", self.promote_ms),
            ("open", self.open_ms),
            ("serve", self.serve_ms),
        ]
    }
}

/// How many takeovers this process has carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeovers {
    /// The leader asked for them.
    pub planned: u64,
    /// The leader was missed.
    pub unplanned: u64,
}

/// The history; safe to share. When it is dropped, what was added is in the file.
#[derive(Debug)]
pub struct History {
    inner: Mutex<Inner>,
    /// The way to the file's thread, and that thread.
    writer: Option<(SyncSender<Entry>, JoinHandle<()>)>,
}

#[derive(Debug, Default)]
struct Inner {
    newest: VecDeque<Entry>,
    /// However many entries there have been since.
    last_takeover: Option<Entry>,
    takeovers: Takeovers,
}

/// The file.
struct Writer {
    dir: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl History {
    /// The history in `dir`. What can't be read of it is left out: it decides nothing.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        let mut newest = VecDeque::new();
        for name in [OLDER, FILE] {
            let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
            newest.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
        }
        let last_takeover = newest.iter().rev().find(|entry: &&Entry| entry.takeover.is_some()).cloned();
        let surplus = newest.len().saturating_sub(IN_MEMORY_MAX);
        newest.drain(..surplus);
        let writer = Writer { dir: dir.to_path_buf(), file: None, bytes: 0 };
        let (entries, to_write) = sync_channel(WAITING_MAX);
        let thread = std::thread::Builder::new().name("duet-history".to_owned()).spawn(move || writer.run(&to_write));
        // Without a thread there is no file, and nothing worse.
        let writer = thread.ok().map(|thread| (entries, thread));
        Self { inner: Mutex::new(Inner { newest, last_takeover, ..Inner::default() }), writer }
    }

    /// The newest entries, oldest first.
    #[must_use]
    pub fn newest(&self) -> Vec<Entry> {
        self.inner.lock().newest.iter().cloned().collect()
    }

    /// The last takeover that this node carried out.
    #[must_use]
    pub fn last_takeover(&self) -> Option<Entry> {
        self.inner.lock().last_takeover.clone()
    }

    /// How many takeovers were added since the process started.
    #[must_use]
    pub fn takeovers(&self) -> Takeovers {
        self.inner.lock().takeovers
    }

    /// Adds an entry, logs it, and has it written. A disk that refuses it costs the entry only.
    pub fn add(&self, state: &State, what: &str, text: String, takeover: Option<Takeover>) {
        let epoch = state.record.seen.map_or(0, |seen| seen.epoch);
        tracing::info!(target: "duet::pair", what, epoch, "{text}");
        let at_ms = clock::unix_ms().unwrap_or(0);
        let entry = Entry { at_ms, node: letter(state.me()), epoch, what: what.to_owned(), text, takeover };
        if let Some((entries, _)) = &self.writer
            && entries.try_send(entry.clone()).is_err()
        {
            tracing::debug!("the history's disk doesn't keep up: an entry isn't written");
        }
        let mut inner = self.inner.lock();
        if takeover.is_some() {
            inner.last_takeover = Some(entry.clone());
        }
        match takeover {
            Some(takeover) if takeover.unplanned => inner.takeovers.unplanned += 1,
            Some(_) => inner.takeovers.planned += 1,
            None => {}
        }
        inner.newest.push_back(entry);
        if inner.newest.len() > IN_MEMORY_MAX {
            inner.newest.pop_front();
        }
    }

    /// Adds what the state machine noted.
    pub fn note(&self, state: &State, note: Note) {
        let (what, text) = tell(note);
        self.add(state, what, text.to_owned(), None);
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if let Some((entries, thread)) = self.writer.take() {
            drop(entries);
            let _ = thread.join();
        }
    }
}

impl Writer {
    fn run(mut self, entries: &Receiver<Entry>) {
        for entry in entries {
            if let Err(error) = self.write(&entry) {
                tracing::debug!(%error, "the history could not be written");
                self.file = None;
            }
        }
    }

    fn write(&mut self, entry: &Entry) -> std::io::Result<()> {
        let path = self.dir.join(FILE);
        if self.file.is_some() && self.bytes >= FILE_BYTES_MAX {
            self.file = None;
            fs::rename(&path, self.dir.join(OLDER))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().append(true).create(true).open(&path)?;
                self.bytes = file.metadata()?.len();
                none.insert(file)
            }
        };
        let mut line = serde_json::to_string(entry)?;
        line.push('\n');
        file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

fn tell(note: Note) -> (&'static str, &'static str) {
    match note {
        Note::Began => ("began", "the store was begun on this node"),
        Note::Follows => ("follows", "this node follows its peer"),
        Note::Leads => ("leads", "this node leads"),
        Note::Opened => ("opened", "requests are answered here from now on"),
        Note::PeerLost => ("peer-lost", "the peer is gone or doesn't confirm anything: asking to go on alone"),
        Note::Solo => ("solo", "SOLO: the owner goes on alone; the peer may not take over"),
        Note::Paired => ("paired", "PAIR: both nodes have everything; either can go on alone"),
        Note::AgreedAsym => ("asym", "ASYM: there is no witness; only the owner may go on alone"),
        Note::TakesOver => ("takes-over", "the leader is gone or has given up: asking to take over"),
        Note::Forced => ("forced", "an operator has made this node the owner, whatever the other one may have acknowledged"),
        Note::Paused => ("paused", "failover by itself is paused"),
        Note::Resumed => ("resumed", "failover happens by itself again"),
        Note::Fences => ("fences", "the peer isn't heard: having its machine put off, to go on without it"),
        Note::Demoted => ("demoted", "the peer has taken over: this node stops at once and will follow"),
        Note::WasLate => ("was-late", "this process was stopped for a while; whatever it suspected is forgotten"),
        Note::Tampered => (
            "tampered",
            "somebody changed synchronous_standby_names: nothing is answered until it is set right again and proved to be in force",
        ),
        Note::HandsOver => ("hands-over", "requests are held for a switchover"),
        Note::DiskStalls => (
            "disk-stalls",
            "the disk of this node's PostgreSQL takes nothing any more: asking the peer, which has everything, to take over",
        ),
        Note::HandsOverFullDisk => {
            ("hands-over-full-disk", "this node's disk is nearly full and the peer's isn't: requests are held for a switchover")
        }
        Note::HandoverFailed => ("handover-failed", "the peer did not take over in time: going on here"),
        Note::PeerAway => ("peer-away", "the peer is in maintenance: going on alone, and not waiting for it"),
        Note::PeerBack => ("peer-back", "the peer's maintenance has ended: both are a pair again as soon as it has caught up"),
        Note::Rebuilds => ("rebuilds", "this node's copy can't be used: it is made anew from the leader's"),
        Note::OwnsNothing => (
            "owns-nothing",
            "this node is the owner and has no whole copy of the data: it can't lead. If the peer's copy is what should be kept, run on the \
             peer: duet failover --accept-data-loss",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::fsm::{NodeId, Record, Setup, Third, Timing};

    fn state() -> State {
        let setup = Setup { me: NodeId::B, timing: Timing::FAST, third: Third::Witness, begins: false };
        State::new(setup, Record::default(), 0)
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart_and_a_torn_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path());
        history.note(&state(), Note::Leads);
        let takeover = Takeover { unplanned: true, detect_ms: 1000, ..Takeover::default() };
        history.add(&state(), "took-over", "took over".to_owned(), Some(takeover));
        let newest = history.newest();
        assert_eq!(history.takeovers(), Takeovers { planned: 0, unplanned: 1 });
        drop(history);
        let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
        file.write_all(b"{\"at_ms\":1,\"no").unwrap();
        let again = History::open(dir.path());
        assert_eq!(again.newest(), newest);
        assert_eq!(again.last_takeover().unwrap().takeover, Some(takeover));
        assert_eq!(again.takeovers(), Takeovers::default(), "they are counted from the process's start");
    }

    #[test]
    fn the_last_takeover_is_known_however_many_entries_follow() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path());
        history.add(&state(), "took-over", "took over".to_owned(), Some(Takeover::default()));
        (0..2 * IN_MEMORY_MAX).for_each(|_| history.note(&state(), Note::WasLate));
        let known = history.last_takeover();
        assert!(known.is_some());
        drop(history);
        assert_eq!(History::open(dir.path()).last_takeover(), known);
    }

    #[test]
    fn files_and_memory_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let history = History::open(dir.path());
            (0..WAITING_MAX).for_each(|_| history.note(&state(), Note::OwnsNothing));
            assert_eq!(history.newest().len(), IN_MEMORY_MAX);
        }
        let size = |name| fs::metadata(dir.path().join(name)).map_or(0, |meta| meta.len());
        assert!(size(FILE) > 0 && size(OLDER) > 0 && size(FILE) + size(OLDER) < 2 * FILE_BYTES_MAX + 4096);
    }
}
