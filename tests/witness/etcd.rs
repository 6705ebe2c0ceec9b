//! A real etcd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use duet::config::WitnessUrl;
use duet::witness::backend;
use etcd_client::Client;
use tempfile::TempDir;

use crate::Node;
use crate::common::peers::{etcd, free_ports, program};
use crate::common::process::Process;
use crate::common::scratch;
use crate::contract::{DEADLINE, Keeps, Store};

/// See the module.
pub struct Etcd {
    process: Option<Process>,
    ports: [u16; 2],
    dir: TempDir,
}

/// TLS of a back-end that has its own, or none.
pub fn no_tls() -> Arc<rustls::ClientConfig> {
    Arc::new(duet::net::tls::client_config_of(None, None, &[]).unwrap())
}

impl Etcd {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// A node that knows several endpoints.
    pub fn node_at(&self, name: &str, ports: &[u16]) -> Node {
        let endpoints: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let url = WitnessUrl::parse(&format!("etcd://{}/{name}", endpoints.join(","))).unwrap();
        backend::connect(&url, "test", no_tls(), DEADLINE).unwrap()
    }

    async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.unwrap()
    }

    /// A backup.
    pub async fn snapshot(&self) -> PathBuf {
        let path = self.dir.path().join("snapshot");
        let mut parts = self.client().await.snapshot().await.unwrap();
        let mut whole = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            whole.extend_from_slice(part.blob());
        }
        std::fs::write(&path, whole).unwrap();
        path
    }

    /// The cluster is lost, and made anew from a backup with the flags that it had.
    pub async fn restore(&mut self, snapshot: &Path) {
        tokio::task::block_in_place(|| {
            drop(self.process.take());
            let data = self.dir.path().join("restored");
            let peer = format!("http://127.0.0.1:{}", self.ports[1]);
            let output = Command::new(program("etcdutl"))
                .args(["snapshot", "restore"])
                .arg(snapshot)
                .arg("--data-dir")
                .arg(&data)
                .arg(format!("--initial-advertise-peer-urls={peer}"))
                .arg(format!("--initial-cluster=default={peer}"))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            self.process = Some(etcd(&data, self.ports));
        });
    }
}

impl Store for Etcd {
    async fn start() -> Self {
        let (dir, ports) = (scratch(), free_ports());
        let process = tokio::task::block_in_place(|| etcd(&dir.path().join("data"), ports));
        Self { process: Some(process), ports, dir }
    }

    fn port(&self) -> u16 {
        self.ports[0]
    }

    fn node_within(&self, name: &str, port: u16, deadline: Duration) -> Node {
        let url = WitnessUrl::parse(&format!("etcd://127.0.0.1:{port}/{name}")).unwrap();
        backend::connect(&url, "test", no_tls(), deadline).unwrap()
    }
}

impl Keeps for Etcd {
    async fn wipe(&self, name: &str) {
        self.client().await.delete(name, None).await.unwrap();
    }

    async fn copy(&self, name: &str) -> Vec<u8> {
        self.client().await.get(name, None).await.unwrap().kvs()[0].value().to_vec()
    }

    async fn put_back(&self, name: &str, copy: &[u8]) {
        self.client().await.put(name, copy, None).await.unwrap();
    }
}
