//! `duet etcd`, and Duet under the name `etcd`: stands in for a single etcd.
//!
//! Takes the whole command line of a single member, 3.5 to 3.7 (`etcdmain/help.go`, `embed/config.go`). Three kinds of
//! flags: those that Duet has too; those that have no meaning here ([`NO_MEANING`]), accepted with one warning that names
//! them; and those that would mislead, refused. It deliberately is no member of a cluster, no proxy and no gateway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::args::{self, Takes};
use super::load::{self, Loaded};
use super::{Failure, dev};
use crate::config::Sources;
use crate::config::etcd_file::EtcdFile;
use crate::config::options::env_name;
use crate::config::redact::redact_dsn;
use crate::telemetry::metrics::ETCD_VERSION;

const USAGE: &str = "duet etcd [etcd's flags]";

/// Flags that concern raft, peers, bbolt, the JSON gateway, and what else a single Duet doesn't have; `=` marks booleans.
#[rustfmt::skip]
const NO_MEANING: &[&str] = &[
    "wal-dir", "snapshot-count", "heartbeat-interval", "election-timeout", "initial-election-tick-advance=", "listen-peer-urls",
    "max-snapshots", "max-wals", "memory-mlock=", "backend-bbolt-freelist-type", "backend-batch-interval", "backend-batch-limit",
    "grpc-keepalive-min-time", "enable-grpc-gateway=", "raft-read-timeout", "raft-write-timeout",
    "feature-gates", "initial-cluster-state", "initial-cluster-token", "strict-reconfig-check=",
    "pre-vote=", "v2-deprecation", "client-cert-file", "client-key-file", "peer-cert-file", "peer-key-file",
    "peer-client-cert-auth=", "peer-client-cert-file", "peer-client-key-file", "peer-trusted-ca-file", "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname", "peer-auto-tls=", "peer-crl-file",
    "peer-skip-client-san-verification=", "cors", "host-whitelist", "auth-token", "bcrypt-cost", "auth-token-ttl",
    "enable-pprof=", "logger", "enable-log-rotation=", "log-rotation-config-json", "enable-distributed-tracing=",
    "distributed-tracing-address", "distributed-tracing-service-name", "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate", "corrupt-check-time", "compact-hash-check-time", "max-learners",
    "bootstrap-defrag-threshold-megabytes", "downgrade-check-time", "snapshot-catchup-entries", "force-new-cluster=",
    "discovery-dial-timeout", "discovery-request-timeout", "discovery-keepalive-time", "discovery-keepalive-timeout",
    "discovery-insecure-transport=", "discovery-insecure-skip-tls-verify=", "discovery-cert", "discovery-key", "discovery-cacert",
    "discovery-user", "discovery-password", "discovery-fallback", "discovery-proxy",
    // 3.5's and 3.6's, which 3.7 has dropped.
    "enable-v2=", "proxy-failure-wait", "proxy-refresh-interval", "proxy-dial-timeout", "proxy-write-timeout", "proxy-read-timeout",
    "experimental-initial-corrupt-check=", "experimental-corrupt-check-time", "experimental-compact-hash-check-enabled=",
    "experimental-compact-hash-check-time", "experimental-enable-lease-checkpoint=", "experimental-enable-lease-checkpoint-persist=",
    "experimental-peer-skip-client-san-verification=", "experimental-memory-mlock=",
    "experimental-txn-mode-write-with-shared-buffer=", "experimental-bootstrap-defrag-threshold-megabytes",
    "experimental-max-learners", "experimental-downgrade-check-time", "experimental-snapshot-catchup-entries",
    "experimental-enable-distributed-tracing=", "experimental-distributed-tracing-address",
    "experimental-distributed-tracing-service-name", "experimental-distributed-tracing-instance-id",
    "experimental-distributed-tracing-sampling-rate", "experimental-stop-grpc-service-on-defrag=", "experimental-enable-v2v3",
    "experimental-wait-cluster-ready-timeout",
];

/// Flags with which Duet would not be what the user asks for: name, whether it is a boolean, what to do instead.
const MISLEADING: &[(&str, bool, &str)] = &[
    ("discovery", false, "Duet forms no cluster of etcd members; leave it out"),
    ("discovery-token", false, "Duet forms no cluster of etcd members; leave it out"),
    ("discovery-endpoints", false, "Duet forms no cluster of etcd members; leave it out"),
    ("discovery-srv", false, "Duet forms no cluster of etcd members; leave it out"),
    ("discovery-srv-name", false, "Duet forms no cluster of etcd members; leave it out"),
    ("proxy", false, "Duet is no etcd proxy; leave it out"),
];

/// Runs the command.
///
/// # Errors
/// As [`dev::run`].
pub fn run(args: &[String]) -> Result<(), Failure> {
    if let Some(mode @ ("gateway" | "grpc-proxy")) = args.first().map(String::as_str) {
        return Err(Failure::usage(format!("etcd {mode}: Duet has no such mode; point clients at Duet's URLs")));
    }
    let parsed = args::parse(args, takes).map_err(Failure::usage)?;
    if parsed.help {
        print!("{}", super::help::etcd_flags(USAGE, |name| takes(name).is_some()));
        return Ok(());
    }
    if let Some(extra) = parsed.rest.first() {
        return Err(Failure::usage(format!("\"{}\" is not a valid flag", redact_dsn(extra)))); // etcd's words
    }
    if parsed.flags.iter().any(|(name, value)| name == "version" && value == "true") {
        print!("{}", version());
        return Ok(());
    }
    let loaded = load(parsed.flags, load::environment())?;
    dev::serve(loaded)
}

/// The first line is what tools parse.
fn version() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: Duet {}\nGo Version: none\nGo OS/Arch: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    )
}

/// What `etcd` would run with, given these flags (any that [`takes`] knows) and this environment.
///
/// # Errors
/// Exit code 64 and everything that is wrong or would mislead.
pub(super) fn load(mut flags: Vec<(String, String)>, env: BTreeMap<String, String>) -> Result<Loaded, Failure> {
    let config_file = load::config_file(&flags, &env, &["DUET", "ETCD"])?;
    if let Some((path, text)) = config_file.as_ref().filter(|(path, _)| path.extension().is_none_or(|ext| ext != "toml")) {
        return from_yaml(path, text, &flags);
    }
    // etcd's own variables for what Duet has no option for are flags by another name.
    for name in foreign_names() {
        let given = flags.iter().any(|(flag, _)| flag == name);
        if let Some(value) = env.get(&env_name("ETCD", name)).filter(|value| !value.is_empty() && !given) {
            flags.push((name.to_owned(), value.clone()));
        }
    }
    check(&flags).map_err(Failure::usage)?;
    let no_meaning = without_meaning(&flags);
    flags.retain(|(name, _)| load::takes(name).is_some() && name != "config-file");
    let sources = Sources { flags, env, env_prefixes: vec!["DUET", "ETCD"], file: config_file, ..defaults() };
    let mut loaded = load::finish(sources, data_dir)?;
    loaded.raw.warnings.extend(no_meaning);
    Ok(loaded)
}

/// As etcd: with a configuration file, flags and environment count for nothing.
fn from_yaml(path: &Path, text: &str, flags: &[(String, String)]) -> Result<Loaded, Failure> {
    let told = |what: String| Failure::usage(format!("{}: {what}", path.display()));
    let file = EtcdFile::parse(text, |name| name != "config-file" && name != "version" && takes(name).is_some())
        .map_err(|what| Failure::usage(format!("{} {what}", path.display())))?;
    if let Some(key) = file.refused.first() {
        return Err(told(format!(
            "{key} can't be done: Duet checks clients' host names (allowed-hostname), not their common names"
        )));
    }
    check(&file.flags).map_err(told)?;
    let mut warnings: Vec<String> = without_meaning(&file.flags).into_iter().collect();
    let ignored: Vec<String> =
        flags.iter().filter(|(name, _)| name != "config-file").map(|(name, _)| format!("--{name}")).collect();
    if !ignored.is_empty() {
        warnings.push(format!("with etcd's configuration file, flags and environment are ignored: {}", ignored.join(" ")));
    }
    if !file.unknown.is_empty() {
        warnings.push(format!("{} has keys that are no options and have no effect: {}", path.display(), file.unknown.join(" ")));
    }
    let sources = Sources { etcd_file: Some((path.to_owned(), file.flags)), ..defaults() };
    let mut loaded = load::finish(sources, data_dir)?;
    loaded.raw.warnings.append(&mut warnings);
    Ok(loaded)
}

/// etcd's defaults, where Duet's differ.
fn defaults() -> Sources {
    Sources { defaults: vec![("log-format", "json".to_owned())], ..Sources::default() }
}

fn data_dir(name: &str) -> PathBuf {
    format!("{name}.etcd").into()
}

fn without_meaning(flags: &[(String, String)]) -> Option<String> {
    let names: Vec<String> =
        flags.iter().filter(|(name, _)| is_without_meaning(name)).map(|(name, _)| format!("--{name}")).collect();
    let told = || format!("these flags of etcd have no meaning for Duet and no effect: {}", names.join(" "));
    (!names.is_empty()).then(told)
}

fn foreign_names() -> impl Iterator<Item = &'static str> {
    let no_meaning = NO_MEANING.iter().map(|name| name.trim_end_matches('='));
    no_meaning.chain(MISLEADING.iter().map(|(name, ..)| *name)).chain(["initial-cluster"])
}

fn is_without_meaning(name: &str) -> bool {
    name == "initial-cluster" || NO_MEANING.iter().any(|listed| listed.trim_end_matches('=') == name)
}

pub(super) fn takes(name: &str) -> Option<Takes> {
    let kind = |boolean: bool| if boolean { Takes::Bool } else { Takes::Value };
    let no_meaning =
        || NO_MEANING.iter().find(|listed| listed.trim_end_matches('=') == name).map(|listed| kind(listed.ends_with('=')));
    let misleading = || MISLEADING.iter().find(|(listed, ..)| *listed == name).map(|(_, boolean, _)| kind(*boolean));
    match name {
        "version" => Some(Takes::Bool),
        "initial-cluster" => Some(Takes::Value),
        // Belongs to `duet serve`: an etcd keeps its data itself.
        "database" | "database-password-file" => None,
        _ => load::takes(name).or_else(no_meaning).or_else(misleading),
    }
}

fn check(flags: &[(String, String)]) -> Result<(), String> {
    for (name, value) in flags {
        let harmless = value.is_empty() || value == "false" || (name == "proxy" && value == "off");
        if let Some((_, _, instead)) = MISLEADING.iter().find(|(listed, ..)| listed == name).filter(|_| !harmless) {
            return Err(format!("--{name} can't be done: {instead}"));
        }
        if name == "initial-cluster" {
            let mut members: Vec<&str> = value.split(',').filter_map(|member| member.split('=').next()).map(str::trim).collect();
            members.sort_unstable();
            members.dedup();
            if members.len() > 1 {
                return Err(format!(
                    "--initial-cluster names {} members ({}): Duet stands in for a single etcd, and members started apart would \
                     hold different data; name one member only",
                    members.len(),
                    members.join(", ")
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started_with(line: &str, env: &[(&str, &str)]) -> Result<Loaded, String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let env: BTreeMap<String, String> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let parsed = args::parse(&args, takes)?;
        assert_eq!(parsed.rest, Vec::<String>::new());
        load(parsed.flags, env).map_err(|failure| failure.to_string())
    }

    #[test]
    fn kubeadms_static_pod_command_line_is_taken_with_one_warning() {
        let line = "--advertise-client-urls=https://10.0.0.1:2379 --cert-file=/pki/server.crt --client-cert-auth=true \
            --data-dir=/var/lib/etcd --experimental-initial-corrupt-check=true --experimental-watch-progress-notify-interval=5s \
            --initial-advertise-peer-urls=https://10.0.0.1:2380 --initial-cluster=cp=https://10.0.0.1:2380 --key-file=/pki/server.key \
            --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 --listen-metrics-urls=http://127.0.0.1:2381 \
            --listen-peer-urls=https://10.0.0.1:2380 --name=cp --peer-cert-file=/pki/peer.crt --peer-client-cert-auth=true \
            --peer-key-file=/pki/peer.key --peer-trusted-ca-file=/pki/ca.crt --snapshot-count=10000 --trusted-ca-file=/pki/ca.crt";
        let loaded = started_with(line, &[]).unwrap();
        assert_eq!(loaded.config.name, "cp");
        assert_eq!(loaded.config.listen_client.len(), 2);
        assert_eq!(loaded.config.watch_progress_notify_interval.as_secs(), 5);
        assert!(loaded.config.tls.unwrap().client_cert_auth);
        assert_eq!(loaded.raw.warnings.len(), 1);
        assert!(loaded.raw.warnings[0].contains("--snapshot-count") && loaded.raw.warnings[0].contains("--initial-cluster"));
        assert!(!loaded.raw.warnings[0].contains("--cert-file"));
    }

    #[test]
    fn envtests_and_the_storage_suites_command_lines_are_taken() {
        let envtest = "--listen-peer-urls=http://localhost:0 --advertise-client-urls=http://127.0.0.1:34567 \
            --listen-client-urls=http://127.0.0.1:34567 --data-dir=/tmp/k8s_test_framework_1 --unsafe-no-fsync=true";
        let config = started_with(envtest, &[]).unwrap().config;
        assert!(!config.embedded.fsync);
        assert_eq!(config.data_dir.to_str(), Some("/tmp/k8s_test_framework_1"));
        let integration = "--data-dir /tmp/x --listen-client-urls unix:///tmp/x/s --advertise-client-urls unix:///tmp/x/s \
            --listen-peer-urls http://127.0.0.1:0 --log-level warn --quota-backend-bytes 8589934592 -unsafe-no-fsync";
        assert_eq!(started_with(integration, &[]).unwrap().config.limits.quota_backend_bytes.unwrap().0, 8 << 30);
    }

    #[test]
    fn defaults_are_etcds_where_they_differ_from_duets() {
        let loaded = started_with("--name n1", &[]).unwrap();
        assert_eq!(loaded.config.data_dir.to_str(), Some("n1.etcd"));
        assert_eq!(loaded.raw.get("log-format").value, "json");
    }

    #[test]
    fn what_would_mislead_is_refused() {
        let two = started_with("--initial-cluster a=http://127.0.0.1:1,b=http://127.0.0.1:2", &[]).unwrap_err();
        assert!(two.contains("2 members (a, b)"), "{two}");
        assert!(started_with("--initial-cluster a=http://127.0.0.1:1,a=http://127.0.0.1:2", &[]).is_ok());
        assert!(started_with("--discovery=https://discovery.example", &[]).unwrap_err().contains("--discovery"));
        assert!(started_with("--auto-tls --client-cert-auth", &[]).unwrap_err().contains("--cert-file"));
        assert!(started_with("--auto-tls=false --proxy off", &[]).is_ok());
        assert!(started_with("--database postgres://x", &[]).is_err());
        assert!(started_with("--no-such-flag", &[]).is_err());
    }

    #[test]
    fn etcds_environment_counts_too() {
        let loaded = started_with("", &[("ETCD_NAME", "e"), ("ETCD_SNAPSHOT_COUNT", "5")]).unwrap();
        assert_eq!(loaded.config.name, "e");
        assert!(loaded.raw.warnings[0].contains("--snapshot-count"));
        let refused = started_with("", &[("ETCD_INITIAL_CLUSTER", "a=http://h:1,b=http://h:2")]).unwrap_err();
        assert!(refused.contains("2 members"), "{refused}");
    }

    /// What etcd's file `text` leads to, with these flags beside it.
    fn started_from(text: &str, line: &str) -> Result<Loaded, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.conf.yml");
        std::fs::write(&path, text).unwrap();
        started_with(line, &[("ETCD_CONFIG_FILE", path.to_str().unwrap()), ("ETCD_MAX_TXN_OPS", "7")])
    }

    #[test]
    fn with_etcds_configuration_file_flags_and_environment_are_ignored() {
        let text = "name: from-file\nlisten-client-urls: http://127.0.0.1:4\nsnapshot-count: 10000\nauto-compaction-retention: \"1\"\n\
            client-transport-security:\n  cert-file: /c\n  key-file: /k\n  trusted-ca-file: /ca\n";
        let loaded = started_from(text, "--name from-flag --max-request-bytes 1").unwrap();
        assert_eq!(loaded.config.name, "from-file");
        assert_eq!(loaded.config.data_dir.to_str(), Some("from-file.etcd"));
        assert_eq!(loaded.config.limits.max_txn_ops, 128, "the environment doesn't count");
        assert!(loaded.config.tls.unwrap().client_cert_auth);
        let warnings = loaded.raw.warnings.join("\n");
        assert!(warnings.contains("--snapshot-count") && warnings.contains("--name --max-request-bytes"), "{warnings}");
        assert!(loaded.raw.get("name").origin.to_string().contains("etcd.conf.yml"));
    }

    #[test]
    fn a_file_with_every_key_of_etcds_sample_is_taken() {
        let text = "name: 'default'\ndata-dir:\nwal-dir:\nsnapshot-count: 10000\nheartbeat-interval: 100\nelection-timeout: 1000\n\
            quota-backend-bytes: 0\nlisten-peer-urls: http://localhost:2380\nlisten-client-urls: http://localhost:2379\n\
            max-snapshots: 5\nmax-wals: 5\ncors:\ninitial-advertise-peer-urls: http://localhost:2380\n\
            advertise-client-urls: http://localhost:2379\ndiscovery:\ndiscovery-fallback: 'proxy'\ndiscovery-proxy:\n\
            discovery-srv:\ninitial-cluster:\ninitial-cluster-token: 'etcd-cluster'\ninitial-cluster-state: 'new'\n\
            strict-reconfig-check: false\nenable-pprof: true\nproxy: 'off'\nproxy-failure-wait: 5000\n\
            client-transport-security:\n  cert-file: \n  key-file: \n  client-cert-auth: false\n  trusted-ca-file: \n  auto-tls: false\n\
            peer-transport-security:\n  cert-file: \n  client-cert-auth: false\n  auto-tls: false\n  allowed-cn: \n  allowed-hostname: \n\
            self-signed-cert-validity: 1\nlog-level: debug\nlogger: zap\nlog-outputs: [stderr]\nforce-new-cluster: false\n\
            auto-compaction-mode: periodic\nauto-compaction-retention: \"1\"\n\
            cipher-suites: [\n  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,\n  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\n]\n\
            tls-min-version: 'TLS1.2'\ntls-max-version: 'TLS1.3'\n";
        let loaded = started_from(text, "").unwrap();
        assert_eq!(loaded.raw.warnings.len(), 1, "{:?}", loaded.raw.warnings);
        assert_eq!(loaded.config.logging.level, "debug");
        assert!(loaded.config.tls.is_none());
    }

    #[test]
    fn a_configuration_file_is_judged_as_the_flags_are() {
        for (text, expected) in [
            ("initial-cluster: a=http://h:1,b=http://h:2", "2 members"),
            ("discovery-srv: example.com", "--discovery-srv"),
            ("client-transport-security: {allowed-cn: [root]}", "allowed-cn can't be done"),
            ("max-txn-ops: many", "max-txn-ops"),
            ("name: [", "not valid YAML"),
        ] {
            let error = started_from(text, "").unwrap_err();
            assert!(error.contains("etcd.conf.yml") && error.contains(expected), "{text}: {error}");
        }
        assert!(started_from("nmae: x", "").unwrap().raw.warnings[0].contains("nmae"));
    }

    #[test]
    fn the_version_is_printed_as_tools_parse_it() {
        assert!(version().starts_with("etcd Version: 3.7.3\n"));
    }
}
