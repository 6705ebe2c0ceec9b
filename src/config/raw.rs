//! Values as users wrote them, each with where it came from: flags over environment over file over defaults.
//!
//! Sources are maps of strings, so that all of this is tested without a process environment or files. It deliberately
//! judges no value; [`super::validate`] does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::error::{ConfigError, place};
use super::options::{self, ALIASES, OPTIONS, Opt};
use super::redact::redact_dsn;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line, under this name.
    Flag(String),
    /// This environment variable.
    Env(String),
    /// This configuration file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "flag --{name}"),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => write!(f, "default"),
        }
    }
}

/// A value and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As written; arrays of the file are joined by commas.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
}

/// What the sources say, before anything is layered.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// (name, value) in the order of the command line; a later one wins.
    pub flags: Vec<(String, String)>,
    /// The process environment.
    pub env: BTreeMap<String, String>,
    /// Prefixes of environment variables in order of precedence: `DUET`, or `DUET` and `ETCD` under etcd's name.
    pub env_prefixes: Vec<&'static str>,
    /// The file's path and text, if there is one.
    pub file: Option<(PathBuf, String)>,
    /// etcd's YAML file in terms of flags; who reads one leaves flags and environment out, as etcd does.
    pub etcd_file: Option<(PathBuf, Vec<(String, String)>)>,
    /// Defaults that differ from the table's, for this way of running.
    pub defaults: Vec<(&'static str, String)>,
}

/// One setting for each option of the table.
#[derive(Clone, Debug)]
pub struct Raw {
    settings: BTreeMap<&'static str, Setting>,
    /// Things that are worth telling but aren't wrong.
    pub warnings: Vec<String>,
}

impl Raw {
    /// Layers the sources.
    ///
    /// # Errors
    /// All of: flags and keys that don't exist, a file that isn't TOML, a key whose value is a table.
    pub fn layer(sources: &Sources) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut raw = Self { settings: BTreeMap::new(), warnings: Vec::new() };
        for opt in OPTIONS {
            let special = sources.defaults.iter().find(|(name, _)| *name == opt.name);
            let value = special.map_or_else(|| opt.default.to_owned(), |(_, value)| value.clone());
            raw.settings.insert(opt.name, Setting { value, origin: Origin::Default });
        }
        if let Some((path, text)) = &sources.file {
            raw.layer_file(path, text, &mut errors);
        }
        if let Some((path, values)) = &sources.etcd_file {
            let options = values.iter().filter_map(|(name, value)| Some((options::find(name)?, value)));
            options.for_each(|(opt, value)| raw.set(opt, value.clone(), Origin::File(path.clone())));
        }
        raw.layer_env(sources);
        for (name, value) in &sources.flags {
            match options::find(name) {
                Some(opt) => raw.set(opt, value.clone(), Origin::Flag(name.clone())),
                None => errors.push(unknown(name, Origin::Flag(name.clone()))),
            }
        }
        if errors.is_empty() { Ok(raw) } else { Err(errors) }
    }

    /// The setting of an option of the table.
    ///
    /// # Panics
    /// `name` isn't in the table: a slip in this program.
    #[must_use]
    pub fn get(&self, name: &str) -> &Setting {
        self.settings.get(name).unwrap_or_else(|| panic!("no option is called {name}"))
    }

    /// Whether anybody set it.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name).origin != Origin::Default
    }

    /// Replaces an unset option's default by one that depends on others.
    pub fn choose_default(&mut self, name: &'static str, value: String) {
        debug_assert!(!self.is_set(name) || self.get(name).value.is_empty());
        self.settings.insert(name, Setting { value, origin: Origin::Default });
    }

    /// Every option and its setting, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Opt, &Setting)> {
        OPTIONS.iter().map(|opt| (opt, self.get(opt.name)))
    }

    fn set(&mut self, opt: &'static Opt, value: String, origin: Origin) {
        self.settings.insert(opt.name, Setting { value, origin });
    }

    fn layer_env(&mut self, sources: &Sources) {
        // Reversed, so that the first prefix is set last and wins; old names likewise before new ones.
        for prefix in sources.env_prefixes.iter().rev() {
            let old = ALIASES.iter().map(|(old, _)| *old);
            for name in old.chain(OPTIONS.iter().map(|opt| opt.name)) {
                let variable = options::env_name(prefix, name);
                // As etcd: an empty variable counts as unset.
                if let (Some(value), Some(opt)) = (sources.env.get(&variable).filter(|v| !v.is_empty()), options::find(name)) {
                    self.set(opt, value.clone(), Origin::Env(variable));
                }
            }
        }
        let known = |variable: &str, name: &str| options::env_name("DUET", name) == variable;
        for variable in sources.env.keys().filter(|variable| variable.starts_with("DUET_")) {
            let is_option =
                OPTIONS.iter().any(|opt| known(variable, opt.name)) || ALIASES.iter().any(|(old, _)| known(variable, old));
            if !is_option && variable != "DUET_CONFIG_FILE" {
                let meant = options::nearest(&variable["DUET_".len()..].to_ascii_lowercase().replace('_', "-"));
                let hint = meant.map_or(String::new(), |name| format!("; did you mean {}?", options::env_name("DUET", name)));
                self.warnings.push(format!("the environment variable {variable} is no option and has no effect{hint}"));
            }
        }
    }

    fn layer_file(&mut self, path: &std::path::Path, text: &str, errors: &mut Vec<ConfigError>) {
        let origin = Origin::File(path.to_owned());
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                return errors.push(ConfigError {
                    origin,
                    key: String::new(),
                    // The error itself would show the line, and the line may hold a password.
                    problem: format!("is not valid TOML{}: {}", place(text, error.span()), error.message().replace('\n', ", ")),
                    fix: "write lines such as data-dir = \"/var/lib/duet\"".to_owned(),
                });
            }
        };
        for (key, value) in table {
            let Some(opt) = options::find(&key) else {
                errors.push(unknown(&key, origin.clone()));
                continue;
            };
            match text_of(&value) {
                Some(text) => self.set(opt, text, origin.clone()),
                None => errors.push(ConfigError {
                    origin: origin.clone(),
                    key,
                    problem: format!("takes {}, not a {}", opt.kind.placeholder(), value.type_str()),
                    fix: "every option is one plain value; only URLs may be an array of strings".to_owned(),
                }),
            }
        }
    }
}

fn unknown(name: &str, origin: Origin) -> ConfigError {
    let fix = match options::nearest(name) {
        Some(near) => format!("did you mean {near}?"),
        None => "duet config check lists every option".to_owned(),
    };
    ConfigError { origin, key: redact_dsn(name), problem: "is not an option".to_owned(), fix }
}

fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            Some(texts?.join(","))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// A value as it may be printed; whatever the option: a connection string may have got to the wrong one.
#[must_use]
pub fn printable(setting: &Setting) -> String {
    redact_dsn(&setting.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Sources {
        Sources { env_prefixes: vec!["DUET"], ..Sources::default() }
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let mut s = sources();
        let name = |s: &Sources| Raw::layer(s).unwrap().get("name").clone();
        assert_eq!(name(&s), Setting { value: "default".into(), origin: Origin::Default });
        s.file = Some(("duet.toml".into(), "name = \"from-file\"".into()));
        assert_eq!(name(&s).value, "from-file");
        s.env.insert("DUET_NAME".into(), "from-env".into());
        assert_eq!(name(&s), Setting { value: "from-env".into(), origin: Origin::Env("DUET_NAME".into()) });
        s.flags.push(("name".into(), "from-flag".into()));
        assert_eq!(name(&s).value, "from-flag");
        s.flags.push(("name".into(), "later-flag".into()));
        assert_eq!(name(&s).value, "later-flag");
    }

    #[test]
    fn etcds_variables_count_only_under_its_name_and_after_duets() {
        let mut s = sources();
        s.env.insert("ETCD_NAME".into(), "e".into());
        assert!(!Raw::layer(&s).unwrap().is_set("name"));
        s.env_prefixes = vec!["DUET", "ETCD"];
        assert_eq!(Raw::layer(&s).unwrap().get("name").value, "e");
        s.env.insert("DUET_NAME".into(), "d".into());
        assert_eq!(Raw::layer(&s).unwrap().get("name").value, "d");
    }

    #[test]
    fn the_old_experimental_names_still_work() {
        let mut s = sources();
        s.flags.push(("experimental-watch-progress-notify-interval".into(), "1s".into()));
        assert_eq!(Raw::layer(&s).unwrap().get("watch-progress-notify-interval").value, "1s");
    }

    #[test]
    fn unknown_names_are_refused_with_a_proposal() {
        let mut s = sources();
        s.file = Some(("/etc/duet.toml".into(), "listen-client-url = \"http://127.0.0.1:1\"\n[section]\n".into()));
        s.flags.push(("nmae".into(), "x".into()));
        let errors = Raw::layer(&s).unwrap_err();
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(text.iter().any(|t| t.contains("/etc/duet.toml") && t.contains("did you mean listen-client-urls?")), "{text:?}");
        assert!(text.iter().any(|t| t.contains("--nmae") && t.contains("did you mean name?")), "{text:?}");
        assert!(text.iter().any(|t| t.contains("section")), "{text:?}");
    }

    #[test]
    fn a_line_that_is_no_toml_is_told_by_its_place_and_never_shown() {
        let mut s = sources();
        for line in [
            "database = postgres://u:s3cret@h/d",
            "database = \"postgres://u:s3cret@h/d",
            "database: postgres://u:s3cret@h/d",
            "\"postgres://u:s3cret@h/d\" = 1",
            "\"postgres://u:s3cret@h/d\" = 1\n\"postgres://u:s3cret@h/d\" = 2",
            "database = [\"postgres://u:s3cret@h/d\", 1]",
        ] {
            s.file = Some(("duet.toml".into(), format!("name = \"n\"\n{line}\n")));
            let text = Raw::layer(&s).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert!(!text.contains("s3cret"), "{line}: {text}");
            assert!(!text.contains("TOML") || text.contains(" at line "), "{line}: {text}");
        }
    }

    #[test]
    fn a_misspelt_environment_variable_is_warned_of() {
        let mut s = sources();
        s.env.insert("DUET_DATADIR".into(), "/x".into());
        let warnings = Raw::layer(&s).unwrap().warnings;
        assert!(warnings[0].contains("did you mean DUET_DATA_DIR?"), "{warnings:?}");
    }

    #[test]
    fn arrays_numbers_and_booleans_of_the_file_are_understood() {
        let mut s = sources();
        let text = "listen-client-urls = [\"http://127.0.0.1:1\", \"unix:///a\"]\nmax-txn-ops = 256\nclient-cert-auth = true";
        s.file = Some(("f".into(), text.into()));
        let raw = Raw::layer(&s).unwrap();
        assert_eq!(raw.get("listen-client-urls").value, "http://127.0.0.1:1,unix:///a");
        assert_eq!((raw.get("max-txn-ops").value.as_str(), raw.get("client-cert-auth").value.as_str()), ("256", "true"));
    }
}
