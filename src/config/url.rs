//! The URLs to listen on: `http://ADDRESS:PORT`, `https://…`, `unix://PATH`, `unixs://PATH`.
//!
//! Rules and reasons as in etcd (`embed/config.go`, `checkBindURLs`, and `types.NewURLs`): listening needs an address
//! rather than a name, and names no path. Port 0 asks the system for a free one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where to listen and whether to speak TLS there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// The socket.
    pub address: ListenAddress,
    /// `https` or `unixs`.
    pub tls: bool,
}

/// A socket's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// Port 0 means any free port.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl ListenUrl {
    /// Reads one URL.
    ///
    /// # Errors
    /// What is wrong and what to write, as half a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("\"{text}\" has no scheme; write http://{text}, https://{text} or unix:///PATH"))?;
        let tls = matches!(scheme, "https" | "unixs");
        match scheme {
            "http" | "https" => Ok(Self { address: ListenAddress::Tcp(tcp_address(text, rest)?), tls }),
            "unix" | "unixs" if rest.is_empty() => Err(format!("\"{text}\" names no socket file; write unix:///PATH")),
            "unix" | "unixs" => Ok(Self { address: ListenAddress::Unix(PathBuf::from(rest)), tls }),
            _ => Err(format!("\"{text}\" has an unknown scheme; http, https, unix and unixs exist")),
        }
    }

    /// Reads a comma-separated list and drops repetitions, as etcd does.
    ///
    /// # Errors
    /// Those of [`ListenUrl::parse`].
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut urls = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let url = Self::parse(part)?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        Ok(urls)
    }
}

fn tcp_address(url: &str, rest: &str) -> Result<SocketAddr, String> {
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(format!("\"{url}\" must hold an address and a port only"));
    }
    let (host, port) = authority
        .rsplit_once(':')
        .filter(|(host, _)| !host.contains(':') || host.ends_with(']'))
        .ok_or_else(|| format!("\"{url}\" names no port; write for example http://127.0.0.1:2379"))?;
    let port: u16 = port.parse().map_err(|_| format!("\"{url}\" has no valid port (0 to 65535)"))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let ip = match bare {
        // What Go's net.Listen makes of the name on every usual machine.
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => bare.parse().map_err(|_| {
            format!("\"{url}\": expected an IP address to bind, not \"{bare}\"; 0.0.0.0 or [::] listens on every address")
        })?,
    };
    Ok(SocketAddr::new(ip, port))
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        match &self.address {
            ListenAddress::Tcp(address) => write!(f, "http{s}://{address}"),
            ListenAddress::Unix(path) => write!(f, "unix{s}://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_urls_read_and_write_alike() {
        for (text, written) in [
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("https://[::1]:0", "https://[::1]:0"),
            ("http://localhost:2379/", "http://127.0.0.1:2379"),
            ("http://0.0.0.0:2379", "http://0.0.0.0:2379"),
            ("unix:///run/duet.sock", "unix:///run/duet.sock"),
            ("unixs://localhost:m0", "unixs://localhost:m0"),
        ] {
            assert_eq!(ListenUrl::parse(text).unwrap().to_string(), written);
        }
    }

    #[test]
    fn what_cannot_be_listened_on_is_refused_with_a_reason() {
        for text in [
            "127.0.0.1:2379",
            "http://127.0.0.1",
            "http://::1",
            "http://example.com:2379",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:2379/path",
            "http://user@127.0.0.1:2379",
            "unix://",
            "ftp://127.0.0.1:1",
        ] {
            assert!(ListenUrl::parse(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn lists_drop_repetitions() {
        let urls = ListenUrl::parse_list("http://127.0.0.1:1, unix:///a,http://127.0.0.1:1").unwrap();
        assert_eq!(urls.len(), 2);
    }
}
