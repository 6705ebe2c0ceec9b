//! `duet init`: the configurations and certificates of a pair and its witness, from three addresses; and `duet certs`, which renews the
//! certificates.
//!
//! Two CAs: the pair's signs only nodes and witness, so that no API server's certificate opens the peer port, PostgreSQL or the witness.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Failure;
use super::args::{self, Takes};
use super::pair_certs::{Authority, Leaf, Use};
use crate::config::redact::redact_dsn;
use crate::config::{WitnessUrl, network_address};

const USAGE: &str = "duet init --cluster NAME --a ADDRESS --b ADDRESS --witness ADDRESS --out DIR [flags]";
const HELP: &str = "
Writes the configuration and the certificates of two nodes and their witness:

  --cluster NAME            The pair's name: small letters, digits, hyphens.
  --a ADDRESS, --b ADDRESS  The two nodes: IP addresses that the other one, the witness and clients reach.
  --witness ADDRESS         The witness: an IP address or a name. Without it the pair has none, and the loss of the
                            leader's machine waits for an operator. Or a URL, such as etcd://10.0.0.9:2379/edge: the
                            register is in another store then (--witness-url of duet node --help).
  --fence-command PROGRAM   In the place of a witness: a program, there on both nodes, that puts the other one's machine off
                            (--fence-command of duet node --help).
  --out DIR                 Where to write; made, and not there yet.
  --install-dir DIR         Where the files of a node will be on its machine. [/etc/duet]
  --data-dir DIR            Where a node's data will be. [/var/lib/duet/NAME]
  --client-tls true|false   Clients need certificates, too. [true]
  --timing fast|normal|wan  How long silences may last. [fast]
  --virtual-ip ADDRESS/PREFIX
                            An address of the nodes' network that is always at the node which leads, such as 10.0.0.10/24.
  --virtual-ip-interface NAME
                            The nodes' interface in that network; A,B (two names) if they differ.
  --client-port N, --peer-port N, --pg-port N, --witness-port N
                            Ports. [2379, 2380, 5433, 2378] Give A,B (two numbers) for nodes on one machine.
  --in-place                The files are used where they are written (DIR/a, DIR/b, DIR/witness), data included: for
                            trying everything on one machine.

duet certs renew --out DIR makes all certificates anew, from the CAs in DIR. Copy them to where the old ones are, and
restart the witness and one node after the other; a leader hands over before it stops.
";
/// Names of the options, and whether they need a value.
const OPTIONS: [(&str, Takes); 17] = [
    ("cluster", Takes::Value),
    ("a", Takes::Value),
    ("b", Takes::Value),
    ("witness", Takes::Value),
    ("fence-command", Takes::Value),
    ("out", Takes::Value),
    ("install-dir", Takes::Value),
    ("data-dir", Takes::Value),
    ("client-tls", Takes::Bool),
    ("timing", Takes::Value),
    ("virtual-ip", Takes::Value),
    ("virtual-ip-interface", Takes::Value),
    ("client-port", Takes::Value),
    ("peer-port", Takes::Value),
    ("pg-port", Takes::Value),
    ("witness-port", Takes::Value),
    ("in-place", Takes::Bool),
];

/// Runs `duet init`.
///
/// # Errors
/// Exit code 64 for what can't work, 1 for what can't be written.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let Some(plan) = Plan::from_args(args)? else { return Ok(()) };
    let written = plan.write()?;
    print!("{written}");
    Ok(())
}

/// Does what `duet init` does, without a word.
///
/// # Errors
/// As [`run`].
pub(super) fn make(args: &[String]) -> Result<(), Failure> {
    match Plan::from_args(args)? {
        Some(plan) => plan.write().map(drop),
        None => Ok(()),
    }
}

/// Runs `duet certs`.
///
/// # Errors
/// As [`run`].
pub fn run_certs(args: &[String]) -> Result<(), Failure> {
    let usage = "duet certs renew --out DIR";
    let parsed = args::parse(args.get(1..).unwrap_or_default(), |name| (name == "out").then_some(Takes::Value));
    let out = parsed.ok().and_then(|parsed| parsed.flags.into_iter().next());
    match (args.first().map(String::as_str), out) {
        (Some("renew"), Some((_, out))) => {
            let plan = Plan::read(Path::new(&out))?;
            plan.certify(false)?;
            println!("made new certificates in {out}; put them in place, then restart the witness and one node after the other");
            Ok(())
        }
        _ => Err(Failure::usage(format!("the command is {usage}"))),
    }
}

/// What is to be written.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Plan {
    cluster: String,
    a: Host,
    b: Host,
    witness: Option<(String, u16)>,
    /// The URL of a witness that isn't `duet witness`.
    #[serde(default)]
    witness_store: Option<String>,
    #[serde(default)]
    fence_command: Option<String>,
    out: PathBuf,
    install_dir: PathBuf,
    data_dir: PathBuf,
    client_tls: bool,
    timing: String,
    #[serde(default)]
    virtual_ip: Option<String>,
    in_place: bool,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Host {
    address: String,
    client_port: u16,
    peer_port: u16,
    pg_port: u16,
    /// For the virtual IP.
    #[serde(default)]
    interface: Option<String>,
}

const PLAN: &str = "plan.json";

fn io(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |error| Failure::serving(format!("can't write {}: {error}", path.display()))
}

impl Plan {
    fn from_args(args: &[String]) -> Result<Option<Self>, Failure> {
        let takes = |name: &str| OPTIONS.iter().find(|(known, _)| *known == name).map(|(_, takes)| *takes);
        let parsed = args::parse(args, takes).map_err(|error| Failure::usage(format!("{error}; {USAGE}")))?;
        if parsed.help {
            print!("Usage:\n  {USAGE}\n{HELP}");
            return Ok(None);
        }
        if let Some(extra) = parsed.rest.first() {
            return Err(Failure::usage(format!("\"{}\" is not a flag; {USAGE}", redact_dsn(extra))));
        }
        let get = |name: &str| parsed.flags.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let need = |name: &str| get(name).ok_or_else(|| Failure::usage(format!("--{name} is needed; {USAGE}")));
        let flag = |name: &str, default: bool| match get(name) {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(Failure::usage(format!("--{name} {other}: write true or false"))),
        };
        let ports = |name: &str, default: u16| two_ports(name, get(name), default);
        let address = |name: &str| -> Result<String, Failure> {
            let text = need(name)?;
            let parsed = text.parse::<std::net::IpAddr>();
            parsed.map(|ip| ip.to_string()).map_err(|_| {
                Failure::usage(format!(
                    "--{name} {text}: write the node's IP address (it listens there, and certificates name it)"
                ))
            })
        };
        let (client, peer, pg) = (ports("client-port", 2379)?, ports("peer-port", 2380)?, ports("pg-port", 5433)?);
        let interfaces = get("virtual-ip-interface");
        let interface = |at: usize| interfaces.map(|both| both.split(',').nth(at).unwrap_or(both).to_owned());
        let host = |address, at: usize| Host {
            address,
            client_port: client[at],
            peer_port: peer[at],
            pg_port: pg[at],
            interface: interface(at),
        };
        let cluster = need("cluster")?.to_owned();
        let out = PathBuf::from(need("out")?);
        let timing = get("timing").unwrap_or("fast").to_owned();
        if !["fast", "normal", "wan"].contains(&timing.as_str()) {
            return Err(Failure::usage(format!("--timing {timing}: write fast, normal or wan")));
        }
        let (daemon, store) = match get("witness") {
            Some(store) if store.contains("://") => (None, Some(store.to_owned())),
            daemon => (daemon, None),
        };
        if let Some(store) = &store {
            WitnessUrl::parse(store).map_err(|problem| Failure::usage(format!("--witness: {problem}")))?;
        }
        let witness = daemon.map(|host| Ok::<_, Failure>((host.to_owned(), ports("witness-port", 2378)?[0]))).transpose()?;
        let plan = Self {
            a: host(address("a")?, 0),
            b: host(address("b")?, 1),
            witness,
            witness_store: store,
            fence_command: get("fence-command").map(str::to_owned),
            install_dir: PathBuf::from(get("install-dir").unwrap_or("/etc/duet")),
            data_dir: get("data-dir").map_or_else(|| Path::new("/var/lib/duet").join(&cluster), PathBuf::from),
            client_tls: flag("client-tls", true)?,
            in_place: flag("in-place", false)?,
            timing,
            virtual_ip: get("virtual-ip").map(str::to_owned),
            out,
            cluster,
        };
        plan.check()?;
        Ok(Some(plan))
    }

    fn check(&self) -> Result<(), Failure> {
        if let Some(program) = &self.fence_command {
            if self.witness.is_some() || self.witness_store.is_some() {
                return Err(Failure::usage("--fence-command can't decide beside --witness: give one of them"));
            }
            if !program.starts_with('/') {
                return Err(Failure::usage(format!("--fence-command {program}: write the program's whole path")));
            }
        }
        if self.a.address == self.b.address && (self.a.client_port == self.b.client_port || self.a.pg_port == self.b.pg_port) {
            return Err(Failure::usage(
                "both nodes have the same address and ports: a pair survives a machine only on two machines. To try it on one, give each its own \
                 ports: --client-port 2379,2389 --peer-port 2380,2390 --pg-port 5433,5434",
            ));
        }
        if self.virtual_ip.is_some() != self.a.interface.is_some() {
            return Err(Failure::usage("--virtual-ip and --virtual-ip-interface belong together"));
        }
        if let Some(text) = &self.virtual_ip {
            network_address(text).map_err(|why| Failure::usage(format!("--virtual-ip {why}")))?;
        }
        if self.out.exists() {
            return Err(Failure::usage(format!(
                "{} is there already; remove it or choose another --out (duet certs renew makes new certificates in it)",
                self.out.display()
            )));
        }
        Ok(())
    }

    fn read(out: &Path) -> Result<Self, Failure> {
        let path = out.join(PLAN);
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::usage(format!("can't read {}: {error}; --out is what duet init wrote", path.display())))?;
        let plan: Self = serde_json::from_str(&text)
            .map_err(|error| Failure::usage(format!("{} is not duet init's: {error}", path.display())))?;
        Ok(Self { out: out.to_path_buf(), ..plan })
    }

    fn write(mut self) -> Result<String, Failure> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.out).map_err(io(&self.out))?;
        self.out = self.out.canonicalize().map_err(io(&self.out))?;
        self.certify(true)?;
        let plan = serde_json::to_string_pretty(&self).expect("names and numbers can be written");
        write(&self.out.join(PLAN), &plan, 0o600)?;
        for (name, me, peer) in [("a", &self.a, &self.b), ("b", &self.b, &self.a)] {
            write(&self.out.join(name).join("duet.toml"), &self.node_config(name, me, peer), 0o644)?;
        }
        if self.witness.is_some() {
            write(&self.out.join("witness").join("witness.toml"), &self.witness_config(), 0o644)?;
        }
        Ok(self.next_steps())
    }

    /// Makes the certificates; with `new`, their CAs first.
    fn certify(&self, new: bool) -> Result<(), Failure> {
        let failed = |error: String| Failure::serving(format!("can't make the certificates in {}: {error}", self.out.display()));
        let cluster = &self.cluster;
        for (name, purpose) in [("pair", "pair"), ("client", "clients")] {
            let dir = self.out.join("ca");
            if new {
                let authority = Authority::new(&format!("Duet {cluster} {purpose} CA")).map_err(failed)?;
                write(&dir.join(format!("{name}.key")), &authority.key_pem(), 0o600)?;
                write(&dir.join(format!("{name}.crt")), authority.certificate_pem(), 0o644)?;
            }
        }
        let read = |name: &str| fs::read_to_string(self.out.join("ca").join(name)).map_err(|error| failed(error.to_string()));
        let authority = |name: &str| -> Result<Authority, Failure> {
            Authority::from_pem(&read(&format!("{name}.crt"))?, &read(&format!("{name}.key"))?).map_err(failed)
        };
        let (pair, clients) = (authority("pair")?, authority("client")?);
        let issue =
            |from: &Authority, dir: &str, file: &str, name: String, hosts: Vec<String>, usage: Use| -> Result<(), Failure> {
                let leaf: Leaf = from.issue(&name, hosts, usage).map_err(failed)?;
                let dir = self.out.join(dir);
                write(&dir.join(format!("{file}.key")), &leaf.key_pem, 0o600)?;
                write(&dir.join(format!("{file}.crt")), &leaf.certificate_pem, 0o644)
            };
        let local = |address: &str| vec![address.to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), "localhost".to_owned()];
        for (letter, host) in [("a", &self.a), ("b", &self.b)] {
            let name = format!("{letter}.{cluster}.duet");
            let mut names = [local(&host.address), vec![name.clone()]].concat();
            issue(&pair, letter, "pair", name.clone(), names.clone(), Use::Both)?;
            names.extend(self.floating().map(str::to_owned));
            issue(&clients, letter, "server", name, names, Use::Server)?;
            write(&self.out.join(letter).join("pair-ca.crt"), pair.certificate_pem(), 0o644)?;
            write(&self.out.join(letter).join("client-ca.crt"), clients.certificate_pem(), 0o644)?;
        }
        if let Some((host, _)) = &self.witness {
            let name = format!("witness.{cluster}.duet");
            issue(&pair, "witness", "pair", name.clone(), vec![host.clone(), name], Use::Server)?;
            write(&self.out.join("witness").join("pair-ca.crt"), pair.certificate_pem(), 0o644)?;
        }
        let name = format!("client.{cluster}.duet");
        issue(&clients, "client", "client", name.clone(), vec![name], Use::Client)?;
        write(&self.out.join("client").join("client-ca.crt"), clients.certificate_pem(), 0o644)
    }

    /// The virtual IP's address.
    fn floating(&self) -> Option<&str> {
        self.virtual_ip.as_deref().and_then(|text| text.split('/').next())
    }

    /// Where the files of `part` will be when they are used.
    fn place(&self, part: &str) -> PathBuf {
        if self.in_place { self.out.join(part) } else { self.install_dir.clone() }
    }

    fn data(&self, part: &str) -> PathBuf {
        if self.in_place { self.out.join(part).join("data") } else { self.data_dir.clone() }
    }

    fn node_config(&self, letter: &str, me: &Host, peer: &Host) -> String {
        let place = self.place(letter);
        let file = |name: &str| toml_text(&place.join(name).display().to_string());
        let mut text =
            format!("# Node {} of the pair \"{}\": duet node --config-file THIS-FILE\n", letter.to_uppercase(), self.cluster);
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key} = {value}"); // a String can't fail
        };
        line("cluster", toml_text(&self.cluster));
        line("node", toml_text(letter));
        line("name", toml_text(&format!("{}-{letter}", self.cluster)));
        line("data-dir", toml_text(&self.data(letter).display().to_string()));
        let scheme = if self.client_tls { "https" } else { "http" };
        let mut listen = vec![url(scheme, &me.address, me.client_port)];
        if !me.address.starts_with("127.") {
            listen.push(url(scheme, "127.0.0.1", me.client_port));
        }
        listen.extend(self.floating().map(|address| url(scheme, address, me.client_port)));
        line("listen-client-urls", format!("{listen:?}"));
        line("advertise-client-urls", format!("{:?}", [url(scheme, &me.address, me.client_port)]));
        if self.client_tls {
            line("cert-file", file("server.crt"));
            line("key-file", file("server.key"));
            line("trusted-ca-file", file("client-ca.crt"));
            line("client-cert-auth", "true".to_owned());
        }
        line("listen-peer-url", toml_text(&url("https", &me.address, me.peer_port)));
        line("peer-url", toml_text(&url("https", &peer.address, peer.peer_port)));
        if let Some((host, port)) = &self.witness {
            line("witness-url", toml_text(&url("https", host, *port)));
        } else if let Some(store) = &self.witness_store {
            line("witness-url", toml_text(store));
        } else if let Some(program) = &self.fence_command {
            line("fence-command", toml_text(program));
        }
        line("pair-cert-file", file("pair.crt"));
        line("pair-key-file", file("pair.key"));
        line("pair-trusted-ca-file", file("pair-ca.crt"));
        line("pg-listen", toml_text(&host_port(&me.address, me.pg_port)));
        line("peer-pg", toml_text(&host_port(&peer.address, peer.pg_port)));
        line("pair-timing", toml_text(&self.timing));
        if let (Some(ip), Some(interface)) = (&self.virtual_ip, &me.interface) {
            line("virtual-ip", toml_text(ip));
            line("virtual-ip-interface", toml_text(interface));
        }
        text
    }

    fn witness_config(&self) -> String {
        let (host, port) = self.witness.as_ref().expect("only written when there is one");
        let place = self.place("witness");
        let listen =
            if host.parse::<std::net::IpAddr>().is_ok() { url("https", host, *port) } else { url("https", "0.0.0.0", *port) };
        let file = |name: &str| toml_text(&place.join(name).display().to_string());
        format!(
            "# The witness of the pair \"{}\": duet-witness --config-file THIS-FILE\n\
             data-dir = {}\nlisten-peer-url = {}\npair-cert-file = {}\npair-key-file = {}\npair-trusted-ca-file = {}\n",
            self.cluster,
            toml_text(&if self.in_place { self.data("witness") } else { "/var/lib/duet-witness".into() }.display().to_string()),
            toml_text(&listen),
            file("pair.crt"),
            file("pair.key"),
            file("pair-ca.crt"),
        )
    }

    fn next_steps(&self) -> String {
        let out = self.out.display();
        let mut text = format!("wrote the pair \"{}\" to {out}:\n  a/ b/", self.cluster);
        if self.witness.is_some() {
            text.push_str(" witness/");
        }
        text.push_str("  configuration and certificates\n  client/     a certificate for API servers\n  ca/         both CAs with their keys: keep it offline\n");
        if self.in_place {
            let _ = write!(text, "\nstart each in a terminal of its own:\n");
            if self.witness.is_some() {
                let _ = writeln!(text, "  duet-witness --config-file {out}/witness/witness.toml");
            }
            let _ = writeln!(text, "  duet node --config-file {out}/a/duet.toml\n  duet node --config-file {out}/b/duet.toml");
        } else {
            let to = self.install_dir.display();
            let _ = writeln!(text, "\ncopy a/ to {to} on {}, b/ to {to} on {}, then on each:", self.a.address, self.b.address);
            let _ = writeln!(text, "  duet node --config-file {to}/duet.toml");
            if let Some((host, _)) = &self.witness {
                let _ = writeln!(text, "and witness/ to {to} on {host}:\n  duet-witness --config-file {to}/witness.toml");
            }
        }
        if self.witness_store.is_some() {
            text.push_str("\nand before that, once, on one of them, with what the store wants to be asked with:\n");
            let to = self.place("a");
            let _ = writeln!(text, "  duet witness begin --config-file {}/duet.toml", to.display());
        }
        text
    }
}

/// `N`, for both nodes, or `A,B`.
fn two_ports(name: &str, text: Option<&str>, default: u16) -> Result<[u16; 2], Failure> {
    let Some(text) = text else { return Ok([default; 2]) };
    let parse = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let ports: Option<Vec<u16>> = text.split(',').map(parse).collect();
    match ports.as_deref() {
        Some([both]) => Ok([*both; 2]),
        Some([a, b]) => Ok([*a, *b]),
        _ => Err(Failure::usage(format!(
            "--{name} {text}: write one port, or two for A and B, such as {default},{}",
            default + 10
        ))),
    }
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn url(scheme: &str, host: &str, port: u16) -> String {
    format!("{scheme}://{}", host_port(host, port))
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Writes a file whole or not at all; the directory is made.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let written = || -> std::io::Result<()> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
        }
        let scratch = path.with_extension("tmp");
        let _ = fs::remove_file(&scratch);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&scratch)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&scratch, path)
    };
    written().map_err(io(path))
}
