//! `--cipher-suites`: Go's names (`crypto/tls`), and which of them Duet's TLS library has.
//!
//! As in Go the list concerns TLS 1.2 only, and its order is no preference.

/// Those of TLS 1.2 that can be used.
pub const USABLE: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// Those of TLS 1.3, which are always on.
const OF_TLS13: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Those that Go has and the TLS library has not: without forward secrecy, with CBC, with RC4 or 3DES.
const WEAK: [&str; 17] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
];

/// A list taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suites {
    /// Those to offer for TLS 1.2.
    pub usable: Vec<&'static str>,
    /// Those that Go has and Duet doesn't.
    pub missing: Vec<&'static str>,
}

impl Suites {
    /// Reads a comma-separated list.
    ///
    /// # Errors
    /// A name that Go doesn't know, as half a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut suites = Self::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            // Two older names, which etcd understands (`tlsutil/cipher_suites.go`).
            let full = if name.ends_with("_CHACHA20_POLY1305") { format!("{name}_SHA256") } else { name.to_owned() };
            let among = |list: &[&'static str]| list.iter().find(|listed| **listed == full).copied();
            match (among(&USABLE), among(&WEAK), among(&OF_TLS13)) {
                (Some(usable), ..) => suites.usable.push(usable),
                (_, Some(weak), _) => suites.missing.push(weak),
                (.., Some(_)) => {}
                // etcd's words.
                _ => return Err(format!("unexpected TLS cipher suite \"{name}\"; write for example {}", USABLE[0])),
            }
        }
        Ok(suites)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_names_are_sorted_into_usable_missing_and_always_on() {
        let suites = Suites::parse(
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256,TLS_RSA_WITH_AES_128_CBC_SHA,TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        )
        .unwrap();
        assert_eq!(suites.usable, [USABLE[3], USABLE[2]]);
        assert_eq!(suites.missing, ["TLS_RSA_WITH_AES_128_CBC_SHA"]);
        assert!(Suites::parse("TLS_NONSENSE").unwrap_err().contains("unexpected TLS cipher suite"));
        assert_eq!(Suites::parse("").unwrap(), Suites::default());
    }
}
