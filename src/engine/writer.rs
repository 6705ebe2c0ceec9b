//! The writer task: acquire, recover, serve; and again from the start when the session is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use super::admission::Used;
use super::answer::{Answer, refuse};
use super::metrics::Applied;
use super::proposal::Proposal;
use super::publish::publish;
use super::reads::ROUNDS_MAX;
use super::{Error, ReadRight, Request, Role, Shared, overtaken, recovery, replication};
use crate::mvcc::{Loaded, Operations};
use crate::sequencer::{Command, Failure, Reply, Sequencer};
use crate::storage::{Batch, BoxFuture, LogError, Writer};
use crate::types::{LeaseId, Rev};

/// How many requests are taken from the queue before the batch is offered to the writer again.
const REQUESTS_PER_TURN: usize = 256;
/// How often expired leases are looked for (etcd: 500 ms).
const LEASE_TICK: Duration = Duration::from_millis(500);
/// How many expired leases are revoked in one tick (etcd: 1,000 a second).
const LEASES_EXPIRED_PER_TICK: usize = 500;
/// How often the lessor's clock is stored while there are leases: a crash lengthens a lease by no more than this.
const LESSOR_CLOCK_INTERVAL: Duration = Duration::from_secs(5);
/// How long batches in flight may take to fail or finish once one of them has failed, or at stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long reading values back for a write may take.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// What watch streams are ended with when this process stops being the writer; clients open them anew elsewhere.
const NO_LEADER: &str = "etcdserver: no leader";
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

type Confirm = oneshot::Sender<Result<(), Error>>;

/// Runs until the engine is stopped or storage turns out to be unusable.
pub(super) async fn drive(shared: Arc<Shared>, mut requests: mpsc::Receiver<Request>, mut confirms: mpsc::Receiver<Confirm>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match session(&shared, &mut requests, &mut confirms).await {
            Ok(()) => break,
            Err(LogError::Unusable(why)) => {
                tracing::error!("{why}");
                shared.set_role(Role::Failed(why));
                shared.hub.end_streams(NO_LEADER);
                shared.stop.cancelled().await;
                break;
            }
            Err(error) => {
                let lost_leadership = matches!(error, LogError::Deposed(_));
                tracing::warn!(%error, "the writer's session ended; a new one will be opened");
                if lost_leadership || !shared.log.may_write() {
                    shared.set_role(Role::Standby);
                    // A follower's watches go on with what the next leader publishes.
                    if shared.options.leader.is_none() {
                        shared.hub.end_streams(NO_LEADER);
                    }
                    backoff = BACKOFF_MIN;
                    // They were never sent: their clients try again, elsewhere.
                    while let Ok(request) = requests.try_recv() {
                        request.refuse(Error::NotApplied);
                    }
                }
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => break,
            () = tokio::time::sleep(backoff) => {}
        }
        backoff = if *shared.role.borrow() == Role::Active { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
    }
    shared.set_role(Role::Stopped);
}

/// One session as the writer, from acquiring it to its end. `Ok` means that the engine was stopped.
async fn session(
    shared: &Arc<Shared>,
    requests: &mut mpsc::Receiver<Request>,
    confirms: &mut mpsc::Receiver<Confirm>,
) -> Result<(), LogError> {
    if *shared.role.borrow() == Role::Recovering && !shared.log.may_write() {
        return Err(LogError::Deposed("the right to write ended with the session".to_owned()));
    }
    let advertise = shared.options.advertise_client_urls.clone();
    let mut writer = tokio::select! {
        writer = shared.log.acquire(true, advertise) => writer?,
        error = replication::follow(shared) => return Err(error),
        () = overtaken::overtaken(shared) => return Err(LogError::Deposed("another replica has become the writer".to_owned())),
        () = shared.stop.cancelled() => return Ok(()),
    };
    if shared.disk_usage.last() == 0 {
        // Status is answered while recovering, and etcdctl's table divides by the size without looking.
        shared.refresh_disk_usage().await;
    }
    shared.set_role(Role::Recovering);
    recovery::recover(shared, writer.as_mut()).await?;
    let mut serving = Serving::new(shared, writer.as_mut());
    shared.set_role(Role::Active);
    shared.compaction.notify_one();
    let ended = serving.run(requests, confirms).await;
    drop(serving);
    shared.clock.pause();
    if ended.is_err() {
        // Requests go on being queued meanwhile; they are answered by the next session or time out.
        shared.set_role(Role::Recovering);
    }
    shared.followers.clear();
    if ended.is_ok() {
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, writer.close()).await;
    }
    ended
}

/// A batch on its way to storage, and the answers that wait for it.
struct InFlight {
    batch: Arc<Batch>,
    answers: Vec<Answer>,
    sent: Instant,
}

/// The state of one session while it serves.
struct Serving<'a> {
    shared: &'a Arc<Shared>,
    writer: &'a mut dyn Writer,
    sequencer: Sequencer,
    /// Taken from the queue and not evaluated yet: the open batch was full.
    taken: VecDeque<Request>,
    results: FuturesOrdered<BoxFuture<'static, Result<(), LogError>>>,
    in_flight: VecDeque<InFlight>,
    /// Answers that belong to the open batch.
    answers: Vec<Answer>,
    /// Values that were read back, to be taken into memory once the store isn't being read.
    to_admit: Vec<(Used, Loaded)>,
    loads: FuturesUnordered<BoxFuture<'static, (Request, Result<Loaded, Error>)>>,
    confirming: OptionFuture<BoxFuture<'static, Result<(), LogError>>>,
    confirms_sent: Vec<Confirm>,
    confirms_waiting: Vec<Confirm>,
    clock_stored: Instant,
}

impl<'a> Serving<'a> {
    fn new(shared: &'a Arc<Shared>, writer: &'a mut dyn Writer) -> Self {
        let sequencer = {
            let store = shared.store.read();
            Sequencer::new(&store, shared.lessor.lock().ids())
        };
        Self {
            shared,
            writer,
            sequencer,
            taken: VecDeque::with_capacity(REQUESTS_PER_TURN),
            results: FuturesOrdered::new(),
            in_flight: VecDeque::new(),
            answers: Vec::new(),
            to_admit: Vec::new(),
            loads: FuturesUnordered::new(),
            confirming: None.into(),
            confirms_sent: Vec::new(),
            confirms_waiting: Vec::new(),
            clock_stored: Instant::now(),
        }
    }

    async fn run(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        confirms: &mut mpsc::Receiver<Confirm>,
    ) -> Result<(), LogError> {
        let mut lease_ticks = tokio::time::interval(LEASE_TICK);
        let mut received = Vec::with_capacity(REQUESTS_PER_TURN);
        lease_ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut session_ended = self.writer.ended();
        loop {
            self.evaluate_taken();
            self.send_open_batch();
            if !self.taken.is_empty() && self.accepts() {
                continue;
            }
            self.send_confirm();
            tokio::select! {
                // What is rare comes first: a queue that is never empty must not starve it.
                biased;
                () = self.shared.stop.cancelled() => return self.finish(requests).await,
                // What was under way when it ended has answers of its own, which say more.
                () = &mut session_ended, if self.in_flight.is_empty() => {
                    self.refuse_confirms();
                    return Err(LogError::Unavailable("the connection has ended".to_owned()));
                }
                _ = lease_ticks.tick() => self.tick_leases(),
                Some(result) = self.results.next(), if !self.in_flight.is_empty() => match result {
                    Ok(()) if !self.shared.options.read_right.may_acknowledge() => return Err(self.fail(not_allowed()).await),
                    Ok(()) => self.publish(),
                    Err(error) => return Err(self.fail(error).await),
                },
                Some(result) = &mut self.confirming => self.confirmed(result)?,
                _ = confirms.recv_many(&mut self.confirms_waiting, REQUESTS_PER_TURN) => {}
                Some((request, loaded)) = self.loads.next(), if !self.loads.is_empty() => self.retry(request, loaded),
                _ = requests.recv_many(&mut received, REQUESTS_PER_TURN), if self.taken.is_empty() => self.taken.extend(received.drain(..)),
            }
        }
    }

    // --- taking requests in ---------------------------------------------------------------------------------------------------

    fn accepts(&mut self) -> bool {
        !self.sequencer.open().is_full(self.shared.options.batch)
    }

    /// Evaluates what was taken from the queue until the open batch is full.
    fn evaluate_taken(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let shared = Arc::clone(self.shared);
        let store = shared.store.read();
        while self.accepts()
            && let Some(request) = self.taken.pop_front()
        {
            self.shared.metrics.engine.queue_wait_seconds.observe(request.asked.at.elapsed().as_secs_f64());
            self.evaluate(request, &store);
        }
    }

    /// Evaluates one request and files its answer behind everything that it may depend on.
    fn evaluate(&mut self, request: Request, store: &crate::mvcc::Store) {
        if !request.reply.take() {
            // Nothing has been done yet, and nothing will be.
            return;
        }
        let now = self.shared.clock.now();
        let mut operations = Operations::default();
        let outcome = {
            let lessor = self.shared.lessor.lock();
            self.sequencer.evaluate(&request.command, store, &lessor, &request.loaded, now, &mut operations)
        };
        match outcome {
            Err(Failure::NeedValues(revs)) if request.loads < ROUNDS_MAX => self.load(request, revs),
            // Nobody waits for the answer, and there is nothing to be done, such as when the revocation of an expired lease is under way.
            Err(_) if request.proposal.is_some() => request.proposal.into_iter().for_each(Proposal::withdraw),
            outcome => {
                let is_own = request.proposal.is_some();
                let applied = Applied::new(operations, &request.command, outcome.is_ok(), is_own);
                if let (Command::Txn(txn), Ok(Reply::Txn(response)), false) =
                    (&request.command, &outcome, request.loaded.is_empty())
                {
                    self.to_admit.push((Used::txn(txn, response), request.loaded));
                }
                let result = outcome.map_err(Error::from);
                self.file(Answer {
                    reply: request.reply.decide(),
                    result,
                    asked: request.asked,
                    applied,
                    proposal: request.proposal,
                    _queued: request.queued,
                    staged: Instant::now(),
                });
            }
        }
    }

    /// An answer may rest on changes that aren't durable yet (even a failed compare may): it waits for the newest batch there is.
    fn file(&mut self, answer: Answer) {
        if !self.sequencer.open().is_empty() {
            self.answers.push(answer);
        } else if let Some(last) = self.in_flight.back_mut() {
            last.answers.push(answer);
        } else {
            self.give_confirmed(answer);
        }
    }

    /// An answer that rests on nothing but what is published: a read, in effect, which needs the right to read.
    fn give_confirmed(&mut self, mut answer: Answer) {
        let may_read = match &self.shared.options.read_right {
            ReadRight::Exclusive => true,
            ReadRight::Lease(lease) => lease.may_read(),
            ReadRight::Confirm => {
                let (confirm, confirmed) = oneshot::channel();
                self.confirms_waiting.push(confirm);
                let shared = Arc::clone(self.shared);
                tokio::spawn(async move {
                    if !matches!(confirmed.await, Ok(Ok(()))) {
                        answer.result = Err(Error::NotApplied);
                    }
                    shared.count_decided([&answer]);
                    answer.give();
                });
                return;
            }
        };
        if answer.asked.at.elapsed() >= self.shared.options.slow_request {
            self.shared.metrics.engine.slow_requests_total.inc();
            answer.tell_slow_unbatched();
        }
        if !may_read {
            answer.result = Err(Error::NotApplied);
        }
        self.shared.count_decided([&answer]);
        answer.give();
    }

    fn load(&mut self, request: Request, revs: Vec<Rev>) {
        let shared = Arc::clone(self.shared);
        self.loads.push(Box::pin(async move {
            let loaded = match tokio::time::timeout(LOAD_TIMEOUT, shared.load_values(revs)).await {
                Ok(loaded) => loaded,
                Err(_) => Err(Error::Storage("reading values back took too long".into())),
            };
            (request, loaded)
        }));
    }

    fn retry(&mut self, mut request: Request, loaded: Result<Loaded, Error>) {
        match loaded {
            Ok(loaded) => {
                request.loads += 1;
                request.loaded.extend(loaded);
                let shared = Arc::clone(self.shared);
                let store = shared.store.read();
                self.evaluate(request, &store);
                drop(store);
                self.to_admit.drain(..).for_each(|(used, loaded)| shared.admit(&used, &loaded));
            }
            Err(error) => {
                tracing::warn!(%error, "a write was refused because values that it needs could not be read back");
                request.refuse(Error::NotApplied);
            }
        }
    }

    // --- storage --------------------------------------------------------------------------------------------------------------

    /// Group commit without timers: the batch goes as soon as the pipeline has room, with whatever has gathered until then.
    fn send_open_batch(&mut self) {
        if self.sequencer.open().is_empty() || self.in_flight.len() >= self.shared.options.pipeline_depth {
            return;
        }
        let has_leases = !self.shared.lessor.lock().is_empty();
        if has_leases && self.clock_stored.elapsed() >= LESSOR_CLOCK_INTERVAL {
            self.clock_stored = Instant::now();
            self.sequencer.open().set_lessor_clock(self.shared.clock.now());
        }
        let batch = Arc::new(self.sequencer.open().take());
        self.results.push_back(self.writer.append(Arc::clone(&batch)));
        self.shared.metrics.engine.batches_in_flight.inc();
        self.in_flight.push_back(InFlight { batch, answers: std::mem::take(&mut self.answers), sent: Instant::now() });
    }

    /// The oldest batch in flight is durable: make it visible, then answer.
    fn publish(&mut self) {
        let done = self.in_flight.pop_front().expect("a result belongs to a batch");
        let revision = publish(self.shared, &done.batch);
        self.shared.followers.publish(&done.batch);
        self.sequencer.published(revision);
        self.shared.count_published(&done.batch, &done.answers, done.sent.elapsed());
        self.shared.metrics.engine.batches_in_flight.dec();
        let slow = self.shared.options.slow_request;
        for answer in done.answers {
            if answer.asked.at.elapsed() >= slow {
                self.shared.metrics.engine.slow_requests_total.inc();
                answer.tell_slow(done.sent, done.batch.rows.len());
            }
            answer.give();
        }
        if done.batch.compacted.is_some() {
            self.shared.compaction.notify_one();
        }
    }

    /// A batch failed, so everything after it fails too. Waits for those answers, tells every client what is known about its
    /// request, and hands the error back.
    async fn fail(&mut self, error: LogError) -> LogError {
        let first = self.in_flight.pop_front().expect("a result belongs to a batch");
        self.shared.metrics.engine.batches_in_flight.set(0);
        self.shared.metrics.engine.storage_errors_total.inc();
        if matches!(error, LogError::Unknown(_)) {
            self.shared.metrics.engine.unknown_batches_total.inc_by(1 + self.in_flight.len() as u64);
        }
        refuse(first.answers, Error::from(&error));
        let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
        while let Some(batch) = self.in_flight.pop_front() {
            let fate = match tokio::time::timeout_at(deadline, self.results.next()).await {
                Ok(Some(Err(error))) => Error::from(&error),
                // Success after a failure would break the session's contract: nobody knows what storage holds.
                Ok(_) | Err(_) => Error::Timeout,
            };
            refuse(batch.answers, fate);
        }
        refuse(std::mem::take(&mut self.answers), Error::NotApplied);
        self.taken.drain(..).for_each(|request| request.refuse(Error::NotApplied));
        self.refuse_confirms();
        error
    }

    /// The engine stops: what was queued is refused, what is under way is finished, the lessor's clock is stored.
    async fn finish(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), LogError> {
        requests.close();
        self.taken.extend(std::iter::from_fn(|| requests.try_recv().ok()));
        for request in self.taken.drain(..) {
            request.refuse(Error::Stopped);
        }
        if !self.shared.lessor.lock().is_empty() {
            let now = self.shared.clock.now();
            self.sequencer.open().set_lessor_clock(now);
        }
        let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
        loop {
            self.send_open_batch();
            if self.in_flight.is_empty() {
                break;
            }
            match tokio::time::timeout_at(deadline, self.results.next()).await {
                Ok(Some(Ok(()))) if !self.shared.options.read_right.may_acknowledge() => {
                    return Err(self.fail(not_allowed()).await);
                }
                Ok(Some(Ok(()))) => self.publish(),
                Ok(Some(Err(error))) => return Err(self.fail(error).await),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    // --- linearizable reads ---------------------------------------------------------------------------------------------------

    /// One round trip at a time on the writer's session serves every read that was waiting when it was sent.
    fn send_confirm(&mut self) {
        if self.confirms_waiting.is_empty() || !self.confirms_sent.is_empty() {
            return;
        }
        self.confirms_waiting.retain(|confirm| !confirm.is_closed());
        self.confirms_sent = std::mem::take(&mut self.confirms_waiting);
        if !self.confirms_sent.is_empty() {
            self.confirming = Some(self.writer.confirm()).into();
        }
    }

    fn confirmed(&mut self, result: Result<(), LogError>) -> Result<(), LogError> {
        self.confirming = None.into();
        match result {
            Ok(()) => {
                self.confirms_sent.drain(..).for_each(|confirm| drop(confirm.send(Ok(()))));
                Ok(())
            }
            Err(error) => {
                self.refuse_confirms();
                // Batches in flight share the session's fate; their own results will say what became of them.
                if self.in_flight.is_empty() { Err(error) } else { Ok(()) }
            }
        }
    }

    /// This session can't confirm the reads that wait; they ask again while their own deadlines last.
    fn refuse_confirms(&mut self) {
        for confirm in self.confirms_sent.drain(..).chain(self.confirms_waiting.drain(..)) {
            let _ = confirm.send(Err(Error::NotApplied));
        }
    }

    // --- leases ---------------------------------------------------------------------------------------------------------------

    fn tick_leases(&mut self) {
        let now = self.shared.clock.now();
        let (expired, any): (Vec<LeaseId>, bool) = {
            let mut lessor = self.shared.lessor.lock();
            (lessor.expired(now, LEASES_EXPIRED_PER_TICK), !lessor.is_empty())
        };
        let shared = Arc::clone(self.shared);
        let store = shared.store.read();
        for id in expired {
            let revocation = Request::internal(Command::LeaseRevoke { id }, &shared.metrics);
            self.evaluate(revocation, &store);
        }
        drop(store);
        if any && self.clock_stored.elapsed() >= LESSOR_CLOCK_INTERVAL {
            self.clock_stored = Instant::now();
            self.sequencer.open().set_lessor_clock(now);
        }
    }
}

/// Storage has it, and somebody else may lead by now: the next session, or the next leader, reads back what holds.
fn not_allowed() -> LogError {
    LogError::Unknown("committed at a moment when this process may acknowledge nothing".to_owned())
}
