//! What a server answered to a script, and how two of them differ.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tonic::Status;

use crate::script::Step;

/// Stands for an answer that didn't come. A reference that gives it means that the case is wrong.
pub const TIMEOUT: &str = "NO ANSWER IN TIME";

/// How an error shows in a transcript.
pub fn failed(status: &Status) -> String {
    // Go's protobuf puts one kind of space or the other, so that nobody relies on its messages.
    let message = status.message().replace('\u{a0}', " ");
    format!("error {:?}: {message}", status.code())
}

/// A step and its answer.
#[derive(Clone, Debug)]
pub struct Entry {
    pub step: Step,
    pub answer: String,
    /// For a `Settle`: how much came, by watch.
    pub counts: BTreeMap<i64, usize>,
}

/// All that a server answered to a script.
#[derive(Clone, Debug, Default)]
pub struct Transcript(pub Vec<Entry>);

/// Steps before a difference that are shown with it.
const CONTEXT_STEPS: usize = 12;

/// The first difference, with what led to it; None when the transcripts are equal.
pub fn difference(reference: &Transcript, subject: &Transcript) -> Option<String> {
    let at = (0..reference.0.len().max(subject.0.len())).find(|&i| {
        let (a, b) = (reference.0.get(i), subject.0.get(i));
        a.map(|entry| &entry.answer) != b.map(|entry| &entry.answer)
    })?;
    let mut text = String::new();
    let from = at.saturating_sub(CONTEXT_STEPS);
    if from > 0 {
        let _ = writeln!(text, "    ({from} steps before)");
    }
    for (i, entry) in reference.0.iter().enumerate().take(at + 1).skip(from) {
        let _ = writeln!(text, "    {i}: {}", cut(short(&format!("{:?}", entry.step))));
    }
    let side = |transcript: &Transcript| {
        let answer = transcript.0.get(at).map(|entry| entry.answer.as_str());
        answer.map_or("nothing".to_owned(), short)
    };
    let (a, b) = (side(reference), side(subject));
    let _ = writeln!(text, "  reference:");
    let _ = writeln!(text, "{}", marked(&a, &b));
    let _ = writeln!(text, "  subject:");
    let _ = writeln!(text, "{}", marked(&b, &a));
    Some(text)
}

/// Large values would drown what there is to see.
fn cut(mut text: String) -> String {
    const SHOWN_CHARS: usize = 1500;
    if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The first entry without an answer in time.
pub fn unanswered(transcript: &Transcript) -> Option<String> {
    let entry = |entry: &&Entry| entry.answer.contains(TIMEOUT);
    transcript.0.iter().find(entry).map(|entry| format!("{}\n  {}", short(&format!("{:?}", entry.step)), entry.answer))
}

/// `text`, with a sign before the lines that `other` doesn't have.
fn marked(text: &str, other: &str) -> String {
    let lines = text.lines().map(|line| {
        let same = other.lines().any(|its| its == line);
        format!("    {} {line}", if same { ' ' } else { '*' })
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Leaves out fields that have their default: they are compared, but tell a reader nothing.
pub fn short(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let at_field = out.ends_with("{ ") || out.ends_with(", ");
        match Some(rest).filter(|_| at_field).and_then(default_field) {
            Some(after) => match after.strip_prefix(", ") {
                Some(after) => rest = after,
                None => {
                    out.truncate(out.strip_suffix(", ").unwrap_or(&out).len());
                    rest = after;
                }
            },
            None => {
                out.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    out.replace("{  }", "{}")
}

/// What follows after `<field>: <default>`.
fn default_field(text: &str) -> Option<&str> {
    const DEFAULTS: [&str; 8] = ["0", "false", "b\"\"", "None", "[]", "\"\"", "Key", "Equal"];
    const HEADER: [&str; 3] = ["cluster_id: 1", "member_id: 1", "raft_term: 1"];
    let ends = |after: &&str| after.starts_with(", ") || after.starts_with(" }");
    if let Some(after) = HEADER.iter().find_map(|field| text.strip_prefix(field)) {
        return Some(after).filter(ends);
    }
    let name = text.bytes().take_while(|c| c.is_ascii_lowercase() || *c == b'_').count();
    let value = text[name..].strip_prefix(": ").filter(|_| name > 0)?;
    DEFAULTS.iter().filter_map(|default| value.strip_prefix(default)).find(ends)
}
