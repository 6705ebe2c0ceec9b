//! An object store, with nodes of a pair that keep their register in it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use duet::config::WitnessUrl;
use duet::witness::backend;

use crate::Node;
use crate::contract::{DEADLINE, Keeps, Store};
use crate::etcd::no_tls;
use crate::object_store::Server;

/// See the module.
pub struct S3(Server);

impl S3 {
    /// From now on, conditions don't count: there are such stores.
    pub fn ignore_conditions(&self) {
        self.0.bucket.ignores_conditions.store(true, Ordering::Relaxed);
    }

    /// A node of the pair `cluster`.
    pub fn node_of(&self, cluster: &str, name: &str, port: u16) -> Node {
        self.connect(cluster, name, port, DEADLINE)
    }

    fn connect(&self, cluster: &str, name: &str, port: u16, deadline: Duration) -> Node {
        backend::connect(&WitnessUrl::parse(&self.0.url(name, port)).unwrap(), cluster, no_tls(), deadline).unwrap()
    }
}

impl Store for S3 {
    async fn start() -> Self {
        Self(Server::start().await)
    }

    fn port(&self) -> u16 {
        self.0.port
    }

    fn node_within(&self, name: &str, port: u16, deadline: Duration) -> Node {
        self.connect("test", name, port, deadline)
    }
}

impl Keeps for S3 {
    async fn wipe(&self, name: &str) {
        self.0.bucket.remove(&format!("/bucket/{name}"));
    }

    async fn copy(&self, name: &str) -> Vec<u8> {
        self.0.bucket.contents(&format!("/bucket/{name}"))
    }

    /// A day later.
    async fn put_back(&self, name: &str, copy: &[u8]) {
        self.0.bucket.later_s.fetch_add(86400, Ordering::Relaxed);
        self.0.bucket.store(&format!("/bucket/{name}"), copy.to_vec().into());
    }
}
