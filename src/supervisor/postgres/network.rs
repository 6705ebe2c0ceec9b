//! How the peer of a pair reaches this node's PostgreSQL: one TCP port, TLS 1.3, and the certificate of the pair's other node for one
//! role that can replicate and read what pg_rewind needs.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{
    binaries::Version,
    config::DATABASE,
    data_dir::{DataDir, write_durably},
    error::StartError,
    user::Account,
};

/// The PostgreSQL role that the peer connects as.
pub const PEER_ROLE: &str = "duet_replica";
const MAP: &str = "duet_peer";

/// The files with which the nodes of a pair know each other; PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairTls {
    /// This node's certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// The pair's CA.
    pub ca_file: PathBuf,
}

/// A node's place in a pair, as its PostgreSQL needs to know it.
#[derive(Debug, Clone)]
pub struct Network {
    /// Where this node's PostgreSQL listens for the peer.
    pub listen: SocketAddr,
    /// The peer's PostgreSQL: host and port.
    pub peer: (String, u16),
    /// This node's name to PostgreSQL: `duet_a` or `duet_b`.
    pub own_name: String,
    /// The peer's.
    pub peer_name: String,
    /// The common name of the peer's certificate.
    pub peer_certificate: String,
    /// Certificates.
    pub tls: PairTls,
}

impl Network {
    /// What a pair's promises rest on, for the command line: (name, value, reason).
    pub(super) fn promises(&self, data_dir: &DataDir, version: Version) -> Vec<(&'static str, String, &'static str)> {
        let set = |name, value: &str, why| (name, value.to_owned(), why);
        let file = |name| data_dir.seen_by_postgres(&tls_file(data_dir, name)).to_string_lossy().into_owned();
        let mut promises = vec![
            set("ssl", "on", "the peer's traffic is encrypted and both sides show certificates"),
            set("ssl_cert_file", &file(CERT), "the same"),
            set("ssl_key_file", &file(KEY), "the same"),
            set("ssl_ca_file", &file(CA), "the same"),
            set("ssl_min_protocol_version", "TLSv1.3", "both sides are of our making"),
            set(
                "synchronous_commit",
                "on",
                "a commit is acknowledged when the standby has flushed it; a session may not be asked less by default",
            ),
            set("hot_standby", "on", "the follower reads its copy"),
            set("hot_standby_feedback", "off", "a reader on the follower must not hold back the leader's vacuum"),
            set(
                "max_standby_streaming_delay",
                "300ms",
                "somebody's long query on the follower must not hold up what a takeover has to replay first",
            ),
            set("max_standby_archive_delay", "300ms", "the same, of what is read from pg_wal"),
            set("recovery_target_timeline", "latest", "a follower goes where the leader goes"),
            set("recovery_min_apply_delay", "0", "a follower that is behind on purpose can't take over"),
            set("restore_command", "", "WAL comes from the leader only: a slow command would hold up a promotion"),
            set("wal_level", "replica", "the standby"),
            set(
                "max_wal_senders",
                "10",
                "PostgreSQL's default: pg_rewind's single-user recovery runs with it, and a standby may not have less",
            ),
            set("max_replication_slots", "10", "the same"),
            set(
                "wal_retrieve_retry_interval",
                "100ms",
                "a standby that lost its leader's connection must not be missed for long",
            ),
            set("wal_receiver_timeout", "3s", "a dead connection is noticed; never what a failover waits for"),
            set("wal_sender_timeout", "3s", "the same"),
            set("wal_receiver_status_interval", "1s", "the leader sees how far the follower has replayed"),
            set("max_slot_wal_keep_size", "4GB", "a peer that stays away must not fill the disk: it is copied anew then"),
            set(
                "wal_keep_size",
                "1GB",
                "a former leader's recovery begins where its last checkpoint did, up to max_wal_size ago, and pg_rewind throws away what \
                 the leader doesn't have of it: twice as much, as that is no hard limit",
            ),
            set("track_commit_timestamp", "off", "nobody reads it"),
        ];
        if version.major >= 17 {
            promises.push(set(
                "allow_alter_system",
                "off",
                "whom commits wait for is Duet's to set; the rest is postgres.user.conf's",
            ));
        }
        promises
    }

    /// Lines for pg_hba.conf.
    pub(super) fn hba(&self) -> String {
        format!(
            "# The pair's other node, by its certificate; from wherever it comes.\n\
             hostssl replication {PEER_ROLE} all cert map={MAP}\n\
             hostssl {DATABASE} {PEER_ROLE} all cert map={MAP}\n"
        )
    }

    /// Lines for pg_ident.conf.
    pub(super) fn ident(&self) -> String {
        format!("{MAP} \"{}\" {PEER_ROLE}\n", self.peer_certificate)
    }

    /// Puts the certificates where PostgreSQL's user, and only that, can read them. Answers whether any of them has changed.
    pub(super) fn install_tls(&self, data_dir: &DataDir, account: &Account) -> Result<bool, StartError> {
        let dir = data_dir.root().join(TLS_DIR);
        let io = |what: &str, path: &Path, e| StartError::from_io(what, path, &account.name, e);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => std::os::unix::fs::chown(&dir, Some(account.uid), Some(account.gid))
                .map_err(|e| io("can't give away", &dir, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(io("can't create", &dir, e)),
        }
        let mut changed = false;
        for (source, name) in [(&self.tls.cert_file, CERT), (&self.tls.key_file, KEY), (&self.tls.ca_file, CA)] {
            let wanted = fs::read_to_string(source).map_err(|e| io("can't read", source, e))?;
            let path = tls_file(data_dir, name);
            if fs::read_to_string(&path).is_ok_and(|present| present == wanted) {
                continue;
            }
            let scratch = dir.join(format!("{name}.tmp"));
            write_durably(&scratch, &path, &wanted, 0o600, Some((account.uid, account.gid)))
                .map_err(|e| io("can't write", &path, e))?;
            changed = true;
        }
        Ok(changed)
    }

    /// How this node's PostgreSQL reaches the peer's: a libpq connection string without secrets. By this name commits wait for it.
    pub(super) fn standby_conninfo(&self, data_dir: &DataDir) -> String {
        self.conninfo(data_dir, &self.own_name, None)
    }

    /// The same for PostgreSQL's tools, under a name that nobody waits for: pg_basebackup tells what it has flushed, too, but what it
    /// writes is no copy yet.
    pub(super) fn tool_conninfo(&self, data_dir: &DataDir, database: Option<&str>) -> String {
        self.conninfo(data_dir, &format!("{}_copy", self.own_name), database)
    }

    fn conninfo(&self, data_dir: &DataDir, application: &str, database: Option<&str>) -> String {
        let file = |name| quote(&data_dir.seen_by_postgres(&tls_file(data_dir, name)).to_string_lossy());
        let (host, port) = &self.peer;
        let database = database.map(|name| format!(" dbname={name}")).unwrap_or_default();
        format!(
            "host={} port={port} user={PEER_ROLE} application_name={application} sslmode=verify-full sslrootcert={} sslcert={} sslkey={} \
             connect_timeout=2 tcp_user_timeout=2000 keepalives_idle=1 keepalives_interval=1 keepalives_count=3{database}",
            quote(host),
            file(CA),
            file(CERT),
            file(KEY),
        )
    }
}

/// What the peer's role may do: replicate, and what pg_rewind reads. Idempotent; waits for no standby.
pub(super) fn peer_role_sql() -> String {
    format!(
        "SET synchronous_commit = local; \
         DO $$ BEGIN CREATE ROLE {PEER_ROLE} LOGIN REPLICATION; EXCEPTION WHEN duplicate_object THEN NULL; END $$; \
         GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean), pg_catalog.pg_stat_file(text, boolean), \
           pg_catalog.pg_read_binary_file(text), pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean), \
           pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint() TO {PEER_ROLE}; \
         GRANT CONNECT ON DATABASE {DATABASE} TO {PEER_ROLE}"
    )
}

const TLS_DIR: &str = "tls";
const CERT: &str = "node.crt";
const KEY: &str = "node.key";
const CA: &str = "ca.crt";

fn tls_file(data_dir: &DataDir, name: &str) -> PathBuf {
    data_dir.root().join(TLS_DIR).join(name)
}

/// A value of a libpq connection string.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
