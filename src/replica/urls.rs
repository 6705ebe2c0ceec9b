//! Which of a replica's URLs lead to it from other machines.

use std::net::{IpAddr, SocketAddr};

/// Whether `url` can lead to another machine: it names no Unix socket, no loopback address, and not "every address".
#[must_use]
pub fn leads_elsewhere(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    if scheme.starts_with("unix") {
        return false;
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let address = authority.parse::<SocketAddr>().map(|address| address.ip());
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    match address.or_else(|_| host.trim_matches(['[', ']']).parse()) {
        Ok(IpAddr::V6(ip)) => {
            let ip = ip.to_canonical();
            !(ip.is_loopback() || ip.is_unspecified())
        }
        Ok(ip) => !(ip.is_loopback() || ip.is_unspecified()),
        Err(_) => host != "localhost" && !host.ends_with(".localhost"),
    }
}

/// The URLs in the order in which they are to be tried: those that can be used from anywhere come first.
#[must_use]
pub fn in_order(urls: &[String]) -> Vec<String> {
    let mut ordered = urls.to_vec();
    ordered.sort_by_key(|url| !leads_elsewhere(url)); // stable
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_wildcards_and_sockets_lead_nowhere_else() {
        for url in [
            "http://127.0.0.1:2379",
            "https://127.8.0.1:2379/",
            "http://[::1]:2379",
            "http://[::ffff:127.0.0.1]:2379",
            "http://0.0.0.0:2379",
            "http://[::]:2379",
            "https://localhost:2379",
            "http://db.localhost:2379",
            "unix:///run/duet.sock",
            "unixs://localhost:2379",
            "nonsense",
        ] {
            assert!(!leads_elsewhere(url), "{url}");
        }
        for url in ["http://10.0.0.1:2379", "https://[::2]:2379", "http://[2001:db8::1]:2379/", "https://duet-0.example:2379"] {
            assert!(leads_elsewhere(url), "{url}");
        }
    }

    #[test]
    fn urls_that_work_from_anywhere_are_tried_first_and_otherwise_in_their_order() {
        let urls = ["http://127.0.0.1:1", "http://10.0.0.2:1", "unix:///s", "http://10.0.0.1:1"].map(str::to_owned);
        assert_eq!(in_order(&urls), ["http://10.0.0.2:1", "http://10.0.0.1:1", "http://127.0.0.1:1", "unix:///s"]);
    }
}
