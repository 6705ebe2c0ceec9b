//! Sockets for listen URLs.
//!
//! Everything is bound before anything is served, so that a used port is an exit code and not half a server. A socket
//! file that a killed process left behind is replaced; one that somebody listens on is not.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::config::{ListenAddress, ListenUrl};

/// As many connections as may wait to be accepted; Go uses the kernel's limit, usually this.
const BACKLOG: u32 = 4096;

/// A URL that can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {url}: {cause}; {fix}")]
pub struct BindError {
    /// The URL.
    pub url: String,
    /// What the system said.
    pub cause: io::Error,
    fix: &'static str,
}

impl BindError {
    fn new(url: &ListenUrl, cause: io::Error) -> Self {
        let fix = match cause.kind() {
            io::ErrorKind::AddrInUse => "stop the other process (is an etcd or another Duet running?) or choose another URL",
            io::ErrorKind::PermissionDenied => "choose a port from 1024 or a directory that this user may write to",
            io::ErrorKind::AddrNotAvailable => "choose an address that this machine has, or 0.0.0.0 for all of them",
            io::ErrorKind::NotFound => "make the socket's directory first",
            _ => "choose another URL",
        };
        Self { url: url.to_string(), cause, fix }
    }
}

pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A stream of either kind, with whom it is to.
pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// How TCP sockets are bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketOptions {
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// An address that isn't always this machine's: it can be bound all the same.
    pub floating: Option<IpAddr>,
}

/// Bound sockets, not served yet.
#[derive(Default)]
pub struct Listeners(pub(super) Vec<(Socket, bool)>);

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.urls()).finish()
    }
}

impl Listeners {
    /// Binds all of `urls`.
    ///
    /// # Errors
    /// The first URL that can't be bound; those before it are closed again.
    pub fn bind(urls: &[ListenUrl], options: SocketOptions) -> Result<Self, BindError> {
        let bind = |url: &ListenUrl| match &url.address {
            ListenAddress::Tcp(address) => bind_tcp(*address, options).map(Socket::Tcp),
            ListenAddress::Unix(path) => bind_unix(path),
        };
        let bound = urls.iter().map(|url| match bind(url) {
            Ok(socket) => Ok((socket, url.tls)),
            Err(error) => Err(BindError::new(url, error)),
        });
        bound.collect::<Result<Vec<_>, _>>().map(Self)
    }

    /// The URLs that clients can use: port 0 replaced by the port that was given.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        let url = |(socket, tls): &(Socket, bool)| {
            let address = match socket {
                Socket::Tcp(listener) => ListenAddress::Tcp(listener.local_addr().ok()?),
                Socket::Unix(_, file) => ListenAddress::Unix(file.path.clone()),
            };
            Some(ListenUrl { address, tls: *tls }.to_string())
        };
        self.0.iter().filter_map(url).collect()
    }
}

impl Socket {
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, peer))
            }
            Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

fn bind_tcp(address: SocketAddr, options: SocketOptions) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the connections of the process before it to leave TIME_WAIT (Go does this too).
    socket.set_reuseaddr(true)?;
    if options.reuse_port {
        socket.set_reuseport(true)?;
    }
    if options.floating == Some(address.ip()) {
        let socket = SockRef::from(&socket);
        if address.is_ipv4() { socket.set_freebind_v4(true)? } else { socket.set_freebind_v6(true)? }
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => return Err(error),
        }
    }
    let listener = UnixListener::bind(path)?;
    Ok(Socket::Unix(listener, SocketFile::of(path)?))
}

/// Removes the socket's file at the end, unless somebody has put another in its place.
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            // Nothing to do about a failure: the next start replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str) -> Vec<ListenUrl> {
        ListenUrl::parse_list(text).unwrap()
    }

    #[tokio::test]
    async fn port_zero_becomes_the_port_that_was_given() {
        let listeners = Listeners::bind(&urls("http://127.0.0.1:0,https://127.0.0.1:0"), SocketOptions::default()).unwrap();
        let bound = listeners.urls();
        assert!(bound[0].starts_with("http://127.0.0.1:") && !bound[0].ends_with(":0"), "{bound:?}");
        assert!(bound[1].starts_with("https://127.0.0.1:"), "{bound:?}");
    }

    #[tokio::test]
    async fn a_used_port_is_told_with_a_way_out() {
        let first = Listeners::bind(&urls("http://127.0.0.1:0"), SocketOptions::default()).unwrap();
        let error = Listeners::bind(&urls(&first.urls()[0]), SocketOptions::default()).unwrap_err();
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&first.urls()[0]) && error.to_string().contains("stop the other process"), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_comes_and_goes_is_listened_on_and_another_one_is_not() {
        // Reserved for documentation (RFC 5737): no machine has it.
        let (elsewhere, floating) = (urls("http://192.0.2.1:0"), Some("192.0.2.1".parse().unwrap()));
        let error = Listeners::bind(&elsewhere, SocketOptions::default()).unwrap_err();
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrNotAvailable);
        let bound = Listeners::bind(&elsewhere, SocketOptions { floating, ..SocketOptions::default() }).unwrap();
        assert!(bound.urls()[0].starts_with("http://192.0.2.1:"));
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let url = urls(&format!("unix://{}", path.display()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // leaves its file, as a killed process does
        let live = Listeners::bind(&url, SocketOptions::default()).unwrap();
        assert_eq!(Listeners::bind(&url, SocketOptions::default()).unwrap_err().cause.kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert!(!path.exists(), "the file goes with its listener");
    }
}
