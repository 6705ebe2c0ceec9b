//! Peer URLs as etcd accepts them (`types.NewURLs`).

/// Whether there is at least one URL and all of them are of the form `http(s)://host:port`, or `unix(s)://…`.
pub(super) fn are_valid(urls: &[String]) -> bool {
    !urls.is_empty() && urls.iter().all(|url| is_valid(url.trim()))
}

fn is_valid(url: &str) -> bool {
    match url.split_once("://") {
        Some(("http" | "https", rest)) => is_host_port(rest),
        Some(("unix" | "unixs", _)) => true,
        _ => false,
    }
}

/// A host, perhaps in brackets, and a port; no path.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = !host.contains([':', '/', '[', ']']);
    (bracketed || plain) && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(url: &str) -> bool {
        are_valid(&[url.to_owned()])
    }

    #[test]
    fn a_peer_url_has_a_scheme_a_host_and_a_port() {
        assert!(valid("http://127.0.0.1:2380"));
        assert!(valid(" https://[::1]:2380 "));
        assert!(valid("unix://localhost:1"));
        for url in ["127.0.0.1:2380", "ftp://a:1", "http://a", "http://a:1/path", "http://::1:2380", "http://a:b", ""] {
            assert!(!valid(url), "{url}");
        }
        assert!(!are_valid(&[]));
    }
}
