//! What the demo tells: numbered steps, and what was seen at each check.
//!
//! Invariant: a failed check is never forgotten; the demo succeeds only when all passed.

use std::io::{self, IsTerminal, Write};

use crate::cli::output::printable;

/// Prints the story and counts.
pub struct Narrator {
    colours: bool,
    steps: u32,
    passed: u32,
    failed: u32,
}

impl Narrator {
    /// Colours only for a terminal that wants them.
    pub fn new(no_color: bool) -> Self {
        let wanted = !no_color && std::env::var_os("NO_COLOR").is_none();
        Self {
            colours: wanted && io::stdout().is_terminal(),
            steps: 0,
            passed: 0,
            failed: 0,
        }
    }

    /// A new step.
    pub fn step(&mut self, title: &str) {
        self.steps += 1;
        let title = format!("{}. {title}", self.steps);
        self.print(&format!("\n{}", self.paint("1", &title)));
    }

    /// Something seen, without a judgement.
    pub fn note(&self, text: &str) {
        for line in text.lines() {
            self.print(&format!("     {}", printable(line)));
        }
    }

    /// A checked claim: `claim` says what must be so, `seen` what was observed.
    pub fn check(&mut self, holds: bool, claim: &str, seen: &str) {
        let mark = if holds {
            self.paint("32", "✓")
        } else {
            self.paint("31", "✗")
        };
        self.print(&format!("   {mark} {claim}"));
        if holds {
            self.passed += 1;
            self.note(seen);
        } else {
            self.failed += 1;
            self.note(&format!("but seen was:\n{seen}"));
        }
    }

    /// A step that could not go on.
    pub fn failure(&mut self, reason: &str) {
        self.failed += 1;
        self.print(&format!(
            "   {} {}",
            self.paint("31", "✗"),
            "the demo can't go on:"
        ));
        self.note(reason);
    }

    /// The last line; true when there was something to check and all of it held.
    pub fn verdict(&self, seconds: f64) -> bool {
        let good = self.failed == 0 && self.passed > 0;
        let text = match good {
            true => self.paint("32", &format!("All {} checks passed", self.passed)),
            false => self.paint(
                "31",
                &format!(
                    "FAILED: {} of {} checks",
                    self.failed,
                    self.passed + self.failed
                ),
            ),
        };
        self.print(&format!("\n{text} in {seconds:.1} s"));
        good
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn print(&self, text: &str) {
        // A reader that left must not keep the demo from cleaning up; the exit code still speaks.
        let _ = writeln!(io::stdout().lock(), "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_checked_and_all_good_is_success() {
        let mut story = Narrator::new(true);
        assert!(!story.verdict(0.0), "nothing was checked");
        story.check(true, "holds", "x");
        assert!(story.verdict(0.0));
        story.check(false, "does not", "y");
        story.check(true, "holds", "z");
        assert!(!story.verdict(0.0));
        let mut story = Narrator::new(true);
        story.check(true, "holds", "x");
        story.failure("no");
        assert!(!story.verdict(0.0));
    }
}
