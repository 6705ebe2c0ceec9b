//! From settings as written to a [`Config`] that the rest of the program can rely on.
//!
//! Every rule that two options share is here; all violations are reported at once, each with where it was written.
//! Files aren't opened: what they hold is judged where they are used.

use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::raw::Raw;
use super::units::{ByteSize, parse_duration};
use super::url::ListenUrl;
use super::{Compaction, Config, EmbeddedPostgres, ExternalDatabase, Keepalive, Limits, Logging};
use crate::engine::AutoCompaction;
use crate::telemetry::log::{LogFormat, LogOutput};

/// etcd's quota where none is named (`storage/quota.go`).
const DEFAULT_QUOTA: ByteSize = ByteSize(2 << 30);
/// Below this a request can't hold what Kubernetes writes; above it gRPC clients refuse the answers.
const MAX_REQUEST_BYTES: std::ops::RangeInclusive<u64> = 1024..=(512 << 20);

/// Reads and collects what is wrong, so that a user sees all of it at once.
pub(super) struct Checker<'a> {
    raw: &'a Raw,
    errors: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    pub(super) fn text(&self, name: &str) -> &str {
        &self.raw.get(name).value
    }

    pub(super) fn nonempty(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.nonempty(name).map(PathBuf::from)
    }

    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    pub(super) fn wrong(&mut self, name: &str, problem: impl Into<String>, fix: impl Into<String>) {
        let origin = self.raw.get(name).origin.clone();
        self.errors.push(ConfigError { origin, key: name.to_owned(), problem: problem.into(), fix: fix.into() });
    }

    /// Parses a value; what is wrong with it is noted and `fallback` stands in, so that checking can go on.
    pub(super) fn parsed<T>(&mut self, name: &str, fallback: T, parse: impl Fn(&str) -> Result<T, String>) -> T {
        match parse(self.text(name)) {
            Ok(value) => value,
            Err(problem) => {
                let (what, fix) = problem.split_once("; ").unwrap_or((&problem, "see --help"));
                let (what, fix) = (what.to_owned(), fix.to_owned());
                self.wrong(name, what, fix);
                fallback
            }
        }
    }

    pub(super) fn bool(&mut self, name: &str) -> bool {
        // What Go's strconv.ParseBool takes.
        self.parsed(name, false, |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(format!("\"{other}\" is neither true nor false; write true or false")),
        })
    }

    pub(super) fn count(&mut self, name: &str, at_least: u64, at_most: u64) -> u64 {
        self.parsed(name, at_least, |text| {
            let number = text.parse::<u64>().ok().filter(|n| (at_least..=at_most).contains(n));
            number.ok_or_else(|| format!("\"{text}\" is not allowed; write a whole number from {at_least} to {at_most}"))
        })
    }

    pub(super) fn duration(&mut self, name: &str) -> Duration {
        self.parsed(name, Duration::ZERO, parse_duration)
    }

    fn positive_duration(&mut self, name: &str) -> Duration {
        self.parsed(name, Duration::from_secs(1), |text| {
            parse_duration(text)
                .and_then(|d| if d.is_zero() { Err("must not be 0; write for example 10m".into()) } else { Ok(d) })
        })
    }

    fn bytes(&mut self, name: &str) -> ByteSize {
        self.parsed(name, ByteSize(0), ByteSize::parse)
    }

    fn urls(&mut self, name: &str) -> Vec<ListenUrl> {
        self.parsed(name, Vec::new(), ListenUrl::parse_list)
    }

    pub(super) fn one_of(&mut self, name: &str) -> String {
        let Some(super::Kind::OneOf(values)) = super::options::find(name).map(|opt| opt.kind) else { return String::new() };
        self.parsed(name, values[0].to_owned(), |text| {
            let listed: Vec<&str> = values.iter().copied().filter(|v| !v.is_empty()).collect();
            if values.contains(&text) {
                Ok(text.to_owned())
            } else {
                Err(format!("\"{text}\" is unknown; write {}", listed.join(" or ")))
            }
        })
    }
}

/// Judges all settings.
///
/// # Errors
/// Everything that is wrong.
pub fn validate(raw: &Raw) -> Result<Config, Vec<ConfigError>> {
    let mut c = Checker { raw, errors: Vec::new(), warnings: Vec::new() };
    let name = c.text("name").to_owned();
    if name.is_empty() || name.contains(['/', '\0']) {
        c.wrong("name", "can't be empty or hold a slash", "write a short name such as the host's");
    }
    let listen_client = c.urls("listen-client-urls");
    if listen_client.is_empty() && c.errors.is_empty() {
        c.wrong("listen-client-urls", "names no URL", "write for example http://127.0.0.1:2379");
    }
    let mut config = Config {
        data_dir: c.path("data-dir").unwrap_or_default(),
        listen_client,
        listen_client_http: c.urls("listen-client-http-urls"),
        listen_metrics: c.urls("listen-metrics-urls"),
        advertise_client: advertised(&mut c, "advertise-client-urls"),
        advertise_peer: advertised(&mut c, "initial-advertise-peer-urls"),
        socket_reuse_port: c.bool("socket-reuse-port"),
        shutdown_timeout: c.duration("shutdown-timeout"),
        external: c
            .nonempty("database")
            .map(|dsn| ExternalDatabase { dsn: dsn.to_owned().into(), password_file: c.path("database-password-file") }),
        pair: None,
        listen_peer: None,
        pair_tls: None,
        embedded: EmbeddedPostgres {
            bin_dir: c.path("pg-bin-dir"),
            user: c.nonempty("pg-user").map(str::to_owned),
            shared_buffers: Some(c.bytes("pg-shared-buffers")).filter(|size| size.0 > 0),
            fsync: !c.bool("unsafe-no-fsync"),
        },
        value_cache_bytes: c.bytes("value-cache-bytes"),
        limits: limits(&mut c),
        keepalive: Keepalive {
            interval: Some(c.duration("grpc-keepalive-interval")).filter(|d| !d.is_zero()),
            timeout: Some(c.duration("grpc-keepalive-timeout")).filter(|d| !d.is_zero()),
        },
        watch_progress_notify_interval: c.positive_duration("watch-progress-notify-interval"),
        compaction: Compaction {
            auto: auto_compaction(&mut c),
            batch_limit: c.count("compaction-batch-limit", 1, 1_000_000) as usize,
            sleep_interval: c.duration("compaction-sleep-interval"),
        },
        tls: None,
        logging: logging(&mut c),
        metrics_extensive: c.one_of("metrics") == "extensive",
        warning_apply_duration: c.duration("warning-apply-duration"),
        warning_unary_request_duration: c.duration("warning-unary-request-duration"),
        warnings: Vec::new(),
        name,
    };
    config.tls = super::tls::validate(&mut c, &config);
    super::pair::validate(&mut c, &mut config);
    config.warnings = std::mem::take(&mut c.warnings);
    check_schemes(&mut c, &config);
    if c.errors.is_empty() { Ok(config) } else { Err(c.errors) }
}

fn advertised(c: &mut Checker, name: &str) -> Vec<String> {
    // Names are fine here: clients resolve them.
    c.parsed(name, Vec::new(), |text| {
        let urls: Vec<String> = text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
        let known = ["http://", "https://", "unix://", "unixs://"];
        match urls.iter().find(|url| !known.iter().any(|scheme| url.starts_with(scheme))) {
            Some(url) => Err(format!("\"{url}\" has no known scheme; write http://, https://, unix:// or unixs:// before it")),
            None => Ok(urls),
        }
    })
}

fn limits(c: &mut Checker) -> Limits {
    let quota = c.parsed("quota-backend-bytes", None, |text| match text {
        negative if negative.starts_with('-') => Ok(None),
        text => ByteSize::parse(text).map(|quota| Some(if quota.0 == 0 { DEFAULT_QUOTA } else { quota })),
    });
    let max_request_bytes = c.bytes("max-request-bytes");
    if !MAX_REQUEST_BYTES.contains(&max_request_bytes.0) {
        c.wrong("max-request-bytes", format!("{max_request_bytes} is outside 1KiB to 512MiB"), "etcd's value is 1572864");
    }
    Limits {
        quota_backend_bytes: quota,
        max_txn_ops: c.count("max-txn-ops", 1, 1 << 20) as usize,
        max_request_bytes,
        max_concurrent_streams: c.count("max-concurrent-streams", 1, u64::from(u32::MAX)) as u32,
    }
}

fn auto_compaction(c: &mut Checker) -> AutoCompaction {
    let revisions = c.one_of("auto-compaction-mode") == "revision";
    c.parsed("auto-compaction-retention", AutoCompaction::Off, |text| match text.parse::<u64>() {
        Ok(0) => Ok(AutoCompaction::Off),
        Ok(number) if revisions => Ok(AutoCompaction::Revisions(i64::try_from(number).unwrap_or(i64::MAX))),
        // etcd: a bare number of a periodic retention counts hours.
        Ok(hours) => Ok(AutoCompaction::Periodic(Duration::from_secs(hours.saturating_mul(3600)))),
        Err(_) if text.is_empty() => Ok(AutoCompaction::Off),
        Err(_) if revisions => Err(format!("\"{text}\" is not a number of revisions; write for example 10000")),
        Err(_) => parse_duration(text).map(|d| if d.is_zero() { AutoCompaction::Off } else { AutoCompaction::Periodic(d) }),
    })
}

fn logging(c: &mut Checker) -> Logging {
    let level = c.parsed("log-level", "info".to_owned(), |text| {
        crate::telemetry::log::filter(text)
            .map(|_| text.to_owned())
            .map_err(|error| format!("is not a level ({error}); write debug, info, warn or error"))
    });
    Logging {
        level,
        format: if c.one_of("log-format") == "json" { LogFormat::Json } else { LogFormat::Text },
        outputs: log_outputs(c),
    }
}

/// As etcd (`embed/config_logging.go`), but that `default` may stand beside others.
fn log_outputs(c: &mut Checker) -> Vec<LogOutput> {
    let (journal, others): (Vec<&str>, Vec<&str>) = c
        .text("log-outputs")
        .split(',')
        .map(str::trim)
        .filter(|output| !output.is_empty())
        .partition(|output| matches!(*output, "journal" | "systemd/journal"));
    let journal = !journal.is_empty();
    let others = others.join(",");
    let mut outputs = c.parsed("log-outputs", vec![LogOutput::Stderr], |_| {
        others.split(',').filter(|output| !output.is_empty()).map(LogOutput::parse).collect::<Result<Vec<_>, _>>()
    });
    if journal {
        c.warn(
            "--log-outputs: lines for systemd's journal go to standard error, which a systemd unit's journal takes".to_owned(),
        );
        outputs.push(LogOutput::Stderr);
    }
    if outputs.is_empty() {
        c.wrong("log-outputs", "names no output", "write stderr, stdout or a file's path, or several separated by commas");
    }
    let mut distinct: Vec<LogOutput> = Vec::new();
    outputs.into_iter().for_each(|output| {
        if !distinct.contains(&output) {
            distinct.push(output)
        }
    });
    distinct
}

fn check_schemes(c: &mut Checker, config: &Config) {
    if config.tls.is_some() {
        return;
    }
    let lists = [
        ("listen-client-urls", &config.listen_client),
        ("listen-client-http-urls", &config.listen_client_http),
        ("listen-metrics-urls", &config.listen_metrics),
    ];
    for (name, urls) in lists {
        if let Some(url) = urls.iter().find(|url| url.tls) {
            c.wrong(
                name,
                format!("asks for TLS at {url}"),
                "name a certificate with --cert-file and --key-file, let Duet make one with --auto-tls, or write http://",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::Sources;

    fn with(flags: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let raw = Raw::layer(&Sources { flags, ..Sources::default() }).unwrap();
        validate(&raw).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_defaults_are_etcds() {
        let config = with(&[]).unwrap();
        assert_eq!(config.limits.max_txn_ops, 128);
        assert_eq!(config.limits.max_request_bytes, ByteSize(1_572_864));
        assert_eq!(config.limits.quota_backend_bytes, Some(ByteSize(2 << 30)));
        assert_eq!(config.limits.max_concurrent_streams, u32::MAX);
        assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(600));
        assert_eq!(config.compaction.auto, AutoCompaction::Off);
        assert_eq!(config.listen_client[0].to_string(), "http://127.0.0.1:2379");
        assert!(config.embedded.fsync && config.tls.is_none());
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let errors = with(&[
            ("max-txn-ops", "many"),
            ("listen-client-urls", "https://127.0.0.1:1"),
            ("log-format", "xml"),
            ("client-cert-auth", "true"),
            ("watch-progress-notify-interval", "0"),
        ])
        .unwrap_err();
        for key in
            ["--max-txn-ops", "--listen-client-urls", "--log-format", "--client-cert-auth", "--watch-progress-notify-interval"]
        {
            assert!(errors.iter().any(|error| error.starts_with(key)), "{key} in {errors:#?}");
        }
    }

    #[test]
    fn retention_is_hours_a_duration_or_revisions_as_the_mode_says() {
        let auto = |mode: &str, retention: &str| {
            with(&[("auto-compaction-mode", mode), ("auto-compaction-retention", retention)]).map(|c| c.compaction.auto)
        };
        assert_eq!(auto("periodic", "1"), Ok(AutoCompaction::Periodic(Duration::from_secs(3600))));
        assert_eq!(auto("periodic", "5m"), Ok(AutoCompaction::Periodic(Duration::from_secs(300))));
        assert_eq!(auto("revision", "1000"), Ok(AutoCompaction::Revisions(1000)));
        assert_eq!(auto("revision", "0"), Ok(AutoCompaction::Off));
        assert!(auto("revision", "5m").is_err());
    }

    #[test]
    fn a_negative_quota_means_none_and_zero_means_etcds() {
        let quota = |text: &str| with(&[("quota-backend-bytes", text)]).unwrap().limits.quota_backend_bytes;
        assert_eq!(quota("-1"), None);
        assert_eq!(quota("0"), Some(ByteSize(2 << 30)));
        assert_eq!(quota("8GiB"), Some(ByteSize(8 << 30)));
    }

    #[test]
    fn log_lines_go_wherever_etcd_would_write_them() {
        let of = |text: &str| with(&[("log-outputs", text)]).map(|config| (config.logging.outputs, config.warnings.len()));
        let file = || LogOutput::File("/var/log/etcd.log".into());
        assert_eq!(of("default"), Ok((vec![LogOutput::Stderr], 0)));
        assert_eq!(of("stdout, /var/log/etcd.log,stdout"), Ok((vec![LogOutput::Stdout, file()], 0)));
        assert_eq!(of("stderr,default"), Ok((vec![LogOutput::Stderr], 0)));
        assert_eq!(of("systemd/journal"), Ok((vec![LogOutput::Stderr], 1)));
        assert_eq!(of("/var/log/etcd.log,journal"), Ok((vec![file(), LogOutput::Stderr], 1)));
        for (wrong, why) in [(",", "names no output"), ("stderr,kafka://broker/topic", "is no place for log lines")] {
            let errors = of(wrong).unwrap_err();
            assert!(matches!(&errors[..], [error] if error.contains(why)), "{wrong}: {errors:?}");
        }
    }

    #[test]
    fn a_password_is_shown_in_no_form_of_the_configuration() {
        let config = with(&[("database", "postgres://u:s3cret@h/d")]).unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
        assert_eq!(config.external.unwrap().dsn.expose(), "postgres://u:s3cret@h/d");
    }
}
