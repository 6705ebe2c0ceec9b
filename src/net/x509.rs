//! Just enough of DER to name the subject of a certificate that rustls has already verified.
//!
//! It deliberately judges nothing: an unexpected shape gives no name.

/// OID 2.5.4.3, commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The first common name of the certificate's subject, as etcd's certificate-based authentication uses it.
pub(super) fn subject_common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // serialNumber, signature, issuer, validity come before the subject.
    for _ in 0..4 {
        fields = element(fields)?.2;
    }
    let (SEQUENCE, mut subject, _) = element(fields)? else { return None };
    while !subject.is_empty() {
        let (_, mut set, rest) = element(subject)?;
        subject = rest;
        while !set.is_empty() {
            let (_, attribute, rest) = element(set)?;
            set = rest;
            let (_, oid, value) = element(attribute)?;
            if oid == COMMON_NAME {
                return String::from_utf8(element(value)?.1.to_vec()).ok();
            }
        }
    }
    None
}

/// Tag, content and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        short if short < 0x80 => (usize::from(short), rest),
        // DER lengths of more than four bytes don't occur in certificates.
        long => {
            let bytes = usize::from(long & 0x7f);
            let length = rest.get(..bytes).filter(|_| (1..=4).contains(&bytes))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), &rest[bytes..])
        }
    };
    Some((tag, rest.get(..length)?, rest.get(length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn the_common_name_is_found_among_other_attributes() {
        let mut params = CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver-etcd-client");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(subject_common_name(certificate.der()).as_deref(), Some("kube-apiserver-etcd-client"));
    }

    #[test]
    fn a_cut_or_bent_certificate_gives_no_name_and_no_panic() {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "x");
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        for length in 0..der.len() {
            let _ = subject_common_name(&der[..length]);
            let mut bent = der.clone();
            bent[length] ^= 0xff;
            let _ = subject_common_name(&bent);
        }
        assert_eq!(subject_common_name(&[]), None);
    }
}
