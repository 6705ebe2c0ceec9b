//! STUB
use crate::storage::{Batch, LeaseRow};
use crate::types::{LeaseId, Millis};
use bytes::Bytes;
#[derive(Debug, Default)]
pub struct Lessor;
#[allow(unused, missing_docs)]
impl Lessor {
    pub fn ids(&self) -> Vec<LeaseId> {
        Vec::new()
    }
    pub fn keys(&self, id: LeaseId) -> Vec<Bytes> {
        Vec::new()
    }
    pub fn is_empty(&self) -> bool {
        true
    }
    pub fn expired(&mut self, now: Millis, limit: usize) -> Vec<LeaseId> {
        Vec::new()
    }
    pub fn apply(&mut self, batch: &Batch, now: Millis) {}
    pub fn restore(&mut self, rows: &[LeaseRow], now: Millis) {}
    pub fn reconcile(&mut self, rows: &[LeaseRow], now: Millis) {}
    pub fn attach(&mut self, id: LeaseId, key: Bytes) {}
    pub fn needs_store(&self, id: LeaseId, now: Millis) -> Option<i64> {
        None
    }
    pub fn renew(&mut self, id: LeaseId, now: Millis) -> Option<i64> {
        None
    }
    pub fn time_to_live(&self, id: LeaseId, now: Millis) -> Option<(i64, i64)> {
        None
    }
    pub fn leases(&self) -> Vec<LeaseId> {
        Vec::new()
    }
}
