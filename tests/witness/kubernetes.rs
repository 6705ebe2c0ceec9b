//! A real API server over a real etcd: "another cluster".

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use duet::config::WitnessUrl;
use duet::net::tls::{Pem, client_config_of};
use duet::witness::backend;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::common::peers::{free_ports, program};
use crate::common::process::Process;
use crate::common::scratch;
use crate::contract::{self, Keeps, Store};
use crate::etcd::{Etcd, no_tls};
use crate::{Node, soon};

const TOKEN: &str = "token-of-the-tests";

/// See the module.
pub struct Kubernetes {
    // In this order: the API server ends before its etcd.
    _apiserver: Process,
    _etcd: Etcd,
    port: u16,
    dir: TempDir,
}

fn run(dir: &Path, etcd: &str, port: u16) -> Process {
    let file = |name: &str| dir.join(name).display().to_string();
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(dir.join("sa.key"), key.serialize_pem()).unwrap();
    // From a private key of this form it doesn't take the public one by itself.
    std::fs::write(dir.join("sa.pub"), key.public_key_pem()).unwrap();
    std::fs::write(dir.join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n")).unwrap();
    let flags = [
        format!("--etcd-servers={etcd}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--cert-dir={}", dir.display()),
        "--service-account-issuer=https://k".to_owned(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
    ];
    Process::start(&program("kube-apiserver"), &flags)
}

impl Kubernetes {
    fn ca(&self) -> PathBuf {
        self.dir.path().join("apiserver.crt")
    }

    /// A request by an operator, not by a node; status and answer.
    async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<(u16, Value)> {
        let ca = Pem::read(&self.ca()).map_err(std::io::Error::other)?;
        let tls = TlsConnector::from(Arc::new(client_config_of(Some(&ca), None, &[]).map_err(std::io::Error::other)?));
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let mut stream = tls.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: k\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        // Go's server ends without TLS's farewell.
        let _ = stream.read_to_string(&mut answer).await;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no answer"))?;
        Ok((status.unwrap_or(0), serde_json::from_str(body).unwrap_or_default()))
    }

    /// A request on the pair's ConfigMap that must succeed.
    async fn on(&self, method: &str, name: &str, body: Option<&Value>) -> Value {
        let path = format!("/api/v1/namespaces/default/configmaps/{name}");
        let (status, answer) = self.request(method, &path, body).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

impl Store for Kubernetes {
    async fn start() -> Self {
        let (etcd, dir, [port]) = (Etcd::start().await, scratch(), free_ports());
        let apiserver = tokio::task::block_in_place(|| run(dir.path(), &etcd.url(), port));
        let store = Self { _apiserver: apiserver, _etcd: etcd, port, dir };
        soon("an API server", async {
            while !matches!(store.request("GET", "/api/v1/namespaces/default", None).await, Ok((200, _))) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [{ "name": "c", "cluster": { "server": "https://127.0.0.1:PORT", "certificate-authority": "apiserver.crt" } }],
            "users": [{ "name": "u", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        });
        std::fs::write(store.dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        store
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn node_within(&self, name: &str, port: u16, deadline: Duration) -> Node {
        let text = std::fs::read_to_string(self.dir.path().join("kubeconfig")).unwrap();
        let path = self.dir.path().join(format!("kubeconfig-{port}"));
        std::fs::write(&path, text.replace("PORT", &port.to_string())).unwrap();
        let url = format!("kubernetes://{}?namespace=default&name={name}", path.display());
        backend::connect(&WitnessUrl::parse(&url).unwrap(), "test", no_tls(), deadline).unwrap()
    }
}

impl Keeps for Kubernetes {
    async fn wipe(&self, name: &str) {
        self.on("DELETE", name, None).await;
    }

    async fn copy(&self, name: &str) -> Vec<u8> {
        self.on("GET", name, None).await.to_string().into_bytes()
    }

    /// As `kubectl replace` does it.
    async fn put_back(&self, name: &str, copy: &[u8]) {
        let mut object: Value = serde_json::from_slice(copy).unwrap();
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        self.on("PUT", name, Some(&object)).await;
    }
}

pub async fn labels_of_an_operator_s_stay(store: &Kubernetes) {
    let witness = store.node("labelled", store.port);
    witness.begin().await.unwrap();
    let mut object = store.on("GET", "labelled", None).await;
    object["metadata"]["labels"] = json!({ "team": "storage" });
    store.on("PUT", "labelled", Some(&object)).await;
    let before = contract::answered(&*witness).await;
    contract::write(&*witness, 1).await;
    assert_eq!(contract::answered(&*witness).await.instance, before.instance, "a label is no other register");
    assert_eq!(store.on("GET", "labelled", None).await["metadata"]["labels"]["team"], "storage");
}

/// As backup programs do it.
pub async fn a_register_made_again_from_a_copy_begins_a_new_history(store: &Kubernetes) {
    let witness = store.node("again", store.port);
    witness.begin().await.unwrap();
    let old = contract::write(&*witness, 1).await;
    let mut copy = store.on("GET", "again", None).await;
    store.wipe("again").await;
    let metadata = copy["metadata"].as_object_mut().unwrap();
    metadata.retain(|name, _| name == "name" || name == "managedFields");
    let (status, answer) = store.request("POST", "/api/v1/namespaces/default/configmaps", Some(&copy)).await.unwrap();
    assert_eq!(status, 201, "{answer}");
    contract::assert_not_to_be_won(&*witness, old).await;
}
