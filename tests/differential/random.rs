//! Random scripts: transactions, ranges, deletes, watches, leases and compactions over a small key space, from a seed.
//!
//! A seed and a number of steps give the same script on every machine. `regressions.txt` keeps the seeds that once showed a difference;
//! they are played first.
//!
//! Left out, because etcd itself isn't deterministic or breaks there: lease expiry; sorts of more than 12 pairs with equal keys (Go's sort
//! isn't stable there); a compaction while a revision's delete and later put of one key is current (etcd 3.7.3 loses the pair and dies at
//! the next read of it).

use std::env;

use anyhow::{Context, Result, bail};
use duet::proto::etcdserverpb::compare::{CompareResult, TargetUnion};
use duet::proto::etcdserverpb::watch_create_request::FilterType;
use duet::proto::etcdserverpb::watch_request::RequestUnion;
use duet::proto::etcdserverpb::*;

use crate::report::Report;
use crate::script::*;
use crate::server::Pair;
use crate::shrink;

const REGRESSIONS: &str = include_str!("regressions.txt");

/// Which random scripts to play, and how long each is.
pub struct Seeds {
    seeds: Vec<(u64, usize)>,
}

impl Seeds {
    /// From `DUET_DIFF_SEEDS` and `DUET_DIFF_STEPS`, after those that are kept.
    pub fn from_env() -> Result<Seeds> {
        let steps = match env::var("DUET_DIFF_STEPS") {
            Ok(text) => text.parse().context("DUET_DIFF_STEPS isn't a number")?,
            Err(_) => 2000,
        };
        let text = env::var("DUET_DIFF_SEEDS").unwrap_or_else(|_| "4".to_owned());
        let number = |text: &str| text.trim().parse::<u64>();
        let wrong = || format!("DUET_DIFF_SEEDS is `{text}`, not a number or A..B");
        let (from, to) = match text.split_once("..") {
            Some((from, to)) => (number(from).with_context(wrong)?, number(to).with_context(wrong)?),
            None => (0, number(&text).with_context(wrong)?),
        };
        let mut seeds = regressions()?;
        seeds.extend((from..to).map(|seed| (seed, steps)));
        Ok(Seeds { seeds })
    }

    pub fn filter(mut self, wanted: bool) -> Seeds {
        self.seeds.retain(|_| wanted);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }
}

/// Lines of `seed steps`, with a comment behind.
fn regressions() -> Result<Vec<(u64, usize)>> {
    let mut seeds = Vec::new();
    for line in REGRESSIONS.lines() {
        let line = line.split('#').next().unwrap_or_default();
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            [seed, steps] => seeds.push((seed.parse()?, steps.parse()?)),
            _ => bail!("regressions.txt: `{line}` isn't a seed and a number of steps"),
        }
    }
    Ok(seeds)
}

/// Plays the random scripts; what differs is shrunk and reported.
pub async fn run(pair: &mut Pair, seeds: &Seeds, report: &mut Report) -> Result<()> {
    for &(seed, steps) in &seeds.seeds {
        let store = if on_fresh_store(seed) { Store::Fresh(Vec::new()) } else { Store::Shared };
        let name = format!("seed {seed}, {steps} steps");
        let case = Case { area: "random", store, ..case(&name, script(seed, steps)) };
        let mut problem = crate::compare_on(pair, &case).await?;
        if let Some(first) = &problem {
            let shrunk = shrink::shrink(pair, case.clone(), first).await?;
            problem = Some(format!(
                "  DUET_DIFF_SEEDS={seed}..{} DUET_DIFF_STEPS={steps}, shrunk to {} steps:\n{}",
                seed + 1,
                shrunk.case.steps.len(),
                shrunk.difference
            ));
        }
        report.outcome(&format!("random: {}", case.name), problem);
    }
    Ok(())
}

/// Every fourth script gets servers of its own: only there do hashes over the whole history mean something.
fn on_fresh_store(seed: u64) -> bool {
    seed.is_multiple_of(4)
}

/// The script of a seed.
pub fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut generator = Generator::new(seed);
    let mut script = Vec::with_capacity(steps);
    while script.len() < steps {
        let step = generator.step();
        script.push(step);
    }
    script
}

/// SplitMix64: the seeds that are kept must mean the same for good, whatever a library does.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

const KEYS: [&[u8]; 9] = [b"a", b"b", b"c", b"a\0", b"a\0\0", b"\0", b"\xff", b"\xc3\x28", b"ab"];
const ENDS: [&[u8]; 12] = [b"", b"", b"", b"\0", b"\0", b"b", b"c", b"d", b"a\0\0", b"\xff", b"\xff\xff", b"\0\0"];
const VALUES: [&[u8]; 5] = [b"", b"1", b"2", b"\0", b"\xff\xfe"];
const LEASES: [i64; 4] = [5, 6, -7, 1000];
const STREAMS: usize = 2;

struct Generator {
    random: Random,
    /// About where the store stands: every write counts, whether it changes anything or not.
    revision: i64,
    /// Whether the script compacts, or else has deletes and puts of one key in one revision.
    compacts: bool,
    open: [bool; STREAMS],
    next_watch_id: i64,
}

impl Generator {
    fn new(seed: u64) -> Generator {
        Generator { random: Random(seed), revision: 1, compacts: seed % 4 != 3, open: [false; STREAMS], next_watch_id: 100 }
    }

    fn step(&mut self) -> Step {
        match self.random.below(100) {
            0..18 => self.put_step(),
            18..26 => self.delete_step(),
            26..50 => self.txn(3).into(),
            50..66 => self.get().into(),
            66..68 => self.get().stream(),
            68..78 => self.lease_step(),
            78..90 => self.watch_step(),
            90..95 => settle(self.random.below(STREAMS)),
            95..98 => self.compaction(),
            98 if self.random.one_in(4) => self.restart(),
            _ => self.maintenance(),
        }
    }

    fn put_step(&mut self) -> Step {
        self.revision += 1;
        self.put().into()
    }

    fn delete_step(&mut self) -> Step {
        self.revision += 1;
        self.delete().into()
    }

    fn key(&mut self) -> &'static [u8] {
        self.random.pick(&KEYS)
    }

    fn end(&mut self) -> &'static [u8] {
        self.random.pick(&ENDS)
    }

    /// Mostly one that exists.
    fn at(&mut self) -> i64 {
        match self.random.below(12) {
            0 => 0,
            1 => -1,
            2 => self.revision + self.random.below(5) as i64,
            _ => 1 + self.random.below(self.revision as usize) as i64,
        }
    }

    fn lease(&mut self) -> i64 {
        self.random.pick(&LEASES)
    }

    fn put(&mut self) -> Set {
        let key = self.key();
        let mut request = put(key, self.random.pick(&VALUES));
        if self.random.one_in(6) {
            request = request.lease(self.lease());
        }
        if self.random.one_in(3) {
            request = request.prev_kv();
        }
        if self.random.one_in(10) {
            request = request.ignore_value();
            if !self.random.one_in(4) {
                request.0.value.clear();
            }
        }
        if self.random.one_in(10) {
            request = request.ignore_lease();
        }
        if self.random.one_in(200) {
            request.0.key.clear();
        }
        request
    }

    fn delete(&mut self) -> Del {
        let mut request = delete(self.key()).to(self.end());
        if self.random.one_in(2) {
            request = request.prev_kv();
        }
        request
    }

    fn get(&mut self) -> Get {
        let mut request = get(self.key()).to(self.end());
        if self.random.one_in(2) {
            request = request.rev(self.at());
        }
        if self.random.one_in(3) {
            request = request.limit(self.random.below(5) as i64);
        }
        if self.random.one_in(3) {
            let (target, order) = (self.random.below(5), self.random.below(3));
            request = request.sort_numbers((target as i32, order as i32));
        }
        for bound in 0..4 {
            if self.random.one_in(12) {
                let at = self.at();
                request = match bound {
                    0 => request.min_mod(at),
                    1 => request.max_mod(at),
                    2 => request.min_create(at),
                    _ => request.max_create(at),
                };
            }
        }
        request.0.keys_only = self.random.one_in(5);
        request.0.count_only = self.random.one_in(6);
        request.0.serializable = self.random.one_in(6);
        request
    }

    fn compare(&mut self) -> Compare {
        let target = match self.random.below(5) {
            0 => TargetUnion::Version(self.random.below(4) as i64),
            1 => TargetUnion::CreateRevision(self.at()),
            2 => TargetUnion::ModRevision(self.at()),
            3 => TargetUnion::Value(b(self.random.pick(&VALUES))),
            _ => TargetUnion::Lease(self.lease()),
        };
        let result =
            self.random.pick(&[CompareResult::Equal, CompareResult::NotEqual, CompareResult::Greater, CompareResult::Less]);
        let end: &[u8] = if self.random.one_in(3) { self.end() } else { b"" };
        cmp_to(self.key(), end, target, result)
    }

    fn txn(&mut self, levels: usize) -> If {
        self.revision += i64::from(levels == 3);
        let compares = self.random.below(3);
        let compares: Vec<Compare> = (0..compares).map(|_| self.compare()).collect();
        let success = self.operations(levels);
        let failure = self.operations(levels);
        when(compares).then(success).or_else(failure)
    }

    fn operations(&mut self, levels: usize) -> Vec<RequestOp> {
        let n = self.random.below(4);
        (0..n).map(|_| self.operation(levels)).collect()
    }

    fn operation(&mut self, levels: usize) -> RequestOp {
        match self.random.below(12) {
            0..4 => self.put().into(),
            4..6 => self.delete_inside().into(),
            6..9 => self.get().into(),
            _ if levels > 0 => self.txn(levels - 1).into(),
            _ => self.put().into(),
        }
    }

    /// In scripts that compact, nothing that slips through the overlap rule: see the module's comment.
    fn delete_inside(&mut self) -> Del {
        let mut request = self.delete();
        if self.compacts && request.0.range_end.as_ref() == [0] {
            request.0.range_end.clear();
        }
        request
    }

    fn lease_step(&mut self) -> Step {
        let id = self.lease();
        match self.random.below(10) {
            // Far apart, so that their order by expiry is certain.
            0..4 => grant(id, 10_000 + 1000 * LEASES.iter().position(|l| *l == id).unwrap_or(0) as i64),
            4..6 => {
                self.revision += 1;
                revoke(id)
            }
            6 => keep_alive(&[id, self.lease()]),
            7..9 => time_to_live(id, true),
            _ => leases(),
        }
    }

    fn watch_step(&mut self) -> Step {
        let stream = self.random.below(STREAMS);
        if !self.open[stream] {
            self.open[stream] = true;
            return open(stream);
        }
        match self.random.below(10) {
            0..6 => self.create_watch(stream),
            6..8 => {
                let id = match self.random.below(3) {
                    0 => 100 + self.random.below(4) as i64,
                    _ => self.random.below(5) as i64,
                };
                // What is still under way to a watch when it is cancelled may or may not arrive.
                Step::Group(vec![settle(stream), cancel(stream, id), settle(stream)])
            }
            8 => Step::Group(vec![settle(stream), progress(stream), settle(stream)]),
            _ => {
                self.open[stream] = false;
                Step::Group(vec![settle(stream), Step::Drop(stream)])
            }
        }
    }

    fn create_watch(&mut self, stream: Stream) -> Step {
        let mut create = watch(stream, self.key()).to(self.end());
        if self.random.one_in(2) {
            create = create.from(self.at());
        }
        if self.random.one_in(2) {
            create = create.prev_kv();
        }
        create.1.fragment = self.random.one_in(4);
        create.1.progress_notify = self.random.one_in(4);
        if self.random.one_in(6) {
            create = create.without(&[self.random.pick(&[FilterType::Noput, FilterType::Nodelete])]);
        }
        if self.random.one_in(4) {
            self.next_watch_id = 100 + self.random.below(4) as i64;
            create = create.id(self.next_watch_id);
        }
        // A replay and the writes after it may come in any number of responses, but a watch that has its prev_kv
        // looked up while a later step compacts may or may not find it.
        Step::from(create)
    }

    fn compaction(&mut self) -> Step {
        if !self.compacts {
            return settle(self.random.below(STREAMS));
        }
        let revision = self.at();
        let physical = self.random.one_in(2);
        let compact = Step::Call(Request::Compact(CompactionRequest { revision, physical }));
        // A replay that is under way may or may not still find what is compacted.
        let mut steps: Vec<Step> = (0..STREAMS).filter(|&s| self.open[s]).map(settle).collect();
        steps.push(compact);
        Step::Group(steps)
    }

    fn restart(&mut self) -> Step {
        let mut steps: Vec<Step> = (0..STREAMS).filter(|&s| self.open[s]).map(settle).collect();
        steps.push(Step::Restart);
        self.open = [false; STREAMS];
        Step::Group(steps)
    }

    fn maintenance(&mut self) -> Step {
        match self.random.below(4) {
            0 => status(),
            1 => Step::Call(Request::Defragment(DefragmentRequest {})),
            // Not those in between: etcd remembers the hashes of its last compactions.
            2 => hash_kv(0),
            _ => hash_kv(self.revision + 1000),
        }
    }
}

/// What shrinking can take out of a transaction, one thing at a time.
pub fn smaller_txns(txn: &TxnRequest) -> Vec<TxnRequest> {
    let mut smaller = Vec::new();
    for i in 0..txn.compare.len() {
        let mut less = txn.clone();
        less.compare.remove(i);
        smaller.push(less);
    }
    let branches: [fn(&mut TxnRequest) -> &mut Vec<RequestOp>; 2] = [|txn| &mut txn.success, |txn| &mut txn.failure];
    for branch in branches {
        let mut whole = txn.clone();
        for (i, op) in branch(&mut whole).clone().into_iter().enumerate() {
            let mut less = txn.clone();
            branch(&mut less).remove(i);
            smaller.push(less);
            if let Some(request_op::Request::RequestTxn(inner)) = op.request {
                for inner in smaller_txns(&inner) {
                    let mut less = txn.clone();
                    branch(&mut less)[i].request = Some(request_op::Request::RequestTxn(inner));
                    smaller.push(less);
                }
            }
        }
    }
    smaller
}

/// Whether a step is the creation of a watch, whose options shrinking can reset.
pub fn plainer_watch(request: &RequestUnion) -> Option<RequestUnion> {
    let RequestUnion::CreateRequest(create) = request else {
        return None;
    };
    let plain = WatchCreateRequest {
        key: create.key.clone(),
        range_end: create.range_end.clone(),
        start_revision: create.start_revision,
        watch_id: create.watch_id,
        prev_kv: create.prev_kv,
        ..Default::default()
    };
    (plain != *create).then_some(RequestUnion::CreateRequest(plain))
}
