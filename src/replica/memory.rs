//! What clients of a store have been shown, as this replica remembers it, and what it says when a database doesn't have that.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::file::{Files, Remembered, Unread};
use crate::engine::{Engine, Seen};
use crate::types::Revision;

/// How often what has grown is written to disk.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Who says what clients have been shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This process: it has shown it.
    Here,
    /// The file.
    File,
    /// The replica with this URL.
    Replica(String),
}

/// Why a store is refused, whatever is in it.
#[derive(Clone, Debug)]
enum Refused {
    /// It was found in the place of this other one.
    InPlaceOf(u64),
    /// Nobody can read what clients have seen of it.
    Spoilt(String),
}

#[derive(Clone, Debug)]
struct Known {
    seen: Seen,
    source: Source,
    refused: Option<Refused>,
    saved: bool,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<u64, Known>,
    /// The store that this process has last been known to serve or to forward to.
    current: Option<u64>,
    /// URLs of the last writer that this replica has forwarded to.
    last_writer: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Memory {
    data_dir: PathBuf,
    /// `None`: there is no place for them.
    files: Option<Files>,
    state: Mutex<State>,
    /// Writes take turns.
    saving: Mutex<()>,
    /// Somebody has been told that writing fails.
    told: AtomicBool,
}

impl Memory {
    /// Remembers in `data_dir`, which is made if it doesn't exist. Without such a place it warns, and remembers for as long as the process
    /// lives.
    pub fn open(data_dir: &Path) -> Self {
        let files = Files::open(data_dir).map_err(|error| {
            tracing::warn!(
                %error,
                "can't write to the data directory {}: after a restart, this replica alone will not notice when the database has lost \
                 what clients have been shown. Give it a place to remember that with --data-dir",
                data_dir.display()
            );
        });
        Self {
            data_dir: data_dir.to_path_buf(),
            files: files.ok(),
            state: Mutex::default(),
            saving: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }

    /// Clients of the store that is served now have been shown this.
    pub fn learn(&self, seen: Seen, source: Source) {
        let mut state = self.state.lock();
        state.current = Some(seen.cluster_id);
        self.raise(&mut state, seen, source);
    }

    /// Clients have been shown this of a store that may or may not be served.
    pub fn hear(&self, seen: Seen, source: Source) {
        self.raise(&mut self.state.lock(), seen, source);
    }

    fn raise(&self, state: &mut State, seen: Seen, source: Source) {
        match self.known(state, seen.cluster_id) {
            Some(known) => {
                let newer = seen.revision > known.seen.revision;
                if known.refused.is_none() && (newer || seen.revision == known.seen.revision && known.seen.digest.is_none()) {
                    *known = Known { seen, source, refused: None, saved: known.saved && known.seen == seen };
                }
            }
            None => drop(state.known.insert(seen.cluster_id, Known { seen, source, refused: None, saved: false })),
        }
    }

    /// What is known of a store, from the file if it wasn't known yet.
    fn known<'s>(&self, state: &'s mut State, cluster_id: u64) -> Option<&'s mut Known> {
        let entry = match state.known.entry(cluster_id) {
            Entry::Occupied(known) => return Some(known.into_mut()),
            Entry::Vacant(entry) => entry,
        };
        let nothing = Seen { cluster_id, revision: 0, digest: None };
        let known = match self.files.as_ref()?.load(cluster_id) {
            Ok(Some(Remembered { seen, in_place_of })) => {
                Known { seen, source: Source::File, refused: in_place_of.map(Refused::InPlaceOf), saved: true }
            }
            Ok(None) => return None,
            Err(Unread::Spoilt(why)) => {
                Known { seen: nothing, source: Source::File, refused: Some(Refused::Spoilt(why)), saved: true }
            }
            Err(Unread::Io(error)) => {
                tracing::warn!(%error, "can't read {}: what it says isn't heeded", self.place(cluster_id).display());
                return None;
            }
        };
        Some(entry.insert(known))
    }

    /// The newest that clients of the present store have been shown.
    pub fn newest(&self) -> Option<Seen> {
        let state = self.state.lock();
        let known = state.known.get(&state.current?)?;
        known.refused.is_none().then_some(known.seen)
    }

    /// The newest that clients of the store `cluster_id` have been shown, be it the present one or not.
    pub fn remembered(&self, cluster_id: u64) -> Option<Seen> {
        let mut state = self.state.lock();
        self.known(&mut state, cluster_id).filter(|known| known.refused.is_none()).map(|known| known.seen)
    }

    /// URLs of the last writer that requests were forwarded to.
    pub fn last_writer(&self) -> Vec<String> {
        self.state.lock().last_writer.clone()
    }

    /// Requests are forwarded to the writer with these URLs.
    pub fn set_last_writer(&self, urls: Vec<String>) {
        self.state.lock().last_writer = urls;
    }

    /// What a writer of the store `cluster_id` must have before requests are forwarded to it; of another store, if that is what clients
    /// have seen.
    ///
    /// # Errors
    /// The explanation why the store is refused in any case.
    pub fn expects(&self, cluster_id: u64) -> Result<Option<Seen>, String> {
        let mut state = self.state.lock();
        if let Some(was) = state.current.filter(|was| *was != cluster_id) {
            return Ok(state.known.get(&was).map(|known| known.seen));
        }
        let Some(known) = self.known(&mut state, cluster_id).cloned() else { return Ok(None) };
        drop(state);
        match known.refused {
            Some(refused) => Err(self.explain_refused(cluster_id, &refused)),
            None => Ok(Some(known.seen)),
        }
    }

    /// Whether the store `cluster_id`, which ends at `last`, may be served as far as its length tells; what must be in it besides.
    ///
    /// # Errors
    /// The explanation why it may not.
    pub fn judge(&self, cluster_id: u64, last: Revision) -> Result<Option<Seen>, String> {
        let was = self.state.lock().current;
        if let Some(was) = was.filter(|was| *was != cluster_id) {
            return Err(self.replaced(was, cluster_id));
        }
        let expected = self.expects(cluster_id)?;
        if let Some(seen) = expected.filter(|seen| seen.revision > last) {
            return Err(self.lacks(seen, last));
        }
        if expected.is_none() && self.files.as_ref().is_some_and(|files| files.has_others(cluster_id)) {
            tracing::warn!(
                "a replica with the data directory {} has shown clients other stores, never this one (cluster id {cluster_id:x})",
                self.data_dir.display()
            );
        }
        let mut state = self.state.lock();
        state.current = Some(cluster_id);
        // Whoever wrote before has been asked: if its machine is gone, that needn't be found out again at each session.
        state.last_writer.clear();
        drop(state);
        Ok(expected)
    }

    /// The explanation for a database that holds the store `found` in the place of `was`; it is refused from now on.
    pub fn replaced(&self, was: u64, found: u64) -> String {
        let seen = Seen { cluster_id: found, revision: 0, digest: None };
        let refused = Refused::InPlaceOf(was);
        let text = self.explain_refused(found, &refused);
        self.state.lock().known.insert(found, Known { seen, source: Source::Here, refused: Some(refused), saved: false });
        text
    }

    /// The explanation for a database that ends at `last`, before what clients have seen.
    pub fn lacks(&self, seen: Seen, last: Revision) -> String {
        self.explain_lost(
            seen,
            &format!("it ends at revision {last}, but revision {} had been committed and shown to clients", seen.revision),
        )
    }

    /// The explanation for a database that has another history than the one that clients have seen.
    pub fn differs(&self, seen: Seen) -> String {
        let what =
            format!("what had been committed as revision {} and shown to clients isn't what it holds there", seen.revision);
        self.explain_lost(seen, &what)
    }

    fn explain_lost(&self, seen: Seen, what: &str) -> String {
        let source = self.state.lock().known.get(&seen.cluster_id).map_or(Source::Here, |known| known.source.clone());
        let source = match source {
            Source::Here => "as this process remembers".to_owned(),
            Source::File => format!("as {} says", self.place(seen.cluster_id).display()),
            Source::Replica(url) => format!("as the replica at {url} remembers"),
        };
        format!(
            "the database has lost committed revisions: {what}, {source}. It was probably failed over to a replica without synchronous \
             replication, or restored from a backup. Serving it would make clients' caches disagree with the store, so it is refused, \
             after a restart, too. Bring the newer database back; or, to accept the loss, {}",
            self.way_out(seen.cluster_id)
        )
    }

    fn explain_refused(&self, cluster_id: u64, refused: &Refused) -> String {
        match refused {
            Refused::InPlaceOf(was) => format!(
                "the database now holds another store (cluster id {cluster_id:x}, was {was:x}): somebody replaced it. Clients of this \
                 replica have seen the old one, so the new one is not served to them, after a restart, too. Bring the old database \
                 back; or, if the change was intended, {}",
                self.way_out(cluster_id)
            ),
            Refused::Spoilt(why) => format!(
                "{} doesn't say what clients have been shown of the store in the database ({why}), so that a loss could go unnoticed. \
                 If the database is whole, remove the file and start again",
                self.place(cluster_id).display()
            ),
        }
    }

    fn way_out(&self, cluster_id: u64) -> String {
        let path = self.place(cluster_id);
        let file = match &self.files {
            Some(_) => format!("{} (on each machine, in its --data-dir)", path.display()),
            None => format!("seen/{cluster_id:016x} in the --data-dir of each (this one has none)"),
        };
        format!("stop all replicas, remove the file {file}, start them again, and restart every client (API servers relist).")
    }

    fn place(&self, cluster_id: u64) -> PathBuf {
        self.files.as_ref().map_or_else(|| self.data_dir.clone(), |files| files.path(cluster_id))
    }

    /// Writes what has grown to disk, and waits for that. Blocks.
    pub fn save(&self) {
        let Some(files) = &self.files else { return };
        let _turn = self.saving.lock();
        let grown: Vec<Known> = self.state.lock().known.values().filter(|known| !known.saved).cloned().collect();
        for known in grown {
            let in_place_of = match known.refused {
                Some(Refused::InPlaceOf(was)) => Some(was),
                Some(Refused::Spoilt(_)) => continue,
                None => None,
            };
            match files.save(&Remembered { seen: known.seen, in_place_of }) {
                Ok(()) => {
                    self.told.store(false, Ordering::Relaxed);
                    if let Some(now) = self.state.lock().known.get_mut(&known.seen.cluster_id) {
                        now.saved = now.seen == known.seen && now.refused.is_some() == known.refused.is_some();
                    }
                }
                Err(error) if !self.told.swap(true, Ordering::Relaxed) => tracing::warn!(
                    %error,
                    "can't write {}: after a restart, this replica alone may not notice that the database has lost what clients have \
                     been shown since",
                    files.path(known.seen.cluster_id).display()
                ),
                Err(_) => {}
            }
        }
    }
}

/// Has what `engine` shows to clients remembered, until the engine ends.
pub async fn keep(memory: Arc<Memory>, engine: Engine) {
    let mut role = engine.role();
    loop {
        let ended = tokio::select! {
            () = tokio::time::sleep(SAVE_INTERVAL) => false,
            // What it has published so far is all that it will, perhaps.
            changed = role.changed() => changed.is_err(),
        };
        if let Some(seen) = engine.seen() {
            memory.learn(seen, Source::Here);
        }
        let writing = Arc::clone(&memory);
        let written = tokio::task::spawn_blocking(move || writing.save()).await;
        if ended || written.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(cluster_id: u64, revision: Revision) -> Seen {
        Seen { cluster_id, revision, digest: Some(1) }
    }

    /// A replica's next process.
    fn restarted(dir: &tempfile::TempDir) -> Memory {
        Memory::open(&dir.path().join("data"))
    }

    #[test]
    fn what_one_process_has_shown_the_next_one_expects_and_less_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = restarted(&dir);
        assert_eq!(first.judge(0xC1, 6), Ok(None), "a new replica knows nothing");
        first.learn(seen(0xC1, 7), Source::Here);
        first.learn(seen(0xC1, 5), Source::Here);
        assert_eq!(first.newest(), Some(seen(0xC1, 7)));
        let why = first.judge(0xC1, 6).unwrap_err();
        assert!(why.contains("ends at revision 6, but revision 7 ") && why.contains("as this process remembers"), "{why}");
        first.save();

        let second = restarted(&dir);
        assert_eq!(second.newest(), None, "it doesn't know which store it is going to serve");
        let file = dir.path().join("data/seen/00000000000000c1");
        let why = second.judge(0xC1, 6).unwrap_err();
        assert!(why.contains(&format!("as {} says", file.display())), "{why}");
        assert_eq!(second.judge(0xC1, 7), Ok(Some(seen(0xC1, 7))));
        assert_eq!(second.expects(0xC1), Ok(Some(seen(0xC1, 7))));

        std::fs::remove_file(file).unwrap();
        assert_eq!(restarted(&dir).judge(0xC1, 6), Ok(None), "an operator has accepted the loss");
    }

    #[test]
    fn what_another_replica_says_counts_as_much() {
        let dir = tempfile::tempdir().unwrap();
        let memory = restarted(&dir);
        memory.hear(seen(0xC1, 9), Source::Replica("http://other".to_owned()));
        assert_eq!(memory.newest(), None, "that store may not be the one that is served");
        let why = memory.judge(0xC1, 8).unwrap_err();
        assert!(why.contains("as the replica at http://other remembers"), "{why}");
        memory.save();
        assert!(restarted(&dir).judge(0xC1, 8).is_err());
    }

    #[test]
    fn a_store_in_the_place_of_another_is_refused_until_its_file_is_removed_and_the_old_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = restarted(&dir);
        first.learn(seen(0xC1, 5), Source::Here);
        let why = first.judge(0xC2, 100).unwrap_err();
        assert!(why.contains("another store (cluster id c2, was c1)") && why.contains("00000000000000c2"), "{why}");
        first.save();
        let second = restarted(&dir);
        assert!(second.judge(0xC2, 100).is_err() && second.expects(0xC2).is_err());
        assert_eq!(second.judge(0xC1, 5), Ok(Some(seen(0xC1, 5))), "the old database is back");
        // One that was never served in its place is another database's: the directory is shared.
        assert_eq!(restarted(&dir).judge(0xC3, 1), Ok(None));
    }

    #[test]
    fn a_file_that_can_not_be_understood_refuses_its_store_only() {
        let dir = tempfile::tempdir().unwrap();
        let first = restarted(&dir);
        first.learn(seen(0xC1, 5), Source::Here);
        first.save();
        let file = dir.path().join("data/seen/00000000000000c1");
        std::fs::write(&file, "nonsense").unwrap();
        let second = restarted(&dir);
        let why = second.judge(0xC1, 5).unwrap_err();
        assert!(why.contains(&file.display().to_string()) && why.contains("remove the file"), "{why}");
        second.save();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "nonsense", "it is not replaced by a guess");
        assert_eq!(second.judge(0xC2, 5), Ok(None));
    }
}
