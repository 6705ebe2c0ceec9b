//! An object in an S3-compatible store, written on the condition that its ETag is still the one that was read.
//!
//! A copy that is put back over it, even by the store's own versions, is told by when it was put there: the object says what the store's
//! own clock showed just before it was written, and a copy is stored later than that. (A store that is put back as a whole, with all that
//! it says of its objects, can't be told.)

use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{DATE, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::{Deserialize, Serialize};

use super::conditional::{Found, Place, Put};
use super::http::Http;
use super::sigv4::{self, Credentials, Signed};
use super::{ConnectError, WitnessError};
use crate::config::S3Url;
use crate::net::tls::{Pem, client_config_of};

/// How much later than it says an object may have been stored: a write takes less, and the store's clocks differ by less.
const STORED_WITHIN_S: u64 = 15;

/// See the module.
pub struct S3 {
    http: Http,
    url: S3Url,
    path: String,
}

/// What an object says of the moment in which it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Bucket and key, so that a copy in another place isn't the register. Not the endpoint: nodes may reach the store by different names.
    place: String,
    /// By the store's clock, in seconds since 1970.
    written: u64,
}

impl S3 {
    /// Connected to when it is needed.
    ///
    /// # Errors
    /// A file, or an endpoint that is none.
    pub fn new(url: &S3Url) -> Result<Self, ConnectError> {
        let ca = url.ca_file.as_deref().map(Pem::read).transpose()?;
        let tls = url.endpoint.starts_with("https://").then(|| client_config_of(ca.as_ref(), None, &[])).transpose()?;
        let path = sigv4::encode_path(&format!("/{}/{}", url.bucket, url.key));
        let http = Http::new(&url.endpoint, tls.map(Arc::new))?;
        let place = Self { http, url: url.clone(), path };
        place.credentials()?;
        Ok(place)
    }

    /// Read each time, because temporary ones are replaced in their file.
    fn credentials(&self) -> Result<Credentials, ConnectError> {
        let Some(path) = &self.url.credentials_file else {
            let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            return match (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")) {
                (Some(id), Some(secret)) => Ok(Credentials { id, secret, token: env("AWS_SESSION_TOKEN") }),
                _ => Err(ConnectError::Address(format!(
                    "{} needs a key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or add credentials-file=FILE",
                    self.describe()
                ))),
            };
        };
        let failed = |problem: String| ConnectError::File { path: path.clone(), problem };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        credentials_of(&text).ok_or_else(|| failed("holds no aws_access_key_id and aws_secret_access_key".to_owned()))
    }

    async fn send(
        &self,
        method: Method,
        condition: Option<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<Response<Bytes>, WitnessError> {
        let unusable = |error: &dyn std::fmt::Display| WitnessError::Unusable(error.to_string());
        let credentials = self.credentials().map_err(|error| unusable(&error))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let host = self.http.host().to_str().unwrap_or_default();
        let signed = Signed { method: method.as_str(), path: &self.path, host, region: &self.url.region, body: &body };
        let mut request = Request::builder().method(&method).uri(&self.path);
        for (name, value) in sigv4::headers(&signed, &credentials, now) {
            request = request.header(name, value);
        }
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| unusable(&error))?;
        self.http.send(request).await
    }

    /// An answer that says nothing about the register.
    fn other(&self, response: &Response<Bytes>) -> WitnessError {
        let code = error_code(response.body());
        let text = format!("{}: the store says {} {code}", self.describe(), response.status());
        // Too early, too many, too busy: it may answer later.
        let passing = response.status().is_server_error() || matches!(response.status().as_u16(), 408 | 425 | 429);
        if passing { WitnessError::Silent(text) } else { WitnessError::Unusable(text) }
    }
}

impl Place for S3 {
    type Tag = HeaderValue;
    type Seal = Seal;

    async fn get(&self) -> Result<Option<Found<Self>>, WitnessError> {
        let response = self.send(Method::GET, None, Bytes::new()).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND if error_code(response.body()) == "NoSuchKey" => return Ok(None),
            _ => return Err(self.other(&response)),
        }
        let missing = |what: &str| WitnessError::Unusable(format!("{}: the store gives no {what}", self.describe()));
        let seconds = |name: HeaderName| -> Option<u64> {
            let moment = httpdate::parse_http_date(response.headers().get(name)?.to_str().ok()?).ok()?;
            Some(moment.duration_since(UNIX_EPOCH).ok()?.as_secs())
        };
        let stored = seconds(LAST_MODIFIED).ok_or_else(|| missing("Last-Modified"))?;
        let now = seconds(DATE).ok_or_else(|| missing("Date"))?;
        let tag = response.headers().get(ETAG).cloned().ok_or_else(|| missing("ETag"))?;
        let text = String::from_utf8_lossy(response.body()).into_owned();
        let (place, here) = (self.path.clone(), self.path.clone());
        let bears = move |seal: &Seal| seal.place == here && stored.abs_diff(seal.written) <= STORED_WITHIN_S;
        Ok(Some(Found { text, tag, bears: Box::new(bears), next: Seal { place, written: now } }))
    }

    async fn put(&self, text: String, over: Option<&Found<Self>>) -> Result<Put, WitnessError> {
        let condition = match over {
            Some(found) => (IF_MATCH, found.tag.clone()),
            None => (IF_NONE_MATCH, HeaderValue::from_static("*")),
        };
        let response = self.send(Method::PUT, Some(condition), text.into()).await?;
        match response.status() {
            StatusCode::OK => Ok(Put::Written),
            // Another one was there, another write was under way, or nothing was there any more.
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(Put::Refused),
            StatusCode::NOT_FOUND if over.is_some() => Ok(Put::Refused),
            _ => Err(self.other(&response)),
        }
    }

    fn describe(&self) -> String {
        format!("s3://{}/{} at {}", self.url.bucket, self.url.key, self.url.endpoint)
    }
}

/// The name of an error in S3's XML: a word between tags, needed for nothing but telling errors apart.
fn error_code(body: &[u8]) -> &str {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let after = text.split_once("<Code>").map_or("", |(_, rest)| rest);
    after.split_once("</Code>").map_or("", |(code, _)| code)
}

/// The first key of a file as Amazon's tools have it.
fn credentials_of(text: &str) -> Option<Credentials> {
    let value = |wanted: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut found = lines.filter(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim().to_owned());
        found.next().filter(|value| !value.is_empty())
    };
    Some(Credentials {
        id: value("aws_access_key_id")?,
        secret: value("aws_secret_access_key")?,
        token: value("aws_session_token"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_amazon_s_tools_write_them() {
        let read = credentials_of("[default]\naws_access_key_id = ID\naws_secret_access_key=a/b=\n").unwrap();
        assert_eq!((read.id.as_str(), read.secret.as_str(), read.token), ("ID", "a/b=", None));
        assert!(credentials_of("[default]\naws_access_key_id = ID\n").is_none());
    }

    #[test]
    fn errors_are_told_apart_by_their_code() {
        assert_eq!(error_code(b"<?xml?><Error><Code>NoSuchKey</Code><Message>x</Message></Error>"), "NoSuchKey");
        assert_eq!(error_code(b""), "");
    }
}
