//! What every witness has to do.

use std::sync::Arc;
use std::time::Duration;

use duet::supervisor::fsm::{Answer, Mode, NodeId, Register, SwapOutcome};
use duet::witness::backend::{Begun, Witness, WitnessError};

use crate::wire::Wire;
use crate::{Node, soon};

/// How long a call may take: longer than a machine that is busy with other tests needs, because what ends late isn't tested but by its own
/// rule.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// A deadline that a test waits for.
pub const SHORT_DEADLINE: Duration = Duration::from_millis(500);
const ROUNDS: u64 = 20;

/// Somewhere registers can be. Each test has a register of its own, by name.
pub trait Store {
    /// A store that runs, without a register.
    async fn start() -> Self;
    /// Where it listens.
    fn port(&self) -> u16;
    /// A node's hold on it through `port`, with its own connections.
    fn node(&self, name: &str, port: u16) -> Node {
        self.node_within(name, port, DEADLINE)
    }
    /// The same with another deadline.
    fn node_within(&self, name: &str, port: u16, deadline: Duration) -> Node;
}

/// A store that somebody can do harm to behind its back.
pub trait Keeps: Store {
    /// Removes the register.
    async fn wipe(&self, name: &str);
    /// A copy of what the register is now.
    async fn copy(&self, name: &str) -> Vec<u8>;
    /// Puts a copy in its place.
    async fn put_back(&self, name: &str, copy: &[u8]);
}

pub fn value(version: u64) -> Register {
    Register { version, epoch: 1, owner: NodeId::A, mode: Mode::Pair }
}

fn of(owner: NodeId, version: u64) -> Register {
    Register { owner, mode: Mode::Solo, ..value(version) }
}

/// What the register holds, once it answers.
pub async fn answered(witness: &dyn Witness) -> Answer {
    soon("an answer", async {
        loop {
            if let Ok(answer) = witness.read().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// A register that has begun, whoever began it.
pub async fn begun(witness: &dyn Witness) -> Answer {
    witness.begin().await.unwrap();
    witness.read().await.unwrap()
}

/// Writes the value of `version`, which must be newer.
pub async fn write(witness: &dyn Witness, version: u64) -> Answer {
    let present = answered(witness).await;
    let outcome = witness.swap(present.instance, present.version(), value(version)).await;
    assert_eq!(outcome, SwapOutcome::Applied { instance: present.instance });
    Answer { instance: present.instance, value: Some(value(version)) }
}

pub async fn only_an_explicit_beginning_makes_a_register<S: Store>(store: &S, name: &str) {
    let witness = store.node(name, store.port());
    for _ in 0..2 {
        let absent = witness.read().await.unwrap_err();
        assert!(matches!(&absent, WitnessError::Unusable(text) if text.contains("there is no register")), "{absent}");
        assert_eq!(witness.swap(0, 0, value(1)).await, SwapOutcome::Unknown, "there is nothing to replace");
    }
    assert_eq!(witness.begin().await.unwrap(), Begun::New);
    let answer = witness.read().await.unwrap();
    assert_eq!(answer.value, None);
    assert_eq!(store.node(name, store.port()).begin().await.unwrap(), Begun::Already);
    assert_eq!(witness.read().await.unwrap(), answer, "a second beginning changes nothing");
}

/// A swap whose outcome is known in the end, as the state machine gets it: by asking again.
async fn decided(witness: &dyn Witness, from: Answer, new: Register) -> SwapOutcome {
    soon("a decision", async {
        loop {
            match witness.swap(from.instance, from.version(), new).await {
                SwapOutcome::Unknown => {}
                outcome => return outcome,
            }
        }
    })
    .await
}

pub async fn of_two_nodes_at_once_one_is_applied<S: Store>(store: &S, name: &str) {
    let (a, b) = (store.node(name, store.port()), store.node(name, store.port()));
    let mut from = begun(&*a).await;
    for round in 0..ROUNDS {
        let version = from.version() + 1 + round % 3;
        let (new_a, new_b) = (of(NodeId::A, version), of(NodeId::B, version));
        let (of_a, of_b) = tokio::join!(decided(&*a, from, new_a), decided(&*b, from, new_b));
        let winner = match (of_a, of_b) {
            (SwapOutcome::Applied { .. }, SwapOutcome::Refused(answer)) if answer.value == Some(new_a) => new_a,
            (SwapOutcome::Refused(answer), SwapOutcome::Applied { .. }) if answer.value == Some(new_b) => new_b,
            other => panic!("round {round}: {other:?}"),
        };
        let next = b.read().await.unwrap();
        assert_eq!(next, Answer { value: Some(winner), ..from });
        from = next;
    }
}

/// The write is done, its answer held back on the way, and then the connection breaks.
pub async fn a_lost_answer_leaves_one_value_and_is_found_out<S: Store>(store: &S, name: &str) {
    let direct = store.node(name, store.port());
    let from = begun(&*direct).await;
    let wire = Wire::to(store.port()).await;
    let node = store.node(name, wire.port());
    assert_eq!(answered(&*node).await, from);
    let new = of(NodeId::B, 1);
    wire.hold_answers();
    let asking = Arc::clone(&node);
    let asked = tokio::spawn(async move { asking.swap(from.instance, 0, new).await });
    soon("the write", async {
        // What is asked before the write must be answered.
        while direct.read().await.unwrap().value.is_none() {
            wire.let_through();
            tokio::task::yield_now().await;
        }
    })
    .await;
    wire.break_connections();
    let outcome = asked.await.unwrap();
    assert!(matches!(outcome, SwapOutcome::Applied { .. } | SwapOutcome::Unknown), "{outcome:?}");
    let again = decided(&*node, from, new).await;
    assert_eq!(again, SwapOutcome::Refused(Answer { value: Some(new), ..from }), "it is done already, and not done twice");
    // Nor can what replaces it be replaced by a late copy of it.
    let next = of(NodeId::A, 2);
    assert_eq!(direct.swap(from.instance, 1, next).await, SwapOutcome::Applied { instance: from.instance });
    assert_eq!(decided(&*node, from, new).await, SwapOutcome::Refused(Answer { value: Some(next), ..from }));
}

/// Nobody who knows only `old`, and relies on it, becomes the owner.
pub async fn assert_not_to_be_won(witness: &dyn Witness, old: Answer) {
    let takeover = of(NodeId::B, old.version() + 1);
    let after = answered(witness).await;
    assert_ne!(after.instance, old.instance, "another history");
    assert_eq!(decided(witness, old, takeover).await, SwapOutcome::Refused(after));
    assert_eq!(answered(witness).await, after, "nothing was written, and a new history is a history");
}

pub async fn a_wiped_store_is_nobody_s_to_win<S: Keeps>(store: &S, name: &str) {
    let witness = store.node(name, store.port());
    begun(&*witness).await;
    let old = write(&*witness, 1).await;
    store.wipe(name).await;
    // The daemon makes a new register by itself, of a new history; elsewhere nobody but an operator does.
    let read = soon("an answer", async {
        loop {
            match store.node(name, store.port()).read().await {
                Err(WitnessError::Silent(_)) => {}
                read => return read,
            }
        }
    })
    .await;
    match read {
        Ok(answer) => assert!(answer.value.is_none() && answer.instance != old.instance, "{answer:?}"),
        Err(error) => {
            assert!(error.to_string().contains("there is no register"), "{error}");
            let takeover = of(NodeId::B, 2);
            assert_eq!(witness.swap(old.instance, 1, takeover).await, SwapOutcome::Unknown);
            assert_eq!(witness.begin().await.unwrap(), Begun::New);
        }
    }
    assert_eq!(answered(&*witness).await.value, None);
    assert_not_to_be_won(&*witness, old).await;
}

pub async fn a_copy_put_back_is_nobody_s_to_win<S: Keeps>(store: &S, name: &str) {
    let witness = store.node(name, store.port());
    begun(&*witness).await;
    let old = write(&*witness, 1).await;
    let copy = store.copy(name).await;
    write(&*witness, 2).await;
    store.put_back(name, &copy).await;
    let after = answered(&*witness).await;
    assert_eq!(after.value, old.value, "the copy's value");
    assert_not_to_be_won(&*witness, old).await;
    // It goes on from there, for whoever knows what holds.
    assert_eq!(write(&*witness, 5).await.instance, after.instance);
}

pub async fn one_that_is_gone_gives_no_answer<S: Store>(store: &S, name: &str) {
    let direct = store.node(name, store.port());
    let from = begun(&*direct).await;
    let wire = Wire::to(store.port()).await;
    let node = store.node_within(name, wire.port(), SHORT_DEADLINE);
    answered(&*node).await;
    wire.swallow();
    let read = soon("no answer", node.read()).await;
    assert!(matches!(read, Err(WitnessError::Silent(_))), "{read:?}");
    let outcome = soon("no outcome", node.swap(from.instance, 0, value(1))).await;
    assert_eq!(outcome, SwapOutcome::Unknown);
    wire.break_connections();
    assert_eq!(answered(&*node).await.instance, from.instance, "it is asked again when it is back");
}
