//! The façade over the wire: an engine over a log in memory, served on a loopback port, spoken to by generated clients.
//!
//! The tests read like etcd's rules; what they expect was read in etcd 3.7.3's sources. The same rules are compared with a live etcd by
//! the differential suite.

mod cluster;
mod facts;
mod gate;
mod independent_client;
mod kv;
mod lease;
mod maintenance;
mod metrics;
mod quota;
mod range_stream;
mod support;
mod watch;
