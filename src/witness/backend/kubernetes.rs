//! A ConfigMap in another cluster, written on the condition that its `resourceVersion` is still the one that was read.
//!
//! One that was made again has another `uid`. One that somebody else wrote to, be it with an old copy, has another manager of its field
//! (`metadata.managedFields`). (A cluster whose etcd is put back as a whole can't be told.)

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::conditional::{Found, Place, Put};
use super::http::Http;
use super::kubeconfig::{self, Token};
use super::{ConnectError, WitnessError};
use crate::config::KubernetesUrl;
use crate::net::tls::client_config_of;

/// The key within the ConfigMap.
const FIELD: &str = "register";
/// Who writes, as the API server notes it.
const MANAGER: &str = "duet-witness";

/// See the module.
pub struct Kubernetes {
    http: Http,
    token: Option<Token>,
    url: KubernetesUrl,
    server: String,
}

/// The object that a value was written into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    uid: String,
}

impl Kubernetes {
    /// Connected to when it is needed.
    ///
    /// # Errors
    /// The kubeconfig.
    pub fn new(url: &KubernetesUrl) -> Result<Self, ConnectError> {
        let access = kubeconfig::read(&url.kubeconfig, url.context.as_deref())?;
        let client = access.client.as_ref().map(|(certificate, key)| (certificate, key));
        let tls = client_config_of(access.ca.as_ref(), client, &[])?;
        let http = Http::new(&access.server, Some(Arc::new(tls)))?;
        Ok(Self { http, token: access.token, url: url.clone(), server: access.server })
    }

    async fn send(&self, method: Method, name: &str, body: Option<&Value>) -> Result<Response<Bytes>, WitnessError> {
        let unusable = |error: &dyn std::fmt::Display| WitnessError::Unusable(error.to_string());
        let manager = if body.is_some() { format!("?fieldManager={MANAGER}") } else { String::new() };
        let path = format!("/api/v1/namespaces/{}/configmaps{name}{manager}", self.url.namespace);
        let mut request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            let text = token.text().map_err(|error| unusable(&format!("can't read the token: {error}")))?;
            request = request.header(AUTHORIZATION, format!("Bearer {text}"));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        self.http.send(request.body(Full::new(body.into())).map_err(|error| unusable(&error))?).await
    }

    /// An answer that says nothing about the register.
    fn other(&self, response: &Response<Bytes>) -> WitnessError {
        let status: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let message = status["message"].as_str().unwrap_or("nothing more");
        let text = format!("{}: the API server says {}: {message}", self.describe(), response.status());
        let passing = response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS;
        if passing { WitnessError::Silent(text) } else { WitnessError::Unusable(text) }
    }
}

/// Whether the field was last written by a node of the pair's.
fn is_ours(object: &Value) -> bool {
    let managers = object["metadata"]["managedFields"].as_array();
    let field = format!("f:{FIELD}");
    let ours = |entry: &Value| entry["manager"] == MANAGER && entry["fieldsV1"]["f:data"].get(&field).is_some();
    managers.is_some_and(|managers| managers.iter().any(ours))
}

impl Place for Kubernetes {
    /// The whole object, with labels that an operator may have given it.
    type Tag = Value;
    type Seal = Seal;

    async fn get(&self) -> Result<Option<Found<Self>>, WitnessError> {
        let response = self.send(Method::GET, &format!("/{}", self.url.name), None).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.other(&response)),
        }
        let object: Value = serde_json::from_slice(response.body())
            .map_err(|error| WitnessError::Silent(format!("{}: not a ConfigMap: {error}", self.describe())))?;
        let text = object["data"][FIELD].as_str().unwrap_or_default().to_owned();
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let (ours, here) = (is_ours(&object), uid.clone());
        let bears = move |seal: &Seal| ours && seal.uid == here;
        Ok(Some(Found { text, tag: object, bears: Box::new(bears), next: Seal { uid } }))
    }

    async fn put(&self, text: String, over: Option<&Found<Self>>) -> Result<Put, WitnessError> {
        let response = match over {
            Some(found) => {
                let mut object = found.tag.clone();
                object["data"][FIELD] = text.into();
                self.send(Method::PUT, &format!("/{}", self.url.name), Some(&object)).await?
            }
            None => {
                let object = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": { "name": self.url.name },
                    "data": { FIELD: text },
                });
                self.send(Method::POST, "", Some(&object)).await?
            }
        };
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => Ok(Put::Written),
            StatusCode::CONFLICT => Ok(Put::Refused),
            StatusCode::NOT_FOUND if over.is_some() => Ok(Put::Refused),
            _ => Err(self.other(&response)),
        }
    }

    fn describe(&self) -> String {
        format!("ConfigMap {}/{} at {}", self.url.namespace, self.url.name, self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_somebody_else_has_written_is_not_ours() {
        let managed = |manager: &str, field: &str| {
            json!({ "metadata": { "managedFields": [
                { "manager": "kubectl", "fieldsV1": { "f:metadata": {} } },
                { "manager": manager, "fieldsV1": { "f:data": { field: {} } } },
            ] } })
        };
        assert!(is_ours(&managed(MANAGER, "f:register")));
        assert!(!is_ours(&managed("kubectl-replace", "f:register")));
        assert!(!is_ours(&managed(MANAGER, "f:other")));
        assert!(!is_ours(&json!({ "metadata": {} })));
    }
}
