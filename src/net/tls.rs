//! Server certificates and client certificates, read again while serving, for listeners and for connections to other replicas.
//!
//! Invariants: a set of files is used as a whole or not at all, so a half-finished rotation leaves the old set in use;
//! connections that stand are never touched. The order of checks and the meaning of the options are those of etcd's
//! `transport.TLSInfo`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::client_names::AllowedHostnames;
use crate::config::TlsConfig;
use crate::telemetry::metrics::Metrics;

/// How often the files' stamps are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// What is wrong with a set of files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("can't read {path}: {cause}; check the path and that this user may read it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file can't be made.
    #[error("can't make {path}: {cause}; give this user access, or name a certificate with --cert-file and --key-file")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file holds nothing usable.
    #[error("{path} holds no {what} in PEM form; {fix}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// Not a name that a certificate could hold.
    #[error("{name} is no host name and no address; check --client-cert-allowed-hostname")]
    HostName {
        /// As written.
        name: String,
    },
    /// The files don't work together.
    #[error("{cert} and {key} can't be used: {cause}")]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        cause: String,
    },
}

/// Who a TLS client is; an extension of each of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject's common name; etcd takes it as the user's name.
    pub common_name: Option<String>,
}

impl ClientCertificate {
    pub(super) fn of(connection: &rustls::ServerConnection) -> Option<Self> {
        let certificate = connection.peer_certificates()?.first()?;
        Some(Self { common_name: super::x509::subject_common_name(certificate) })
    }
}

/// Whether a set of files can be used.
///
/// # Errors
/// What is wrong with them.
pub fn check(files: &TlsConfig) -> Result<(), TlsError> {
    read(files).map(drop)
}

/// The certificates in use; clones share them.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsConfig,
    current: ArcSwap<ServerConfig>,
    /// Of the same files, once somebody has asked for it.
    client: OnceLock<ClientTls>,
    metrics: Metrics,
}

/// How this process speaks TLS to others at the moment; clones share it.
#[derive(Clone, Debug)]
pub struct ClientTls(Arc<ArcSwap<ClientConfig>>);

impl ClientTls {
    /// What the next handshake uses.
    #[must_use]
    pub fn current(&self) -> Arc<ClientConfig> {
        self.0.load_full()
    }
}

impl From<Arc<ClientConfig>> for ClientTls {
    /// One that stays as it is.
    fn from(config: Arc<ClientConfig>) -> Self {
        Self(Arc::new(ArcSwap::from(config)))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files).finish()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn load(files: TlsConfig, metrics: Metrics) -> Result<Self, TlsError> {
        let config = read(&files)?;
        Ok(Self(Arc::new(Shared { files, current: ArcSwap::from(config), client: OnceLock::new(), metrics })))
    }

    /// What the next handshake uses.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.current.load_full()
    }

    /// How to connect to others that have certificates of the same CA, as [`client_config`] says; read again together with what
    /// listeners use.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn client(&self) -> Result<ClientTls, TlsError> {
        if let Some(client) = self.0.client.get() {
            return Ok(client.clone());
        }
        let client = ClientTls::from(client_config(&self.0.files)?);
        Ok(self.0.client.get_or_init(|| client).clone())
    }

    fn read_again(&self) -> Result<(Arc<ServerConfig>, Option<Arc<ClientConfig>>), TlsError> {
        let files = &self.0.files;
        Ok((read(files)?, self.0.client.get().map(|_| client_config(files)).transpose()?))
    }

    /// Reads the files again and uses them if they are good.
    ///
    /// # Errors
    /// What is wrong with the new files; the old certificates stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        match self.read_again() {
            Ok((config, client)) => {
                self.0.current.store(config);
                if let (Some(used), Some(client)) = (self.0.client.get(), client) {
                    used.0.store(client);
                }
                self.0.metrics.net.tls_reloads_total.inc();
                Ok(())
            }
            Err(error) => {
                self.0.metrics.net.tls_reload_failures_total.inc();
                Err(error)
            }
        }
    }

    /// Reloads on SIGHUP and when a file changes, until `stop`.
    pub async fn keep_fresh(self, stop: CancellationToken) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return tracing::error!(%error, "can't wait for SIGHUP; certificates will not be reloaded"),
        };
        let mut used = self.stamps();
        let mut told = String::new();
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => true,
                () = tokio::time::sleep(POLL_INTERVAL) => false,
            };
            let stamps = self.stamps();
            if !asked && stamps == used {
                continue;
            }
            match self.reload() {
                Ok(()) => {
                    used = stamps;
                    told.clear();
                    tracing::info!(cert = %self.0.files.cert_file.display(), "certificates reloaded; new connections use them");
                }
                // Tried again at the next look, since a rotation may be half done; told once.
                Err(error) if told != error.to_string() => {
                    told = error.to_string();
                    tracing::error!(%error, "new certificates refused; the old ones stay in use");
                }
                Err(_) => {}
            }
        }
    }

    /// What changes when somebody replaces or rewrites a file: Kubernetes and certbot replace symbolic links, which a
    /// watch on the file itself would miss.
    fn stamps(&self) -> Vec<Option<(u64, i64, i64, u64)>> {
        let files = &self.0.files;
        let paths =
            [Some(&files.cert_file), Some(&files.key_file), files.trusted_ca_file.as_ref(), files.client_crl_file.as_ref()];
        let stamp = |path: &PathBuf| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
        };
        paths.into_iter().flatten().map(stamp).collect()
    }
}

fn read(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable = |cause: String| TlsError::Unusable { cert: files.cert_file.clone(), key: files.key_file.clone(), cause };
    let chain = Pem::read(&files.cert_file)?.certificates()?;
    let versions: Vec<&'static SupportedProtocolVersion> =
        [files.allow_tls13.then_some(&rustls::version::TLS13), files.allow_tls12.then_some(&rustls::version::TLS12)]
            .into_iter()
            .flatten()
            .collect();
    let provider = Arc::new(provider(files));
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions);
    let builder = builder.map_err(|error| unusable(error.to_string()))?;
    let builder = match (&files.trusted_ca_file, files.client_cert_auth) {
        (Some(path), true) => {
            let mut roots = RootCertStore::empty();
            if roots.add_parsable_certificates(Pem::read(path)?.certificates()?).0 == 0 {
                return Err(TlsError::Content {
                    path: path.clone(),
                    what: "usable CA certificate",
                    fix: "check --trusted-ca-file",
                });
            }
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            if let Some(path) = &files.client_crl_file {
                verifier = verifier.with_crls(revocations(path)?).allow_unknown_revocation_status();
            }
            let verifier = verifier.build().map_err(|error| unusable(error.to_string()))?;
            builder.with_client_cert_verifier(AllowedHostnames::around(verifier, &files.client_cert_allowed_hostnames)?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(chain, Pem::read(&files.key_file)?.key()?).map_err(|error| unusable(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The library's cryptography, with the cipher suites that the user wants.
fn provider(files: &TlsConfig) -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if let Some(wanted) = &files.cipher_suites {
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some() || suite.suite().as_str().is_some_and(|name| wanted.contains(&name)));
    }
    provider
}

/// How a replica connects to another: it checks the certificate against `--trusted-ca-file`, or the system's CAs without
/// one, and shows its own.
///
/// # Errors
/// What is wrong with the files.
pub fn client_config(files: &TlsConfig) -> Result<Arc<ClientConfig>, TlsError> {
    let ca = files.trusted_ca_file.as_deref().map(Pem::read).transpose()?;
    let client = (Pem::read(&files.cert_file)?, Pem::read(&files.key_file)?);
    client_config_of(ca.as_ref(), Some((&client.0, &client.1)), &[b"h2"]).map(Arc::new)
}

/// A client that trusts `ca`, or the system's CAs without one, shows a certificate with its key if it has one, and speaks `protocols`.
///
/// # Errors
/// What is wrong with any of them.
pub fn client_config_of(ca: Option<&Pem>, client: Option<(&Pem, &Pem)>, protocols: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(ca) => roots.add_parsable_certificates(ca.certificates()?),
        None => roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider knows TLS 1.2 and 1.3").with_root_certificates(roots);
    let mut config = match client {
        Some((certificate, key)) => {
            let unusable = |error: rustls::Error| TlsError::Unusable {
                cert: certificate.from.clone(),
                key: key.from.clone(),
                cause: error.to_string(),
            };
            builder.with_client_auth_cert(certificate.certificates()?, key.key()?).map_err(unusable)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// Certificates or a key in PEM form.
pub struct Pem {
    /// The file that they stand in.
    pub from: PathBuf,
    /// As they stand there.
    pub text: Vec<u8>,
}

impl Pem {
    /// All of a file.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        Ok(Self { from: path.to_owned(), text: contents(path)? })
    }

    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.text).collect();
        certificates.ok().filter(|certificates| !certificates.is_empty()).ok_or_else(|| TlsError::Content {
            path: self.from.clone(),
            what: "certificate",
            fix: "it must begin with -----BEGIN CERTIFICATE-----",
        })
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|_| TlsError::Content {
            path: self.from.clone(),
            what: "private key",
            fix: "write it as PKCS#8, PKCS#1 or SEC1, without a passphrase",
        })
    }
}

fn contents(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|cause| TlsError::Read { path: path.to_owned(), cause })
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let contents = contents(path)?;
    // etcd takes DER, which begins with a SEQUENCE.
    if contents.first() == Some(&0x30) {
        return Ok(vec![contents.into()]);
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&contents).collect();
    lists.ok().filter(|lists| !lists.is_empty()).ok_or_else(|| TlsError::Content {
        path: path.to_owned(),
        what: "revocation list",
        fix: "it must begin with -----BEGIN X509 CRL-----",
    })
}
