//! Sequencer.
