//! `--witness-url`: which witness, and where. A URL never holds a secret: those are in files or in the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::HostPort;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WitnessUrl {
    /// `https://HOST:PORT`: `duet witness`.
    Daemon(HostPort),
    /// `etcd://HOST:PORT,…/KEY`, or `etcds://` over TLS.
    Etcd(EtcdUrl),
    /// `s3://BUCKET/KEY`.
    S3(S3Url),
    /// `kubernetes:///KUBECONFIG`.
    Kubernetes(KubernetesUrl),
}

/// A key of an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdUrl {
    /// One is used at a time.
    pub endpoints: Vec<HostPort>,
    /// Without the slash that divides it from the endpoints.
    pub key: String,
    /// `etcds://`.
    pub tls: Option<EtcdTls>,
}

/// Files for TLS with an etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// `ca-file`; without it, the system's CAs.
    pub ca_file: Option<PathBuf>,
    /// `cert-file` and `key-file`.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// An object in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Url {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// `region`.
    pub region: String,
    /// `endpoint`, without a slash at its end; Amazon's of the region without one.
    pub endpoint: String,
    /// `ca-file`; without it, the system's CAs.
    pub ca_file: Option<PathBuf>,
    /// `credentials-file`; without it, the environment.
    pub credentials_file: Option<PathBuf>,
}

/// A ConfigMap in another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesUrl {
    /// How to reach that cluster.
    pub kubeconfig: PathBuf,
    /// `context`; without it, the file's current one.
    pub context: Option<String>,
    /// `namespace`.
    pub namespace: String,
    /// `name`.
    pub name: String,
}

impl WitnessUrl {
    /// Whether it is asked in clear, and not only on this machine: whoever is in between could answer in its place.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        let is_here = |host: &str| host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match self {
            Self::Daemon(_) | Self::Kubernetes(_) => false,
            Self::Etcd(etcd) => etcd.tls.is_none() && !etcd.endpoints.iter().all(|endpoint| is_here(&endpoint.host)),
            Self::S3(store) => store.endpoint.strip_prefix("http://").is_some_and(|rest| {
                let authority = rest.split('/').next().unwrap_or_default();
                // An IPv6 address stands in brackets, which tell its colons from the port's.
                let host = match authority.strip_prefix('[') {
                    Some(address) => address.split(']').next(),
                    None => authority.split(':').next(),
                };
                !host.is_some_and(is_here)
            }),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong, and after `; ` what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let forms = "write https://HOST:PORT for duet witness, etcd://HOST:PORT/KEY, s3://BUCKET/KEY?region=REGION or \
                     kubernetes:///KUBECONFIG?namespace=NAMESPACE&name=NAME";
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("\"{text}\" is no URL; {forms}"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        if place.contains('@') {
            return Err("a URL is shown to everybody; leave names and passwords out of it".to_owned());
        }
        let mut query = Query::parse(query)?;
        let (first, path) = place.split_once('/').unwrap_or((place, ""));
        let url = match scheme {
            "https" if path.is_empty() => Self::Daemon(HostPort::parse(first)?),
            "etcd" | "etcds" => {
                let tls = (scheme == "etcds").then(|| query.etcd_tls()).transpose()?;
                let endpoints = first.split(',').map(HostPort::parse).collect::<Result<_, _>>()?;
                Self::Etcd(EtcdUrl { endpoints, key: named(path, "key")?, tls })
            }
            "s3" => {
                let region = query.needed("region")?;
                let endpoint = query.take("endpoint").unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
                if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
                    return Err(format!(
                        "endpoint \"{endpoint}\" is no URL; write for example endpoint=https://s3.example.com:9000"
                    ));
                }
                Self::S3(S3Url {
                    bucket: named(first, "bucket")?,
                    key: named(path, "key")?,
                    region,
                    endpoint: endpoint.trim_end_matches('/').to_owned(),
                    ca_file: query.take("ca-file").map(PathBuf::from),
                    credentials_file: query.take("credentials-file").map(PathBuf::from),
                })
            }
            "kubernetes" if first.is_empty() => Self::Kubernetes(KubernetesUrl {
                kubeconfig: PathBuf::from(format!("/{}", named(path, "kubeconfig")?)),
                context: query.take("context"),
                namespace: query.object("namespace")?,
                name: query.object("name")?,
            }),
            _ => return Err(format!("\"{text}\" names no witness; {forms}")),
        };
        query.end()?;
        Ok(url)
    }
}

fn named(text: &str, what: &str) -> Result<String, String> {
    if text.is_empty() { Err(format!("the {what} is missing; see --help")) } else { Ok(text.to_owned()) }
}

/// What follows a `?`.
struct Query(BTreeMap<String, String>);

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split('&').filter(|part| !part.is_empty());
        let pairs = parts.map(|part| {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("\"{part}\" has no value; write {part}=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        });
        pairs.collect::<Result<_, String>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    fn needed(&mut self, name: &str) -> Result<String, String> {
        self.take(name).ok_or_else(|| format!("{name} is missing; add {name}=VALUE after the question mark"))
    }

    /// A name of Kubernetes'.
    fn object(&mut self, name: &str) -> Result<String, String> {
        let value = self.needed(name)?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        let good = value.bytes().all(plain);
        if good {
            Ok(value)
        } else {
            Err(format!("{name} \"{value}\" is no name of Kubernetes'; write small letters, digits, hyphens"))
        }
    }

    fn etcd_tls(&mut self) -> Result<EtcdTls, String> {
        let mut file = |name: &str| self.take(name).map(PathBuf::from);
        let client = match (file("cert-file"), file("key-file")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("cert-file and key-file belong together; name both or neither".to_owned()),
        };
        Ok(EtcdTls { ca_file: file("ca-file"), client })
    }

    fn end(self) -> Result<(), String> {
        match self.0.into_keys().next() {
            Some(name) => Err(format!("\"{name}\" is nothing that this witness knows; leave it out")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_in_clear_over_a_network_is_known() {
        for (url, in_clear) in [
            ("https://10.0.0.3:2378", false),
            ("etcd://10.0.0.3:2379/k", true),
            ("etcd://127.0.0.1:2379,10.0.0.3:2379/k", true),
            ("etcd://127.0.0.1:2379,[::1]:2379/k", false),
            ("etcds://10.0.0.3:2379/k", false),
            ("s3://b/k?region=r", false),
            ("s3://b/k?region=r&endpoint=http://minio:9000", true),
            ("s3://b/k?region=r&endpoint=http://[::1]:9000", false),
            ("s3://b/k?region=r&endpoint=http://[::1]", false),
            ("s3://b/k?region=r&endpoint=http://[fd00::3]", true),
            ("s3://b/k?region=r&endpoint=http://localhost", false),
        ] {
            assert_eq!(WitnessUrl::parse(url).unwrap().is_in_clear(), in_clear, "{url}");
        }
    }

    #[test]
    fn each_kind_of_witness_has_its_url() {
        let host = |text: &str| HostPort::parse(text).unwrap();
        assert_eq!(WitnessUrl::parse("https://w:2378").unwrap(), WitnessUrl::Daemon(host("w:2378")));
        assert_eq!(
            WitnessUrl::parse("etcds://e1:2379,[fd00::2]:2379/duet/edge?ca-file=/ca&cert-file=/c&key-file=/k").unwrap(),
            WitnessUrl::Etcd(EtcdUrl {
                endpoints: vec![host("e1:2379"), host("[fd00::2]:2379")],
                key: "duet/edge".to_owned(),
                tls: Some(EtcdTls { ca_file: Some("/ca".into()), client: Some(("/c".into(), "/k".into())) }),
            })
        );
        let s3 = |endpoint: &str| {
            WitnessUrl::S3(S3Url {
                bucket: "b".to_owned(),
                key: "x/y".to_owned(),
                region: "eu-central-1".to_owned(),
                endpoint: endpoint.to_owned(),
                ca_file: None,
                credentials_file: None,
            })
        };
        assert_eq!(WitnessUrl::parse("s3://b/x/y?region=eu-central-1").unwrap(), s3("https://s3.eu-central-1.amazonaws.com"));
        assert_eq!(
            WitnessUrl::parse("s3://b/x/y?region=eu-central-1&endpoint=https://minio:9000/").unwrap(),
            s3("https://minio:9000")
        );
        assert_eq!(
            WitnessUrl::parse("kubernetes:///etc/kube.conf?namespace=duet&name=edge&context=other").unwrap(),
            WitnessUrl::Kubernetes(KubernetesUrl {
                kubeconfig: "/etc/kube.conf".into(),
                context: Some("other".to_owned()),
                namespace: "duet".to_owned(),
                name: "edge".to_owned(),
            })
        );
    }

    #[test]
    fn what_is_no_witness_is_refused_with_what_to_write() {
        for wrong in [
            "w:2378",
            "https://w",
            "https://w:2378/path",
            "http://w:2378",
            "etcd://e:2379",
            "etcd://e:2379/k?ca-file=/ca",
            "etcds://e:2379/k?cert-file=/c",
            "etcd://root:secret@e:2379/k",
            "s3://b/k",
            "s3://b?region=r",
            "s3://b/k?region=r&endpoint=minio:9000",
            "s3://b/k?region=r&secret=s",
            "kubernetes://host/config?namespace=n&name=x",
            "kubernetes:///config?namespace=n&name=../x",
            "kubernetes:///config?namespace=n",
        ] {
            let error = WitnessUrl::parse(wrong).unwrap_err();
            assert!(error.contains("; "), "{wrong}: {error}");
            assert!(!error.contains("secret@"), "{error}");
        }
    }
}
