//! What `/health`, `/livez` and `/readyz` ask: this process' engine, or the writer that it forwards to.
//!
//! A replica that forwards is as healthy as etcd's follower: it knows a leader, and a read through it proves the way.

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::engine::{Engine, Role};
use crate::net::http::Health;
use crate::net::proxy::{Answering, Upstream};
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::{AlarmType, RangeRequest};

pub(super) struct ServerHealth {
    engine: Engine,
    answering: Option<watch::Receiver<Answering>>,
}

impl ServerHealth {
    /// `answering` is what the proxy goes by; `None` without one.
    pub(super) fn new(engine: Engine, answering: Option<watch::Receiver<Answering>>) -> Self {
        Self { engine, answering }
    }

    fn upstream(&self) -> Option<Upstream> {
        match &*self.answering.as_ref()?.borrow() {
            Answering::There(upstream) => Some(upstream.clone()),
            Answering::Here | Answering::Nobody => None,
        }
    }
}

impl Health for ServerHealth {
    fn has_leader(&self) -> bool {
        matches!(*self.engine.role().borrow(), Role::Active) || self.upstream().is_some()
    }

    fn refresh_metrics(&self) {
        self.engine.refresh_metrics(self.upstream().is_some());
    }

    fn alarms(&self) -> Vec<&'static str> {
        let name = |alarm: i32| AlarmType::try_from(alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
        self.engine.alarms().iter().map(|row| name(row.alarm)).collect()
    }

    fn read(&self, serializable: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            // etcd's check: one key, without its value.
            let request =
                RangeRequest { keys_only: true, limit: 1, serializable, key: vec![0].into(), ..RangeRequest::default() };
            let follows = *self.engine.role().borrow() == Role::Following;
            match self.upstream().filter(|_| !(serializable && follows)) {
                None => self.engine.range(&request).await.map(drop).map_err(|error| format!("etcdserver: {error}")),
                Some(upstream) => {
                    let answer = KvClient::new(upstream.channel()).range(request).await;
                    answer.map(drop).map_err(|status| status.message().to_owned())
                }
            }
        })
    }
}
