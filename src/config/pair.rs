//! What a node of a pair, and its witness, need to know.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::url::{ListenAddress, ListenUrl};
use super::validate::Checker;
use super::{Config, TlsConfig, WitnessUrl};
use crate::net::virtual_ip::VirtualIp;
use crate::supervisor::fsm::{NodeId, Timing};

/// A pair's name is part of file names and of names in certificates.
const CLUSTER_BYTES_MAX: usize = 40;

/// A node's place in a pair.
#[derive(Clone, Debug)]
pub struct PairConfig {
    /// `--cluster`.
    pub cluster: String,
    /// `--node`.
    pub node: NodeId,
    /// `--listen-peer-url`'s address, for TCP and UDP.
    pub listen_peer: SocketAddr,
    /// `--peer-url`.
    pub peer: HostPort,
    /// `--witness-url`.
    pub witness: Option<WitnessUrl>,
    /// `--fence-command`, and `--fence-delay`.
    pub fence: Option<(PathBuf, Duration)>,
    /// The pair's certificates.
    pub tls: PairTlsFiles,
    /// `--pg-listen`.
    pub pg_listen: SocketAddr,
    /// `--peer-pg`.
    pub pg_peer: HostPort,
    /// `--pair-timing`.
    pub timing: Timing,
    /// `--guardian`.
    pub guardian: bool,
    /// `--on-role-change`.
    pub on_role_change: Option<PathBuf>,
    /// `--virtual-ip` and `--virtual-ip-interface`.
    pub virtual_ip: Option<VirtualIp>,
}

/// The files with which nodes and witness know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairTlsFiles {
    /// `--pair-cert-file`.
    pub cert_file: PathBuf,
    /// `--pair-key-file`.
    pub key_file: PathBuf,
    /// `--pair-trusted-ca-file`.
    pub trusted_ca_file: PathBuf,
}

impl PairTlsFiles {
    /// As a server and a client of the pair's use them: TLS 1.3, and nobody without a certificate.
    #[must_use]
    pub fn config(&self) -> TlsConfig {
        TlsConfig {
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            trusted_ca_file: Some(self.trusted_ca_file.clone()),
            client_cert_auth: true,
            client_crl_file: None,
            client_cert_allowed_hostnames: Vec::new(),
            cipher_suites: None,
            self_signed: None,
            allow_tls12: false,
            allow_tls13: true,
        }
    }
}

/// A host's name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    /// Not 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl HostPort {
    /// Reads `HOST:PORT`, or `[IPv6]:PORT`.
    ///
    /// # Errors
    /// What is wrong and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = || {
            let (host, port) = text.rsplit_once(':')?;
            let host = host.strip_prefix('[').map_or(Some(host), |rest| rest.strip_suffix(']'))?;
            let port = port.parse().ok().filter(|port| *port != 0)?;
            let bare = !host.is_empty() && !host.contains(['/', '[', ']', ' ']);
            bare.then(|| Self { host: host.to_owned(), port })
        };
        read().ok_or_else(|| format!("\"{text}\" is no HOST:PORT; write for example 10.0.0.2:5433"))
    }
}

fn url_host(text: &str) -> Result<HostPort, String> {
    let rest = text.strip_prefix("https://").ok_or_else(|| format!("\"{text}\" is no https URL; write https://HOST:PORT"))?;
    HostPort::parse(rest.trim_end_matches('/'))
}

fn cluster(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=CLUSTER_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('-');
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" can't name a pair; write 1 to {CLUSTER_BYTES_MAX} small letters, digits and hyphens"))
    }
}

/// Reads `ADDRESS/PREFIX`, the address of one machine.
///
/// # Errors
/// What is wrong and what to write.
pub fn network_address(text: &str) -> Result<(IpAddr, u8), String> {
    let read = || {
        let (address, prefix_len) = text.split_once('/')?;
        let (address, prefix_len) = (address.parse::<IpAddr>().ok()?, prefix_len.parse::<u8>().ok()?);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let one = !address.is_unspecified() && !address.is_multicast() && !address.is_loopback();
        (one && (1..=bits).contains(&prefix_len)).then_some((address, prefix_len))
    };
    read().ok_or_else(|| format!("\"{text}\" is no ADDRESS/PREFIX; write for example 10.0.0.10/24"))
}

fn virtual_ip(c: &mut Checker, listen: &[ListenUrl]) -> Option<VirtualIp> {
    let (address, prefix_len) =
        c.parsed("virtual-ip", None, |text| if text.is_empty() { Ok(None) } else { network_address(text).map(Some) })?;
    let Some(interface) = c.nonempty("virtual-ip-interface").map(str::to_owned) else {
        c.wrong("virtual-ip-interface", "is needed for --virtual-ip", "write the interface of that network, for example eth0");
        return None;
    };
    let reaches = |url: &ListenUrl| match url.address {
        ListenAddress::Tcp(socket) => {
            socket.ip() == address || (socket.ip().is_unspecified() && socket.is_ipv4() == address.is_ipv4())
        }
        ListenAddress::Unix(_) => false,
    };
    if !listen.iter().any(reaches) {
        let fix = format!("add a URL with {address} to --listen-client-urls; it can be listened on while the other node has it");
        c.wrong("virtual-ip", "is an address that nothing listens on for clients", &fix);
    }
    Some(VirtualIp { address, prefix_len, interface })
}

fn fence(c: &mut Checker) -> Option<(PathBuf, Duration)> {
    let program = c.path("fence-command")?;
    if c.nonempty("witness-url").is_some() {
        c.wrong(
            "fence-command",
            "can't decide beside a witness",
            "set one of --witness-url and --fence-command, the same on both nodes",
        );
    }
    if !program.is_absolute() {
        c.wrong("fence-command", "is no absolute path", "write the program's whole path: no shell looks for it");
    }
    Some((program, c.duration("fence-delay")))
}

pub(super) fn validate(c: &mut Checker, config: &mut Config) {
    config.listen_peer = c.nonempty("listen-peer-url").map(str::to_owned).and_then(|_| {
        c.parsed("listen-peer-url", None, |text| {
            let url = ListenUrl::parse(text)?;
            if !url.tls || matches!(url.address, ListenAddress::Unix(_)) {
                return Err(format!("\"{text}\" is no https URL; write https://ADDRESS:PORT"));
            }
            Ok(Some(url))
        })
    });
    let files = ["pair-cert-file", "pair-key-file", "pair-trusted-ca-file"].map(|name| c.path(name));
    config.pair_tls = match files {
        [Some(cert_file), Some(key_file), Some(trusted_ca_file)] => Some(PairTlsFiles { cert_file, key_file, trusted_ca_file }),
        _ => None,
    };
    let needed = [
        "cluster",
        "node",
        "listen-peer-url",
        "peer-url",
        "pair-cert-file",
        "pair-key-file",
        "pair-trusted-ca-file",
        "pg-listen",
        "peer-pg",
    ];
    if ["cluster", "node", "peer-url"].iter().all(|name| c.nonempty(name).is_none()) {
        return;
    }
    let missing: Vec<&str> = needed.into_iter().filter(|name| c.nonempty(name).is_none()).collect();
    for name in &missing {
        c.wrong(name, "is needed for a node of a pair", "duet init writes the configuration of both nodes and of the witness");
    }
    let fallback = || HostPort { host: String::new(), port: 1 };
    let any: SocketAddr = ([0, 0, 0, 0], 0).into();
    if !missing.is_empty() {
        return;
    }
    let witness =
        c.nonempty("witness-url").is_some().then(|| c.parsed("witness-url", None, |text| WitnessUrl::parse(text).map(Some)));
    let timing = match c.one_of("pair-timing").as_str() {
        "normal" => Timing::NORMAL,
        "wan" => Timing::WAN,
        _ => Timing::FAST,
    };
    let listen_peer = match config.listen_peer.as_ref().map(|url| &url.address) {
        Some(ListenAddress::Tcp(address)) => *address,
        _ => any,
    };
    let pair = PairConfig {
        cluster: c.parsed("cluster", String::new(), cluster),
        node: if c.one_of("node") == "b" { NodeId::B } else { NodeId::A },
        listen_peer,
        peer: c.parsed("peer-url", fallback(), url_host),
        witness: witness.flatten(),
        fence: fence(c),
        tls: config.pair_tls.clone().expect("none of the three is missing"),
        pg_listen: c.parsed("pg-listen", any, |text| {
            let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
            address.ok_or_else(|| format!("\"{text}\" is no ADDRESS:PORT; write for example 10.0.0.1:5433"))
        }),
        pg_peer: c.parsed("peer-pg", fallback(), HostPort::parse),
        timing,
        guardian: c.bool("guardian"),
        on_role_change: c.path("on-role-change"),
        virtual_ip: virtual_ip(c, &config.listen_client),
    };
    if listen_peer.port() == 0 {
        c.wrong("listen-peer-url", "needs a port that the peer knows", "write for example https://10.0.0.1:2380");
    }
    config.pair = Some(pair);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::{Raw, Sources};
    use crate::config::validate::validate;

    const GOOD: [(&str, &str); 9] = [
        ("cluster", "edge"),
        ("node", "b"),
        ("listen-peer-url", "https://10.0.0.2:2380"),
        ("peer-url", "https://node-a:2380"),
        ("pair-cert-file", "/c"),
        ("pair-key-file", "/k"),
        ("pair-trusted-ca-file", "/ca"),
        ("pg-listen", "10.0.0.2:5433"),
        ("peer-pg", "[fd00::1]:5433"),
    ];

    fn with(flags: impl IntoIterator<Item = (&'static str, &'static str)>) -> Result<Config, Vec<String>> {
        let flags = flags.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let raw = Raw::layer(&Sources { flags, ..Sources::default() }).unwrap();
        validate(&raw).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_whole_configuration_is_a_pair_s_and_none_is_nobody_s() {
        let pair = with(GOOD).unwrap().pair.unwrap();
        assert_eq!((pair.node, pair.witness, pair.timing), (NodeId::B, None, Timing::FAST));
        assert_eq!((pair.peer.to_string(), pair.pg_peer.to_string()), ("node-a:2380".to_owned(), "[fd00::1]:5433".to_owned()));
        assert!(with([]).unwrap().pair.is_none());
    }

    #[test]
    fn a_virtual_ip_needs_an_interface_and_somebody_who_listens_on_it() {
        let errors = |more: &[(&'static str, &'static str)]| with(GOOD.into_iter().chain(more.iter().copied()));
        let (ip, on, everywhere) =
            (("virtual-ip", "10.0.0.10/24"), ("virtual-ip-interface", "eth0"), ("listen-client-urls", "http://0.0.0.0:2379"));
        let given = errors(&[ip, on, everywhere]).unwrap().pair.unwrap().virtual_ip.unwrap();
        assert_eq!((given.to_string().as_str(), given.interface.as_str()), ("10.0.0.10/24", "eth0"));
        let own = ("listen-client-urls", "http://127.0.0.1:2379,http://10.0.0.10:2379");
        assert!(errors(&[ip, on, own]).is_ok());
        assert!(errors(&[("virtual-ip", "fd00::a/64"), on, ("listen-client-urls", "http://[::]:2379")]).is_ok());
        assert!(errors(&[]).unwrap().pair.unwrap().virtual_ip.is_none());
        for (wrong, named) in [
            ([ip, everywhere, everywhere], "--virtual-ip-interface"),
            ([ip, on, ("listen-client-urls", "http://127.0.0.1:2379")], "--virtual-ip"),
            ([("virtual-ip", "10.0.0.10"), on, everywhere], "--virtual-ip"),
            ([("virtual-ip", "10.0.0.10/33"), on, everywhere], "--virtual-ip"),
            ([("virtual-ip", "224.0.0.1/24"), on, everywhere], "--virtual-ip"),
            ([("virtual-ip", "fd00::a/64"), on, everywhere], "--virtual-ip"),
        ] {
            let errors = errors(&wrong).unwrap_err();
            assert!(errors.iter().any(|error| error.starts_with(named)), "{wrong:?}: {errors:?}");
        }
    }

    #[test]
    fn either_a_witness_or_a_fencing_device_decides() {
        let fence = ("fence-command", "/usr/local/sbin/fence");
        let pair = with(GOOD.into_iter().chain([fence, ("fence-delay", "7s")])).unwrap().pair.unwrap();
        assert_eq!(pair.fence, Some((fence.1.into(), Duration::from_secs(7))));
        let errors = with(GOOD.into_iter().chain([fence, ("witness-url", "https://w:2382")])).unwrap_err();
        assert!(errors[0].starts_with("--fence-command can't decide beside a witness"), "{errors:?}");
    }

    #[test]
    fn whatever_is_missing_or_wrong_is_named() {
        for (name, _) in GOOD {
            let errors = with(GOOD.into_iter().filter(|(other, _)| *other != name)).unwrap_err();
            assert!(errors.iter().any(|error| error.starts_with(&format!("--{name}"))), "{name}: {errors:?}");
        }
        for (name, value) in [
            ("cluster", "Edge"),
            ("listen-peer-url", "http://10.0.0.2:2380"),
            ("listen-peer-url", "https://10.0.0.2:0"),
            ("peer-url", "node-a:2380"),
            ("peer-pg", "node-a"),
            ("pg-listen", "node-b:5433"),
            ("witness-url", "https://w"),
            ("fence-command", "fence"),
            ("node", "c"),
        ] {
            let flags = GOOD.into_iter().filter(|(other, _)| *other != name).chain([(name, value)]);
            let errors = with(flags).unwrap_err();
            assert!(errors.iter().any(|error| error.starts_with(&format!("--{name}"))), "{name} {value}: {errors:?}");
        }
    }
}
