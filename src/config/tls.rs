//! The options of TLS, judged together.

use super::ciphers::Suites;
use super::validate::Checker;
use super::{Config, ListenAddress, SelfSigned, TlsConfig};

/// A certificate that outlives its maker's maker is long enough.
const VALIDITY_YEARS_MAX: u64 = 1000;

/// What all of them together ask for; what is wrong is noted in `c`. `config` is complete but for this.
pub(super) fn validate(c: &mut Checker, config: &Config) -> Option<TlsConfig> {
    let (min, max) = (c.one_of("tls-min-version"), c.one_of("tls-max-version"));
    if max == "TLS1.2" && min == "TLS1.3" {
        c.wrong("tls-max-version", "is older than --tls-min-version", "raise the one or lower the other");
    }
    let cipher_suites = cipher_suites(c, &min);
    let trusted_ca_file = c.path("trusted-ca-file");
    // As etcd: naming a CA for clients means asking them for certificates.
    let client_cert_auth = c.bool("client-cert-auth") || trusted_ca_file.is_some();
    if client_cert_auth && trusted_ca_file.is_none() {
        c.wrong("client-cert-auth", "needs --trusted-ca-file", "name the CA that signs your clients' certificates");
    }
    let client_cert_allowed_hostnames = allowed_hostnames(c, client_cert_auth);
    if !client_cert_auth && c.nonempty("client-crl-file").is_some() {
        c.wrong("client-crl-file", "needs --trusted-ca-file", "name the CA that signs your clients' certificates");
    }
    let (cert_file, key_file, self_signed) = certificate(c, config, client_cert_auth)?;
    Some(TlsConfig {
        cert_file,
        key_file,
        client_cert_auth,
        trusted_ca_file,
        client_crl_file: c.path("client-crl-file"),
        client_cert_allowed_hostnames,
        cipher_suites,
        self_signed,
        allow_tls12: min != "TLS1.3",
        allow_tls13: max != "TLS1.2",
    })
}

type Certificate = (std::path::PathBuf, std::path::PathBuf, Option<SelfSigned>);

fn certificate(c: &mut Checker, config: &Config, client_cert_auth: bool) -> Option<Certificate> {
    let auto = c.bool("auto-tls");
    let validity_years = c.count("self-signed-cert-validity", 1, VALIDITY_YEARS_MAX) as u32;
    match (c.path("cert-file"), c.path("key-file")) {
        (Some(cert), Some(key)) => {
            if auto {
                c.warn("--auto-tls is ignored, since a certificate is given".to_owned()); // as etcd does
            }
            Some((cert, key, None))
        }
        (None, None) if auto => {
            if client_cert_auth {
                // etcd would serve, without asking any client for a certificate.
                c.wrong("auto-tls", "can't be combined with client certificates", "name the server's --cert-file and --key-file");
            }
            let dir = config.data_dir.join("fixtures/client");
            Some((dir.join("cert.pem"), dir.join("key.pem"), Some(SelfSigned { validity_years, hosts: hosts(config) })))
        }
        (None, None) => {
            if client_cert_auth {
                c.wrong("client-cert-auth", "needs --cert-file and --key-file", "name the server's certificate and key");
            }
            None
        }
        (Some(_), None) => {
            c.wrong("cert-file", "needs --key-file", "name the certificate's key");
            None
        }
        (None, Some(_)) => {
            c.wrong("key-file", "needs --cert-file", "name the key's certificate");
            None
        }
    }
}

fn cipher_suites(c: &mut Checker, min: &str) -> Option<Vec<&'static str>> {
    c.nonempty("cipher-suites")?;
    let suites = c.parsed("cipher-suites", Suites::default(), Suites::parse);
    if min == "TLS1.3" {
        c.wrong("cipher-suites", "can't be configured when only TLS1.3 is enabled", "leave them out"); // as etcd
    }
    if !suites.missing.is_empty() {
        c.warn(format!("--cipher-suites: these are weak, Duet doesn't have them: {}", suites.missing.join(" ")));
        if suites.usable.is_empty() {
            c.wrong(
                "cipher-suites",
                "names only suites that Duet doesn't have",
                "name one with ECDHE and GCM or CHACHA20, or none",
            );
        }
    }
    Some(suites.usable)
}

fn allowed_hostnames(c: &mut Checker, client_cert_auth: bool) -> Vec<String> {
    let names = c.parsed("client-cert-allowed-hostname", Vec::new(), |text| {
        let names: Vec<String> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        match names.iter().find(|name| rustls::pki_types::ServerName::try_from(name.as_str()).is_err()) {
            Some(name) => Err(format!("\"{name}\" is no host name and no address; write for example api.example.com")),
            None => Ok(names),
        }
    });
    if !names.is_empty() && !client_cert_auth {
        c.wrong("client-cert-allowed-hostname", "needs --trusted-ca-file", "name the CA that signs your clients' certificates");
    }
    names
}

/// What a self-signed certificate must be for.
fn hosts(config: &Config) -> Vec<String> {
    let mut hosts = Vec::new();
    for url in config.listen_client.iter().chain(&config.listen_client_http) {
        if let ListenAddress::Tcp(address) = &url.address {
            hosts.push(address.ip().to_string());
            if address.ip().is_loopback() {
                hosts.push("localhost".to_owned());
            }
        }
    }
    for url in &config.advertise_client {
        let authority = url.split_once("://").filter(|(scheme, _)| scheme.starts_with("http")).map(|(_, rest)| rest);
        let host = authority.and_then(|rest| rest.trim_end_matches('/').rsplit_once(':')).map(|(host, _)| host);
        hosts.extend(host.map(|host| host.trim_matches(['[', ']']).to_owned()));
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::{Raw, Sources};

    fn with(line: &str) -> Result<Config, String> {
        let flags = line.split_whitespace().map(|word| word.split_once('=').unwrap());
        let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let raw = Raw::layer(&Sources { flags, ..Sources::default() }).unwrap();
        let told =
            |errors: Vec<crate::config::ConfigError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        crate::config::validate::validate(&raw).map_err(told)
    }

    #[test]
    fn naming_a_client_ca_asks_clients_for_certificates() {
        let tls = with("cert-file=a key-file=b trusted-ca-file=c").unwrap().tls.unwrap();
        assert!(tls.client_cert_auth && tls.self_signed.is_none());
        assert!(with("cert-file=a").is_err());
    }

    #[test]
    fn auto_tls_is_for_what_is_listened_on_and_advertised_and_gives_way_to_a_real_certificate() {
        let urls =
            "listen-client-urls=https://127.0.0.1:1,https://[::1]:2 advertise-client-urls=https://db.example:1,https://[::1]:2";
        let tls = with(&format!("auto-tls=true data-dir=/d self-signed-cert-validity=3 {urls}")).unwrap().tls.unwrap();
        assert_eq!(tls.cert_file.to_str(), Some("/d/fixtures/client/cert.pem"));
        let made = tls.self_signed.unwrap();
        assert_eq!(
            (made.validity_years, made.hosts),
            (3, ["127.0.0.1", "::1", "db.example", "localhost"].map(str::to_owned).to_vec())
        );
        let given = with("auto-tls=true cert-file=a key-file=b").unwrap();
        assert!(given.tls.unwrap().self_signed.is_none() && given.warnings[0].contains("--auto-tls is ignored"));
    }

    #[test]
    fn what_would_only_look_safe_is_refused() {
        for (line, expected) in [
            ("auto-tls=true trusted-ca-file=c", "--auto-tls can't be combined"),
            ("auto-tls=true self-signed-cert-validity=0", "--self-signed-cert-validity"),
            ("cert-file=a key-file=b client-cert-allowed-hostname=x", "--client-cert-allowed-hostname needs"),
            ("cert-file=a key-file=b client-crl-file=x", "--client-crl-file needs"),
            ("cert-file=a key-file=b trusted-ca-file=c client-cert-allowed-hostname=a/b", "no host name"),
            ("cert-file=a key-file=b cipher-suites=TLS_X", "unexpected TLS cipher suite"),
            ("cert-file=a key-file=b cipher-suites=TLS_RSA_WITH_RC4_128_SHA", "only suites that Duet doesn't have"),
            ("cert-file=a key-file=b tls-min-version=TLS1.3 cipher-suites=TLS_AES_128_GCM_SHA256", "only TLS1.3"),
            ("cert-file=a key-file=b tls-min-version=TLS1.3 tls-max-version=TLS1.2", "is older than"),
        ] {
            let error = with(line).map(|config| config.tls).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
        let both = "cipher-suites=TLS_RSA_WITH_RC4_128_SHA,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        let config = with(&format!("cert-file=a key-file=b {both}")).unwrap();
        assert_eq!(config.tls.unwrap().cipher_suites.unwrap(), ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]);
        assert!(config.warnings[0].contains("TLS_RSA_WITH_RC4_128_SHA"));
    }
}
