//! The rarer options of TLS, on real connections.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, ExtendedKeyUsagePurpose, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::self_signed;
use super::serve_test::{Authority, PATIENCE, ask, connect, hello, start, tls_files};
use super::tls::Tls;
use crate::config::{SelfSigned, TlsConfig, ciphers};
use crate::telemetry::metrics::Metrics;

fn trusting(certificate: &CertificateDer<'static>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    roots
}

/// Whether the server at `address` answers a client that connects so. TLS 1.3 clients learn of a refusal only when they read.
async fn is_served(connector: &TlsConnector, address: &str) -> bool {
    match connect(connector, address).await {
        Ok(stream) => ask(stream).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_self_signed_certificate_serves_those_who_trust_it_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = dir.path().join("data/fixtures/client");
    let files = TlsConfig {
        cert_file: fixtures.join("cert.pem"),
        key_file: fixtures.join("key.pem"),
        self_signed: Some(SelfSigned { validity_years: 2, hosts: vec!["127.0.0.1".to_owned(), "db.example".to_owned()] }),
        ..tls_files(dir.path())
    };
    self_signed::ensure(&files).unwrap();
    assert_eq!(fs::metadata(&files.key_file).unwrap().mode() & 0o777, 0o600);
    let made = fs::read(&files.cert_file).unwrap();
    self_signed::ensure(&files).unwrap();
    assert_eq!(fs::read(&files.cert_file).unwrap(), made, "the second start uses the same");

    let certificate = CertificateDer::from_pem_slice(&made).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(builder.with_root_certificates(trusting(&certificate)).with_no_client_auth()));
    let metrics = Metrics::unshared();
    let tls = Tls::load(files.clone(), metrics.clone()).unwrap();
    let server = start("https://127.0.0.1:0", hello(), Some(tls), metrics, PATIENCE);
    assert!(is_served(&connector, server.address()).await);
    assert!(!is_served(&Authority::new().client(None), server.address()).await, "others don't trust it");
    server.stopped().await;

    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(trusting(&certificate)), provider).build().unwrap();
    let valid_in = |days: u64, name: &'static str| {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + days * 86_400));
        verifier.verify_server_cert(&certificate, &[], &ServerName::try_from(name).unwrap(), &[], at).is_ok()
    };
    assert!(valid_in(0, "127.0.0.1") && valid_in(729, "db.example"));
    assert!(!valid_in(731, "127.0.0.1") && !valid_in(0, "other.example"));

    fs::remove_file(&files.key_file).unwrap();
    self_signed::ensure(&files).unwrap();
    assert_ne!(fs::read(&files.cert_file).unwrap(), made, "one without the other is of no use");
    Tls::load(files, Metrics::unshared()).unwrap();
}

#[tokio::test]
async fn only_client_certificates_for_an_allowed_host_name_are_accepted() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.write_server(dir.path(), "server");
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    let client = |host: &str| authority.client(Some(authority.sign_for(host, "client", ExtendedKeyUsagePurpose::ClientAuth)));
    for (allowed, host, served) in [
        (vec![], "api.example", true),
        (vec!["api.example"], "api.example", true),
        (vec!["other.example", "api.kube.example"], "*.kube.example", true),
        (vec!["127.0.0.1"], "127.0.0.1", true),
        (vec!["other.example"], "api.example", false),
        (vec!["127.0.0.1"], "api.example", false),
    ] {
        let files = TlsConfig {
            trusted_ca_file: Some(ca.clone()),
            client_cert_auth: true,
            client_cert_allowed_hostnames: allowed.iter().map(|name| (*name).to_owned()).collect(),
            ..tls_files(dir.path())
        };
        let metrics = Metrics::unshared();
        let tls = Tls::load(files, metrics.clone()).unwrap();
        let server = start("https://127.0.0.1:0", hello(), Some(tls), metrics, PATIENCE);
        assert_eq!(is_served(&client(host), server.address()).await, served, "{host} where {allowed:?} may");
        // A name alone is no pass: the CA must have signed it.
        let stranger = Authority::new().sign_for(host, "client", ExtendedKeyUsagePurpose::ClientAuth);
        assert!(!is_served(&authority.client(Some(stranger)), server.address()).await);
        server.stopped().await;
    }
}

#[tokio::test]
async fn a_revoked_client_certificate_is_refused_by_a_list_in_either_form() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.write_server(dir.path(), "server");
    let (ca, crl) = (dir.path().join("ca.pem"), dir.path().join("crl"));
    fs::write(&ca, authority.pem()).unwrap();
    let client = |serial: u64| authority.client(Some(authority.sign_numbered(serial, ExtendedKeyUsagePurpose::ClientAuth)));
    let now = std::time::SystemTime::now();
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + Duration::from_secs(3600)).into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7),
            revocation_time: now.into(),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(authority.issuer()).unwrap();
    for contents in [list.pem().unwrap().into_bytes(), list.der().to_vec()] {
        fs::write(&crl, contents).unwrap();
        let files = TlsConfig {
            trusted_ca_file: Some(ca.clone()),
            client_cert_auth: true,
            client_crl_file: Some(crl.clone()),
            ..tls_files(dir.path())
        };
        let metrics = Metrics::unshared();
        let tls = Tls::load(files, metrics.clone()).unwrap();
        let server = start("https://127.0.0.1:0", hello(), Some(tls), metrics, PATIENCE);
        assert!(is_served(&client(6), server.address()).await);
        assert!(!is_served(&client(7), server.address()).await);
        server.stopped().await;
    }
}

#[tokio::test]
async fn only_the_wanted_cipher_suites_and_versions_are_offered() {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    for name in ciphers::USABLE {
        assert!(provider.cipher_suites.iter().any(|suite| suite.suite().as_str() == Some(name)), "{name}");
    }
    let (dir, authority, metrics) = (tempfile::tempdir().unwrap(), Authority::new(), Metrics::unshared());
    authority.write_server(dir.path(), "server");
    let (wanted, other) = (ciphers::USABLE[1], ciphers::USABLE[0]);
    let files = TlsConfig { cipher_suites: Some(vec![wanted]), allow_tls13: false, ..tls_files(dir.path()) };
    let tls = Tls::load(files, metrics.clone()).unwrap();
    let server = start("https://127.0.0.1:0", hello(), Some(tls), metrics, PATIENCE);
    let only = |name: &str, versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || suite.suite().as_str() == Some(name));
        let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions).unwrap();
        let certificate = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        TlsConnector::from(Arc::new(builder.with_root_certificates(trusting(&certificate)).with_no_client_auth()))
    };
    let (old, new) = (&rustls::version::TLS12, &rustls::version::TLS13);
    assert!(is_served(&only(wanted, &[old, new]), server.address()).await);
    assert!(!is_served(&only(other, &[old]), server.address()).await);
    assert!(!is_served(&only(wanted, &[new]), server.address()).await, "--tls-max-version TLS1.2");
    server.stopped().await;
}

#[tokio::test]
async fn connections_to_others_are_made_with_the_certificates_that_are_in_use_then() {
    let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::unshared());
    let ca = dir.path().join("ca.pem");
    let files = TlsConfig { trusted_ca_file: Some(ca.clone()), client_cert_auth: true, ..tls_files(dir.path()) };
    let certify = |authority: &Authority| {
        authority.write_for_both(dir.path());
        fs::write(&ca, authority.pem()).unwrap();
    };
    let (first, second) = (Authority::new(), Authority::new());
    certify(&first);
    // Another replica, which has the new certificates a moment earlier.
    let others = Tls::load(files.clone(), metrics.clone()).unwrap();
    let server = start("https://127.0.0.1:0", hello(), Some(others.clone()), metrics.clone(), PATIENCE);
    let own = Tls::load(files, metrics).unwrap();
    let client = own.client().unwrap();
    let served = async || is_served(&TlsConnector::from(client.current()), server.address()).await;
    assert!(served().await);
    certify(&second);
    others.reload().unwrap();
    assert!(!served().await, "they don't know each other");
    own.reload().unwrap();
    assert!(served().await);

    fs::write(&ca, "").unwrap();
    assert!(own.reload().is_err());
    assert!(served().await, "half a set of files is not used");
    server.stopped().await;
}
