//! The engine's question before it serves a store: has it everything that clients have been shown?

use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::look::look;
use super::{Memory, Source};
use crate::engine::{Recall, Seen};
use crate::net::proxy::Upstream;
use crate::net::tls::ClientTls;
use crate::storage::BoxFuture;
use crate::types::Revision;

/// Asks whoever wrote before, whose clients may have seen more than this replica has heard of, and then the memory.
pub struct Examiner {
    memory: Arc<Memory>,
    own_urls: Vec<String>,
    tls: Option<ClientTls>,
}

impl Examiner {
    /// `own_urls` lead to this process, from anywhere.
    pub fn new(memory: Arc<Memory>, own_urls: Vec<String>, tls: Option<ClientTls>) -> Self {
        Self { memory, own_urls, tls }
    }

    /// Learns what the former writers know, if they still answer: all at once, so that one that doesn't costs no more than its own time.
    async fn ask(&self, cluster_id: u64, wrote_before: Vec<String>) {
        let mut urls = wrote_before;
        urls.extend(self.memory.last_writer());
        urls.sort();
        urls.dedup();
        urls.retain(|url| !self.own_urls.contains(url));
        let mut asked: FuturesUnordered<_> = urls.into_iter().map(|url| self.ask_one(url, cluster_id)).collect();
        while let Some((url, said)) = asked.next().await {
            match said {
                Ok(Some(seen)) if seen.cluster_id == cluster_id => self.memory.hear(seen, Source::Replica(url)),
                Ok(_) => {}
                Err(error) => tracing::debug!(url, error, "the replica that wrote before doesn't say what clients have seen"),
            }
        }
    }

    async fn ask_one(&self, url: String, cluster_id: u64) -> (String, Result<Option<Seen>, String>) {
        let said = match Upstream::fresh(&url, self.tls.clone()) {
            Ok(upstream) => look(upstream.channel(), cluster_id, None).await.map(|looked| looked.seen),
            Err(error) => Err(error),
        };
        (url, said)
    }
}

impl fmt::Debug for Examiner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Examiner")
    }
}

impl Recall for Examiner {
    fn examine(
        &self,
        cluster_id: u64,
        last: Revision,
        own: Option<Seen>,
        wrote_before: Vec<String>,
    ) -> BoxFuture<'_, Result<Option<Seen>, String>> {
        Box::pin(async move {
            if let Some(own) = own {
                self.memory.learn(own, Source::Here);
            }
            self.ask(cluster_id, wrote_before).await;
            let judged = self.memory.judge(cluster_id, last);
            if judged.is_err() {
                // The process is going to end, and the next one must know as much, however this one's end is hurried.
                let memory = Arc::clone(&self.memory);
                let _ = tokio::task::spawn_blocking(move || memory.save()).await;
            }
            judged
        })
    }

    fn differs(&self, seen: Seen) -> String {
        self.memory.differs(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config::{Keepalive, ListenUrl};
    use crate::engine::{Engine, Options, Role};
    use crate::net::{Listeners, ServeOptions, SocketOptions, serve};
    use crate::proto::etcdserverpb::PutRequest;
    use crate::replica::{Instance, service};
    use crate::storage::mem::MemLog;
    use crate::telemetry::metrics::Metrics;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A replica's engine, which answers other replicas at the URL, and its memory.
    async fn replica(log: &MemLog, dir: &tempfile::TempDir, name: &str) -> (Engine, String) {
        let listeners = Listeners::bind(&ListenUrl::parse_list("http://127.0.0.1:0").unwrap(), SocketOptions::default()).unwrap();
        let url = listeners.urls().remove(0);
        let memory = Arc::new(Memory::open(&dir.path().join(name)));
        let recall = Examiner::new(Arc::clone(&memory), vec![url.clone()], None);
        let options = Options { recall: Some(Arc::new(recall)), advertise_client_urls: vec![url.clone()], ..Options::default() };
        let engine = Engine::start(options, Arc::new(log.clone()), Metrics::unshared());
        let router = service(engine.clone(), memory, Instance::new());
        let options = ServeOptions {
            max_concurrent_streams: u32::MAX,
            keepalive: Keepalive { interval: None, timeout: None },
            drain: PATIENCE,
            tls: None,
            metrics: Metrics::unshared(),
        };
        tokio::spawn(serve(listeners, router, CancellationToken::new(), options));
        (engine, url)
    }

    #[tokio::test]
    async fn a_replica_that_takes_over_asks_the_one_that_wrote_before() {
        let (dir, log) = (tempfile::tempdir().unwrap(), MemLog::default());
        let (former, url) = replica(&log, &dir, "former").await;
        former.active().await.unwrap();
        for _ in 0..5 {
            former.put(PutRequest { key: Bytes::from_static(b"k"), ..PutRequest::default() }).await.unwrap();
        }
        log.truncate(4);
        let (next, _) = replica(&log, &dir, "next").await;
        let mut role = next.role();
        let role = tokio::time::timeout(PATIENCE, role.wait_for(|role| matches!(role, Role::Active | Role::Failed(_))));
        let role = role.await.unwrap().unwrap().clone();
        let Role::Failed(why) = role else { panic!("it is served") };
        assert!(why.contains(&format!("revision 6 had been committed and shown to clients, as the replica at {url} remembers")));
        assert!(dir.path().join("next/seen/00000000000000c1").exists(), "and its next process knows without asking");
    }
}
