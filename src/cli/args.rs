//! Flags as Go's `flag` package reads them: `-name` and `--name` alike, a value after `=` or as the next argument,
//! booleans without a value; `--` ends them.

use crate::config::redact::redact_dsn;

/// What follows a flag's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// A value.
    Value,
    /// Nothing, or `=true` or `=false`.
    Bool,
}

/// A command line taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Names and values in order; a boolean's missing value is `true`.
    pub flags: Vec<(String, String)>,
    /// The first argument that is no flag, and what follows it.
    pub rest: Vec<String>,
    /// `-h`, `-help` or `--help` was among the flags.
    pub help: bool,
}

/// Takes `args` apart; `takes` says what follows a flag, `None` when there is no such flag.
///
/// # Errors
/// A flag without a name, an unknown one, or one whose value is missing.
pub fn parse(args: &[String], takes: impl Fn(&str) -> Option<Takes>) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            parsed.rest = std::iter::once(arg).chain(args).cloned().collect();
            break;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            parsed.rest = args.cloned().collect();
            break;
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(format!("bad flag syntax: {}", redact_dsn(arg)));
        }
        match (takes(name), value) {
            (None, _) if matches!(name, "help" | "h") => parsed.help = true,
            (None, _) => return Err(unknown(name)),
            (Some(_), Some(value)) => parsed.flags.push((name.to_owned(), value)),
            (Some(Takes::Bool), None) => parsed.flags.push((name.to_owned(), "true".to_owned())),
            (Some(Takes::Value), None) => match args.next() {
                Some(value) => parsed.flags.push((name.to_owned(), value.clone())),
                None => return Err(format!("flag needs an argument: --{name}")),
            },
        }
    }
    Ok(parsed)
}

fn unknown(name: &str) -> String {
    let hint = crate::config::options::nearest(name).map_or_else(String::new, |near| format!("; did you mean --{near}?"));
    format!("flag provided but not defined: --{}{hint}", redact_dsn(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(name: &str) -> Option<Takes> {
        match name {
            "name" | "n" => Some(Takes::Value),
            "client-cert-auth" => Some(Takes::Bool),
            _ => None,
        }
    }

    fn read(line: &str) -> Result<Parsed, String> {
        let args: Vec<String> = line.split(' ').filter(|arg| !arg.is_empty()).map(str::to_owned).collect();
        parse(&args, takes)
    }

    fn flags(line: &str) -> Vec<(String, String)> {
        read(line).unwrap().flags
    }

    fn one(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn every_way_to_write_a_flag_means_the_same() {
        for line in ["--name a", "-name a", "--name=a", "-name=a"] {
            assert_eq!(flags(line), one("name", "a"), "{line}");
        }
        assert_eq!(flags("--name=a=b"), one("name", "a=b"));
        assert_eq!(flags("--name --x"), one("name", "--x"), "Go takes the next argument whatever it looks like");
    }

    #[test]
    fn booleans_take_a_value_only_after_an_equals_sign() {
        assert_eq!(flags("--client-cert-auth"), one("client-cert-auth", "true"));
        assert_eq!(flags("-client-cert-auth=false"), one("client-cert-auth", "false"));
        let parsed = read("--client-cert-auth false --name a").unwrap();
        assert_eq!(parsed.rest, ["false", "--name", "a"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(read("--name").unwrap_err(), "flag needs an argument: --name");
        assert_eq!(read("---name").unwrap_err(), "bad flag syntax: ---name");
        assert!(read("--nmae x").unwrap_err().starts_with("flag provided but not defined: --nmae; did you mean --name?"));
        for line in ["---database=postgres://u:s3cret@h/d", "--=postgres://u:s3cret@h/d", "--postgres://u:s3cret@h/d"] {
            let error = read(line).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert!(read("-h").unwrap().help && read("--help").unwrap().help);
        assert_eq!(read("-- --name").unwrap().rest, ["--name"]);
    }
}
