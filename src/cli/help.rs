//! `--help`, written from the table of options and the table of exit codes.

use std::fmt::Write;

use super::exit::CODES;
use crate::config::options::{Group, OPTIONS, Opt};

const WIDTH: usize = 100;
const INDENT: usize = 6;

/// `duet --help`.
pub(super) fn overview() -> String {
    let mut out = String::from(
        "Duet: an etcd-compatible Kubernetes datastore on PostgreSQL.\n\n\
         Usage:\n  duet COMMAND [flags]\n\n\
         Commands:\n  \
           dev      One node with a PostgreSQL of its own, for a laptop, CI or an edge box.\n  \
           pair     A pair of nodes and a witness on this machine, to try it.\n  \
           init     Write the configuration and certificates of a pair: duet init --help.\n  \
           node     One node of a pair: duet node --config-file FILE.\n  \
           witness  A pair's witness: duet witness --config-file FILE. For a witness in another store, duet witness begin\n  \
                    --config-file FILE (a node's) makes its register.\n  \
           certs    duet certs renew --out DIR: new certificates for a pair.\n  \
           serve    Serve from an existing PostgreSQL: duet serve --database postgres://…\n  \
           etcd     Stand in for a single etcd: takes etcd's command line. Also under the name etcd.\n  \
           config   duet config check [COMMAND]: which options are in force, where each comes from, and whether COMMAND\n  \
                    would take them.\n  \
           version  The version.\n\n\
         Operating a pair, each with --config-file FILE (a node's own):\n",
    );
    for command in super::operate::COMMANDS {
        let _ = writeln!(out, "  {:11} {}", command.name, command.what); // writing to a String can't fail
    }
    out.push_str("\nduet COMMAND --help lists the flags.\n\n");
    out.push_str(&exit_codes());
    out
}

/// The flags of a command.
pub(super) fn flags(usage: &str) -> String {
    let sources = "Every flag can also be an environment variable (--data-dir: DUET_DATA_DIR) or a line of the TOML file that\n\
         --config-file or DUET_CONFIG_FILE names (data-dir = \"/var/lib/duet\"). Flags win over the environment, the\n\
         environment over the file, the file over the defaults.\n";
    page(usage, sources, |_| true)
}

/// The flags of `duet etcd` that have a meaning, those that `has` knows.
pub(super) fn etcd_flags(usage: &str, has: impl Fn(&str) -> bool) -> String {
    let sources = "Every flag can also be an environment variable (--data-dir: ETCD_DATA_DIR, or DUET_DATA_DIR, which wins). Flags win\n\
         over the environment. With --config-file or ETCD_CONFIG_FILE everything comes from that file instead: etcd's YAML,\n\
         in which Duet's own flags may stand, too. (A file whose name ends with .toml is one of Duet's, below flags and\n\
         environment.) Further flags of a single etcd are accepted; those that have no meaning here are named in a warning.\n";
    page(usage, sources, has)
}

fn page(usage: &str, sources: &str, has: impl Fn(&str) -> bool) -> String {
    let mut out = format!("Usage:\n  {usage}\n\n{sources}");
    for (group, title) in Group::ALL {
        let _ = writeln!(out, "\n{title}:"); // writing to a String can't fail
        for opt in OPTIONS.iter().filter(|opt| opt.group == group && has(opt.name)) {
            option(&mut out, opt);
        }
    }
    out.push('\n');
    out.push_str(&exit_codes());
    out
}

fn option(out: &mut String, opt: &Opt) {
    let default = if opt.default.is_empty() { String::new() } else { format!("  [{}]", opt.default) };
    let _ = writeln!(out, "  --{} {}{default}", opt.name, opt.kind.placeholder());
    let mut line = String::new();
    for word in opt.help.split(' ') {
        if !line.is_empty() && INDENT + line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{:INDENT$}{line}", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{:INDENT$}{line}", "");
}

fn exit_codes() -> String {
    let mut out = String::from("Exit codes:\n");
    for (code, meaning) in CODES {
        let _ = writeln!(out, "  {code:>3}  {meaning}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_option_and_every_exit_code_in_narrow_lines() {
        let help = flags("duet dev [flags]");
        for opt in OPTIONS {
            assert!(help.contains(&format!("--{} ", opt.name)), "{}", opt.name);
        }
        for (code, _) in CODES {
            assert!(help.contains(&format!("\n  {code:>3}  ")), "{code}");
        }
        let etcd = etcd_flags("duet etcd [etcd's flags]", |name| name != "database");
        assert!(etcd.contains("ETCD_CONFIG_FILE") && !etcd.contains("--database "));
        assert!(help.lines().chain(etcd.lines()).all(|line| line.chars().count() <= 120));
    }
}
