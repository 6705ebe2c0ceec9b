//! Connection strings (libpq's, several hosts included) and TLS, without OpenSSL.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::redact::redact_dsn;

const READERS_MAX: usize = 8;
/// Longer than the server's own limit for a reader's statement, which says more.
const READ_DEADLINE: Duration = Duration::from_secs(35);

/// How to reach the database.
#[derive(Clone)]
pub struct PgOptions {
    /// Hosts, user, database; its `Debug` hides the password.
    pub(super) config: tokio_postgres::Config,
    pub(super) tls: MakeRustlsConnect,
    /// Sessions for reads, at most.
    pub(super) readers_max: usize,
    /// How long a read waits for an answer.
    pub(super) read_deadline: Duration,
    /// Whether reads may be answered by a standby, too.
    pub(super) reads_standby: bool,
}

/// What is wrong with a connection string. Never shows the password.
#[derive(Debug, thiserror::Error)]
pub enum DsnError {
    /// Not a connection string.
    #[error(
        "the database's connection string can't be read ({0}); it looks like postgres://user@host1,host2:5432/database?sslmode=verify-full"
    )]
    Syntax(String),
    /// An option with a value that it doesn't have.
    #[error("the database's connection string has {option}={value}: {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// What it was given.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// A certificate or key file.
    #[error("{option} {path}: {why}")]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// libpq's sslmode, without `allow`, which is as unsafe as it is useless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl PgOptions {
    /// Lets reads wait this long for an answer instead.
    #[must_use]
    pub fn with_read_deadline(self, read_deadline: Duration) -> Self {
        Self { read_deadline, ..self }
    }

    /// How to connect to whichever server may be used: a standby, too, if reads may be answered by one.
    pub(super) fn config_for_any(&self) -> Cow<'_, tokio_postgres::Config> {
        if !self.reads_standby {
            return Cow::Borrowed(&self.config);
        }
        let mut config = self.config.clone();
        config.target_session_attrs(TargetSessionAttrs::Any);
        Cow::Owned(config)
    }

    /// Lets reads be answered while the server is a standby.
    #[must_use]
    pub fn reading_standby(self) -> Self {
        Self { reads_standby: true, ..self }
    }

    /// Over a connection that needs no TLS: a PostgreSQL of one's own, through its socket.
    pub fn local(config: tokio_postgres::Config) -> Result<Self, DsnError> {
        Self::build(config, Mode::Disable, &Files::default())
    }

    /// One plain session, for whoever needs no more; its connection is served until either side ends it.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session ended");
            }
        });
        Ok(client)
    }

    /// Reads a connection string: what tokio-postgres reads, and libpq's `sslmode` (all of them but `allow`), `sslrootcert` (a
    /// file, or `system`), `sslcert` and `sslkey`. `password` wins over one in the string.
    ///
    /// Without `sslmode`: `verify-full` when there is an `sslrootcert`, else libpq's default, `prefer`.
    pub fn from_dsn(dsn: &str, password: Option<&str>) -> Result<Self, DsnError> {
        let (rest, taken) = take_tls_options(dsn)?;
        let mut config: tokio_postgres::Config = rest.parse().map_err(|error| DsnError::Syntax(reason(dsn, &error)))?;
        if let Some(password) = password {
            config.password(password);
        }
        let mode = match taken.mode.as_deref() {
            None if taken.files.root.is_some() => Mode::VerifyFull,
            None => Mode::Prefer,
            Some("disable") => Mode::Disable,
            Some("prefer") => Mode::Prefer,
            Some("require") => Mode::Require,
            Some("verify-ca") => Mode::VerifyCa,
            Some("verify-full") => Mode::VerifyFull,
            Some(other) => {
                let expected = "use disable, prefer, require, verify-ca or verify-full";
                let value = if is_hidden(dsn, other) { "…".to_owned() } else { other.to_owned() };
                return Err(DsnError::Value { option: "sslmode", value, expected });
            }
        };
        Self::build(config, mode, &taken.files)
    }

    /// Uses `password` if the connection string has none.
    #[must_use]
    pub fn or_password(mut self, password: &[u8]) -> Self {
        if self.config.get_password().is_none_or(<[u8]>::is_empty) {
            self.config.password(password);
        }
        self
    }

    fn build(mut config: tokio_postgres::Config, mode: Mode, files: &Files) -> Result<Self, DsnError> {
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        });
        // Only the primary is of use; several hosts are tried until it is found.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(3));
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(10));
        }
        config.keepalives(true);
        config.keepalives_idle(Duration::from_secs(5));
        config.keepalives_interval(Duration::from_secs(2));
        config.keepalives_retries(3);
        if config.get_application_name().is_none() {
            config.application_name("duet");
        }
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(client_config(mode, files)?),
            readers_max: READERS_MAX,
            read_deadline: READ_DEADLINE,
            reads_standby: false,
        })
    }
}

#[derive(Default, Debug)]
struct Files {
    root: Option<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Default, Debug)]
struct Taken {
    mode: Option<String>,
    files: Files,
}

/// Takes out of a connection string, in either of its forms, what tokio-postgres doesn't know.
fn take_tls_options(dsn: &str) -> Result<(String, Taken), DsnError> {
    let mut taken = Taken::default();
    let mut take = |name: &str, value: String| {
        match name {
            "sslmode" => taken.mode = Some(value),
            "sslrootcert" => taken.files.root = Some(value),
            "sslcert" => taken.files.certificate = Some(value.into()),
            "sslkey" => taken.files.key = Some(value.into()),
            _ => return false,
        }
        true
    };
    let rest = if dsn.starts_with("postgres://") || dsn.starts_with("postgresql://") {
        take_from_query(dsn, &mut take)?
    } else {
        take_from_pairs(dsn, &mut take)
    };
    Ok((rest, taken))
}

/// From the URL form. What stands before the first @ is user and password, to tokio-postgres too, whatever is in them.
fn take_from_query(dsn: &str, take: &mut impl FnMut(&str, String) -> bool) -> Result<String, DsnError> {
    let host = dsn.find('@').unwrap_or(0);
    let Some(mark) = dsn[host..].find('?').map(|at| host + at) else { return Ok(dsn.to_owned()) };
    let mut kept = Vec::new();
    for pair in dsn[mark + 1..].split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value).ok_or_else(|| DsnError::Syntax("one of its values is not UTF-8".to_owned()))?;
        if !take(name, value) {
            kept.push(pair);
        }
    }
    let base = &dsn[..mark];
    Ok(if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) })
}

/// From the `key=value` form, as libpq reads it: spaces around the equals sign, values in quotes, backslashes. What isn't taken stays as it
/// was written, to the last space; so does everything from where the form is broken, for tokio-postgres to say so.
fn take_from_pairs(dsn: &str, take: &mut impl FnMut(&str, String) -> bool) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let Some((name, value, bytes)) = pair(rest) else {
            kept.push(rest);
            break;
        };
        if !take(name, value) {
            kept.push(&rest[..bytes]);
        }
        rest = rest[bytes..].trim_start();
    }
    kept.join(" ")
}

/// The first pair of `text`: its name, its value without quotes and backslashes, and how many bytes it takes.
fn pair(text: &str) -> Option<(&str, String, usize)> {
    let (name, after) = text.split_once('=')?;
    let name = name.trim_end();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return None;
    }
    let raw = after.trim_start();
    let begin = text.len() - raw.len();
    let (raw, quoted) = raw.strip_prefix('\'').map_or((raw, false), |raw| (raw, true));
    let mut value = String::new();
    let mut chars = raw.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((name, value, begin + 1 + at + 1)),
            c if !quoted && c.is_whitespace() => return Some((name, value, begin + at)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((name, value, text.len()))
}

/// Why a string can't be read. tokio-postgres names an option that it doesn't know, which is a part of the password when that was written
/// without quotes or percent signs, and the character that it found.
fn reason(dsn: &str, error: &tokio_postgres::Error) -> String {
    let why = std::error::Error::source(error).map_or("syntax".to_owned(), ToString::to_string);
    match why.strip_prefix("unknown option `") {
        Some(option) if is_hidden(dsn, option.trim_end_matches('`')) => "it has an unknown option".to_owned(),
        _ => why.split(" but got ").next().unwrap_or_default().to_owned(),
    }
}

/// Whether `part` of a connection string isn't to be seen.
fn is_hidden(dsn: &str, part: &str) -> bool {
    !redact_dsn(dsn).contains(part)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' && tail.len() >= 2 {
            let hex = std::str::from_utf8(&tail[..2]).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

fn client_config(mode: Mode, files: &Files) -> Result<ClientConfig, DsnError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let internal = |e: rustls::Error| DsnError::Syntax(e.to_string());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(internal)?;
    let verifier = Verifier { mode, inner: web_pki(mode, files, &provider)?, provider };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => {
            let bad = |option, path: &Path, why: String| DsnError::File { option, path: path.to_path_buf(), why };
            let chain = read_certificates("sslcert", certificate)?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("sslkey", key, e.to_string()))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|e| bad("sslcert", certificate, e.to_string()))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(_), None) => {
            Err(DsnError::Value { option: "sslcert", value: "…".to_owned(), expected: "sslkey is needed beside it" })
        }
        (None, Some(_)) => {
            Err(DsnError::Value { option: "sslkey", value: "…".to_owned(), expected: "sslcert is needed beside it" })
        }
    }
}

fn read_certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, DsnError> {
    let bad = |why: String| DsnError::File { option, path: path.to_path_buf(), why };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?.collect();
    let found = found.map_err(|e| bad(e.to_string()))?;
    if found.is_empty() { Err(bad("holds no certificate".to_owned())) } else { Ok(found) }
}

/// The roots to verify with, when there is something to verify.
fn web_pki(mode: Mode, files: &Files, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<WebPkiServerVerifier>>, DsnError> {
    if !matches!(mode, Mode::VerifyCa | Mode::VerifyFull) {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    match files.root.as_deref() {
        None | Some("system") => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(file) => {
            roots.add_parsable_certificates(read_certificates("sslrootcert", Path::new(file))?);
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    verifier.map(Some).map_err(|e| DsnError::File {
        option: "sslrootcert",
        path: files.root.clone().unwrap_or_else(|| "system".to_owned()).into(),
        why: e.to_string(),
    })
}

/// libpq's meanings: `prefer` and `require` encrypt and verify nothing, `verify-ca` verifies who issued the certificate,
/// `verify-full` also whom it was issued to.
#[derive(Debug)]
struct Verifier {
    mode: Mode,
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.mode == Mode::VerifyCa => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_options_are_taken_out_of_both_forms_and_the_rest_stays() {
        let (rest, taken) =
            take_tls_options("postgres://u:p@a,b:5433/db?sslmode=verify-ca&connect_timeout=7&sslrootcert=%2Fca.pem").unwrap();
        assert_eq!(rest, "postgres://u:p@a,b:5433/db?connect_timeout=7");
        assert_eq!((taken.mode.as_deref(), taken.files.root.as_deref()), (Some("verify-ca"), Some("/ca.pem")));
        let (rest, taken) = take_tls_options("host=a sslmode=require user=u").unwrap();
        assert_eq!((rest.as_str(), taken.mode.as_deref()), ("host=a user=u", Some("require")));
    }

    #[test]
    fn what_stands_between_the_tls_options_stays_to_the_last_space() {
        for (dsn, kept, root) in [
            ("host=a password='with  two spaces'", "host=a password='with  two spaces'", None),
            ("sslrootcert=/ca password='a  b' host=a", "password='a  b' host=a", Some("/ca")),
            (
                r"host=a sslrootcert = '/my certs/it\'s.pem' password=a\ \ b",
                r"host=a password=a\ \ b",
                Some("/my certs/it's.pem"),
            ),
            ("password='sslrootcert=/evil  x' host=a", "password='sslrootcert=/evil  x' host=a", None),
            ("host=a sslrootcert='/ca", "host=a sslrootcert='/ca", None),
            ("postgres://u:a?b&sslrootcert=c@h/d?sslrootcert=/ca", "postgres://u:a?b&sslrootcert=c@h/d", Some("/ca")),
        ] {
            let (rest, taken) = take_tls_options(dsn).unwrap();
            assert_eq!((rest.as_str(), taken.files.root.as_deref()), (kept, root), "{dsn}");
        }
        let options = PgOptions::from_dsn("sslmode=require host=a user=u password='a  b'", None).unwrap();
        assert_eq!(options.config.get_password(), Some(&b"a  b"[..]));
    }

    #[test]
    fn the_first_of_several_passwords_counts() {
        let password = |dsn: &str, file: Option<&str>, last: &[u8]| {
            let options = PgOptions::from_dsn(dsn, file).unwrap().or_password(last);
            String::from_utf8(options.config.get_password().unwrap().to_vec()).unwrap()
        };
        assert_eq!(password("postgres://u:dsn@a/db", Some("file"), b"last"), "file");
        assert_eq!(password("postgres://u:dsn@a/db", None, b"last"), "dsn");
        assert_eq!(password("host=a user=u password=dsn", None, b"last"), "dsn");
        assert_eq!(password("postgres://u@a/db", None, b"last"), "last");
        assert_eq!(password("postgres://u:@a/db", None, b"last"), "last", "as libpq: an empty one is none");
    }

    #[test]
    fn several_hosts_are_read_and_only_the_primary_is_wanted() {
        let options = PgOptions::from_dsn("postgres://u@a:1,b:2/db", Some("secret")).unwrap();
        assert_eq!(options.config.get_hosts().len(), 2);
        assert_eq!(options.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert!(!format!("{:?}", options.config).contains("secret"));
    }

    #[test]
    fn errors_name_the_way_out_and_never_the_password() {
        for (dsn, part) in [
            ("postgres://u:secret@a/db?sslmode=allow", "verify-full"),
            ("postgres://u:secret@a:port/db", "postgres://user@host1"),
            ("postgres://u:secret@a/db?nonsense=1", "unknown option `nonsense`"),
            ("postgres://u:p@?secret=1@a/db", "an unknown option"),
            ("postgres://u:x@a/db?secret=%ff&password=secret", "not UTF-8"),
            ("host=a password=x secret", "can't be read"),
            ("host=a password='secret", "can't be read"),
            ("host=a password='x'secret", "can't be read"),
            ("postgres://u:secret@a/db?sslmode=verify-full&sslrootcert=/no/such/file", "/no/such/file"),
        ] {
            let Err(error) = PgOptions::from_dsn(dsn, None) else { panic!("{dsn} was accepted") };
            let text = error.to_string();
            assert!(text.contains(part) && !text.contains("secret"), "{text}");
        }
    }
}
