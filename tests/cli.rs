//! The program itself: real processes, real PostgreSQL, the signals that users and supervisors rely on, what it takes and what it refuses.

mod common;

use std::fs::DirBuilder;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::process::Command;
use std::time::Instant;

use common::process::{PATIENCE, Process, READY, args, dev, duet, serve};
use common::scratch;
use duet::supervisor::postgres::Binaries;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, WatchOptions};
use nix::sys::signal::Signal;

/// Exit code and everything said of a command that must end by itself.
fn refused(line: &str) -> (i32, String) {
    let mut process = Process::start(&duet(), &args(line));
    let status = process.ended();
    (status.code().expect("an exit code"), process.said())
}

/// The body of an HTTP answer.
fn http_get(url: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())
}

async fn client(url: &str) -> Client {
    Client::connect([url], None).await.unwrap()
}

async fn get(client: &mut Client, key: &str) -> Option<Vec<u8>> {
    client.get(key, None).await.unwrap().kvs().first().map(|kv| kv.value().to_vec())
}

#[tokio::test]
async fn dev_serves_stops_cleanly_and_finds_its_data_again() {
    let dir = scratch();
    let mut first = dev(&dir, "");
    let mut etcd = client(&first.ready()).await;
    etcd.put("k", "v", None).await.unwrap();
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ended().code(), Some(0), "{}", first.said());

    let mut second = dev(&dir, "--log-format json");
    let mut etcd = client(&second.ready()).await;
    assert_eq!(get(&mut etcd, "k").await.as_deref(), Some(&b"v"[..]));
    second.signal(Signal::SIGINT);
    assert_eq!(second.ended().code(), Some(0), "{}", second.said());

    let mut third = dev(&dir, "");
    third.ready();
    third.signal(Signal::SIGHUP); // its terminal was closed
    assert_eq!(third.ended().code(), Some(0), "{}", third.said());
}

#[tokio::test]
async fn the_postgresql_that_is_named_or_else_the_newest_one_is_the_one_that_runs() {
    let dir = scratch();
    let found = Binaries::find(common::bin_dir().as_deref(), None, dir.path()).await.unwrap();
    let mut process = dev(&dir, "");
    let line = process.line("PostgreSQL is up");
    assert!(line.contains(&format!("version={} ", found.version)), "{line}, and {} was found", found.version);
    process.ready();
}

#[tokio::test]
async fn kill_9_leaves_nothing_that_the_next_start_cannot_take_over() {
    let dir = scratch();
    let mut first = dev(&dir, "");
    client(&first.ready()).await.put("k", "acknowledged", None).await.unwrap();
    first.signal(Signal::SIGKILL);
    first.ended();
    let mut second = dev(&dir, "");
    let mut etcd = client(&second.ready()).await;
    assert_eq!(get(&mut etcd, "k").await.as_deref(), Some(&b"acknowledged"[..]));
}

#[tokio::test]
async fn a_watch_is_told_that_the_server_goes_before_it_goes() {
    let dir = scratch();
    let mut process = dev(&dir, "");
    let mut etcd = client(&process.ready()).await;
    let mut stream = etcd.watch("k", Some(WatchOptions::new())).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    process.signal(Signal::SIGTERM);
    let end = tokio::time::timeout(PATIENCE, stream.message()).await.expect("an end");
    let text = format!("{:?}", end.expect_err("Unavailable, so that clients go elsewhere"));
    assert!(text.contains("Unavailable"), "{text}");
    assert_eq!(process.ended().code(), Some(0));
}

#[test]
fn a_wrong_configuration_is_code_64_and_starts_nothing() {
    let dir = scratch();
    let file = dir.path().join("duet.toml");
    std::fs::write(&file, "max-txn-opps = 3\n").unwrap();
    for (line, expected) in [
        ("dev --listen-client-urls 127.0.0.1:1".to_owned(), "http://127.0.0.1:1"),
        (format!("dev --config-file {}", file.display()), "did you mean max-txn-ops?"),
        (format!("dev --config-file {}/none.toml", dir.path().display()), "can't read the configuration file"),
        ("dev --cert-file /nonexistent --key-file /nonexistent".to_owned(), "/nonexistent"),
        ("serve".to_owned(), "--database is needed"),
        ("serve --database nonsense".to_owned(), "--database"),
        ("etcd --initial-cluster a=http://127.0.0.1:1,b=http://127.0.0.1:2".to_owned(), "2 members"),
        ("serve --auto-tls --database postgres://x".to_owned(), "can't be used with duet serve"),
        ("frobnicate".to_owned(), "no such command"),
        ("status nobody".to_owned(), "nothing like that is expected here"),
        ("switchover a b".to_owned(), "nothing like that is expected here"),
    ] {
        let (code, said) = refused(&line);
        assert_eq!(code, 64, "{line}: {said}");
        assert!(said.contains(expected), "{line}: {said}");
    }
}

/// Exit code, standard output and standard error of `duet config check`, with these variables.
fn config_check(line: &str, env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(duet());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DUET_")) {
        command.env_remove(name);
    }
    let output = command.args(["config", "check"]).args(args(line)).envs(env.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn config_check_names_every_value_with_its_source_and_the_command_that_takes_them() {
    let dir = scratch();
    let file = dir.path().join("duet.toml");
    std::fs::write(&file, "max-txn-ops = 256\nname = \"of-file\"\nshutdown-timeout = \"7s\"\n").unwrap();
    let env = [("DUET_NAME", "of-env"), ("DUET_SHUTDOWN_TIMEOUT", "8s"), ("DUET_DATABASE", "postgres://u:s3cret@h/d")];
    let data = dir.path().join("data");
    let line = format!("--config-file {} --shutdown-timeout=9s --data-dir {}", file.display(), data.display());
    let (code, shown, said) = config_check(&line, &env);
    assert_eq!(code, 0, "{said}");
    let line = |name: &str| {
        let line = shown.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("{name}: {shown}"));
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    for (name, expected) in [
        ("shutdown-timeout", "9s flag --shutdown-timeout".to_owned()),
        ("data-dir", format!("{} flag --data-dir", data.display())),
        ("name", "of-env environment DUET_NAME".to_owned()),
        ("database", "postgres://u:***@h/d environment DUET_DATABASE".to_owned()),
        ("max-txn-ops", format!("256 file {}", file.display())),
        ("max-request-bytes", "1572864 default".to_owned()),
        ("cert-file", "- default".to_owned()),
    ] {
        assert_eq!(line(name), expected);
    }
    assert!(duet::config::OPTIONS.iter().all(|opt| !line(opt.name).is_empty()));
    assert!(
        shown.ends_with(" is not checked.\n") && shown.contains("duet serve (for there is a --database) would take this"),
        "{shown}"
    );
    assert!(!data.exists(), "a check makes nothing");
}

#[test]
fn config_check_refuses_what_the_command_would_refuse() {
    let dir = scratch();
    let yaml = dir.path().join("etcd.yml");
    std::fs::write(&yaml, "client-transport-security: {cert-file: /nonexistent, key-file: /nonexistent}\n").unwrap();
    let dsn = "--database postgres://u@h/d";
    for (command, flags, expected) in [
        ("serve", "--database nonsense".to_owned(), "--database: "),
        ("serve", String::new(), "--database is needed"),
        ("serve", format!("{dsn} --auto-tls"), "can't be used with duet serve"),
        ("serve", format!("{dsn}?sslmode=verify-full&sslrootcert=/nonexistent"), "/nonexistent"),
        ("serve", format!("{dsn} --database-password-file /nonexistent"), "password file /nonexistent"),
        ("serve", format!("{dsn} --cert-file /nonexistent --key-file /nonexistent"), "can't read /nonexistent"),
        ("dev", dsn.to_owned(), "belongs to duet serve"),
        ("dev", "--log-outputs /nonexistent/duet.log".to_owned(), "can't write log lines to /nonexistent/duet.log"),
        ("dev", "--cert-file /nonexistent --key-file /nonexistent".to_owned(), "can't read /nonexistent"),
        ("etcd", format!("--config-file {}", yaml.display()), "can't read /nonexistent"),
        ("etcd", "--initial-cluster a=http://127.0.0.1:1,b=http://127.0.0.1:2".to_owned(), "2 members"),
        ("node", String::new(), "the pair is not configured"),
        ("witness", String::new(), "a witness needs --pair-cert-file"),
    ] {
        let (code, said) = refused(&format!("{command} {flags}"));
        assert!(code == 64 && said.contains(expected), "{command} {flags}: {code}, {said}");
        let (code, _, checked) = config_check(&format!("{command} {flags}"), &[]);
        assert!(code == 64 && checked.contains(expected), "{command} {flags}: {code}, {checked}");
    }
    // Whom a configuration is for, when nobody says.
    for (flags, command) in [
        ("--database nonsense".to_owned(), "duet serve (for there is a --database): --database: "),
        (format!("--config-file {}", yaml.display()), "duet etcd (the file is etcd's): can't read /nonexistent"),
        (
            "--cert-file /nonexistent --key-file /nonexistent".to_owned(),
            "duet dev (for there is no --database and no --peer-url): ",
        ),
    ] {
        let (code, _, said) = config_check(&flags, &[]);
        assert!(code == 64 && said.contains(command), "{flags}: {said}");
    }
}

#[test]
fn no_refusal_shows_a_password() {
    let dir = scratch();
    let (toml, yaml) = (dir.path().join("duet.toml"), dir.path().join("etcd.yml"));
    std::fs::write(&toml, "name = \"n\"\ndatabase = postgres://u:s3cret@h/d\n").unwrap();
    std::fs::write(&yaml, "name: n\n  database: postgres://u:s3cret@h/d\n").unwrap();
    let dsn = "postgres://u:s3cret@h/d";
    for (line, expected) in [
        (format!("serve --config-file {}", toml.display()), "not valid TOML at line 2, column "),
        (format!("config check --config-file {}", toml.display()), "not valid TOML at line 2, column "),
        (format!("etcd --config-file {}", yaml.display()), "not valid YAML at line 2, column "),
        (format!("serve {dsn}"), "postgres://u:***@h/d"),
        ("serve password=s3cret host=h".to_owned(), "password=***"),
        (format!("etcd {dsn}"), "postgres://u:***@h/d"),
        (format!("dev {dsn}"), "postgres://u:***@h/d"),
        (format!("status a {dsn}"), "postgres://u:***@h/d"),
        (format!("pair {dsn}"), "postgres://u:***@h/d"),
        (format!("init {dsn}"), "postgres://u:***@h/d"),
        (dsn.to_owned(), "postgres://u:***@h/d"),
        (format!("serve ---database={dsn}"), "bad flag syntax"),
        (format!("serve --{dsn}"), "flag provided but not defined"),
        (format!("serve --max-txn-ops {dsn}"), "--max-txn-ops"),
        (format!("serve --listen-client-urls {dsn}"), "--listen-client-urls"),
        (format!("serve --database {dsn}?sslmode=allow"), "verify-full"),
        (format!("dev --database {dsn}"), "--database"),
    ] {
        let (code, said) = refused(&line);
        assert_eq!(code, 64, "{line}: {said}");
        assert!(said.contains(expected), "{line}: {said}");
        assert!(!said.contains("s3cret"), "{line}: {said}");
    }
}

#[test]
fn a_node_is_checked_before_its_first_start() {
    let dir = scratch();
    let out = dir.path().join("pair");
    let [ca, cb, pa, pb, ga, gb, witness] = common::peers::free_ports::<7>();
    let init = format!(
        "init --cluster edge --a 127.0.0.1 --b 127.0.0.1 --witness 127.0.0.1 --in-place --client-port {ca},{cb} --peer-port {pa},{pb} \
         --pg-port {ga},{gb} --witness-port {witness} --out {}",
        out.display()
    );
    assert!(Command::new(duet()).args(args(&init)).output().unwrap().status.success());
    let check = || {
        let output = Command::new(duet()).args(["check", "--config-file"]).arg(out.join("a/duet.toml")).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = check();
    assert_eq!(code, 1, "nobody runs yet, and nothing is wrong: {said}");
    for expected in [
        "will be made at the first start",
        "for heartbeats is free",
        "the pair's: a.edge.duet has",
        "duet node doesn't answer here",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(!out.join("a/data").exists(), "a check makes nothing");

    for (folder, file, command) in [("a", "duet.toml", "node"), ("witness", "witness.toml", "witness")] {
        let file = out.join(folder).join(file);
        let (code, shown, said) = config_check(&format!("--config-file {}", file.display()), &[]);
        assert!(code == 0 && shown.contains(&format!("\nduet {command} (for there is ")), "{said}{shown}");
        let (key, aside) = (out.join(folder).join("pair.key"), out.join("aside"));
        std::fs::rename(&key, &aside).unwrap();
        let (code, _, said) = config_check(&format!("--config-file {}", file.display()), &[]);
        assert!(code == 64 && said.contains("pair.key"), "{said}");
        std::fs::rename(&aside, &key).unwrap();
    }

    // B's certificate is the pair's, and isn't A's.
    std::fs::copy(out.join("b/pair.crt"), out.join("a/pair.crt")).unwrap();
    std::fs::create_dir(out.join("a/data")).unwrap();
    std::fs::write(out.join("a/data/PG_VERSION"), "15").unwrap();
    let (code, said) = check();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("FAIL  certificate") && said.contains("FAIL  directory"), "{said}");
}

#[tokio::test]
async fn under_the_name_etcd_it_takes_etcds_command_line() {
    let dir = scratch();
    let program = dir.path().join("etcd");
    symlink(duet(), &program).unwrap();
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(version.status.success() && version.stdout.starts_with(b"etcd Version: 3.7.3\n"));

    // As envtest and Go's T.TempDir make it: it and the directory above are closed to everybody else, PostgreSQL's user included.
    let data = dir.path().join("closed/envtest");
    DirBuilder::new().mode(0o700).recursive(true).create(&data).unwrap();
    let line = format!(
        "-name=default --listen-peer-urls=http://localhost:0 --advertise-client-urls=http://127.0.0.1:0 --snapshot-count 100 \
         --listen-client-urls=http://127.0.0.1:0 --data-dir={} --unsafe-no-fsync=true --listen-metrics-urls=http://127.0.0.1:0",
        data.display()
    );
    let mut process = Process::start(&program, &args(&line));
    let warning = process.line("have no meaning");
    assert!(warning.contains("--snapshot-count") && warning.contains("--listen-peer-urls"), "{warning}");
    let ready = process.line(READY);
    assert!(ready.starts_with('{') && ready.contains(r#""message":"ready to serve client requests""#), "{ready}");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().code(), Some(0), "{}", process.said());
}

#[test]
fn log_lines_go_to_every_output_that_is_named_and_are_appended_to_files() {
    let dir = scratch();
    let log = dir.path().join("etcd.log");
    std::fs::write(&log, "of an earlier run\n").unwrap();
    let line = format!(
        "etcd --listen-client-urls http://127.0.0.1:0 --data-dir {} --log-outputs=stderr,{},systemd/journal",
        dir.path().join("data").display(),
        log.display()
    );
    let mut process = Process::start(&duet(), &args(&line));
    process.ready();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().code(), Some(0), "{}", process.said());
    let (said, written) = (process.said(), std::fs::read_to_string(&log).unwrap());
    assert_eq!(written.strip_prefix("of an earlier run\n"), Some(format!("{said}\n").as_str()));
    let told = |text: &str| said.lines().filter(|line| line.contains(text)).count();
    assert_eq!((told("systemd's journal"), told(READY)), (1, 1), "{said}");
}

#[tokio::test]
async fn a_member_shows_what_it_was_told_to_advertise_and_auto_tls_keeps_its_certificate() {
    let dir = scratch();
    let data = dir.path().join("data");
    let start = || {
        let line = format!(
            "etcd --name n1 --data-dir {} --auto-tls --listen-client-urls https://127.0.0.1:0,http://127.0.0.1:0 --log-format text \
             --initial-advertise-peer-urls http://10.0.0.1:2380,http://10.0.0.2:2380",
            data.display()
        );
        Process::start(&duet(), &args(&line))
    };
    let certificate = || std::fs::read(data.join("fixtures/client/cert.pem")).unwrap();
    let mut first = start();
    let list = client(&first.ready()).await.member_list().await.unwrap();
    let member = &list.members()[0];
    assert_eq!(member.name(), "n1");
    assert_eq!(member.peer_urls(), ["http://10.0.0.1:2380", "http://10.0.0.2:2380"]);
    assert!(member.client_urls()[0].starts_with("https://127.0.0.1:"), "{:?}", member.client_urls());
    let made = certificate();
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ended().code(), Some(0), "{}", first.said());
    let mut second = start();
    second.ready();
    assert_eq!(certificate(), made);
}

#[tokio::test]
async fn a_replica_forwards_to_the_writer_and_takes_over_when_it_dies() {
    let dir = scratch();
    let options = common::options(&dir);
    let postgres = duet::supervisor::postgres::Postgres::start(options).await.unwrap();
    let dsn = format!("host={} user=duet dbname=postgres", postgres.socket_dir().display());
    let mut writer = serve(&dsn);
    let writers_url = writer.ready();
    let mut standby = serve(&dsn);
    let url = standby.ready();
    assert_eq!(http_get(&url, "/health"), r#"{"health":"true","reason":""}"#, "a replica that forwards is healthy");
    let mut etcd = client(&url).await;
    let first = etcd.put("k", "1", None).await.unwrap().header().unwrap().revision();
    let (here, there) = (http_get(&url, "/metrics"), http_get(&writers_url, "/metrics"));
    assert!(here.contains("\netcd_server_is_leader 0\n") && here.contains("\netcd_server_has_leader 1\n"), "{here}");
    assert!(here.contains("\netcd_server_leader_changes_seen_total 1\n"), "{here}");
    for name in ["etcd_debugging_mvcc_current_revision", "etcd_mvcc_db_total_size_in_bytes", "etcd_server_id"] {
        let told = |text: &str| text.lines().any(|line| line.starts_with(name));
        assert!(!told(&here) && told(&there), "the writer alone knows {name}");
    }
    // The replica that a client talks to counts its request, and the writer what it does to the store.
    let put = r#"grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;
    assert!(here.contains(&format!("\n{put} 1\n")) && there.contains(&format!("\n{put} 0\n")), "{here}\n{there}");
    assert!(there.contains("\netcd_mvcc_put_total 1\n"), "{there}");
    let mut stream = etcd.watch("k", Some(WatchOptions::new().with_start_revision(first))).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    assert_eq!(stream.message().await.unwrap().unwrap().events().len(), 1);

    writer.signal(Signal::SIGKILL);
    writer.ended();
    // The watch ends with a code after which clients resume; the same connection serves on.
    let end = tokio::time::timeout(PATIENCE, stream.message()).await.expect("an end");
    assert!(format!("{end:?}").contains("Unavailable"), "{end:?}");
    standby.line("recovered");
    let created =
        |attempt: Txn| attempt.when([Compare::version("k", CompareOp::Equal, 1)]).and_then([TxnOp::put("k", "2", None)]);
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        match etcd.txn(created(Txn::new())).await {
            Ok(answer) => break answer,
            // Refused with the words that mean "certainly not applied" until the takeover is done.
            Err(error) => assert!(Instant::now() < deadline && error.to_string().contains("Unavailable"), "{error}"),
        }
    };
    assert!(answer.succeeded());
    assert_eq!(answer.header().unwrap().revision(), first + 1, "no revision is lost or used twice");
    drop(standby);
    postgres.stop(common::STOP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_request_is_told_with_its_key_and_its_cause() {
    let dir = scratch();
    // Everything is slow then.
    let mut duet = dev(&dir, "--warning-apply-duration 1ns");
    let mut client = Client::connect([duet.ready()], None).await.unwrap();
    client.put("slow/put", "v", None).await.unwrap();
    let line = duet.line("request=\"put\"");
    assert!(line.contains("key=slow/put") && line.contains("cause=\"") && line.contains("committed="), "{line}");
    client.get("slow/get", None).await.unwrap();
    let line = duet.line("request=\"range\"");
    assert!(line.contains("key=slow/get") && line.contains("cause=\""), "{line}");
    client.txn(Txn::new().and_then([TxnOp::get("slow/txn", None)])).await.unwrap();
    let line = duet.line("request=\"txn\"");
    assert!(line.contains("key=slow/txn") && line.contains("cause=\""), "{line}");
    client.lease_time_to_live(7, None).await.unwrap();
    assert!(duet.line("request=\"lease_timetolive\"").contains("cause=\""));
}
