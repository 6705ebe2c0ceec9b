//! Registers and answers as the wire has them.

use crate::proto::duetpb::{WitnessAnswer, WitnessRegister};
use crate::supervisor::fsm::{Answer, Mode, NodeId, Register};

impl From<Register> for WitnessRegister {
    fn from(register: Register) -> Self {
        let owner = match register.owner {
            NodeId::A => 1,
            NodeId::B => 2,
        };
        let mode = match register.mode {
            Mode::Pair => 1,
            Mode::Solo => 2,
            Mode::Asym => 3,
        };
        Self { version: register.version, epoch: register.epoch, owner, mode }
    }
}

/// Not a register that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl TryFrom<WitnessRegister> for Register {
    type Error = Unknown;

    fn try_from(wire: WitnessRegister) -> Result<Self, Unknown> {
        let owner = match wire.owner {
            1 => NodeId::A,
            2 => NodeId::B,
            _ => return Err(Unknown),
        };
        let mode = match wire.mode {
            1 => Mode::Pair,
            2 => Mode::Solo,
            3 => Mode::Asym,
            _ => return Err(Unknown),
        };
        Ok(Self { version: wire.version, epoch: wire.epoch, owner, mode })
    }
}

impl From<Answer> for WitnessAnswer {
    fn from(answer: Answer) -> Self {
        Self { instance: answer.instance, value: answer.value.map(WitnessRegister::from) }
    }
}

impl TryFrom<WitnessAnswer> for Answer {
    type Error = Unknown;

    fn try_from(wire: WitnessAnswer) -> Result<Self, Unknown> {
        Ok(Self { instance: wire.instance, value: wire.value.map(Register::try_from).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_comes_back_as_it_went_and_nothing_else_does() {
        for owner in [NodeId::A, NodeId::B] {
            for mode in [Mode::Pair, Mode::Solo, Mode::Asym] {
                let answer = Answer { instance: u64::MAX, value: Some(Register { version: 9, epoch: -1, owner, mode }) };
                assert_eq!(Answer::try_from(WitnessAnswer::from(answer)), Ok(answer));
            }
        }
        let unknown = WitnessRegister { version: 1, epoch: 1, owner: 3, mode: 1 };
        assert_eq!(Register::try_from(unknown), Err(Unknown));
    }
}
