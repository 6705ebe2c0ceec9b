//! The certificate of `--auto-tls`: self-signed, made once and kept, as etcd's (`transport.SelfCert`).
//!
//! It encrypts; whom clients talk to they know only when they have been given this very certificate to trust. It is deliberately not
//! renewed: remove both files, and the next start makes new ones.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use super::tls::TlsError;
use crate::config::{SelfSigned, TlsConfig};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Makes the certificate and key that `files` names, unless both are there.
///
/// # Errors
/// A file that can't be written, or a host name that no certificate can hold.
pub fn ensure(files: &TlsConfig) -> Result<(), TlsError> {
    let Some(wanted) = &files.self_signed else { return Ok(()) };
    if files.cert_file.exists() && files.key_file.exists() {
        return Ok(());
    }
    let make = |cause: rcgen::Error| TlsError::Unusable {
        cert: files.cert_file.clone(),
        key: files.key_file.clone(),
        cause: cause.to_string(),
    };
    let (cert, key) = generate(wanted, SystemTime::now()).map_err(make)?;
    let write = |path: &Path, text: &str, mode| {
        write_new(path, text, mode).map_err(|cause| TlsError::Write { path: path.to_owned(), cause })
    };
    // The key first: a certificate is used only with its key, so a crash between the two is mended by the next start.
    write(&files.key_file, &key, 0o600)?;
    write(&files.cert_file, &cert, 0o644)?;
    tracing::warn!(
        cert = %files.cert_file.display(),
        hosts = wanted.hosts.join(","),
        years = wanted.validity_years,
        "made a self-signed certificate; clients must be given it to trust"
    );
    Ok(())
}

/// Certificate and key, PEM.
fn generate(wanted: &SelfSigned, now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(wanted.hosts.clone())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.not_before = now.into();
    params.not_after = (now + YEAR * wanted.validity_years).into();
    // etcd marks it as a CA, which clients that go by the book (rustls among them) refuse in a server. Trusting it works without.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // etcd's curve.
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512)?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let scratch = path.with_extension("tmp");
    let _ = fs::remove_file(&scratch);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&scratch)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&scratch, path)
}
