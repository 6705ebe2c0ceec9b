//! Whether the other two can be reached from here: at their ports, with certificates that both sides take.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{Finding, certificates};
use crate::config::{PairConfig, WitnessUrl};
use crate::net::certificate::{self, Certificate};
use crate::supervisor::pair::link::certificate_name;
use crate::witness::backend;

/// The check's name in findings about the witness.
pub const WITNESS: &str = "witness";
const PEER: &str = "peer";
const DEADLINE: Duration = Duration::from_secs(2);

/// From this node to the other one: its peer port, and its PostgreSQL's.
pub async fn reach_peer(pair: &PairConfig, tls: &Arc<rustls::ClientConfig>) -> Vec<Finding> {
    let (began, expected) = (Instant::now(), certificate_name(pair.node.peer(), &pair.cluster));
    let port = match within(certificate::shown_by(&pair.peer, Arc::clone(tls))).await {
        Err(error) => Finding::fail(
            PEER,
            format!("{} can't be reached from here: {error}", pair.peer),
            "start duet node there; check --peer-url, certificates, and the firewall (TCP and UDP)",
        ),
        Ok(Certificate { common_name: Some(name), .. }) if name != expected => Finding::fail(
            PEER,
            format!("{} answers as {name}, and not as {expected}", pair.peer),
            "check --peer-url and --node on both nodes",
        ),
        Ok(_) => Finding::ok(PEER, format!("{} answers as {expected}, after {}", pair.peer, millis(began))),
    };
    let began = Instant::now();
    let postgres = match within(TcpStream::connect((pair.pg_peer.host.as_str(), pair.pg_peer.port))).await {
        Ok(_) => Finding::ok(PEER, format!("its PostgreSQL's port, {}, is open, after {}", pair.pg_peer, millis(began))),
        Err(error) => Finding::fail(
            PEER,
            format!("its PostgreSQL's port, {}, can't be reached from here: {error}", pair.pg_peer),
            "start duet node there; check --peer-pg here, --pg-listen there, and the firewall",
        ),
    };
    vec![port, postgres]
}

/// From this node to the witness.
pub async fn reach_witness(pair: &PairConfig, tls: &Arc<rustls::ClientConfig>) -> Vec<Finding> {
    if let Some((program, _)) = &pair.fence {
        return vec![fence(program)];
    }
    let Some(url) = &pair.witness else {
        return vec![Finding::warn(
            WITNESS,
            "there is none: the loss of the leader's machine waits for an operator",
            "run duet witness on a third machine, and name it with --witness-url on both nodes",
        )];
    };
    let began = Instant::now();
    let witness = match backend::connect(url, &pair.cluster, Arc::clone(tls), backend::deadline(pair.timing)) {
        Ok(witness) => witness,
        Err(error) => return vec![Finding::fail(WITNESS, error.to_string(), "check --witness-url and the files that it names")],
    };
    let place = witness.describe();
    let mut findings = match witness.read().await {
        Ok(answer) => {
            let knows = if answer.value.is_some() { "knows this pair" } else { "doesn't know of this pair yet" };
            vec![Finding::ok(WITNESS, format!("{place} answers, after {}, and {knows}", millis(began)))]
        }
        Err(error) => {
            let fix = "start it there; check --witness-url, certificates or credentials, and the firewall";
            return vec![Finding::fail(WITNESS, format!("{place} can't be asked from here: {error}"), fix)];
        }
    };
    if url.is_in_clear() {
        findings.push(Finding::warn(
            WITNESS,
            format!("{place} is asked in clear: whoever is on the way could answer in its place, and decide who leads"),
            "give it TLS: etcds://…, or an endpoint with https://",
        ));
    }
    if let WitnessUrl::Daemon(address) = url
        && let Ok(shown) = within(certificate::shown_by(address, Arc::clone(tls))).await
    {
        findings.push(certificates::lasts("the witness's", &shown, certificates::now()));
    }
    findings
}

/// The program is there, and can be run. What it does can only be tried by putting a machine off: duet drill --kill.
fn fence(program: &Path) -> Finding {
    const FENCE: &str = "fence";
    match std::fs::metadata(program) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
            Finding::ok(FENCE, format!("{} is there; run it by hand once, with the other node's letter", program.display()))
        }
        Ok(_) => Finding::fail(FENCE, format!("{} isn't a program", program.display()), "chmod +x, or correct --fence-command"),
        Err(error) => {
            let text = format!("{}: {error}", program.display());
            Finding::fail(FENCE, text, "correct --fence-command: without it nobody takes over")
        }
    }
}

async fn within<T>(reach: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(DEADLINE, reach).await.unwrap_or_else(|_| Err(io::Error::other(format!("no answer within {DEADLINE:?}"))))
}

fn millis(began: Instant) -> String {
    format!("{:.1} ms", began.elapsed().as_secs_f64() * 1000.0)
}
