//! HTTP/1.1 to one server, for the stores that speak it. A connection is kept while it works; a request is sent once, and never again by
//! itself.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::{ConnectError, WitnessError};
use crate::net::Address;
use crate::net::tls::ClientTls;

/// No register is larger, nor an object of Kubernetes' around it.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A question and a write at a time.
const IDLE_MAX: usize = 2;

/// See the module.
pub struct Http {
    address: Address,
    host: HeaderValue,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Http {
    /// To `url`: a scheme, a host and perhaps a port.
    ///
    /// # Errors
    /// The URL is none, or needs TLS and there is none.
    pub fn new(url: &str, tls: Option<Arc<rustls::ClientConfig>>) -> Result<Self, ConnectError> {
        let wrong = |problem: String| ConnectError::Address(problem);
        let uri: http::Uri = url.parse().map_err(|error| wrong(format!("{url}: {error}")))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong(format!("{url} is no URL of a server")));
        };
        let port = authority.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
        let address =
            Address::parse(&format!("{scheme}://{}:{port}", authority.host()), tls.map(ClientTls::from)).map_err(wrong)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|error| wrong(format!("{url}: {error}")))?;
        Ok(Self { address, host, idle: Mutex::default() })
    }

    /// What the `Host` header says.
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Sends a request whose URI is a path; the whole answer.
    ///
    /// # Errors
    /// No answer came. Nobody knows whether the request was done, or will be.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, WitnessError> {
        let failed = |error: &dyn std::fmt::Display| WitnessError::Silent(format!("{}: {error}", self.address.origin()));
        request.headers_mut().insert(HOST, self.host.clone());
        let kept = self.idle.lock().pop().filter(SendRequest::is_ready);
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                let stream = self.address.connect().await.map_err(|error| failed(&error))?;
                let (sender, serving) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
                tokio::spawn(serving);
                sender
            }
        };
        let (parts, body) = connection.send_request(request).await.map_err(|error| failed(&error))?.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| failed(&error))?.to_bytes();
        if connection.ready().await.is_ok() {
            let mut idle = self.idle.lock();
            idle.truncate(IDLE_MAX - 1);
            idle.push(connection);
        }
        Ok(Response::from_parts(parts, body))
    }
}
