//! What a check found, and how it is told.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::client::Trouble;
use super::world::World;
use crate::cli::output::table;

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The attack was carried out and came to nothing.
    Pass,
    /// It worked.
    Fail,
    /// It could not be carried out, or what happened can't be told.
    Skipped,
}

/// A verdict and what was seen, in one line.
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// What was seen; never a value.
    pub seen: String,
}

/// The attack came to nothing.
pub fn pass(seen: impl Into<String>) -> Result<Outcome, Trouble> {
    outcome(Verdict::Pass, seen)
}

/// The attack worked.
pub fn fail(seen: impl Into<String>) -> Result<Outcome, Trouble> {
    outcome(Verdict::Fail, seen)
}

/// Nothing can be told.
pub fn skipped(reason: impl Into<String>) -> Result<Outcome, Trouble> {
    outcome(Verdict::Skipped, reason)
}

fn outcome(verdict: Verdict, seen: impl Into<String>) -> Result<Outcome, Trouble> {
    let seen = seen.into();
    Ok(Outcome { verdict, seen })
}

/// One attack.
pub struct Check {
    /// Its name, unique.
    pub name: &'static str,
    /// Its row in the list of threats.
    pub row: &'static str,
    /// Carries it out.
    pub run: for<'a> fn(&'a World) -> BoxFuture<'a, Result<Outcome, Trouble>>,
}

/// One line of the table.
#[derive(Serialize)]
pub struct Line {
    name: &'static str,
    row: &'static str,
    outcome: Verdict,
    seen: String,
    ms: u128,
}

impl Line {
    /// The line of `check`.
    pub fn new(check: &Check, result: Result<Outcome, Trouble>, took: Duration) -> Self {
        let outcome = result.unwrap_or_else(|trouble| Outcome {
            verdict: Verdict::Skipped,
            seen: format!("can't tell: {trouble}"),
        });
        Self {
            name: check.name,
            row: check.row,
            outcome: outcome.verdict,
            seen: outcome.seen,
            ms: took.as_millis(),
        }
    }
}

/// How many lines have this verdict.
pub fn count(lines: &[Line], verdict: Verdict) -> usize {
    lines.iter().filter(|line| line.outcome == verdict).count()
}

/// The table, and the sum in words.
pub fn text(lines: &[Line]) -> String {
    let rows = lines.iter().map(|line| {
        let outcome = match line.outcome {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Skipped => "skipped",
        };
        [
            outcome.into(),
            line.row.into(),
            line.name.into(),
            line.seen.clone(),
        ]
    });
    let sum = format!(
        "{} passed, {} failed, {} skipped",
        count(lines, Verdict::Pass),
        count(lines, Verdict::Fail),
        count(lines, Verdict::Skipped)
    );
    format!(
        "{}\n\n{sum}",
        table(["OUTCOME", "ROW", "ATTACK", "SEEN"], rows.collect())
    )
}
