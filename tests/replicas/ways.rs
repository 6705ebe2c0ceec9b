//! The way from a replica to the writer: which of its URLs, and with which certificates.

use std::fs;
use std::path::Path;
use std::time::Duration;

use duet::config::TlsConfig;
use duet::net::proxy::Upstream;
use duet::net::tls::client_config;
use duet::proto::etcdserverpb::PutRequest;
use duet::proto::etcdserverpb::kv_client::KvClient;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::common::connect;
use crate::common::process::{Process, READY, serve_with};
use crate::{ANY_PORT, World, client, free_port};

/// Leads connections on one port to another; when it is dropped, all of them end.
struct Detour(JoinSet<()>);

impl Detour {
    async fn start(from: u16, to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", from)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(("127.0.0.1", to)).await {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self(tasks)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_passes_over_urls_that_lead_nowhere_to_itself_or_to_strangers_and_takes_another_when_one_dies() {
    let world = World::new().await;
    let [own, dead, foreign, first, second] = [(); 5].map(|()| free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    // What a loopback URL of another machine's may lead to: the writer of another database.
    let admin = connect(&world.postgres.connect_config()).await;
    admin.batch_execute("CREATE DATABASE other").await.unwrap();
    let line = format!("--listen-client-urls {}", url(foreign));
    let mut stranger = serve_with(&world.dsn.replace("dbname=postgres", "dbname=other"), &world.home("stranger"), &line);
    stranger.line(READY);
    let advertised = [own, dead, foreign, first, second].map(url).join(",");
    let line = format!("--listen-client-urls {} --advertise-client-urls {advertised}", url(second));
    let mut writer = world.serve("writer", &line);
    writer.line(READY);
    let detour = Detour::start(first, second).await;
    let mut standby = world.serve("standby", &format!("--listen-client-urls {}", url(own)));
    let chosen = standby.line("forwarding to the writer");
    assert!(chosen.contains(&url(first)), "{chosen}");
    standby.ready();
    let mut etcd = client(&url(own)).await;
    etcd.put("k", "1", None).await.unwrap();

    let Detour(mut connections) = detour;
    connections.shutdown().await;
    let chosen = standby.line("forwarding to the writer's other URL");
    assert!(chosen.contains(&url(second)), "{chosen}");
    etcd.put("k", "2", None).await.unwrap();
    assert_eq!(client(&url(foreign)).await.get("k", None).await.unwrap().count(), 0);
    drop((standby, writer, stranger));
    world.stop().await;
}

#[tokio::test]
async fn a_replica_is_warned_when_no_other_machine_can_reach_it_and_only_then() {
    let world = World::new().await;
    let warning = "other machines can't reach this replica";
    for (urls, is_warned) in [
        ("http://127.0.0.1:1", true),
        ("http://localhost:1,unix:///nowhere", true),
        ("http://0.0.0.0:1", true),
        ("http://127.0.0.1:1,http://10.0.0.1:1", false),
        ("http://[2001:db8::1]:1", false),
    ] {
        let mut replica = world.serve("replica", &format!("{ANY_PORT} --advertise-client-urls {urls}"));
        replica.line(READY);
        replica.signal(Signal::SIGTERM);
        replica.ended();
        assert_eq!(replica.said().contains(warning), is_warned, "{urls}");
    }
    world.stop().await;
}

/// A new CA, and a certificate of it for everybody.
fn certify(dir: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    for (name, text) in [("ca", ca_pem), ("cert", certificate.pem()), ("key", key.serialize_pem())] {
        // Each file as a whole: replicas look at them while they are written.
        let (scratch, path) = (dir.join("tmp"), dir.join(format!("{name}.pem")));
        fs::write(&scratch, text).unwrap();
        fs::rename(scratch, path).unwrap();
    }
}

fn endpoint(process: &mut Process) -> String {
    let line = process.line(READY);
    let at = line.find("https://").unwrap();
    line[at..].split(['"', ',', ' ']).next().unwrap().to_owned()
}

#[tokio::test]
async fn after_a_rotation_a_replica_speaks_to_the_next_writer_with_the_new_certificates() {
    let world = World::new().await;
    let pki = world.home("pki");
    fs::create_dir(&pki).unwrap();
    certify(&pki);
    let pem = |name: &str| pki.join(name).display().to_string();
    let line = format!(
        "--listen-client-urls https://127.0.0.1:0 --cert-file {} --key-file {} --trusted-ca-file {} --client-cert-auth",
        pem("cert.pem"),
        pem("key.pem"),
        pem("ca.pem")
    );
    let mut writer = world.serve("writer", &line);
    endpoint(&mut writer);
    let (mut next, mut standby) = (world.serve("next", &line), world.serve("standby", &line));
    next.line("forwarding to the writer");
    standby.line("forwarding to the writer");
    let url = endpoint(&mut standby);

    certify(&pki);
    for process in [&mut next, &mut standby] {
        process.signal(Signal::SIGHUP);
        process.line("certificates reloaded");
    }
    standby.signal(Signal::SIGSTOP);
    writer.signal(Signal::SIGKILL);
    writer.ended();
    next.line("recovered");
    standby.signal(Signal::SIGCONT);
    standby.line("forwarding to the writer");
    let files = TlsConfig {
        cert_file: pki.join("cert.pem"),
        key_file: pki.join("key.pem"),
        trusted_ca_file: Some(pki.join("ca.pem")),
        client_cert_auth: true,
        client_crl_file: None,
        client_cert_allowed_hostnames: Vec::new(),
        cipher_suites: None,
        self_signed: None,
        allow_tls12: true,
        allow_tls13: true,
    };
    let upstream = Upstream::new(&url, Some(client_config(&files).unwrap())).unwrap();
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    let answer = tokio::time::timeout(Duration::from_secs(20), KvClient::new(upstream.channel()).put(put)).await;
    answer.expect("an answer").unwrap();
    drop((standby, next));
    world.stop().await;
}
