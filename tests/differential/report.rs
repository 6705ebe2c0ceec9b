//! What came out of a run.

use std::process::ExitCode;
use std::time::Instant;

use crate::known;
use crate::script::Case;

/// Counts, and the names of what failed.
pub struct Report {
    started: Instant,
    passed: usize,
    known: usize,
    failed: Vec<String>,
}

impl Default for Report {
    fn default() -> Self {
        Report { started: Instant::now(), passed: 0, known: 0, failed: Vec::new() }
    }
}

impl Report {
    /// The outcome of a case written by hand.
    pub fn case(&mut self, case: &Case, difference: Option<String>) {
        let name = format!("{}: {}", case.area, case.name);
        match (known::difference(case), difference) {
            (None, difference) => self.outcome(&name, difference),
            (Some(reason), Some(_)) => {
                self.known += 1;
                println!("known difference  {name} ({reason})");
            }
            (Some(_), None) => self.outcome(&name, Some("  stands in known.rs, but doesn't differ".to_owned())),
        }
    }

    /// Any other outcome.
    pub fn outcome(&mut self, name: &str, problem: Option<String>) {
        match problem {
            None => {
                self.passed += 1;
                println!("ok  {name}");
            }
            Some(problem) => {
                println!("DIFFERS  {name}\n{problem}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Prints the sum and tells it to the caller of the process.
    pub fn finish(self) -> ExitCode {
        let seconds = self.started.elapsed().as_secs_f64();
        if !self.failed.is_empty() {
            println!("\nDifferent:");
            for name in &self.failed {
                println!("    {name}");
            }
        }
        println!("\n{} equal, {} different, {} known differences; {seconds:.1} s", self.passed, self.failed.len(), self.known);
        match self.failed.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
