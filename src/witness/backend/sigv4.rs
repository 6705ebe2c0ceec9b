//! Amazon's Signature Version 4 for S3: a pure function of a request, a key and a moment. (Amazon S3 API Reference, "Authenticating
//! Requests (AWS Signature Version 4)".)

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};

/// Whoever signs.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The key's id.
    pub id: String,
    /// The key.
    pub secret: String,
    /// Of temporary credentials.
    pub token: Option<String>,
}

/// A request, as far as it is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// In capitals.
    pub method: &'a str,
    /// Encoded already: see [`encode_path`].
    pub path: &'a str,
    /// Its `Host` header.
    pub host: &'a str,
    /// The region.
    pub region: &'a str,
    /// The whole body.
    pub body: &'a [u8],
}

/// The headers that sign `request`, at `now` in seconds since 1970, in the order of their names.
pub fn headers(request: &Signed<'_>, credentials: &Credentials, now: u64) -> Vec<(&'static str, String)> {
    let time = timestamp(now);
    let date = &time[..8];
    let body = hex(digest(&SHA256, request.body).as_ref());
    let mut signed =
        vec![("host", request.host.to_owned()), ("x-amz-content-sha256", body.clone()), ("x-amz-date", time.clone())];
    signed.extend(credentials.token.iter().map(|token| ("x-amz-security-token", token.clone())));
    let mut lines = String::new();
    for (name, value) in &signed {
        let _ = writeln!(lines, "{name}:{value}"); // writing to a String can't fail
    }
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let canonical = format!("{}\n{}\n\n{lines}\n{names}\n{body}", request.method, request.path);
    let scope = format!("{date}/{}/s3/aws4_request", request.region);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
    let first = format!("AWS4{}", credentials.secret);
    let key = [date, request.region, "s3", "aws4_request"].iter().fold(first.into_bytes(), |key, part| mac(&key, part));
    let signature = hex(&mac(&key, &text));
    let id = &credentials.id;
    signed.remove(0);
    signed
        .push(("authorization", format!("AWS4-HMAC-SHA256 Credential={id}/{scope},SignedHeaders={names},Signature={signature}")));
    signed
}

/// A path's parts, each byte that isn't plain as `%XX`.
pub fn encode_path(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes().fold(String::new(), |mut out, byte| {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}"); // writing to a String can't fail
        }
        out
    })
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// ISO 8601 without punctuation, in UTC.
fn timestamp(now: u64) -> String {
    let (days, second) = (now / 86400, now % 86400);
    // Days since 1 March of the year 0 in the proleptic Gregorian calendar: leap days are the last ones of their years then.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_the_calendar_has_them() {
        for (now, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (1_369_353_600, "20130524T000000Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(timestamp(now), text);
        }
    }

    #[test]
    fn paths_keep_their_slashes_and_nothing_that_isn_t_plain() {
        assert_eq!(encode_path("/b/a b+ü~"), "/b/a%20b%2B%C3%BC~");
    }

    #[test]
    fn a_request_is_signed_as_amazon_s_own_library_signs_it() {
        let request = Signed {
            method: "GET",
            path: "/duet-witness/edge",
            host: "s3.us-east-1.amazonaws.com",
            region: "us-east-1",
            body: b"",
        };
        let credentials = Credentials {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            token: None,
        };
        let signed = headers(&request, &credentials, 1_369_353_600);
        let (name, value) = signed.last().unwrap();
        assert_eq!(*name, "authorization");
        assert!(value.ends_with("Signature=e8d181f3c119215d8c38fa29902b9d48ac2a54259681b874cef5850a130a8247"), "{value}");
    }
}
