//! etcd's YAML configuration file (`embed/config.go`, `configYAML`), made into the flags that say the same.
//!
//! Its keys are etcd's flags, except that those of TLS stand in `client-transport-security` and `peer-transport-security`, those of
//! sockets in `socket-options` and those of discovery in `discovery-config`. As etcd: durations are nanoseconds, and keys that nobody
//! knows are passed over (here with a warning). It deliberately judges no value; that is done where flags are judged.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::yaml_place;
use super::options::{self, Kind};
use super::redact::redact_dsn;
use super::units::format_duration;

/// Where a section's keys belong: section, key in it, flag. `None`: there is no such flag, see [`EtcdFile::refused`].
#[rustfmt::skip]
const NESTED: &[(&str, &str, Option<&str>)] = &[
    ("client-transport-security", "cert-file", Some("cert-file")),
    ("client-transport-security", "key-file", Some("key-file")),
    ("client-transport-security", "client-cert-file", Some("client-cert-file")),
    ("client-transport-security", "client-key-file", Some("client-key-file")),
    ("client-transport-security", "client-cert-auth", Some("client-cert-auth")),
    ("client-transport-security", "trusted-ca-file", Some("trusted-ca-file")),
    ("client-transport-security", "auto-tls", Some("auto-tls")),
    ("client-transport-security", "allowed-cn", None),
    ("client-transport-security", "allowed-hostname", Some("client-cert-allowed-hostname")),
    // Checked for peers only, by etcd too.
    ("client-transport-security", "skip-client-san-verification", Some("peer-skip-client-san-verification")),
    ("peer-transport-security", "cert-file", Some("peer-cert-file")),
    ("peer-transport-security", "key-file", Some("peer-key-file")),
    ("peer-transport-security", "client-cert-file", Some("peer-client-cert-file")),
    ("peer-transport-security", "client-key-file", Some("peer-client-key-file")),
    ("peer-transport-security", "client-cert-auth", Some("peer-client-cert-auth")),
    ("peer-transport-security", "trusted-ca-file", Some("peer-trusted-ca-file")),
    ("peer-transport-security", "auto-tls", Some("peer-auto-tls")),
    ("peer-transport-security", "allowed-cn", Some("peer-cert-allowed-cn")),
    ("peer-transport-security", "allowed-hostname", Some("peer-cert-allowed-hostname")),
    ("peer-transport-security", "skip-client-san-verification", Some("peer-skip-client-san-verification")),
    ("socket-options", "reuse-port", Some("socket-reuse-port")),
    ("socket-options", "reuse-address", Some("socket-reuse-address")),
    ("discovery-config", "token", Some("discovery-token")),
];

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EtcdFile {
    /// Flags and their values, in the file's terms.
    pub flags: Vec<(String, String)>,
    /// Keys that ask for what no flag of etcd's asks for, and that Duet can't do.
    pub refused: Vec<String>,
    /// Keys that neither etcd nor Duet knows.
    pub unknown: Vec<String>,
}

impl EtcdFile {
    /// Reads a file's text; `is_flag` says which names are flags of etcd's or of Duet's.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence that begins with the file's name.
    pub fn parse(text: &str, is_flag: impl Fn(&str) -> bool) -> Result<Self, String> {
        let mut file = Self::default();
        // As Go's yaml package: an empty file sets nothing.
        let table: Option<BTreeMap<String, serde_json::Value>> = serde_saphyr::from_str(text)
            .map_err(|error| format!("is not valid YAML{}: write lines such as name: default", yaml_place(&error)))?;
        for (key, value) in table.unwrap_or_default() {
            match value {
                serde_json::Value::Object(section) if NESTED.iter().any(|(known, ..)| *known == key) => {
                    for (name, value) in section {
                        file.take_nested(&key, &name, &value)?;
                    }
                }
                value if is_flag(&key) => file.take(&key, &key, &value)?,
                _ if NESTED.iter().any(|(known, ..)| *known == key) && !value.is_null() => {
                    return Err(format!("has a wrong {key}: write its keys below it, indented")); // etcd: "invalid peer-transport-security"
                }
                _ => file.unknown.push(redact_dsn(&key)),
            }
        }
        Ok(file)
    }

    fn take_nested(&mut self, section: &str, name: &str, value: &serde_json::Value) -> Result<(), String> {
        let key = format!("{section}.{name}");
        match NESTED.iter().find(|(known, listed, _)| *known == section && *listed == name) {
            Some((.., Some(flag))) => self.take(&key, flag, value),
            Some((.., None)) => {
                if text_of(&key, value)?.is_some_and(|text| !text.is_empty()) {
                    self.refused.push(key);
                }
                Ok(())
            }
            // Where the servers of etcd's discovery are; the rest of that section only matters with it.
            None if section == "discovery-config" && name == "client" => match value.get("endpoints") {
                Some(endpoints) => self.take("discovery-config.client.endpoints", "discovery-endpoints", endpoints),
                None => Ok(()),
            },
            None => {
                self.unknown.push(redact_dsn(&key));
                Ok(())
            }
        }
    }

    fn take(&mut self, key: &str, flag: &str, value: &serde_json::Value) -> Result<(), String> {
        // Nothing, and an empty text, leave the default.
        let Some(text) = text_of(key, value)?.filter(|text| !text.is_empty()) else { return Ok(()) };
        let is_duration = options::find(flag).is_some_and(|opt| opt.kind == Kind::Duration);
        let text = match value.as_u64().filter(|_| is_duration) {
            Some(nanos) => format_duration(Duration::from_nanos(nanos)),
            None => text,
        };
        self.flags.push((flag.to_owned(), text));
        Ok(())
    }
}

/// A value as on the command line; `None` for YAML's null, which leaves the default.
fn text_of(key: &str, value: &serde_json::Value) -> Result<Option<String>, String> {
    let scalar = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::Array(items) => {
            let texts: Option<Vec<String>> = items.iter().map(scalar).collect();
            texts.map(|texts| Some(texts.join(","))).ok_or_else(|| format!("has a wrong {key}: write a list of plain values"))
        }
        value => scalar(value).map(Some).ok_or_else(|| format!("has a wrong {key}: write one plain value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EtcdFile, String> {
        EtcdFile::parse(text, |name| options::find(name).is_some() || ["initial-cluster", "snapshot-count"].contains(&name))
    }

    fn flags(text: &str) -> Vec<String> {
        read(text).unwrap().flags.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn keys_are_flags_and_sections_lead_to_theirs() {
        let text = "# This is etcd's own sample, shortened.\nname: 'default'\ndata-dir:\nquota-backend-bytes: 8589934592\n\
            listen-client-urls: http://127.0.0.1:1,unix:///a\nlog-outputs: [stderr]\nsnapshot-count: 10000\n\
            client-transport-security:\n  cert-file: /c\n  client-cert-auth: false\n  allowed-hostname: [a.example, b.example]\n\
            peer-transport-security:\n  cert-file: /p\nsocket-options: {reuse-port: true}\n";
        let expected = [
            "client-cert-allowed-hostname=a.example,b.example",
            "cert-file=/c",
            "client-cert-auth=false",
            "listen-client-urls=http://127.0.0.1:1,unix:///a",
            "log-outputs=stderr",
            "name=default",
            "peer-cert-file=/p",
            "quota-backend-bytes=8589934592",
            "snapshot-count=10000",
            "socket-reuse-port=true",
        ];
        let (mut read, mut expected) = (flags(text), expected.map(str::to_owned).to_vec());
        read.sort();
        expected.sort();
        assert_eq!(read, expected);
    }

    #[test]
    fn durations_are_nanoseconds_as_in_etcd_and_units_are_understood_too() {
        assert_eq!(flags("watch-progress-notify-interval: 600000000000"), ["watch-progress-notify-interval=10m"]);
        assert_eq!(flags("watch-progress-notify-interval: 1h30m"), ["watch-progress-notify-interval=1h30m"]);
        // A retention is text: hours, a duration or revisions.
        assert_eq!(flags("auto-compaction-retention: 1"), ["auto-compaction-retention=1"]);
    }

    #[test]
    fn what_nobody_knows_is_told_and_what_cannot_be_done_is_kept_apart() {
        let file = read("nmae: x\nclient-transport-security:\n  allowed-cn: [root]\n  ca-file: /c\n").unwrap();
        assert_eq!(file.unknown, ["client-transport-security.ca-file", "nmae"]);
        assert_eq!(file.refused, ["client-transport-security.allowed-cn"]);
        assert_eq!(read("client-transport-security: {allowed-cn: []}").unwrap(), EtcdFile::default());
        let discovery = flags("discovery-config:\n  token: t\n  client:\n    endpoints: [http://d:1]\n");
        assert_eq!(discovery, ["discovery-endpoints=http://d:1", "discovery-token=t"]);
    }

    #[test]
    fn an_empty_file_sets_nothing_and_a_wrong_one_is_refused_with_the_place() {
        for empty in ["", "# nothing\n", "---\n"] {
            assert_eq!(read(empty), Ok(EtcdFile::default()), "{empty:?}");
        }
        assert!(read("name: n\ndata-dir: [\n").unwrap_err().starts_with("is not valid YAML at line "));
        assert!(read("just words").unwrap_err().contains("not valid YAML"));
        assert!(read("name: a\nname: b\n").unwrap_err().contains("not valid YAML"), "a key twice");
        assert!(read("name: {a: b}\n").unwrap_err().contains("name: write one plain value"));
        assert!(read("client-transport-security: yes please\n").unwrap_err().contains("indented"));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_without_what_it_holds() {
        for text in [
            "postgres://u:s3cret@h/d",
            "name: n\n  database: postgres://u:s3cret@h/d",
            "database: *s3cret",
            "database: \"postgres://u:s3cret@h/d",
            "database: [postgres://u:s3cret@h/d, {a: s3cret}]",
            "- postgres://u:s3cret@h/d",
            "s3cret: 1\ns3cret: 2",
            "name: !s3cret",
        ] {
            let said = format!("{:?}", read(text));
            assert!(!said.contains("s3cret"), "{text}: {said}");
        }
        assert_eq!(read("postgres://u:s3cret@h/d: 1").unwrap().unknown, ["postgres://u:***@h/d"]);
    }
}
