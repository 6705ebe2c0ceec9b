//! The certificates of a pair: an authority, and what it issues.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 730;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Server,
    Client,
    Both,
}

/// A certificate with its key, PEM.
pub(super) struct Leaf {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// A CA.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// A new one.
    pub(super) fn new(name: &str) -> Result<Self, String> {
        let make = || -> Result<Self, rcgen::Error> {
            let mut params = params(name, Vec::new(), AUTHORITY_DAYS)?;
            // It signs no other CA.
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let certificate_pem = params.self_signed(&key)?.pem();
            Ok(Self { issuer: Issuer::new(params, key), certificate_pem })
        };
        make().map_err(|error| error.to_string())
    }

    /// One that was made before.
    pub(super) fn from_pem(certificate: &str, key: &str) -> Result<Self, String> {
        let read = || -> Result<Self, rcgen::Error> {
            let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
            Ok(Self { issuer, certificate_pem: certificate.to_owned() })
        };
        read().map_err(|error| error.to_string())
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate called `name`, for `hosts` (names and addresses).
    pub(super) fn issue(&self, name: &str, hosts: Vec<String>, usage: Use) -> Result<Leaf, String> {
        let make = || -> Result<Leaf, rcgen::Error> {
            let mut params = params(name, hosts, LEAF_DAYS)?;
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
            params.extended_key_usages = match usage {
                Use::Server => vec![server],
                Use::Client => vec![client],
                Use::Both => vec![server, client],
            };
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            Ok(Leaf { certificate_pem: params.signed_by(&key, &self.issuer)?.pem(), key_pem: key.serialize_pem() })
        };
        make().map_err(|error| error.to_string())
    }
}

fn params(name: &str, mut hosts: Vec<String>, days: u32) -> Result<CertificateParams, rcgen::Error> {
    hosts.sort();
    hosts.dedup();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // Clocks differ.
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + DAY * days).into();
    Ok(params)
}
