//! House rules that no compiler checks. Each rule has its reason beside it; an exception is listed by name, with its own.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that must stay free of I/O, clocks and chance, so that models and simulations can drive them.
const PURE: [&str; 6] = ["types", "mvcc", "sequencer", "watch", "lease", "supervisor/fsm"];
/// Files in pure modules that are their I/O half or their tests.
const IMPURE_HALVES: [&str; 1] = ["src/watch/stream.rs"];
/// What a pure module must not name. HashMap's iteration order is chance; BTreeMap's isn't.
const IMPURE: [&str; 8] = ["tokio", "tonic", "std::time", "std::net", "std::fs", "rand::", "HashMap", "HashSet"];

/// A file that is longer is more than one thing.
const LINES_MAX: usize = 500;
/// Longer files that are one thing.
const LONG: [(&str, &str); 8] = [
    ("tests/pair_simulation/simulation.rs", "one world: what can befall two nodes and a witness"),
    ("tests/pair_model/world.rs", "one world: what can befall two nodes and a witness"),
    ("benches/measure_log.rs", "one experiment: each way to store the log beside the others, as the ADRs list them"),
    ("src/telemetry/metrics.rs", "one table of metrics"),
    ("tests/storage_pg.rs", "one list of rules"),
    ("tests/engine_follower.rs", "one list of rules"),
    ("tests/differential/cases/txn.rs", "one list of cases"),
    ("tests/differential/cases/watch.rs", "one list of cases"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Paths relative to the checkout and contents of the files below `dir` whose names end with `suffix`.
fn files(dir: &str, suffix: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match path.is_dir() {
                _ if name == ".git" => {}
                true if name == "target" || path.is_symlink() => {}
                true => walk(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(dir), &mut paths);
    paths.sort();
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    let wanted = paths.iter().filter(|path| relative(path).ends_with(suffix));
    // What isn't UTF-8 isn't ours to judge.
    wanted.filter_map(|path| Some((relative(path), fs::read_to_string(path).ok()?))).collect()
}

fn rust() -> Vec<(String, String)> {
    ["src", "tests", "benches"].into_iter().flat_map(|dir| files(dir, ".rs")).collect()
}

fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    path.starts_with("tests/")
        || name == "tests.rs"
        || name.ends_with("_test.rs")
        || name.ends_with("_tests.rs")
        || path.contains("/tests/")
}

/// The code of a file: without comments, and without the tests at its end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| *line != "#[cfg(test)]");
    lines.map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn assert_none(rule: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{rule}:\n{}", violations.join("\n"));
}

#[test]
fn pure_modules_name_no_io_no_clock_and_no_chance() {
    let mut violations = Vec::new();
    for module in PURE {
        let sources = files(&format!("src/{module}"), ".rs");
        assert!(!sources.is_empty(), "src/{module} has no files: is the list of pure modules up to date?");
        for (path, text) in sources.iter().filter(|(path, _)| !is_test_file(path) && !IMPURE_HALVES.contains(&path.as_str())) {
            for (number, line) in code(text) {
                violations.extend(
                    IMPURE.iter().filter(|word| line.contains(**word)).map(|word| format!("{path}:{number} names {word}")),
                );
            }
        }
    }
    assert_none("pure modules stay pure", &violations);
}

#[test]
fn every_file_begins_by_saying_what_it_is_for() {
    let silent = rust().into_iter().filter(|(_, text)| !text.starts_with("//! ") || text.starts_with("//! stub"));
    assert_none("a file's first line is its module comment", &silent.map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn files_are_one_thing() {
    let mut violations = Vec::new();
    for (path, text) in rust() {
        let (lines, listed) = (text.lines().count(), LONG.iter().any(|(long, _)| *long == path));
        if lines > LINES_MAX && !listed {
            violations.push(format!("{path} has {lines} lines"));
        }
        if lines <= LINES_MAX && listed {
            violations.push(format!("{path} has become short ({lines} lines): take it off the list"));
        }
    }
    let gone = LONG.iter().filter(|(path, _)| !root().join(path).exists());
    violations.extend(gone.map(|(path, _)| format!("{path} is listed and doesn't exist")));
    assert_none("files have 500 lines at most, or stand in the list with a reason", &violations);
}

#[test]
fn main_reads_as_a_story() {
    let lines = fs::read_to_string(root().join("src/main.rs")).unwrap().lines().count();
    assert!(lines < 80, "src/main.rs has {lines} lines");
}

#[test]
fn no_test_is_switched_off() {
    let ignore = concat!("#[", "ignore");
    let mut violations = Vec::new();
    for (path, text) in rust() {
        let lines = text.lines().enumerate().filter(|(_, line)| line.contains(ignore));
        violations.extend(lines.map(|(number, line)| format!("{path}:{}: {}", number + 1, line.trim())));
    }
    assert_none("a test that doesn't run proves nothing", &violations);
}

#[test]
fn every_metric_has_a_source() {
    let sources: Vec<_> = files("src", ".rs").into_iter().filter(|(path, _)| path != "src/telemetry/metrics.rs").collect();
    let own = fs::read_to_string(root().join("src/telemetry/metrics.rs")).unwrap();
    let handle = |line: &str| {
        let (name, kind) = line.trim().strip_prefix("pub ")?.split_once(": ")?;
        let kinds = ["IntCounter,", "IntGauge,", "Known<IntGauge>,", "Known<Gauge>,", "Histogram,"];
        kinds.contains(&kind).then(|| name.to_owned())
    };
    let handles: Vec<String> = own.lines().filter_map(handle).collect();
    assert!(handles.len() > 30, "the handles were not recognised: {handles:?}");
    let is_used = |name: &String| sources.iter().any(|(_, text)| text.contains(&format!(".{name}")));
    let unused: Vec<String> = handles.into_iter().filter(|name| !is_used(name)).collect();
    assert_none("a metric that nobody updates is a lie", &unused);
}

/// What a name in Prometheus' language may consist of.
fn is_name_byte(byte: char) -> bool {
    byte.is_ascii_alphanumeric() || byte == '_'
}

#[test]
fn dashboards_and_alerts_ask_only_for_metrics_that_exist() {
    let tables = files("src/telemetry", ".rs").into_iter().chain(files("src/supervisor/pair", "/metrics.rs"));
    let tables: String = tables.map(|(_, text)| text).collect();
    let exists = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        std::iter::once(name).chain(histogram).any(|name| tables.contains(&format!("\"{name}\"")))
    };
    assert!(exists("duet_pair_open") && exists("duet_engine_commit_duration_seconds_bucket") && !exists("duet_pair"));
    let (mut asked, mut violations) = (0, Vec::new());
    for (path, text) in files("deploy/grafana", ".json").into_iter().chain(files("deploy/prometheus", ".yml")) {
        for (number, line) in text.lines().enumerate() {
            let names = line
                .split(|byte| !is_name_byte(byte))
                .filter(|word| ["duet_", "etcd_"].iter().any(|prefix| word.starts_with(prefix)) && !word.ends_with('_'));
            for name in names {
                asked += 1;
                if !exists(name) {
                    violations.push(format!("{path}:{}: {name}", number + 1));
                }
            }
        }
    }
    assert!(asked > 30, "the names were not recognised: {asked}");
    assert_none("a panel or an alert over a metric that isn't there shows nothing for ever", &violations);
}

#[test]
fn no_place_of_one_machine_and_no_registry_is_written_down() {
    // In two halves, so that this file keeps its own rule.
    let hosts = [
        ("crates", ".io"),
        ("proxy.golang", ".org"),
        ("docker", ".io"),
        ("quay", ".io"),
        ("ghcr", ".io"),
        ("registry.k8s", ".io"),
    ];
    let words: Vec<String> =
        hosts.iter().map(|(a, b)| format!("{a}{b}")).chain(["/home".to_owned() + "/", "/work".to_owned() + "/"]).collect();
    // Locks are written by tools; licences by lawyers.
    let written_by_tools = |path: &str| ["Cargo.lock", "go.sum", "LICENSE"].iter().any(|name| path.ends_with(name));
    let mut violations = Vec::new();
    for (path, text) in files("", "").into_iter().filter(|(path, _)| !written_by_tools(path)) {
        for (number, line) in text.lines().enumerate() {
            violations
                .extend(words.iter().filter(|word| line.contains(*word)).map(|word| format!("{path}:{}: {word}", number + 1)));
        }
    }
    assert_none("the project works anywhere", &violations);
}
