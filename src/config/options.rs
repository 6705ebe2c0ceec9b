//! The table of options: what each is called, takes, means and defaults to.
//!
//! One table serves the command line, the environment, the configuration file, `--help` and `duet config check`, so
//! they can't disagree. An option that etcd has carries etcd's name, and etcd's default unless the help says otherwise.

/// One option.
#[derive(Debug)]
pub struct Opt {
    /// As on the command line, without dashes; also the key in the file, and upper-cased the environment variable.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// As a user would write it.
    pub default: &'static str,
    /// The heading it stands under in `--help`.
    pub group: Group,
    /// What it means, in one or two sentences.
    pub help: &'static str,
}

/// What an option's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; on the command line the name alone means true.
    Bool,
    /// Any text.
    Text,
    /// A file or directory.
    Path,
    /// Text that may hold a password: never printed whole.
    Dsn,
    /// As Go writes durations.
    Duration,
    /// Bytes, with or without a unit.
    Bytes,
    /// A whole number.
    Count,
    /// Comma-separated URLs; an array in the file.
    Urls,
    /// One of these.
    OneOf(&'static [&'static str]),
}

impl Kind {
    /// What stands for the value in `--help`.
    #[must_use]
    pub fn placeholder(self) -> String {
        match self {
            Kind::Bool => "true|false".into(),
            Kind::Text => "TEXT".into(),
            Kind::Path => "PATH".into(),
            Kind::Dsn => "postgres://…".into(),
            Kind::Duration => "DURATION".into(),
            Kind::Bytes => "BYTES".into(),
            Kind::Count => "N".into(),
            Kind::Urls => "URL,…".into(),
            Kind::OneOf(values) => values.iter().copied().filter(|value| !value.is_empty()).collect::<Vec<_>>().join("|"),
        }
    }
}

/// Headings of `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the headings are their own explanation
pub enum Group {
    Member,
    Pair,
    Database,
    Limits,
    Compaction,
    Security,
    Logging,
}

impl Group {
    /// In the order of `--help`.
    pub const ALL: [(Group, &'static str); 7] = [
        (Group::Member, "Member"),
        (Group::Pair, "Pair (duet node, duet witness)"),
        (Group::Database, "PostgreSQL"),
        (Group::Limits, "Limits and intervals"),
        (Group::Compaction, "Compaction"),
        (Group::Security, "Security"),
        (Group::Logging, "Logs and metrics"),
    ];
}

const fn opt(group: Group, name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Opt {
    Opt { name, kind, default, group, help }
}

/// Every option of Duet.
#[rustfmt::skip]
pub static OPTIONS: &[Opt] = &[
    opt(Group::Member, "name", Kind::Text, "default", "Human-readable name for this member."),
    opt(Group::Member, "data-dir", Kind::Path, "", "The data directory. Default: /var/lib/duet/NAME for root, else $XDG_DATA_HOME/duet/NAME (~/.local/share/duet/NAME); under the name etcd, NAME.etcd in the working directory. duet serve keeps no data there, only what its clients have been shown (seen/), by which it notices after a restart that the database has lost some of it."),
    opt(Group::Member, "listen-client-urls", Kind::Urls, "http://127.0.0.1:2379", "URLs to listen on for clients: http, https, unix, unixs. Port 0 takes a free one."),
    opt(Group::Member, "listen-client-http-urls", Kind::Urls, "", "URLs to listen on for /health, /metrics and other plain HTTP; when set, these leave --listen-client-urls."),
    opt(Group::Member, "listen-metrics-urls", Kind::Urls, "", "Further URLs to listen on for /metrics and /health."),
    opt(Group::Member, "advertise-client-urls", Kind::Urls, "", "URLs that MemberList tells clients, and by which the other replicas of duet serve reach this one; they try all of them. Default: the listen URLs."),
    opt(Group::Member, "initial-advertise-peer-urls", Kind::Urls, "http://localhost:2380", "The peer URLs that MemberList shows; nothing listens there."),
    opt(Group::Member, "socket-reuse-port", Kind::Bool, "false", "Set SO_REUSEPORT on listeners."),
    opt(Group::Member, "socket-reuse-address", Kind::Bool, "false", "Listeners set SO_REUSEADDR whatever this says, as etcd's do."),
    opt(Group::Member, "shutdown-timeout", Kind::Duration, "10s", "How long open requests may take to end when Duet is told to stop."),
    opt(Group::Pair, "cluster", Kind::Text, "", "The pair's name: the same on both nodes, and in their certificates."),
    opt(Group::Pair, "node", Kind::OneOf(&["", "a", "b"]), "", "Which of the two this is. A begins an empty store."),
    opt(Group::Pair, "listen-peer-url", Kind::Text, "", "Where the other node and operators reach this one: https://ADDRESS:PORT, TCP and UDP. For duet witness: where the nodes reach it."),
    opt(Group::Pair, "peer-url", Kind::Text, "", "Where this node reaches the other one: https://HOST:PORT."),
    opt(Group::Pair, "witness-url", Kind::Text, "", "The witness: https://HOST:PORT (duet witness), etcd://HOST:PORT,…/KEY (etcds:// with ca-file, cert-file, key-file), s3://BUCKET/KEY?region=REGION (endpoint, ca-file, credentials-file) or kubernetes:///KUBECONFIG?namespace=NAMESPACE&name=NAME (context); what is in parentheses follows the ? if needed, joined by &. Without one, the loss of the leader's machine waits for an operator."),
    opt(Group::Pair, "pair-cert-file", Kind::Path, "", "This node's certificate for the peer, the witness and PostgreSQL's replication, PEM. Its common name is a.CLUSTER.duet or b.CLUSTER.duet."),
    opt(Group::Pair, "pair-key-file", Kind::Path, "", "The key of --pair-cert-file, PEM."),
    opt(Group::Pair, "pair-trusted-ca-file", Kind::Path, "", "The CA that signs the pair's certificates and nobody else's, PEM."),
    opt(Group::Pair, "pg-listen", Kind::Text, "", "Where this node's PostgreSQL listens for the other one: ADDRESS:PORT."),
    opt(Group::Pair, "peer-pg", Kind::Text, "", "The other node's PostgreSQL: HOST:PORT. That node's certificate must name HOST."),
    opt(Group::Pair, "pair-timing", Kind::OneOf(&["fast", "normal", "wan"]), "fast", "How long silences may last: fast fails over in about a second."),
    opt(Group::Pair, "guardian", Kind::Bool, "true", "Kill and restart a node that stands still for more than a second, so that its clients go to the other one."),
    opt(Group::Pair, "fence-command", Kind::Path, "", "In the place of a witness: a program that puts the other node's machine off, and ends with 0 once it is certainly off: PROGRAM a|b (whose machine), with DUET_CLUSTER and DUET_PEER. Killed after a minute and run again while that node isn't heard. Must be the same kind of third party on both nodes."),
    opt(Group::Pair, "fence-delay", Kind::Duration, "5s", "How much longer than the leader the follower waits before it has the other one put off: longer than the command takes, so that of two nodes that are cut off from each other the leader stays."),
    opt(Group::Pair, "on-role-change", Kind::Path, "", "A program to run when this node's part changes: PROGRAM leader|follower|none EPOCH, with DUET_NODE, DUET_CLUSTER, DUET_ROLE, DUET_EPOCH and DUET_MODE. Killed after 10 s; no failover waits for it."),
    opt(Group::Pair, "virtual-ip", Kind::Text, "", "An address of the nodes' network that the node which leads has: ADDRESS/PREFIX, such as 10.0.0.10/24. For clients that can be given one address only."),
    opt(Group::Pair, "virtual-ip-interface", Kind::Text, "", "The network interface that --virtual-ip is added to, such as eth0."),
    opt(Group::Database, "database", Kind::Dsn, "", "The PostgreSQL to serve from (duet serve): postgres://user@host1,host2/db?sslmode=verify-full…"),
    opt(Group::Database, "database-password-file", Kind::Path, "", "A file that holds the password for --database. It wins over a password in --database, which wins over PGPASSWORD."),
    opt(Group::Database, "pg-bin-dir", Kind::Path, "", "Where initdb and postgres (15 to 18) are. Default: searched where Debian, PGDG and others put them."),
    opt(Group::Database, "pg-user", Kind::Text, "", "The system user that runs PostgreSQL when Duet is started as root. Default: postgres, else nobody."),
    opt(Group::Database, "pg-shared-buffers", Kind::Bytes, "0", "The embedded PostgreSQL's own cache. 0: a 32nd of the memory, 32 to 512 MiB."),
    opt(Group::Database, "value-cache-bytes", Kind::Bytes, "1GiB", "Memory for values; further values are read back from PostgreSQL. Keys are always in memory."),
    opt(Group::Database, "unsafe-no-fsync", Kind::Bool, "false", "Run the embedded PostgreSQL without fsync. LOSES DATA when the machine stops; for test suites."),
    opt(Group::Limits, "quota-backend-bytes", Kind::Bytes, "0", "The database's size from which writes are refused (alarm NOSPACE). 0 means 2GiB, -1 no limit."),
    opt(Group::Limits, "max-txn-ops", Kind::Count, "128", "Maximum number of operations permitted in a transaction."),
    opt(Group::Limits, "max-request-bytes", Kind::Bytes, "1572864", "Maximum client request size."),
    opt(Group::Limits, "max-concurrent-streams", Kind::Count, "4294967295", "Maximum concurrent streams that each client connection can open at a time."),
    opt(Group::Limits, "grpc-keepalive-interval", Kind::Duration, "2h", "How often the server pings a silent client (0 to disable)."),
    opt(Group::Limits, "grpc-keepalive-timeout", Kind::Duration, "20s", "How long the server waits for the answer before it closes the connection."),
    opt(Group::Limits, "watch-progress-notify-interval", Kind::Duration, "10m", "How often watches that asked for it are told of progress."),
    opt(Group::Compaction, "auto-compaction-mode", Kind::OneOf(&["periodic", "revision"]), "periodic", "Whether --auto-compaction-retention is a time or a number of revisions."),
    opt(Group::Compaction, "auto-compaction-retention", Kind::Text, "0", "What automatic compaction keeps: a duration (a bare number means hours) or a number of revisions. 0 disables it; Kubernetes compacts by itself."),
    opt(Group::Compaction, "compaction-batch-limit", Kind::Count, "1000", "Revisions that one step of a compaction removes at most."),
    opt(Group::Compaction, "compaction-sleep-interval", Kind::Duration, "10ms", "Pause between two steps of a compaction."),
    opt(Group::Security, "cert-file", Kind::Path, "", "The server's certificate, PEM, followed by its intermediates. Reloaded when it changes and on SIGHUP."),
    opt(Group::Security, "key-file", Kind::Path, "", "The key of --cert-file, PEM."),
    opt(Group::Security, "trusted-ca-file", Kind::Path, "", "The CAs whose client certificates are accepted, PEM. Reloaded likewise."),
    opt(Group::Security, "client-cert-auth", Kind::Bool, "false", "Refuse clients without a certificate from --trusted-ca-file."),
    opt(Group::Security, "client-crl-file", Kind::Path, "", "Revoked client certificates: a list signed by their CA, PEM or DER. Reloaded likewise."),
    opt(Group::Security, "client-cert-allowed-hostname", Kind::Text, "", "Accept only client certificates for one of these host names or addresses, separated by commas."),
    opt(Group::Security, "auto-tls", Kind::Bool, "false", "Make a self-signed certificate in DATA-DIR/fixtures/client and use it for https listen URLs. Ignored with --cert-file."),
    opt(Group::Security, "self-signed-cert-validity", Kind::Count, "1", "For how many years a certificate made by --auto-tls is valid."),
    opt(Group::Security, "cipher-suites", Kind::Text, "", "Cipher suites for TLS 1.2, by Go's names, separated by commas; those of TLS 1.3 are always on. Default: all that are safe."),
    opt(Group::Security, "tls-min-version", Kind::OneOf(&["TLS1.2", "TLS1.3", ""]), "TLS1.2", "The oldest TLS version accepted."),
    opt(Group::Security, "tls-max-version", Kind::OneOf(&["", "TLS1.2", "TLS1.3"]), "", "The newest TLS version accepted; empty means the newest there is."),
    opt(Group::Logging, "log-level", Kind::Text, "info", "debug, info, warn or error; or filter directives such as info,duet::engine=debug."),
    opt(Group::Logging, "log-format", Kind::OneOf(&["text", "console", "json"]), "text", "Text for people (console is etcd's word for it) or JSON. Default under the name etcd: json."),
    opt(Group::Logging, "log-outputs", Kind::Text, "default", "Where log lines go: stderr (which is also the default, and what systemd/journal means here), stdout or the path of a file that is appended to; several are separated by commas."),
    opt(Group::Logging, "metrics", Kind::OneOf(&["basic", "extensive"]), "basic", "extensive adds a duration histogram for each gRPC method."),
    opt(Group::Logging, "warning-apply-duration", Kind::Duration, "100ms", "Writes that take longer are logged with their cause."),
    opt(Group::Logging, "warning-unary-request-duration", Kind::Duration, "300ms", "Requests that take longer are logged."),
];

/// Older names of options, which are accepted everywhere.
pub static ALIASES: &[(&str, &str)] = &[
    ("experimental-watch-progress-notify-interval", "watch-progress-notify-interval"),
    ("experimental-compaction-batch-limit", "compaction-batch-limit"),
    ("experimental-compaction-sleep-interval", "compaction-sleep-interval"),
    ("experimental-warning-apply-duration", "warning-apply-duration"),
    ("experimental-warning-unary-request-duration", "warning-unary-request-duration"),
];

/// The option called `name`, or formerly called so.
#[must_use]
pub fn find(name: &str) -> Option<&'static Opt> {
    let name = ALIASES.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new);
    OPTIONS.iter().find(|opt| opt.name == name)
}

/// The environment variable of the option `name`: `DUET_DATA_DIR` for prefix `DUET` and `data-dir`.
#[must_use]
pub fn env_name(prefix: &str, name: &str) -> String {
    format!("{prefix}_{}", name.replace('-', "_").to_ascii_uppercase())
}

/// The known name nearest to a misspelt one, if one is near enough to be worth proposing.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    let candidates = OPTIONS.iter().map(|opt| (edit_distance(name, opt.name), opt.name));
    candidates.min().filter(|(distance, _)| *distance <= 1 + name.len() / 4).map(|(_, name)| name)
}

/// Levenshtein's distance; names are short, so the quadratic way will do.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_aliases_lead_to_options() {
        for (i, opt) in OPTIONS.iter().enumerate() {
            assert!(OPTIONS[..i].iter().all(|earlier| earlier.name != opt.name), "{} twice", opt.name);
        }
        for (old, new) in ALIASES {
            assert_eq!(find(old).unwrap().name, *new);
        }
    }

    #[test]
    fn a_misspelt_name_is_answered_with_the_nearest() {
        assert_eq!(nearest("listen-client-url"), Some("listen-client-urls"));
        assert_eq!(nearest("datadir"), Some("data-dir"));
        assert_eq!(nearest("colour"), None);
    }

    #[test]
    fn environment_variables_are_derived_from_names() {
        assert_eq!(env_name("DUET", "listen-client-urls"), "DUET_LISTEN_CLIENT_URLS");
    }
}
