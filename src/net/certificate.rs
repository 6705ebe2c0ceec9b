//! Certificates, looked at without using them: whose they are, how long they last, and whether a CA vouches for a name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::Pem;
use super::x509;
use crate::config::{HostPort, TlsConfig};

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name.
    pub common_name: Option<String>,
    /// The last second at which it is valid, since 1970.
    pub not_after: i64,
}

impl Certificate {
    fn of(der: &CertificateDer<'_>) -> Result<Self, String> {
        let not_after = x509::not_after(der).ok_or("it is no certificate that can be read")?;
        Ok(Self { common_name: x509::subject_common_name(der), not_after })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    Pem::read(path).and_then(|pem| pem.certificates()).map_err(|error| error.to_string())
}

/// The first certificate in a PEM file.
///
/// # Errors
/// What is wrong with the file.
pub fn read(path: &Path) -> Result<Certificate, String> {
    Certificate::of(&certificates(path)?[0])
}

/// The first certificate of `files`, if its CA vouches for `name` today.
///
/// # Errors
/// What is wrong with the files, or with the certificate.
pub fn verified(files: &TlsConfig, name: &str) -> Result<Certificate, String> {
    let chain = certificates(&files.cert_file)?;
    let mut roots = RootCertStore::empty();
    if let Some(path) = &files.trusted_ca_file {
        roots.add_parsable_certificates(certificates(path)?);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().map_err(|error| error.to_string())?;
    let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now());
    verified.map_err(|error| error.to_string())?;
    Certificate::of(&chain[0])
}

/// The certificate that a server shows to one who trusts it: both sides have found the other's to be of their CA then.
///
/// # Errors
/// Who can't be reached, or isn't trusted, or doesn't trust this side.
pub async fn shown_by(server: &HostPort, tls: Arc<rustls::ClientConfig>) -> io::Result<Certificate> {
    let name = ServerName::try_from(server.host.clone()).map_err(io::Error::other)?;
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    Certificate::of(shown.ok_or_else(|| io::Error::other("it shows no certificate"))?).map_err(io::Error::other)
}
