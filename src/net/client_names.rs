//! `--client-cert-allowed-hostname`: which of the certificates that a CA has signed may connect.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::tls::TlsError;

/// Asks `inner` first, then whether the certificate is for one of the names, as a server's would have to be.
#[derive(Debug)]
pub(super) struct AllowedHostnames {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<ServerName<'static>>,
}

impl AllowedHostnames {
    /// `inner`, restricted to `names` when there are any.
    pub(super) fn around(inner: Arc<dyn ClientCertVerifier>, names: &[String]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        if names.is_empty() {
            return Ok(inner);
        }
        let parse = |name: &String| ServerName::try_from(name.clone()).map_err(|_| TlsError::HostName { name: name.clone() });
        let names = names.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { inner, names }))
    }
}

impl ClientCertVerifier for AllowedHostnames {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let allowed = self.names.iter().any(|name| verify_server_name(&certificate, name).is_ok());
        allowed.then_some(verified).ok_or_else(|| Error::General("client certificate authentication failed".to_owned())) // etcd's words
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
