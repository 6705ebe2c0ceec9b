//! Just enough of DER to name a certificate's subject and the end of its validity.
//!
//! It deliberately judges nothing: an unexpected shape gives no answer.

/// OID 2.5.4.3, commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first common name of the certificate's subject, as etcd's certificate-based authentication uses it.
pub(super) fn subject_common_name(certificate: &[u8]) -> Option<String> {
    // serialNumber, signature, issuer, validity come before the subject.
    let (SEQUENCE, mut subject, _) = element(after_version(certificate, 4)?)? else { return None };
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

/// The last second at which the certificate is valid, since 1970.
pub(super) fn not_after(certificate: &[u8]) -> Option<i64> {
    // serialNumber, signature and issuer come before the validity, which is two times.
    let (SEQUENCE, validity, _) = element(after_version(certificate, 3)?)? else { return None };
    let (tag, text, _) = element(element(validity)?.2)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        // RFC 5280: two digits are those of 1950 to 2049.
        UTC_TIME => {
            let (year, rest) = (digits(text.get(..2)?)?, text.get(2..)?);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => (digits(text.get(..4)?)?, text.get(4..)?),
        _ => return None,
    };
    let mut parts = [0; 5];
    for (at, part) in parts.iter_mut().enumerate() {
        *part = digits(rest.get(2 * at..2 * at + 2)?)?;
    }
    let [month, day, hour, minute, second] = parts;
    let days = days_since_1970(year, month, day).filter(|_| rest.len() == 10)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn digits(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// By the Gregorian calendar, whose years are counted from March here, so that the day that some of them have more is their last.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468)
}

/// The certificate's fields behind the version, without the first `skipped` of them.
fn after_version(certificate: &[u8], skipped: usize) -> Option<&[u8]> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    for _ in 0..skipped {
        fields = element(fields)?.2;
    }
    Some(fields)
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
    fn the_end_is_found_in_either_form_of_a_time() {
        for (year, month, day, seconds) in [
            (1999, 12, 31, 946_598_400),
            (2024, 2, 29, 1_709_164_800),
            (2049, 12, 31, 2_524_521_600),
            (2100, 3, 1, 4_107_542_400),
        ] {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.not_before = rcgen::date_time_ymd(1990, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(not_after(certificate.der()), Some(seconds), "{year}-{month}-{day}");
        }
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
            let _ = (not_after(&der[..length]), not_after(&bent));
        }
        assert_eq!(subject_common_name(&[]), None);
    }
}
