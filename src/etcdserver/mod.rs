//! The façade.
pub mod error;
pub mod validate;
