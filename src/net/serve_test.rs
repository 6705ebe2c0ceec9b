//! Real sockets, real certificates: what clients see of listening, TLS, reload and shutdown.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::tls::{ClientCertificate, Tls};
use super::{Drained, Listeners, ServeOptions, SocketOptions, serve};
use crate::config::{Keepalive, ListenUrl, TlsConfig};
use crate::telemetry::metrics::Metrics;

/// A wait that hangs must fail the test, not the build machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Running {
    urls: Vec<String>,
    stop: CancellationToken,
    served: JoinHandle<Drained>,
    metrics: Metrics,
}

pub(super) fn start(urls: &str, router: Router, tls: Option<Tls>, metrics: Metrics, drain: Duration) -> Running {
    let listeners = Listeners::bind(&ListenUrl::parse_list(urls).unwrap(), SocketOptions::default()).unwrap();
    let (urls, stop) = (listeners.urls(), CancellationToken::new());
    let keepalive = Keepalive { interval: None, timeout: None };
    let options = ServeOptions { max_concurrent_streams: u32::MAX, keepalive, drain, tls, metrics: metrics.clone() };
    let served = tokio::spawn(serve(listeners, router, stop.clone(), options));
    Running { urls, stop, served, metrics }
}

/// A server that pings its HTTP/2 clients.
fn pinging(keepalive: Keepalive) -> Running {
    let listeners = Listeners::bind(&ListenUrl::parse_list("http://127.0.0.1:0").unwrap(), SocketOptions::default()).unwrap();
    let (urls, stop, metrics) = (listeners.urls(), CancellationToken::new(), Metrics::unshared());
    let options = ServeOptions { max_concurrent_streams: 1, keepalive, drain: PATIENCE, tls: None, metrics: metrics.clone() };
    let served = tokio::spawn(serve(listeners, hello(), stop.clone(), options));
    Running { urls, stop, served, metrics }
}

fn plain(urls: &str, router: Router) -> Running {
    start(urls, router, None, Metrics::unshared(), PATIENCE)
}

impl Running {
    pub(super) fn address(&self) -> &str {
        self.urls[0].split_once("://").unwrap().1
    }

    pub(super) async fn stopped(self) -> Drained {
        self.stop.cancel();
        timeout(PATIENCE, self.served).await.expect("ends in time").unwrap()
    }
}

pub(super) fn hello() -> Router {
    let who = |client: Option<Extension<ClientCertificate>>| async move {
        client.and_then(|Extension(client)| client.common_name).unwrap_or_else(|| "nobody".to_owned())
    };
    Router::new().route("/", get(who))
}

/// One HTTP/1.1 exchange; the body of the answer.
pub(super) async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time")?;
    Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
}

/// A CA and what it signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Certificate and key, PEM.
    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        self.sign_for("127.0.0.1", name, usage)
    }

    pub(super) fn sign_for(&self, host: &str, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        self.finish(params)
    }

    pub(super) fn sign_numbered(&self, serial: u64, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.serial_number = Some(serial.into());
        params.extended_key_usages = vec![usage];
        self.finish(params)
    }

    fn finish(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A certificate that a server and a client may have.
    pub(super) fn write_for_both(&self, dir: &Path) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (cert, key) = self.finish(params);
        fs::write(dir.join("cert.pem"), cert).unwrap();
        fs::write(dir.join("key.pem"), key).unwrap();
    }

    pub(super) fn write_server(&self, dir: &Path, name: &str) {
        let (cert, key) = self.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
        fs::write(dir.join("cert.pem"), cert).unwrap();
        fs::write(dir.join("key.pem"), key).unwrap();
    }

    pub(super) fn client(&self, identity: Option<(String, String)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

pub(super) fn tls_files(dir: &Path) -> TlsConfig {
    TlsConfig {
        cert_file: dir.join("cert.pem"),
        key_file: dir.join("key.pem"),
        trusted_ca_file: None,
        client_cert_auth: false,
        client_crl_file: None,
        client_cert_allowed_hostnames: Vec::new(),
        cipher_suites: None,
        self_signed: None,
        allow_tls12: true,
        allow_tls13: true,
    }
}

pub(super) type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

pub(super) async fn connect(connector: &TlsConnector, address: &str) -> std::io::Result<ClientStream> {
    let stream = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

/// The name in the certificate that the server shows.
fn shown(stream: &ClientStream) -> String {
    super::x509::subject_common_name(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap()
}

#[tokio::test]
async fn several_urls_tcp_and_unix_serve_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("client.sock");
    let server = plain(&format!("http://127.0.0.1:0,unix://{}", socket.display()), hello());
    assert_eq!(ask(TcpStream::connect(server.address()).await.unwrap()).await.unwrap(), "nobody");
    assert_eq!(ask(UnixStream::connect(&socket).await.unwrap()).await.unwrap(), "nobody");
    assert_eq!(server.stopped().await, Drained::Clean);
    assert!(!socket.exists());
}

#[tokio::test]
async fn garbage_ends_only_its_own_connection() {
    let server = plain("http://127.0.0.1:0", hello());
    let garbage: [&[u8]; 4] =
        [b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage garbage", &[0; 9000], b"\r\n\r\nG"];
    for bytes in garbage {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let _ = stream.write_all(bytes).await; // the server may hang up in the middle
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server hangs up");
    }
    assert_eq!(ask(TcpStream::connect(server.address()).await.unwrap()).await.unwrap(), "nobody");
    assert_eq!(server.metrics.net.connections_total.get(), 5);
    server.stopped().await;
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_ca_and_are_known_by_its_name() {
    let (dir, authority, metrics) = (tempfile::tempdir().unwrap(), Authority::new(), Metrics::unshared());
    authority.write_server(dir.path(), "server");
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, &authority.pem).unwrap();
    let files = TlsConfig { trusted_ca_file: Some(ca), client_cert_auth: true, ..tls_files(dir.path()) };
    let tls = Tls::load(files, metrics.clone()).unwrap();
    let server = start("https://127.0.0.1:0", hello(), Some(tls), metrics, PATIENCE);

    let known = authority.client(Some(authority.sign("kube-apiserver", ExtendedKeyUsagePurpose::ClientAuth)));
    assert_eq!(ask(connect(&known, server.address()).await.unwrap()).await.unwrap(), "kube-apiserver");

    let stranger = Authority::new().sign("stranger", ExtendedKeyUsagePurpose::ClientAuth);
    for connector in [authority.client(None), authority.client(Some(stranger))] {
        // TLS 1.3 clients learn of the refusal only when they read.
        let refused = match connect(&connector, server.address()).await {
            Ok(stream) => ask(stream).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    assert_eq!(server.metrics.net.tls_handshake_failures_total.get(), 2);
    server.stopped().await;
}

#[tokio::test]
async fn new_certificates_are_used_by_new_connections_and_bad_ones_by_none() {
    let (dir, authority, metrics) = (tempfile::tempdir().unwrap(), Authority::new(), Metrics::unshared());
    authority.write_server(dir.path(), "first");
    let tls = Tls::load(tls_files(dir.path()), metrics.clone()).unwrap();
    let server = start("https://127.0.0.1:0", hello(), Some(tls.clone()), metrics, PATIENCE);
    let connector = authority.client(None);
    let standing = connect(&connector, server.address()).await.unwrap();
    assert_eq!(shown(&standing), "first");

    authority.write_server(dir.path(), "second");
    tls.reload().unwrap();
    assert_eq!(shown(&connect(&connector, server.address()).await.unwrap()), "second");

    let (_, foreign_key) = authority.sign("other", ExtendedKeyUsagePurpose::ServerAuth);
    for bad in [foreign_key.as_str(), "not PEM", ""] {
        fs::write(dir.path().join("key.pem"), bad).unwrap();
        assert!(tls.reload().is_err(), "{bad}");
        assert_eq!(shown(&connect(&connector, server.address()).await.unwrap()), "second");
    }
    assert_eq!(ask(standing).await.unwrap(), "nobody", "the first connection still works");
    server.stopped().await;
}

#[tokio::test]
async fn a_changed_certificate_file_is_noticed_without_being_told() {
    let (dir, authority, metrics) = (tempfile::tempdir().unwrap(), Authority::new(), Metrics::unshared());
    authority.write_server(dir.path(), "first");
    let tls = Tls::load(tls_files(dir.path()), metrics.clone()).unwrap();
    let stop = CancellationToken::new();
    let watching = tokio::spawn(tls.clone().keep_fresh(stop.clone()));
    let before = tls.current();
    let noticed = async {
        loop {
            // Rewritten until it is noticed: the first look may come after the first writing.
            authority.write_server(dir.path(), "second");
            tokio::time::sleep(Duration::from_millis(200)).await;
            if !Arc::ptr_eq(&before, &tls.current()) {
                return;
            }
        }
    };
    timeout(PATIENCE, noticed).await.expect("noticed");
    stop.cancel();
    watching.await.unwrap();
}

/// Reads HTTP/2 frames, answering SETTINGS only, until the end; their types in order, and the value of SETTINGS' 3rd parameter
/// (MAX_CONCURRENT_STREAMS) where it was sent.
async fn frames(mut stream: TcpStream) -> (Vec<u8>, Option<u32>) {
    const SETTINGS: u8 = 4;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut types, mut streams_max) = (Vec::new(), None);
    let mut header = [0; 9];
    while stream.read_exact(&mut header).await.is_ok() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        types.push(header[3]);
        if header[3] == SETTINGS && header[4] == 0 {
            let value = payload.chunks(6).find(|setting| setting[..2] == [0, 3]);
            streams_max = value.map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()));
            stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").await.unwrap();
        }
    }
    (types, streams_max)
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_cut_off_after_the_timeout() {
    const PING: u8 = 6;
    let short = Some(Duration::from_millis(50));
    let server = pinging(Keepalive { interval: short, timeout: short });
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let (types, streams_max) = timeout(PATIENCE, frames(stream)).await.expect("the server hangs up");
    assert!(types.contains(&PING), "{types:?}");
    assert_eq!(streams_max, Some(1));
    assert_eq!(server.stopped().await, Drained::Clean);
}

async fn health_server() -> (tonic_health::server::HealthReporter, Router) {
    let (reporter, service) = tonic_health::server::health_reporter();
    (reporter, tonic::service::Routes::new(service).into_axum_router())
}

#[tokio::test]
async fn grpc_and_http_share_a_port_and_shutdown_lets_a_call_finish() {
    let (_reporter, grpc) = health_server().await;
    let (entered, release) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let slow = {
        let (entered, release) = (entered.clone(), release.clone());
        get(move || async move {
            entered.notify_one();
            release.notified().await;
            "finished"
        })
    };
    let server = plain("http://127.0.0.1:0", grpc.merge(Router::new().route("/", slow)));
    let channel = Endpoint::from_shared(server.urls[0].clone()).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    client.check(HealthCheckRequest { service: String::new() }).await.unwrap();

    let call = tokio::spawn(ask(TcpStream::connect(server.address()).await.unwrap()));
    timeout(PATIENCE, entered.notified()).await.unwrap();
    server.stop.cancel();
    // New connections are refused at once, the open call is answered.
    let address = server.address().to_owned();
    let refused = async {
        while TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    timeout(PATIENCE, refused).await.expect("the listener closes");
    release.notify_one();
    assert_eq!(call.await.unwrap().unwrap(), "finished");
    assert_eq!(server.stopped().await, Drained::Clean);
}

#[tokio::test]
async fn a_stream_that_never_ends_is_cut_at_the_deadline() {
    let (reporter, grpc) = health_server().await;
    reporter.set_service_status("x", ServingStatus::Serving).await;
    let server = start("http://127.0.0.1:0", grpc, None, Metrics::unshared(), Duration::from_millis(100));
    let channel = Endpoint::from_shared(server.urls[0].clone()).unwrap().connect().await.unwrap();
    let watch = HealthClient::new(channel).watch(HealthCheckRequest { service: "x".into() }).await.unwrap();
    let mut stream = watch.into_inner();
    stream.message().await.unwrap().expect("the first status");
    assert_eq!(server.stopped().await, Drained::Forced(1));
    assert!(stream.message().await.is_err());
}
