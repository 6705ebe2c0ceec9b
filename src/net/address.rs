//! Where another server is, and a connection to it.

use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::tls::ClientTls;

/// What the writer's machine hasn't acknowledged for so long is never sent again: longer than any pair waits until it takes a node for lost. Otherwise the
/// kernel would deliver a request for minutes after a cut, long after its client was told that the outcome is unknown.
const UNACKED_MAX: Duration = Duration::from_secs(8);

/// Where a server is, and how to speak to it.
#[derive(Clone)]
pub(crate) enum Address {
    Tcp { authority: String, tls: Option<(ServerName<'static>, ClientTls)> },
    Unix { path: String, tls: Option<(ServerName<'static>, ClientTls)> },
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Address {
    pub(crate) fn parse(url: &str, tls: Option<ClientTls>) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("{url} is no URL"))?;
        let rest = if scheme.starts_with("http") { rest.trim_end_matches('/') } else { rest };
        let secured = |host: &str| -> Result<_, String> {
            let config =
                tls.clone().ok_or_else(|| format!("{url} needs TLS: name certificates with --cert-file and --key-file"))?;
            let name =
                ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|error| format!("{url}: {error}"))?;
            Ok(Some((name, config)))
        };
        let host = || rest.rsplit_once(':').map_or(rest, |(host, _)| host);
        match scheme {
            "http" => Ok(Self::Tcp { authority: rest.to_owned(), tls: None }),
            "https" => Ok(Self::Tcp { authority: rest.to_owned(), tls: secured(host())? }),
            "unix" => Ok(Self::Unix { path: rest.to_owned(), tls: None }),
            "unixs" => Ok(Self::Unix { path: rest.to_owned(), tls: secured("localhost")? }),
            _ => Err(format!("{url} has an unknown scheme")),
        }
    }

    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Tcp { authority, .. } => format!("http://{authority}"),
            Self::Unix { .. } => "http://localhost".to_owned(),
        }
    }

    pub(crate) async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp { authority, tls } => secure(tcp(authority).await?, tls.as_ref()).await,
            Self::Unix { path, tls } => secure(UnixStream::connect(path).await?, tls.as_ref()).await,
        }
    }
}

async fn tcp(authority: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKED_MAX))?;
    Ok(stream)
}

async fn secure(
    stream: impl Stream + 'static,
    tls: Option<&(ServerName<'static>, ClientTls)>,
) -> std::io::Result<Box<dyn Stream>> {
    match tls {
        None => Ok(Box::new(stream)),
        Some((name, config)) => {
            let stream = TlsConnector::from(config.current()).connect(name.clone(), stream).await?;
            Ok(Box::new(stream))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_to_the_writer_ends_when_nothing_is_acknowledged() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tcp(&listener.local_addr().unwrap().to_string()).await.unwrap();
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(UNACKED_MAX));
    }
}
