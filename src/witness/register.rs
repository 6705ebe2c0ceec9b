//! What a compare-and-swap does to a register. Pure.

use crate::supervisor::fsm::{Answer, Register};

/// Why a register isn't changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It isn't what was expected; this is what it is.
    Differs(Answer),
    /// The new value's version isn't greater than the one that it would replace: a sender that has lost count.
    NotNewer(Answer),
}

/// The register after `new` has replaced the value of version `expected` (0: none) in the history `instance`.
///
/// # Errors
/// See [`Refusal`]; nothing is changed then.
pub fn swap(present: Answer, instance: u64, expected: u64, new: Register) -> Result<Answer, Refusal> {
    if present.instance != instance || present.version() != expected {
        return Err(Refusal::Differs(present));
    }
    if new.version <= expected {
        return Err(Refusal::NotNewer(present));
    }
    Ok(Answer { instance, value: Some(new) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::fsm::{Mode, NodeId};

    fn value(version: u64) -> Register {
        Register { version, epoch: 1, owner: NodeId::A, mode: Mode::Pair }
    }

    #[test]
    fn a_value_is_replaced_only_if_it_is_the_expected_one_of_the_same_history() {
        let empty = Answer { instance: 7, value: None };
        let first = swap(empty, 7, 0, value(1)).expect("an empty register has version 0");
        assert_eq!(first, Answer { instance: 7, value: Some(value(1)) });
        assert_eq!(swap(first, 7, 0, value(2)), Err(Refusal::Differs(first)), "a late copy of the first request");
        assert_eq!(swap(first, 8, 1, value(2)), Err(Refusal::Differs(first)), "another history");
        assert_eq!(swap(first, 7, 1, value(5)), Ok(Answer { instance: 7, value: Some(value(5)) }), "versions may skip");
    }

    #[test]
    fn versions_only_grow() {
        let present = Answer { instance: 7, value: Some(value(3)) };
        for version in 0..=3 {
            assert_eq!(swap(present, 7, 3, value(version)), Err(Refusal::NotNewer(present)));
        }
    }
}
