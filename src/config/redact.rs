//! Connection strings as they may be printed: without their passwords.
//!
//! It would rather hide too much of a strange string than too little: a password may hold any character that its writer forgot to encode.
//! It reads any text, because a connection string may stand in the middle of a message, or where it doesn't belong.

/// Hides the password of a connection string in `text`, in the URL form and in the `key=value` form.
#[must_use]
pub fn redact_dsn(text: &str) -> String {
    let mut out = text.to_owned();
    let authority = out.find("://").map(|at| at + 3);
    if let Some(authority) = authority
        // The last @ of all ends the password.
        && let Some(at) = out[authority..].rfind('@').map(|at| authority + at)
        && let Some(colon) = out[authority..at].find(':').map(|colon| authority + colon)
    {
        out.replace_range(colon + 1..at, "***");
    }
    let mut from = 0;
    while let Some(at) = out[from..].find("password").map(|at| from + at) {
        let value = at + "password".len();
        let Some(equals) = out[value..].find('=').filter(|n| out[value..value + n].trim().is_empty()) else {
            from = value;
            continue;
        };
        let start = value + equals + 1;
        let end = password_end(&out, start, authority.is_some());
        out.replace_range(start..end, "***");
        from = start + 3;
    }
    out
}

/// Where the value that begins at `start` ends: in a URL at the next `&`, else where libpq's form says, with quotes and backslashes.
fn password_end(text: &str, start: usize, in_url: bool) -> usize {
    let rest = &text[start..];
    if in_url {
        return rest.find('&').map_or(text.len(), |at| start + at);
    }
    let lead = rest.len() - rest.trim_start().len();
    let (value, quoted) = match rest[lead..].strip_prefix('\'') {
        Some(value) => (value, true),
        None => (&rest[lead..], false),
    };
    let mut escaped = false;
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return start + lead + 1 + at + 1,
            c if !quoted && c.is_whitespace() => return start + lead + at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_connection_string_shows_its_password() {
        for (dsn, shown) in [
            ("postgres://duet:s3cret@db/duet", "postgres://duet:***@db/duet"),
            ("postgres://duet:s3c@cret@db/duet", "postgres://duet:***@db/duet"),
            ("postgres://duet:s3c/cret@db/duet", "postgres://duet:***@db/duet"),
            ("postgres://duet:s3c cret@db/duet", "postgres://duet:***@db/duet"),
            ("postgres://duet@db/duet?password=s3cret&x=1", "postgres://duet@db/duet?password=***&x=1"),
            ("postgres://duet@db/duet?password=s3 cret&x=1", "postgres://duet@db/duet?password=***&x=1"),
            ("host=db user=duet password=s3cret dbname=d", "host=db user=duet password=*** dbname=d"),
            ("host=db password=s3&cret\tdbname=d", "host=db password=***\tdbname=d"),
            ("host=db password=s3\\ cret dbname=d", "host=db password=*** dbname=d"),
            ("host=db password = 's3 \\' cret' dbname=d", "host=db password =*** dbname=d"),
            ("host=db password='s3 cret", "host=db password=***"),
            ("host=db sslpassword=s3cret", "host=db sslpassword=***"),
            ("postgres://duet@db/duet", "postgres://duet@db/duet"),
            ("http://127.0.0.1:1,unix:///a", "http://127.0.0.1:1,unix:///a"),
        ] {
            assert_eq!(redact_dsn(dsn), shown);
            let message = format!("\"{dsn}\" is no flag; see --help");
            assert!(!redact_dsn(&message).contains("cret"), "{message}");
        }
    }
}
