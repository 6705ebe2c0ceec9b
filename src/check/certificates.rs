//! Whether certificates are whose they should be, signed by the CA that the others know, and how long they last.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Finding, Subject};
use crate::net::certificate::{self, Certificate};
use crate::net::tls;
use crate::supervisor::pair::clock;
use crate::supervisor::pair::link::certificate_name;

const CHECK: &str = "certificate";
const DAY_SECONDS: i64 = 24 * 3600;
/// Less is a reason to renew it.
const DAYS_LEFT_MIN: i64 = 30;
const RENEW: &str = "duet certs renew --out DIR, copy them to their places, and restart one node after the other";

pub(super) fn of_node(subject: &Subject) -> Vec<Finding> {
    let files = subject.pair.tls.config();
    let name = certificate_name(subject.pair.node, &subject.pair.cluster);
    let pair = match certificate::verified(&files, &name) {
        // The key is looked at where it is used.
        Ok(found) => match tls::client_config(&files) {
            Ok(_) => lasts(&format!("the pair's: {name}"), &found, now()),
            Err(error) => Finding::fail(CHECK, error.to_string(), RENEW),
        },
        Err(why) => Finding::fail(CHECK, format!("the pair's, {}: {why}", files.cert_file.display()), RENEW),
    };
    let mut found = vec![pair, key_is_private(&files.key_file)];
    if let Some(files) = &subject.client_tls {
        found.push(match certificate::read(&files.cert_file) {
            Ok(shown) => lasts("the one that clients see", &shown, now()),
            Err(why) => Finding::fail(CHECK, format!("{}: {why}", files.cert_file.display()), RENEW),
        });
        found.push(key_is_private(&files.key_file));
    }
    found
}

/// What there is to say of the time that a certificate has left.
pub(super) fn lasts(whose: &str, certificate: &Certificate, now: i64) -> Finding {
    let days = certificate.not_after.saturating_sub(now).div_euclid(DAY_SECONDS);
    match days {
        ..0 => Finding::fail(CHECK, format!("{whose} has expired, {} days ago", -days), RENEW),
        0..DAYS_LEFT_MIN => Finding::warn(CHECK, format!("{whose} has {days} days left"), RENEW),
        _ => Finding::ok(CHECK, format!("{whose} has {days} days left")),
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    clock::unix_ms().map_or(0, |now| i64::try_from(now / 1000).unwrap_or(i64::MAX))
}

fn key_is_private(path: &Path) -> Finding {
    match fs::metadata(path).map(|meta| meta.permissions().mode()) {
        Ok(mode) if mode & 0o077 == 0 => Finding::ok("key", format!("{} is readable by its owner only", path.display())),
        Ok(mode) => Finding::warn(
            "key",
            format!("{} has mode {:o}: others can read or change it", path.display(), mode & 0o777),
            format!("chmod 600 {}", path.display()),
        ),
        Err(error) => Finding::fail("key", format!("{}: {error}", path.display()), "check --pair-key-file and --key-file"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_certificate_is_to_be_renewed_before_it_ends() {
        let level = |days: i64| {
            let certificate = Certificate { common_name: None, not_after: 1_000_000 + days * DAY_SECONDS };
            lasts("it", &certificate, 1_000_000).level
        };
        assert_eq!([-1, 0, 29, 30, 700].map(level), [Level::Fail, Level::Warn, Level::Warn, Level::Ok, Level::Ok]);
    }
}
