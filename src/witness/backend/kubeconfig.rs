//! What a kubeconfig says of one cluster and one user. Certificates, keys and tokens may stand in it or be files of their own; a program that
//! makes credentials (`exec`, `auth-provider`) is refused, because a witness must answer when little else does.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::config::error::yaml_place;
use crate::net::tls::{Pem, TlsError};
use crate::witness::backend::ConnectError;

/// How a server knows its client.
pub struct Access {
    /// `https://HOST:PORT`, without a slash at its end.
    pub server: String,
    /// `None`: the system's CAs.
    pub ca: Option<Pem>,
    /// A certificate and its key.
    pub client: Option<(Pem, Pem)>,
    /// A bearer token.
    pub token: Option<Token>,
}

/// A bearer token.
pub enum Token {
    /// As it stands in the kubeconfig.
    Text(String),
    /// A file, which is read each time: tokens of service accounts are replaced.
    File(PathBuf),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
    current_context: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
}

/// Reads what `context`, or the current one, says in the kubeconfig at `path`.
///
/// # Errors
/// The file, or one that it names, can't be read or says too little.
pub fn read(path: &Path, context: Option<&str>) -> Result<Access, ConnectError> {
    let wrong = |problem: String| ConnectError::File { path: path.to_owned(), problem };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let file: File = serde_saphyr::from_str(&text).map_err(|error| wrong(format!("is no kubeconfig{}", yaml_place(&error))))?;
    let missing = |what: &str, name: &str| wrong(format!("has no {what} \"{name}\""));
    let name = context.map(str::to_owned).or(file.current_context);
    let name = name.ok_or_else(|| wrong("has no current-context; add context=NAME to the URL".to_owned()))?;
    let context =
        file.contexts.into_iter().find(|context| context.name == name).ok_or_else(|| missing("context", &name))?.context;
    let cluster = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster;
    let user = file.users.into_iter().find(|user| user.name == context.user);
    let user = user.ok_or_else(|| missing("user", &context.user))?.user;
    if cluster.insecure_skip_tls_verify || !cluster.server.starts_with("https://") {
        return Err(wrong(
            "doesn't have the server prove who it is, by https and a CA; whoever is in between could be the witness".to_owned(),
        ));
    }
    let pem = |data: Option<String>, file: Option<PathBuf>| pem(path, data, file);
    let client = match (pem(user.client_certificate_data, user.client_certificate)?, pem(user.client_key_data, user.client_key)?)
    {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => None,
    };
    let beside = |file: PathBuf| path.parent().unwrap_or(Path::new("/")).join(file);
    let token = user.token.map(Token::Text).or(user.token_file.map(|file| Token::File(beside(file))));
    if client.is_none() && token.is_none() {
        return Err(wrong(format!(
            "the user \"{}\" has neither a token nor a client certificate with its key; programs that make them are not run",
            context.user
        )));
    }
    let server = cluster.server.trim_end_matches('/').to_owned();
    Ok(Access { server, ca: pem(cluster.certificate_authority_data, cluster.certificate_authority)?, client, token })
}

/// What stands in the file at `path`, or in one that it names, relative to itself.
fn pem(path: &Path, data: Option<String>, file: Option<PathBuf>) -> Result<Option<Pem>, ConnectError> {
    if let Some(data) = data {
        let text = STANDARD.decode(data.trim());
        let problem =
            |error| ConnectError::File { path: path.to_owned(), problem: format!("holds a value that isn't base64: {error}") };
        return Ok(Some(Pem { from: path.to_owned(), text: text.map_err(problem)? }));
    }
    let beside = file.map(|file| path.parent().unwrap_or(Path::new("/")).join(file));
    Ok(beside.map(|file| Pem::read(&file)).transpose().map_err(|error: TlsError| error)?)
}

impl Token {
    /// The token itself.
    ///
    /// # Errors
    /// Its file can't be read.
    pub fn text(&self) -> std::io::Result<String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => Ok(fs::read_to_string(path)?.trim().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
        clusters:\n- name: other\n  cluster:\n    server: https://other:6443/\n    certificate-authority-data: Q0E=\n\
        - name: open\n  cluster:\n    server: https://open:6443\n    insecure-skip-tls-verify: true\n\
        users:\n- name: duet\n  user:\n    tokenFile: token\n- name: runs\n  user:\n    exec:\n      command: aws\n\
        contexts:\n- name: here\n  context:\n    cluster: other\n    user: duet\n\
        - name: runs\n  context:\n    cluster: other\n    user: runs\n- name: open\n  context:\n    cluster: open\n    user: duet\n";

    #[test]
    fn a_context_leads_to_a_server_and_to_what_proves_who_asks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, FILE).unwrap();
        fs::write(dir.path().join("token"), "secret\n").unwrap();
        let access = read(&path, None).unwrap();
        assert_eq!((access.server.as_str(), access.ca.unwrap().text.as_slice()), ("https://other:6443", b"CA".as_slice()));
        assert_eq!(access.token.unwrap().text().unwrap(), "secret");
        for (context, problem) in [("runs", "not run"), ("open", "prove who it is"), ("none", "no context \"none\"")] {
            let error = read(&path, Some(context)).err().unwrap().to_string();
            assert!(error.contains(problem), "{context}: {error}");
        }
        for wrong in
            ["users:\n- name: duet\n  user:\n    token: [s3cret]\n", "users: s3cret\n", "users:\n- s3cret\n", "users: \"s3cret\n"]
        {
            fs::write(&path, wrong).unwrap();
            let error = read(&path, None).err().unwrap().to_string();
            assert!(error.contains("no kubeconfig at line ") && !error.contains("s3cret"), "{wrong}: {error}");
        }
    }
}
