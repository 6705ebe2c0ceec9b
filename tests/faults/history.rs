//! What happened, as clients saw it, held against what is stored: the checker of every fault test.
//!
//! Every write carries a token of its own as the first word of each value that it puts, so that it is recognised wherever it shows up.
//! The first watch sees everything from the first revision on; replaying it gives the state at each revision, and everything else
//! (answers, lists, other watches, the log's rows, leases) must agree with that. What an answer left open may have happened or not, but
//! once at most.
//!
//! It deliberately knows nothing of servers, faults and time: evidence in, violations out.

use std::collections::BTreeMap;

/// What is known about a write's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, at this revision.
    Acknowledged(i64),
    /// Answered with an error that promises that nothing was done.
    Refused,
    /// Answered with any other error, or not at all.
    Unknown,
}

/// One transaction of one client.
#[derive(Clone, Debug)]
pub struct Write {
    /// The first word of every value that it puts.
    pub token: String,
    /// Keys that it puts; at least one.
    pub puts: Vec<Vec<u8>>,
    /// Other keys, which it deletes where they exist.
    pub deletes: Vec<Vec<u8>>,
    /// The revision that the first put key had to have (0: no such key), if that was asked for.
    pub compared: Option<i64>,
    /// What its client was told.
    pub outcome: Outcome,
}

/// A key-value as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The value, or, of a long one, its first word, length and checksum.
    pub value: Vec<u8>,
    /// As in etcd.
    pub create_revision: i64,
    /// As in etcd.
    pub version: i64,
    /// As in etcd; 0: none.
    pub lease: i64,
}

impl Stored {
    /// Takes down what was found.
    pub fn new(value: &[u8], create_revision: i64, version: i64, lease: i64) -> Self {
        let mut kept = value.to_vec();
        if value.len() > LONG {
            kept.truncate(value.iter().position(|byte| *byte == b' ').unwrap_or(LONG));
            kept.extend(format!(" {} bytes, CRC-32C {:x}", value.len(), crc32c::crc32c(value)).bytes());
        }
        Self { value: kept, create_revision, version, lease }
    }
}

/// One change of one key: an event, or a row of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its revision.
    pub revision: i64,
    /// The key.
    pub key: Vec<u8>,
    /// What it is now; None: deleted.
    pub put: Option<Stored>,
}

/// The answer to a list.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The header's revision.
    pub revision: i64,
    /// Every key with this prefix was asked for.
    pub prefix: Vec<u8>,
    /// Key, mod revision, and what is stored.
    pub kvs: Vec<(Vec<u8>, i64, Stored)>,
}

/// Everything that one watcher was sent, over all its streams.
#[derive(Clone, Debug, Default)]
pub struct WatchLog {
    /// The prefix that it watched.
    pub prefix: Vec<u8>,
    /// From which revision on.
    pub from: i64,
    /// In the order of arrival.
    pub changes: Vec<Change>,
}

/// All that a test has gathered. All of it was taken after the last write had been answered, but for listings and watches.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Every write.
    pub writes: Vec<Write>,
    /// Every list that was answered, the last one of everything included.
    pub listings: Vec<Listing>,
    /// The first one watched everything from the first revision on.
    pub watches: Vec<WatchLog>,
    /// The log's rows, sorted.
    pub log: Vec<Change>,
    /// The compact revision; -1: never.
    pub compacted: i64,
    /// Leases whose grant was acknowledged and that can't have run out.
    pub leases_granted: Vec<i64>,
    /// Leases that there are.
    pub leases: Vec<i64>,
}

/// Keys below this prefix may vanish with their lease, without anybody's write.
pub const LEASED: &[u8] = b"leased/";
/// Bytes of a value that is kept whole.
const LONG: usize = 256;
/// The revision of a store's first write.
const FIRST: i64 = 2;

type State = BTreeMap<Vec<u8>, (i64, Stored)>;

impl Evidence {
    /// What must not be; empty when all is well.
    pub fn violations(&self) -> Vec<String> {
        let mut check = Check { evidence: self, state: State::new(), applied: BTreeMap::new(), violations: Vec::new() };
        check.replay();
        check.writes();
        check.other_watches();
        check.log();
        check.leases();
        check.violations
    }

    /// Panics with the violations, if there are some; says how much there was to check.
    pub fn assert_sound(&self, seed: u64) {
        let of = |wanted: fn(&Outcome) -> bool| self.writes.iter().filter(|write| wanted(&write.outcome)).count();
        eprintln!(
            "seed {seed}: {} writes acknowledged, {} refused, {} unknown; {} lists; {} leases; {} changes, compacted at {}",
            of(|outcome| matches!(outcome, Outcome::Acknowledged(_))),
            of(|outcome| matches!(outcome, Outcome::Refused)),
            of(|outcome| matches!(outcome, Outcome::Unknown)),
            self.listings.len(),
            self.leases_granted.len(),
            self.watches[0].changes.len(),
            self.compacted,
        );
        let violations = self.violations();
        let shown: Vec<&str> = violations.iter().take(20).map(String::as_str).collect();
        assert!(violations.is_empty(), "seed {seed}: {} violations, such as:\n{}", violations.len(), shown.join("\n"));
    }
}

struct Check<'a> {
    evidence: &'a Evidence,
    state: State,
    /// Token to the revisions at which it was found.
    applied: BTreeMap<&'a str, Vec<i64>>,
    violations: Vec<String>,
}

impl<'a> Check<'a> {
    fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    /// Builds the state revision by revision; looks at each revision and at the lists that were answered there.
    fn replay(&mut self) {
        let evidence = self.evidence;
        let writes: BTreeMap<&str, &Write> = evidence.writes.iter().map(|write| (write.token.as_str(), write)).collect();
        if writes.len() != evidence.writes.len() {
            self.violated("the test used a token twice");
        }
        let mut listings: Vec<&Listing> = evidence.listings.iter().collect();
        listings.sort_by_key(|listing| listing.revision);
        let mut listings = listings.into_iter().peekable();
        let mut expected = FIRST;
        for changes in evidence.watches[0].changes.chunk_by(|left, right| left.revision == right.revision) {
            let revision = changes[0].revision;
            if revision != expected {
                self.violated(format!("the watch of everything got revision {revision} where {expected} was due"));
            }
            expected = revision + 1;
            while let Some(listing) = listings.next_if(|listing| listing.revision < revision) {
                self.listing(listing);
            }
            self.revision(revision, changes, &writes);
        }
        for listing in listings {
            if listing.revision >= expected {
                self.violated(format!("a list came from revision {}, which no watch was told of", listing.revision));
            }
            self.listing(listing);
        }
    }

    fn revision(&mut self, revision: i64, changes: &'a [Change], writes: &BTreeMap<&str, &'a Write>) {
        let mut tokens: Vec<&str> = changes.iter().filter_map(|change| change.put.as_ref()).map(token).collect();
        tokens.dedup();
        match tokens[..] {
            [] => {
                if let Some(change) = changes.iter().find(|change| !change.key.starts_with(LEASED)) {
                    self.violated(format!("revision {revision} deleted {} without a write", show(&change.key)));
                }
            }
            [token] => match writes.get(token) {
                Some(write) => self.write(revision, changes, write),
                None => self.violated(format!("revision {revision} has the token {token}, which nobody wrote")),
            },
            _ => self.violated(format!("revision {revision} mixes the writes {tokens:?}")),
        }
        for change in changes {
            self.change(change);
        }
    }

    /// One write's changes, before they are applied.
    fn write(&mut self, revision: i64, changes: &[Change], write: &'a Write) {
        self.applied.entry(&write.token).or_default().push(revision);
        let due = write.puts.iter().map(|key| (key, true));
        let deleted = write.deletes.iter().filter(|key| self.state.contains_key(*key)).map(|key| (key, false));
        let mut due: Vec<(&Vec<u8>, bool)> = due.chain(deleted).collect();
        let mut found: Vec<(&Vec<u8>, bool)> = changes.iter().map(|change| (&change.key, change.put.is_some())).collect();
        due.sort();
        found.sort();
        if due != found {
            self.violated(format!(
                "revision {revision} has {} changes of {}, and {} were due",
                found.len(),
                write.token,
                due.len()
            ));
        }
        let before = self.state.get(&write.puts[0]).map_or(0, |(revision, _)| *revision);
        if write.compared.is_some_and(|compared| compared != before) {
            self.violated(format!("{} compared {:?} and was applied upon {before}", write.token, write.compared));
        }
    }

    fn change(&mut self, change: &Change) {
        let Change { revision, key, put } = change;
        let Some(put) = put else {
            if self.state.remove(key).is_none() {
                self.violated(format!("revision {revision} deleted {}, which did not exist", show(key)));
            }
            return;
        };
        let (create_revision, version) =
            self.state.get(key).map_or((*revision, 1), |(_, before)| (before.create_revision, before.version + 1));
        if (put.create_revision, put.version) != (create_revision, version) {
            self.violated(format!("revision {revision} gave {} version {}, and {version} was due", show(key), put.version));
        }
        self.state.insert(key.clone(), (*revision, put.clone()));
    }

    /// A list shows the state of its revision: all of it, and nothing else.
    fn listing(&mut self, listing: &Listing) {
        let due = self.state.iter().filter(|(key, _)| key.starts_with(&listing.prefix));
        let due = due.map(|(key, (revision, stored))| (key, *revision, stored));
        if !due.clone().eq(listing.kvs.iter().map(|(key, revision, stored)| (key, *revision, stored))) {
            let (prefix, due) = (show(&listing.prefix), due.count());
            self.violated(format!(
                "a list of {prefix} at revision {} has {} keys; it is not what was stored then, {due} keys",
                listing.revision,
                listing.kvs.len()
            ));
        }
    }

    fn writes(&mut self) {
        for write in &self.evidence.writes {
            let applied = self.applied.get(write.token.as_str()).map_or(&[][..], Vec::as_slice);
            let sound = match write.outcome {
                Outcome::Acknowledged(revision) => *applied == [revision],
                Outcome::Refused => applied.is_empty(),
                Outcome::Unknown => applied.len() <= 1,
            };
            if !sound {
                let what = format!("{} was answered with {:?} and is at revisions {applied:?}", write.token, write.outcome);
                self.violated(what);
            }
        }
    }

    fn other_watches(&mut self) {
        let evidence = self.evidence;
        for watch in &evidence.watches[1..] {
            let due = evidence.watches[0].changes.iter().filter(|c| c.revision >= watch.from && c.key.starts_with(&watch.prefix));
            if let Some(Difference { at, due, found }) = differ(due, watch.changes.iter()) {
                self.violated(format!(
                    "the watch of {} from {} was sent {} as its event {at}, and {} was due",
                    show(&watch.prefix),
                    watch.from,
                    found.map_or("nothing".to_owned(), |change| format!("{} of {}", show(&change.key), change.revision)),
                    due.map_or("nothing".to_owned(), |change| format!("{} of {}", show(&change.key), change.revision)),
                ));
            }
        }
    }

    /// The log has everything after the compact revision; of what came before, at least what was live there and nothing else than
    /// what had happened.
    fn log(&mut self) {
        let evidence = self.evidence;
        let history = &evidence.watches[0].changes;
        let due = history.iter().filter(|change| change.revision > evidence.compacted);
        let found = evidence.log.iter().filter(|change| change.revision > evidence.compacted);
        if let Some(Difference { at, due, found }) = differ(due, found) {
            let of = |change: Option<&Change>| change.map_or(0, |change| change.revision);
            self.violated(format!("row {at} of the log is of revision {}, and one of {} was due", of(found), of(due)));
        }
        let known: BTreeMap<(i64, &[u8]), &Change> =
            history.iter().map(|change| ((change.revision, change.key.as_slice()), change)).collect();
        let old: Vec<&Change> = evidence.log.iter().filter(|change| change.revision <= evidence.compacted).collect();
        for row in &old {
            if known.get(&(row.revision, row.key.as_slice())) != Some(row) {
                self.violated(format!("the log has a row of {} at {} that nobody was told of", show(&row.key), row.revision));
            }
        }
        let mut live: BTreeMap<&[u8], &Change> = BTreeMap::new();
        for change in history.iter().filter(|change| change.revision <= evidence.compacted) {
            live.insert(&change.key, change);
        }
        let rows: std::collections::BTreeSet<(i64, &[u8])> = old.iter().map(|row| (row.revision, row.key.as_slice())).collect();
        for change in live.into_values().filter(|change| change.put.is_some()) {
            if !rows.contains(&(change.revision, change.key.as_slice())) {
                self.violated(format!("compaction took {} of revision {}, which is needed", show(&change.key), change.revision));
            }
        }
    }

    fn leases(&mut self) {
        for id in &self.evidence.leases_granted {
            if !self.evidence.leases.contains(id) {
                self.violated(format!("lease {id} is lost"));
            }
        }
    }
}

/// Where two sequences part, and how each goes on there.
struct Difference<'c> {
    at: usize,
    due: Option<&'c Change>,
    found: Option<&'c Change>,
}

fn differ<'c>(mut due: impl Iterator<Item = &'c Change>, mut found: impl Iterator<Item = &'c Change>) -> Option<Difference<'c>> {
    for at in 0.. {
        let (due, found) = (due.next(), found.next());
        if due != found {
            return Some(Difference { at, due, found });
        }
        due?;
    }
    None
}

fn token(stored: &Stored) -> &str {
    let word = stored.value.split(|byte| *byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(word).unwrap_or("(no text)")
}

fn show(key: &[u8]) -> String {
    format!("\"{}\"", key.escape_ascii())
}

mod tests {
    //! A checker that finds nothing proves nothing: each kind of loss is shown to it once.
    use super::*;

    fn put(revision: i64, key: &str, token: &str, create_revision: i64, version: i64) -> Change {
        let stored = Stored { value: token.into(), create_revision, version, lease: 0 };
        Change { revision, key: key.into(), put: Some(stored) }
    }

    fn write(token: &str, key: &str, outcome: Outcome) -> Write {
        Write { token: token.into(), puts: vec![key.into()], deletes: Vec::new(), compared: None, outcome }
    }

    /// One write acknowledged, one refused, one of unknown outcome that was applied; all seen by everybody.
    fn sound() -> Evidence {
        let changes = vec![put(2, "a", "one", 2, 1), put(3, "a", "three", 2, 2)];
        let kvs = vec![(b"a".to_vec(), 3, changes[1].put.clone().unwrap())];
        Evidence {
            writes: vec![
                write("one", "a", Outcome::Acknowledged(2)),
                write("two", "a", Outcome::Refused),
                Write { compared: Some(2), ..write("three", "a", Outcome::Unknown) },
            ],
            listings: vec![Listing { revision: 3, prefix: Vec::new(), kvs }],
            watches: vec![
                WatchLog { prefix: Vec::new(), from: 1, changes: changes.clone() },
                WatchLog { prefix: b"a".to_vec(), from: 3, changes: vec![changes[1].clone()] },
            ],
            log: changes,
            compacted: -1,
            leases_granted: vec![7],
            leases: vec![7, 8],
        }
    }

    #[track_caller]
    fn assert_found(change: impl FnOnce(&mut Evidence), expected: &str) {
        let mut evidence = sound();
        change(&mut evidence);
        let violations = evidence.violations().join("\n");
        assert!(violations.contains(expected), "{expected:?} is not in {violations:?}");
    }

    #[test]
    fn a_sound_history_is_found_sound() {
        assert_eq!(sound().violations(), [""; 0]);
        let compacted = Evidence { compacted: 3, log: sound().log[1..].to_vec(), ..sound() };
        assert_eq!(compacted.violations(), [""; 0]);
    }

    #[test]
    fn each_kind_of_loss_is_found() {
        assert_found(|e| e.writes[0].outcome = Outcome::Acknowledged(3), "one was answered with Acknowledged(3)");
        assert_found(|e| e.writes[2].outcome = Outcome::Refused, "three was answered with Refused");
        assert_found(|e| e.writes[2].compared = Some(1), "was applied upon 2");
        assert_found(|e| e.writes[0].puts.push(b"b".to_vec()), "1 changes of one, and 2 were due");
        assert_found(|e| drop(e.watches[0].changes.remove(0)), "got revision 3 where 2 was due");
        assert_found(|e| drop(e.watches[1].changes.remove(0)), "was sent nothing");
        assert_found(|e| drop(e.writes.remove(0)), "which nobody wrote");
        assert_found(|e| drop(e.log.remove(1)), "one of 3 was due");
        assert_found(|e| e.listings[0].kvs.clear(), "has 0 keys");
        assert_found(|e| e.listings[0].revision = 2, "not what was stored then");
        assert_found(|e| e.listings[0].revision = 4, "which no watch was told of");
        assert_found(|e| e.leases.clear(), "lease 7 is lost");
        assert_found(|e| (e.compacted, e.log) = (3, e.log[..1].to_vec()), "which is needed");
    }

    #[test]
    fn an_unknown_write_that_was_applied_twice_is_found() {
        let twice = put(4, "a", "three", 2, 3);
        let change = |e: &mut Evidence| {
            e.watches.iter_mut().for_each(|watch| watch.changes.push(twice.clone()));
            e.log.push(twice.clone());
            e.writes[2].compared = None;
        };
        assert_found(change, "three was answered with Unknown and is at revisions [3, 4]");
    }
}
