//! A register in a store that offers only conditional writes. What is there is read, the register's transition applied here, and the
//! result written on the condition that what was read is still there.
//!
//! What isn't obvious:
//!
//! - *A write whose answer was lost* may still be done, even much later. What is there is read again: each write has a number of its own, so
//!   one's own is known; and what has been replaced since can't be written any more, because its condition can't hold again.
//! - *A store that was wiped* holds no register, which is an error and not an empty register. Only [`Witness::begin`] makes one, of a new
//!   history.
//! - *A copy that somebody puts back* is told by its [`Place::Seal`]: what the store itself says of a value that was written by replacing
//!   its predecessor, and of no other. A copy is given a new history by the first node that finds it, and nobody believes that before the
//!   pair's owner has written to it.

use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex as Lock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::{Begun, Witness, WitnessError};
use crate::storage::BoxFuture;
use crate::supervisor::fsm::{Answer, Register, SwapOutcome};
use crate::witness::register::{Refusal, swap};
use crate::witness::stored::{StoredValue, random};

/// How often a write is tried within one deadline: a second time means that somebody else was faster.
const ATTEMPTS: usize = 8;
/// For a beginning, which nobody waits for but an operator.
const BEGIN_DEADLINE: Duration = Duration::from_secs(30);
/// Before one is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Where one text can be kept and replaced on a condition.
pub trait Place: Send + Sync + 'static {
    /// Names what is there: the condition of a write over it.
    type Tag: Send + Sync;
    /// What a text that is written over another must say of itself.
    type Seal: Serialize + DeserializeOwned + Send + Sync;

    /// What is there; `None`: certainly nothing.
    fn get(&self) -> impl Future<Output = Result<Option<Found<Self>>, WitnessError>> + Send;

    /// Writes `text` over what was found, or where nothing is. An error: nobody knows whether it was written, or will be.
    fn put(&self, text: String, over: Option<&Found<Self>>) -> impl Future<Output = Result<Put, WitnessError>> + Send;

    /// For logs and people.
    fn describe(&self) -> String;
}

/// Says whether a seal is that of what was found.
pub type Judge<S> = Box<dyn Fn(&S) -> bool + Send + Sync>;

/// What a place held.
pub struct Found<P: Place + ?Sized> {
    /// As it was written.
    pub text: String,
    /// Its name.
    pub tag: P::Tag,
    /// Whether what is there may say this of itself.
    pub bears: Judge<P::Seal>,
    /// What must be said by whatever replaces it.
    pub next: P::Seal,
}

/// What came of a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is written.
    Written,
    /// It certainly isn't, and won't be: the condition didn't hold.
    Refused,
}

/// What is written. A text that has no instance isn't a register yet: see [`Witness::begin`].
#[derive(Serialize, Deserialize)]
struct Contents<S> {
    cluster: String,
    instance: Option<u64>,
    value: Option<StoredValue>,
    /// Of this write, and no other.
    write: u64,
    seal: Option<S>,
}

/// A register that is there, in an unbroken history.
struct Present<P: Place> {
    found: Found<P>,
    answer: Answer,
    write: u64,
}

/// See the module.
pub struct Conditional<P> {
    place: P,
    cluster: String,
    deadline: Duration,
    // One question and one write at a time: another copy of the same would only be in its way.
    reading: Mutex<()>,
    swapping: Mutex<()>,
    /// What was said last to whoever has to do something about it.
    told: Lock<String>,
}

impl<P: Place> Conditional<P> {
    /// The register of the pair `cluster`.
    pub fn new(place: P, cluster: &str, deadline: Duration) -> Self {
        Self {
            place,
            cluster: cluster.to_owned(),
            deadline,
            reading: Mutex::default(),
            swapping: Mutex::default(),
            told: Lock::default(),
        }
    }

    fn contents(&self, found: &Found<P>) -> Result<Contents<P::Seal>, WitnessError> {
        let name = self.place.describe();
        let contents: Contents<P::Seal> = serde_json::from_str(&found.text)
            .map_err(|error| WitnessError::Unusable(format!("{name} holds no register ({error}); is that the right place?")))?;
        if contents.cluster != self.cluster {
            let (other, own) = (contents.cluster, &self.cluster);
            return Err(WitnessError::Unusable(format!(
                "{name} is the register of the pair \"{other}\"; give \"{own}\" its own"
            )));
        }
        Ok(contents)
    }

    /// What the register holds. A copy gets a new history first.
    async fn present(&self) -> Result<Present<P>, WitnessError> {
        for _ in 0..ATTEMPTS {
            let absent = || {
                let name = self.place.describe();
                WitnessError::Unusable(format!("there is no register at {name}; duet witness begin makes one"))
            };
            let found = self.place.get().await?.ok_or_else(absent)?;
            let contents = self.contents(&found)?;
            let instance = contents.instance.ok_or_else(absent)?;
            let wrong = |error| WitnessError::Unusable(format!("{} holds no register: {error}", self.place.describe()));
            let value = contents.value.as_ref().map(StoredValue::register).transpose().map_err(wrong)?;
            if contents.seal.as_ref().is_some_and(|seal| (found.bears)(seal)) {
                return Ok(Present { found, answer: Answer { instance, value }, write: contents.write });
            }
            tracing::warn!(
                witness = self.place.describe(),
                version = value.map_or(0, |value| value.version),
                "a copy of the register was put in its place: it begins a new history, which counts once the pair's owner has written to it"
            );
            // Whatever comes of it, what is there then is looked at.
            let _ = self.write(Some(&found), Some(random_bits()?), value).await;
        }
        Err(WitnessError::Silent(format!("{} is replaced again and again", self.place.describe())))
    }

    /// The outcome, and the write's own number.
    async fn write(
        &self,
        over: Option<&Found<P>>,
        instance: Option<u64>,
        value: Option<Register>,
    ) -> Result<(Result<Put, WitnessError>, u64), WitnessError> {
        let write = random_bits()?;
        let value = value.map(StoredValue::from);
        let contents = Contents { cluster: self.cluster.clone(), instance, value, write, seal: over.map(|found| &found.next) };
        let text = serde_json::to_string(&contents).expect("numbers and words can be written");
        Ok((self.place.put(text, over).await, write))
    }

    async fn try_swap(&self, instance: u64, expected: u64, new: Register) -> Result<SwapOutcome, WitnessError> {
        let mut own = Vec::new();
        for _ in 0..ATTEMPTS {
            let Present { found, answer, write } = self.present().await?;
            if own.contains(&write) {
                return Ok(SwapOutcome::Applied { instance });
            }
            let next = match swap(answer, instance, expected, new) {
                Ok(next) => next,
                Err(Refusal::Differs(answer) | Refusal::NotNewer(answer)) => return Ok(SwapOutcome::Refused(answer)),
            };
            let (put, write) = self.write(Some(&found), Some(next.instance), next.value).await?;
            if matches!(put, Ok(Put::Written)) {
                return Ok(SwapOutcome::Applied { instance });
            }
            own.push(write);
            sleep(PAUSE).await;
        }
        Ok(SwapOutcome::Unknown)
    }

    async fn try_begin(&self) -> Result<Begun, WitnessError> {
        let name = self.place.describe();
        let ignores =
            |what| WitnessError::Unusable(format!("{name} ignores the condition of a write ({what}): it can't be a witness"));
        let raced = || WitnessError::Silent(format!("somebody else writes to {name}; try again"));
        if self.place.get().await?.is_none() && self.write(None, None, None).await?.0? == Put::Refused {
            return Err(raced());
        }
        let there = || WitnessError::Unusable(format!("{name} doesn't show what was just written to it: it can't be a witness"));
        let first = self.place.get().await?.ok_or_else(there)?;
        if self.contents(&first)?.instance.is_some() {
            return Ok(Begun::Already);
        }
        // Not a register yet: so nobody relies on what these would spoil.
        if self.write(None, None, None).await?.0? == Put::Written {
            return Err(ignores("make it only if there is none"));
        }
        if self.write(Some(&first), None, None).await?.0? == Put::Refused {
            return Err(raced());
        }
        if self.write(Some(&first), None, None).await?.0? == Put::Written {
            return Err(ignores("replace it only if it is the same"));
        }
        let second = self.place.get().await?.ok_or_else(there)?;
        match self.write(Some(&second), Some(random_bits()?), None).await?.0? {
            Put::Written => self.present().await.map(|_| Begun::New),
            Put::Refused => Err(raced()),
        }
    }

    fn tell(&self, outcome: Result<(), &WitnessError>) {
        let text = match outcome {
            Ok(()) => String::new(),
            Err(WitnessError::Silent(_)) => return,
            Err(WitnessError::Unusable(text)) => text.clone(),
        };
        let mut told = self.told.lock();
        if *told != text {
            if !text.is_empty() {
                tracing::warn!("the witness can't be used: {text}");
            }
            *told = text;
        }
    }
}

/// Within the deadline, or not at all.
async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, WitnessError>>) -> Result<T, WitnessError> {
    timeout(deadline, call).await.unwrap_or_else(|_| Err(WitnessError::Silent(format!("no answer within {deadline:?}"))))
}

impl<P: Place> Witness for Conditional<P> {
    fn read(&self) -> BoxFuture<'_, Result<Answer, WitnessError>> {
        Box::pin(async move {
            let Ok(_one) = self.reading.try_lock() else {
                return Err(WitnessError::Silent("the last question isn't answered yet".to_owned()));
            };
            let answer = within(self.deadline, self.present()).await.map(|present| present.answer);
            self.tell(answer.as_ref().map(|_| ()));
            answer
        })
    }

    fn swap(&self, instance: u64, expected: u64, new: Register) -> BoxFuture<'_, SwapOutcome> {
        Box::pin(async move {
            let Ok(_one) = self.swapping.try_lock() else { return SwapOutcome::Unknown };
            within(self.deadline, self.try_swap(instance, expected, new)).await.unwrap_or(SwapOutcome::Unknown)
        })
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begun, WitnessError>> {
        Box::pin(within(BEGIN_DEADLINE, self.try_begin()))
    }

    fn describe(&self) -> String {
        self.place.describe()
    }
}

fn random_bits() -> Result<u64, WitnessError> {
    random().map_err(|error| WitnessError::Silent(format!("no random bytes: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::supervisor::fsm::{Mode, NodeId};

    /// What becomes of a write whose answer doesn't come.
    #[derive(Clone, Copy)]
    enum Fate {
        Done,
        /// It is under way still.
        Late,
    }

    #[derive(Default)]
    struct Memory {
        /// The text, and how often it was written.
        text: Lock<Option<String>>,
        writes: Lock<u64>,
        fates: Lock<VecDeque<Fate>>,
        late: Lock<Vec<(String, Option<u64>)>>,
    }

    impl Memory {
        fn write(&self, text: String, over: Option<u64>) -> Put {
            let (mut present, mut writes) = (self.text.lock(), self.writes.lock());
            if present.is_some() != over.is_some() || over.is_some_and(|over| over != *writes) {
                return Put::Refused;
            }
            *present = Some(text);
            *writes += 1;
            Put::Written
        }

        /// What was under way arrives.
        fn deliver(&self) -> Vec<Put> {
            self.late.lock().drain(..).map(|(text, over)| self.write(text, over)).collect()
        }
    }

    impl Place for Memory {
        type Tag = u64;
        type Seal = u64;

        async fn get(&self) -> Result<Option<Found<Self>>, WitnessError> {
            let (text, writes) = (self.text.lock().clone(), *self.writes.lock());
            let found = |text| Found { text, tag: writes, bears: Box::new(move |seal| *seal == writes), next: writes + 1 };
            Ok(text.map(found))
        }

        async fn put(&self, text: String, over: Option<&Found<Self>>) -> Result<Put, WitnessError> {
            let over = over.map(|found| found.tag);
            match self.fates.lock().pop_front() {
                None => return Ok(self.write(text, over)),
                Some(Fate::Done) => drop(self.write(text, over)),
                Some(Fate::Late) => self.late.lock().push((text, over)),
            }
            Err(WitnessError::Silent("lost".to_owned()))
        }

        fn describe(&self) -> String {
            "memory".to_owned()
        }
    }

    fn value(owner: NodeId, version: u64) -> Register {
        Register { version, epoch: 1, owner, mode: Mode::Solo }
    }

    async fn begun() -> (Conditional<Memory>, u64) {
        let witness = Conditional::new(Memory::default(), "test", Duration::from_secs(60));
        assert_eq!(witness.begin().await.unwrap(), Begun::New);
        let instance = witness.read().await.unwrap().instance;
        (witness, instance)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_answer_is_lost_is_known_by_its_number() {
        let (witness, instance) = begun().await;
        witness.place.fates.lock().push_back(Fate::Done);
        let new = value(NodeId::A, 1);
        assert_eq!(witness.swap(instance, 0, new).await, SwapOutcome::Applied { instance });
        assert_eq!(witness.read().await.unwrap(), Answer { instance, value: Some(new) });
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_write_that_is_late_and_its_repetition_one_is_done() {
        let (witness, instance) = begun().await;
        witness.place.fates.lock().push_back(Fate::Late);
        let new = value(NodeId::A, 1);
        assert_eq!(witness.swap(instance, 0, new).await, SwapOutcome::Applied { instance });
        assert_eq!(witness.place.deliver(), [Put::Refused]);
        assert_eq!(witness.read().await.unwrap(), Answer { instance, value: Some(new) });
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_known_may_be_done_later_or_never() {
        for overtaken in [false, true] {
            let (witness, instance) = begun().await;
            witness.place.fates.lock().extend([Fate::Late; ATTEMPTS]);
            let new = value(NodeId::A, 1);
            assert_eq!(witness.swap(instance, 0, new).await, SwapOutcome::Unknown);
            let other = value(NodeId::B, 1);
            if overtaken {
                assert_eq!(witness.swap(instance, 0, other).await, SwapOutcome::Applied { instance });
            }
            let written = witness.place.deliver().into_iter().filter(|put| *put == Put::Written).count();
            assert_eq!(written, usize::from(!overtaken), "once at most, and never over something else");
            let holds = Answer { instance, value: Some(if overtaken { other } else { new }) };
            assert_eq!(witness.swap(instance, 0, new).await, SwapOutcome::Refused(holds));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_bears_another_write_s_seal_is_a_copy() {
        let (witness, instance) = begun().await;
        assert_eq!(witness.swap(instance, 0, value(NodeId::A, 1)).await, SwapOutcome::Applied { instance });
        let copy = witness.place.text.lock().clone();
        assert_eq!(witness.swap(instance, 1, value(NodeId::A, 2)).await, SwapOutcome::Applied { instance });
        *witness.place.text.lock() = copy;
        *witness.place.writes.lock() += 1;
        let after = witness.read().await.unwrap();
        assert_eq!(after.value, Some(value(NodeId::A, 1)));
        assert_ne!(after.instance, instance);
        assert_eq!(witness.read().await.unwrap(), after);
    }
}
