//! The published state: every key's history down to the compact revision, and a ring of recent revisions for watchers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::digest::Digest;
use super::event::{Event, RevisionEvents};
use super::hash::{HashScope, HashStep};
use super::overlay::{newest, version_of};
use super::view::{ReadView, Value, Version};
use crate::storage::{Batch, LogRow};
use crate::types::{KeyRange, Rev, Revision};

/// About what one version costs in storage beside its key and value, in bytes: a row's header, its fixed columns and its index entry.
const ROW_OVERHEAD: usize = 96;
/// How many keys one eviction pass may look at before it gives up until the next change.
const EVICTION_VISITS_MAX: usize = 4096;

/// How many stores this process has made.
static INSTANCES: AtomicU64 = AtomicU64::new(0);

/// Limits on what the store keeps in memory.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of values kept in memory; beyond it they are read back from storage.
    pub value_budget: usize,
    /// Bytes of recent events kept for watchers that lag a little; beyond it they replay from storage.
    pub ring_budget: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { value_budget: 256 << 20, ring_budget: 32 << 20 }
    }
}

/// One key's versions, ascending; never empty.
#[derive(Debug)]
struct History {
    versions: Vec<Version>,
    /// Read by its own name since the eviction hand last passed.
    touched: AtomicBool,
}

/// The published multi-version state.
///
/// Invariants: `current` ≥ every version's revision; `compacted` ≤ `current`; `resident` is the sum of the resident values' lengths;
/// the ring holds consecutive revisions ending at `current`.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    instance: u64,
    keys: BTreeMap<Bytes, History>,
    current: Revision,
    compacted: Revision,
    /// The compact revision before the last compaction that was applied; `compacted` itself after a restore.
    compacted_before: Revision,
    /// Of the newest revision's rows.
    digest: Digest,
    ring: VecDeque<Arc<RevisionEvents>>,
    ring_bytes: usize,
    resident: usize,
    in_use: usize,
    live_keys: usize,
    evictions: u64,
    /// Where the eviction hand stands: the last key it looked at.
    hand: Option<Bytes>,
}

/// What one step of a compaction took out of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepStep {
    /// The rows that no one can read any more: storage may delete them.
    pub removed: Vec<Rev>,
    /// Where the next step begins; `None` when the sweep has seen every key.
    pub next: Option<Bytes>,
}

impl Store {
    /// An empty store: revision 1, nothing compacted.
    pub fn new(options: StoreOptions) -> Self {
        Self {
            options,
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            keys: BTreeMap::new(),
            current: 1,
            compacted: -1,
            compacted_before: -1,
            digest: Digest::default(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            resident: 0,
            in_use: 0,
            live_keys: 0,
            evictions: 0,
            hand: None,
        }
    }

    /// Tells this store from every other one of the process.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// Applies one committed batch and returns the events of each of its revisions. The only way by which the logical state changes.
    ///
    /// # Panics
    /// When the batch doesn't continue history, which would mean that a gap or a repetition is about to be served. Rows that are
    /// recovered after a compaction may leave gaps at or below the compact revision; see [`Store::restore`].
    pub fn apply(&mut self, batch: &Batch) -> Vec<Arc<RevisionEvents>> {
        let mut published = Vec::new();
        for rows in batch.rows.chunk_by(|left, right| left.rev.main == right.rev.main) {
            let revision = rows[0].rev.main;
            assert_eq!(revision, self.current + 1, "revisions are gapless");
            let events = rows.iter().map(|row| self.apply_row(row, revision - 1)).collect();
            self.current = revision;
            published.push(Arc::new(RevisionEvents { revision, events }));
        }
        if let Some(compacted) = batch.compacted {
            assert!(self.compacted < compacted && compacted <= self.current, "compaction moves forward, to the past");
            self.compacted_before = self.compacted;
            self.compacted = compacted;
        }
        for events in &published {
            self.remember(events);
        }
        self.evict();
        published
    }

    /// Takes in rows read back from storage, in history order, when the live path's events are of no interest: recovery. `compacted`
    /// is the stored compact revision, up to which gaps are legal.
    ///
    /// # Errors
    /// The revision at which history has a hole above the compact revision, or goes back: storage has lost rows.
    pub fn restore(&mut self, rows: &[LogRow], compacted: Revision) -> Result<(), Revision> {
        for row in rows {
            let revision = row.rev.main;
            let continues = revision == self.current || revision == self.current + 1;
            let in_compacted_past = revision > self.current && revision <= compacted.saturating_add(1);
            if !continues && !in_compacted_past {
                return Err(self.current + 1);
            }
            self.current = revision;
            self.apply_row(row, revision - 1);
        }
        self.evict();
        Ok(())
    }

    /// Ends a restore: sets the compact revision. The log's newest rows may all have been compacted away, so history may have gone
    /// on to the compact revision, or to a newer one that is known to have been `reached`, without leaving rows.
    pub fn finish_restore(&mut self, compacted: Revision, reached: Revision) {
        self.compacted = self.compacted.max(compacted);
        self.compacted_before = self.compacted;
        self.current = self.current.max(self.compacted).max(reached);
    }

    fn apply_row(&mut self, row: &LogRow, before: Revision) -> Event {
        let version = version_of(row);
        self.digest.add(row);
        let value_len = version.value.len();
        self.resident += value_len;
        self.in_use += row.key.len() + value_len + ROW_OVERHEAD;
        let mut row = row.clone();
        let prev = match self.keys.get_key_value(&row.key) {
            Some((key, history)) => {
                row.key = key.clone();
                newest(&history.versions, before).filter(|version| !version.is_tombstone()).cloned()
            }
            None => None,
        };
        let history = self
            .keys
            .entry(row.key.clone())
            .or_insert_with(|| History { versions: Vec::with_capacity(1), touched: AtomicBool::new(false) });
        let was_live = history.versions.last().is_some_and(|last| !last.is_tombstone());
        debug_assert!(history.versions.last().is_none_or(|last| last.rev < version.rev), "history is ascending");
        match (was_live, version.is_tombstone()) {
            (false, false) => self.live_keys += 1,
            (true, true) => self.live_keys -= 1,
            _ => {}
        }
        history.versions.push(version);
        Event { row, prev }
    }

    fn remember(&mut self, events: &Arc<RevisionEvents>) {
        self.ring_bytes += events.weight();
        self.ring.push_back(Arc::clone(events));
        while self.ring_bytes > self.options.ring_budget {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.weight();
        }
    }

    /// Recent revisions from `from` to the current one, if the ring reaches back that far.
    pub fn ring_from(&self, from: Revision) -> Option<impl Iterator<Item = &Arc<RevisionEvents>>> {
        let oldest = self.ring.front()?.revision;
        let skip = usize::try_from(from.checked_sub(oldest)?).ok()?;
        (skip <= self.ring.len()).then(|| self.ring.iter().skip(skip))
    }

    /// Evicts values until the budget holds: the hand goes round the keys; a key read since its last visit keeps its newest value
    /// once more.
    fn evict(&mut self) {
        let mut visits = 0;
        while self.resident > self.options.value_budget && visits < EVICTION_VISITS_MAX {
            let start = self.hand.take().map_or(Bound::Unbounded, Bound::Excluded);
            let mut last = None;
            for (key, history) in self.keys.range_mut::<Bytes, _>((start, Bound::Unbounded)) {
                visits += 1;
                last = Some(key);
                let (values, bytes) = history.evict();
                self.evictions += values;
                self.resident -= bytes;
                if self.resident <= self.options.value_budget || visits >= EVICTION_VISITS_MAX {
                    break;
                }
            }
            visits += 1;
            self.hand = last.cloned();
        }
    }

    /// Puts a value that was read back from storage into memory again, if its version still exists. It takes the place of values that
    /// were read less lately.
    pub fn admit(&mut self, key: &[u8], rev: Rev, value: &Bytes) {
        if value.len() > self.options.value_budget {
            return;
        }
        let Some(history) = self.keys.get_mut(key) else { return };
        let Some(version) = history.versions.iter_mut().find(|version| version.rev == rev) else { return };
        if let Value::Evicted(len) = version.value {
            debug_assert_eq!(len as usize, value.len());
            version.value = Value::Resident(value.clone());
            self.resident += value.len();
            history.touched.store(true, Ordering::Relaxed);
            self.evict();
        }
    }

    /// One bounded step of removing what the compact revision made unreachable: looks at `max` keys from `from` on, and removes `max`
    /// versions, at most.
    pub fn sweep(&mut self, from: Option<&Bytes>, max: usize) -> SweepStep {
        let start = from.map_or(Bound::Unbounded, |key| Bound::Included(key.clone()));
        let mut step = SweepStep::default();
        let mut emptied = Vec::new();
        for (visited, (key, history)) in self.keys.range_mut::<Bytes, _>((start, Bound::Unbounded)).enumerate() {
            if visited == max || step.removed.len() == max {
                step.next = Some(key.clone());
                break;
            }
            let unreachable = first_reachable(&history.versions, self.compacted);
            let keep_from = unreachable.min(max - step.removed.len());
            for version in history.versions.drain(..keep_from) {
                self.in_use -= key.len() + version.value.len() + ROW_OVERHEAD;
                if let Value::Resident(value) = &version.value {
                    self.resident -= value.len();
                }
                step.removed.push(version.rev);
            }
            if history.versions.is_empty() {
                emptied.push(key.clone());
            } else if keep_from > 0 {
                history.versions.shrink_to(history.versions.len() + 1);
            }
            if keep_from < unreachable {
                step.next = Some(key.clone());
                break;
            }
        }
        for key in emptied {
            self.keys.remove(&key);
        }
        step
    }

    /// One bounded step of gathering the rows that a hash covers: looks at `keys_max` keys from `from` on.
    pub fn hash_step(&self, scope: HashScope, from: Option<&Bytes>, keys_max: usize) -> HashStep {
        let start = from.map_or(Bound::Unbounded, |key| Bound::Included(key.clone()));
        let mut step = HashStep::default();
        for (visited, (key, history)) in self.keys.range::<Bytes, _>((start, Bound::Unbounded)).enumerate() {
            if visited == keys_max {
                step.next = Some(key.clone());
                break;
            }
            let versions = &history.versions[first_reachable(&history.versions, scope.compacted)..];
            scope.select(key, versions, &mut step);
        }
        step
    }

    /// The digest of the newest revision's rows; `None` when compaction has taken them before they were read.
    pub fn digest(&self) -> Option<u32> {
        self.digest.of(self.current)
    }

    /// The compact revision before the last compaction; the present one if that isn't known.
    pub fn compacted_before(&self) -> Revision {
        self.compacted_before
    }

    /// Live keys with their newest version: for recovery (leases) and for counting.
    pub fn live_keys(&self) -> impl Iterator<Item = (&Bytes, &Version)> {
        self.keys
            .iter()
            .filter_map(|(key, history)| history.versions.last().map(|last| (key, last)))
            .filter(|(_, version)| !version.is_tombstone())
    }

    /// How many keys live at the current revision.
    pub fn live_key_count(&self) -> usize {
        self.live_keys
    }

    /// How many keys the index holds, deleted ones that aren't swept included.
    pub fn indexed_key_count(&self) -> usize {
        self.keys.len()
    }

    /// Bytes of values in memory.
    pub fn resident_bytes(&self) -> usize {
        self.resident
    }

    /// How many values were dropped from memory so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How many revisions the ring holds.
    pub fn ring_len(&self) -> usize {
        self.ring.len()
    }

    /// About how many bytes the reachable history takes in storage.
    pub fn in_use_bytes(&self) -> usize {
        self.in_use
    }
}

impl History {
    /// Drops values from memory: all but the newest; the newest too unless it was touched. Returns how many, and the bytes
    /// freed.
    fn evict(&mut self) -> (u64, usize) {
        let spare_newest = self.touched.swap(false, Ordering::Relaxed);
        let newest = self.versions.len() - 1;
        let (mut values, mut freed) = (0, 0);
        for (index, version) in self.versions.iter_mut().enumerate() {
            if index == newest && spare_newest {
                continue;
            }
            if let Value::Resident(value) = &version.value
                && !value.is_empty()
            {
                values += 1;
                freed += value.len();
                version.value = Value::Evicted(u32::try_from(value.len()).expect("a value is far below 4 GiB"));
            }
        }
        (values, freed)
    }
}

/// The index of the first version that must be kept once everything at or below `compacted` but its newest is compacted away. A
/// tombstone goes too, unless it stands exactly at the compact revision: a watcher that starts there must see it.
fn first_reachable(versions: &[Version], compacted: Revision) -> usize {
    let below = versions.partition_point(|version| version.rev.main <= compacted);
    match below.checked_sub(1) {
        None => 0,
        Some(last) if versions[last].is_tombstone() && versions[last].rev.main < compacted => below,
        Some(last) => last,
    }
}

impl ReadView for Store {
    fn current(&self) -> Revision {
        self.current
    }

    fn compacted(&self) -> Revision {
        self.compacted
    }

    fn find(&self, key: &[u8], at: Revision) -> Option<(&Bytes, &Version)> {
        let (key, history) = self.keys.get_key_value(key)?;
        newest(&history.versions, at).map(|version| (key, version))
    }

    fn visit<'a>(
        &'a self,
        range: &KeyRange,
        at: Revision,
        visit: &mut dyn FnMut(&'a Bytes, &'a Version) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if range.is_empty() {
            return ControlFlow::Continue(());
        }
        if let KeyRange::Key(key) = range {
            let Some((key, history)) = self.keys.get_key_value(key) else { return ControlFlow::Continue(()) };
            // Only reads of one key count as use: a list of everything would make every value look useful.
            if !history.touched.load(Ordering::Relaxed) {
                history.touched.store(true, Ordering::Relaxed);
            }
            return newest(&history.versions, at).map_or(ControlFlow::Continue(()), |version| visit(key, version));
        }
        for (key, history) in self.keys.range::<[u8], _>(range.bounds()) {
            if let Some(version) = newest(&history.versions, at) {
                visit(key, version)?;
            }
        }
        ControlFlow::Continue(())
    }
}
