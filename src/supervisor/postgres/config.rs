//! The configuration that Duet's PostgreSQL runs with, each setting with its reason, and who may connect.
//!
//! Written anew at every start. What Duet's promises rest on goes on the command line, where neither `ALTER SYSTEM` nor
//! an edited file can change it; the rest is `postgresql.conf`, which a person overrides in `postgres.user.conf`.

use std::{fs, path::Path};

use super::{
    PostgresOptions,
    binaries::Version,
    data_dir::{DataDir, write_durably},
    error::StartError,
    network::Network,
    user::Account,
};

/// The PostgreSQL role that Duet connects as.
pub const ROLE: &str = "duet";
/// The database it keeps its schema in: the one that initdb makes, and that tools connect to by default.
pub const DATABASE: &str = "postgres";
/// Part of the socket's name; nothing listens on TCP.
pub const PORT: u16 = 5432;

/// Below the data directory: what changes with the node's part in a pair (see `pair/role.rs`).
pub const ROLE_FILE: &str = "duet.role.conf";

const MIB: u64 = 1 << 20;

/// (name, value, reason)
type Setting = (&'static str, String, &'static str);

/// What correctness rests on. Without `fsync` (test suites only) data doesn't survive the machine.
pub fn promises(data_dir: &DataDir, socket_dir: &Path, options: &PostgresOptions) -> Vec<Setting> {
    let durable = if options.fsync { "on" } else { "off" };
    let set = |name, value: &str, why| (name, value.to_owned(), why);
    vec![
        set("fsync", durable, "an acknowledged write survives a power cut"),
        set("full_page_writes", durable, "so do the pages around it"),
        set("restart_after_crash", "off", "Duet decides what follows a crash, after it has closed its gate"),
        set("data_sync_retry", "off", "after a failed fsync the page cache can't be trusted: PANIC, never retry"),
        set(
            "listen_addresses",
            &options.network.as_ref().map_or_else(String::new, |network| network.listen.ip().to_string()),
            "only Duet connects, through the socket; a pair's peer by TLS",
        ),
        set("port", &options.port().to_string(), "the socket's name; a pair's peer connects to it"),
        set(
            "unix_socket_directories",
            &quote_list_item(&data_dir.seen_by_postgres(socket_dir).to_string_lossy()),
            "the socket's place",
        ),
        set("cluster_name", &data_dir.cluster_name(), "process titles, by which leftovers are recognised"),
        set("update_process_title", "on", "the same"),
        set("logging_collector", "off", "log lines go through Duet's own log"),
        set("log_destination", "stderr", "the same"),
        set("log_line_prefix", super::log::LINE_PREFIX, "what Duet's log expects"),
        set("log_startup_progress_interval", "1s", "a start that takes long is waited for while it gets on"),
        set("lc_messages", "C", "levels are recognised by their English names"),
    ]
}

/// What a person may override.
fn preferences(shared_buffers_bytes: u64) -> Vec<Setting> {
    let set = |name, value: &str, why| (name, value.to_owned(), why);
    vec![
        set(
            "shared_buffers",
            &format!("{}MB", shared_buffers_bytes / MIB),
            "small: Duet itself keeps the index and the values in memory",
        ),
        set("huge_pages", "try", "fewer TLB misses where the machine has them"),
        set("max_connections", "64", "the writer, a bounded pool of readers, and people"),
        set("synchronous_commit", "on", "enough for zero loss, on the standby too; remote_apply would couple commits to replay"),
        set("wal_level", "replica", "a standby can be added without a restart"),
        set(
            "wal_compression",
            "off",
            "measured: a log that is only appended to writes next to no full pages, so there is nothing to save (docs/adr/0001-log-table.md)",
        ),
        set("max_wal_size", "512MB", "a crash restart with 940 MB of WAL took 6 to 10 s"),
        set("min_wal_size", "128MB", "segments are recycled, not made anew, under load: commits wait while one is made"),
        set("checkpoint_timeout", "5min", "the log table is append-only: checkpoints have little to rewrite"),
        set("jit", "off", "statements are short, compiling them is not"),
        set("max_parallel_workers_per_gather", "0", "no parallel plans, so no need of a large /dev/shm in containers"),
        set("autovacuum_naptime", "15s", "compaction deletes all the time: space must come back as fast"),
        set("autovacuum_vacuum_cost_delay", "1ms", "the same"),
        set(
            "idle_in_transaction_session_timeout",
            "60s",
            "Duet's statements are transactions of their own: this one is a forgotten psql, and it holds vacuum back",
        ),
        set("client_connection_check_interval", "5s", "a long read ends when its reader has gone"),
        set("log_parameter_max_length", "0", "values may be Secrets"),
        set("log_parameter_max_length_on_error", "0", "the same"),
        set("log_timezone", "UTC", "as Duet's own log"),
        set("timezone", "UTC", "the same"),
    ]
}

/// The command line's form of [`promises`].
pub fn arguments(data_dir: &DataDir, socket_dir: &Path, options: &PostgresOptions, version: Version) -> Vec<String> {
    promises(data_dir, socket_dir, options)
        .into_iter()
        .chain(options.network.iter().flat_map(|network| network.promises(data_dir, version)))
        .flat_map(|(name, value, _)| ["-c".to_owned(), format!("{name}={value}")])
        .collect()
}

/// Writes postgresql.conf, pg_hba.conf and pg_ident.conf into `pgdata`.
pub fn write(
    data_dir: &DataDir,
    account: &Account,
    shared_buffers_bytes: u64,
    network: Option<&Network>,
) -> Result<(), StartError> {
    let pgdata = data_dir.pgdata();
    let mut conf = String::from(
        "# Written by Duet at every start: put settings of your own into ../postgres.user.conf, it wins.\n\
         # What Duet's promises rest on (fsync and the like) is on PostgreSQL's command line and can't be changed.\n",
    );
    for (name, value, why) in preferences(shared_buffers_bytes) {
        conf.push_str(&format!("\n# {why}\n{name} = '{value}'\n"));
    }
    // Relative to this file's directory, so that it says the same however PostgreSQL gets there.
    conf.push_str("\ninclude_if_exists = '../postgres.user.conf'\n");
    if network.is_some() {
        conf.push_str(&format!("# What the node of a pair is at the moment.\ninclude_if_exists = '{ROLE_FILE}'\n"));
    }

    let mut hba = format!(
        "# Written by Duet at every start. The system user that Duet runs as, and the one that PostgreSQL runs as, are\n\
         # the role {ROLE}; nobody else gets in. No password exists, so none can leak.\n\
         local all {ROLE} peer map={ROLE}\n"
    );
    let mut names = vec![Account::own_name()?, account.name.clone()];
    names.dedup();
    let mut ident = String::from("# Written by Duet at every start.\n");
    for name in names {
        ident.push_str(&format!("{ROLE} \"{name}\" {ROLE}\n"));
    }
    if let Some(network) = network {
        hba.push_str(&network.hba());
        ident.push_str(&network.ident());
        network.install_tls(data_dir, account)?;
    }
    for (name, text) in [("postgresql.conf", conf), ("pg_hba.conf", hba), ("pg_ident.conf", ident)] {
        let path = pgdata.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        write_durably(&pgdata.join(format!("{name}.duet")), &path, &text, 0o600, Some((account.uid, account.gid)))
            .map_err(|e| StartError::from_io("can't write", &path, &account.name, e))?;
    }
    Ok(())
}

/// A 32nd of the machine's (or the container's) memory, between 32 and 512 MiB.
pub fn default_shared_buffers_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
        kib.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let memory_bytes = machine.into_iter().chain(container).min().unwrap_or(1024 * MIB);
    (memory_bytes / 32).clamp(32 * MIB, 512 * MIB)
}

/// A path as an element of a list-valued setting.
fn quote_list_item(item: &str) -> String {
    format!("\"{}\"", item.replace('"', "\"\""))
}
