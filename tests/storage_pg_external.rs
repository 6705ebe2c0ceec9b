//! The log in somebody else's PostgreSQL: over TCP with TLS and a password, several hosts, a role with few rights.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::STOP;
use common::process::{Process, duet};
use duet::storage::pg::{PgLog, PgOptions};
use duet::storage::{Batch, Log, LogError};
use duet::supervisor::postgres::{Account, Binaries, Postgres};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

const PASSWORD: &str = "quite-secret";

/// A server that was set up by hand, as far as Duet is concerned. Its certificate is for `localhost` only.
struct External {
    dir: tempfile::TempDir,
    port: u16,
    server: Child,
}

impl External {
    async fn start() -> Self {
        let dir = common::scratch();
        let own = Postgres::start(common::options(&dir)).await.unwrap();
        let client = common::connect(&own.connect_config()).await;
        for sql in [
            &format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'"),
            "CREATE ROLE poor LOGIN PASSWORD 'poor'",
            "CREATE DATABASE appdb OWNER app",
        ] {
            client.batch_execute(sql).await.unwrap();
        }
        let account = own.account().clone();
        own.stop(STOP).await;
        drop(own);
        certificates(dir.path(), &account);
        let hba = dir.path().join("hba.conf");
        fs::write(&hba, "hostssl all all 127.0.0.1/32 scram-sha-256\nhostssl all all ::1/128 scram-sha-256\n").unwrap();
        let [port] = common::peers::free_ports();
        let pgdata = dir.path().join("data/postgres");
        let binaries = Binaries::find(common::bin_dir().as_deref(), None, &pgdata).await.unwrap();
        let server = serve(&binaries, &account, dir.path(), &hba, port);
        let external = Self { dir, port, server };
        external.wait_ready().await;
        external
    }

    fn log(&self, dsn: &str, password: &str) -> PgLog {
        let dsn = dsn.replace("PORT", &self.port.to_string()).replace("CA", &self.dir.path().join("ca.pem").to_string_lossy());
        PgLog::new(PgOptions::from_dsn(&dsn, Some(password)).unwrap()).unwrap()
    }

    async fn try_acquire(&self, dsn: &str) -> Result<i64, LogError> {
        let writer = self.log(dsn, PASSWORD).acquire(true, vec![]).await?;
        let epoch = writer.meta().epoch;
        writer.close().await;
        Ok(epoch)
    }

    async fn wait_ready(&self) {
        let began = std::time::Instant::now();
        while let Err(error) = self.try_acquire("postgres://app@localhost:PORT/appdb?sslmode=require").await {
            assert!(began.elapsed() < Duration::from_secs(60), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for External {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.server.id().cast_signed()), Signal::SIGINT);
        let _ = self.server.wait();
    }
}

fn serve(binaries: &Binaries, account: &Account, dir: &Path, hba: &Path, port: u16) -> Child {
    let mut command = Command::new(binaries.program("postgres"));
    command.arg("-D").arg(dir.join("data/postgres")).current_dir(dir);
    let settings = [
        ("listen_addresses", "localhost".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", String::new()),
        ("hba_file", hba.to_string_lossy().into_owned()),
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", dir.join("server.pem").to_string_lossy().into_owned()),
        ("ssl_key_file", dir.join("server.key").to_string_lossy().into_owned()),
        // What a careless owner of a database may have set.
        ("synchronous_commit", "off".to_owned()),
        ("default_transaction_isolation", "serializable".to_owned()),
    ];
    for (name, value) in settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    if account.switch {
        command.uid(account.uid).gid(account.gid);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn certificates(dir: &Path, account: &Account) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(dir.join("server.pem"), server.pem()).unwrap();
    let path: PathBuf = dir.join("server.key");
    fs::write(&path, key.serialize_pem()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    if account.switch {
        chown(path, Some(account.uid), Some(account.gid)).unwrap();
    }
}

#[tokio::test]
async fn tls_verifies_what_sslmode_says_several_hosts_are_tried_and_rights_are_explained() {
    let external = External::start().await;
    for good in [
        "postgres://app@localhost:PORT/appdb?sslmode=verify-full&sslrootcert=CA",
        "postgres://app@localhost:PORT/appdb?sslrootcert=CA",
        "postgres://app@127.0.0.1:PORT/appdb?sslmode=verify-ca&sslrootcert=CA",
        "host=127.0.0.1 port=PORT user=app dbname=appdb sslmode=require",
        "postgres://app@127.0.0.1:PORT/appdb",
        // The first port is nobody's.
        "postgres://app@localhost:1,localhost:PORT/appdb?sslmode=verify-full&sslrootcert=CA",
    ] {
        external.try_acquire(good).await.unwrap_or_else(|e| panic!("{good}: {e}"));
    }
    for (bad, part) in [
        ("postgres://app@127.0.0.1:PORT/appdb?sslmode=verify-full&sslrootcert=CA", "certificate"),
        ("postgres://app@localhost:PORT/appdb?sslmode=verify-full&sslrootcert=system", "certificate"),
        ("postgres://app@localhost:PORT/appdb?sslmode=disable", "no encryption"),
        ("postgres://poor@localhost:PORT/appdb", "password"),
    ] {
        let error = external.try_acquire(bad).await.expect_err(bad);
        assert!(matches!(&error, LogError::Unavailable(why) if why.contains(part)), "{bad}: {error}");
        assert!(!error.to_string().contains(PASSWORD), "{error}");
    }
    let poor = external.log("postgres://poor@localhost:PORT/appdb", "poor");
    let Err(error) = poor.acquire(true, vec![]).await else { panic!("accepted") };
    assert!(matches!(&error, LogError::Unusable(why) if why.contains("role")), "{error}");

    // The session insists on waiting for the disk, whatever the server's defaults are.
    let log = external.log("postgres://app@localhost:PORT/appdb", PASSWORD);
    let mut writer = log.acquire(true, vec![]).await.unwrap();
    let row = duet::storage::LogRow {
        rev: duet::types::Rev::new(2, 0),
        key: "k".into(),
        value: Some("v".into()),
        create_revision: 2,
        version: 1,
        lease: 0,
    };
    writer.append(std::sync::Arc::new(Batch { rows: vec![row], ..Batch::default() })).await.unwrap();
    assert_eq!(log.reader().values(vec![duet::types::Rev::new(2, 0)]).await.unwrap(), [Some("v".into())]);
    writer.close().await;
}

#[tokio::test]
async fn the_password_comes_from_the_file_else_from_the_connection_string_else_from_pgpassword() {
    let external = External::start().await;
    let file = external.dir.path().join("password");
    let with = |password: &str, file_holds: Option<&str>, variable: Option<&str>| {
        let dsn = format!("postgres://app{password}@127.0.0.1:{}/appdb", external.port);
        let mut command = Command::new(duet());
        command.args(["serve", "--listen-client-urls", "http://127.0.0.1:0", "--database", &dsn]).env_remove("PGPASSWORD");
        if let Some(text) = file_holds {
            fs::write(&file, text).unwrap();
            command.arg("--database-password-file").arg(&file);
        }
        command.envs(variable.map(|password| ("PGPASSWORD", password)));
        Process::spawn(command)
    };
    let (right, in_file) = (format!(":{PASSWORD}"), format!("{PASSWORD}\r\n"));
    for (password, file_holds, variable) in [
        ("", Some(in_file.as_str()), None),
        (":wrong", Some(in_file.as_str()), Some("wrong")),
        (&right, None, None),
        (&right, None, Some("wrong")),
        ("", None, Some(PASSWORD)),
    ] {
        let mut process = with(password, file_holds, variable);
        process.ready();
        process.signal(Signal::SIGTERM);
        assert!(process.ended().success(), "{}", process.said());
    }
    // Each of these has the right one where another one wins.
    for (password, file_holds, variable) in [(right.as_str(), Some("wrong"), Some(PASSWORD)), (":wrong", None, Some(PASSWORD))] {
        let mut process = with(password, file_holds, variable);
        process.line("password authentication failed");
        process.signal(Signal::SIGTERM);
        process.ended();
        let said = process.said();
        assert!(!said.contains(PASSWORD) && !said.contains("wrong"), "{said}");
    }
}
