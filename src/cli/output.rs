//! What commands print: tables, labelled lines, JSON.
//!
//! Invariants: text from the server passes [`printable`] before it reaches a terminal, so that a
//! name can't move the cursor or retitle the window; a closed pipe is an error value, not a panic.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::CliError;

/// Writes results to standard output in the form the user asked for.
#[derive(Clone, Copy)]
pub struct Output {
    /// `--json` was given.
    pub json: bool,
    /// Standard output is a terminal, and colours are wanted there.
    pub color: bool,
}

impl Output {
    /// The form that the flags and the environment ask for.
    pub fn of(global: &super::Global) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json: global.json,
            color: !global.no_color && !unwanted && io::stdout().is_terminal(),
        }
    }

    /// One line of text, in both modes ("text only" commands).
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        write_stdout(&format!("{text}\n"))
    }

    /// The reply with `--json`, otherwise the line `text` makes.
    pub fn reply<T: Serialize>(
        &self,
        reply: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        if self.json {
            self.json(reply)
        } else {
            self.line(&text())
        }
    }

    /// A warning on standard error, as JSON where errors are; nobody can be told when it is closed.
    pub fn warn(&self, text: &str) {
        let line = match self.json {
            true => serde_json::json!({ "warning": text }).to_string(),
            false => format!("warning: {}", printable(text)),
        };
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// JSON with an indent of two blanks.
    pub fn json<T: Serialize>(&self, value: &T) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::BadReply(error.to_string()))?;
        self.line(&text)
    }
}

/// Columns padded with two blanks, left aligned, header row in capitals.
pub fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut builder = Builder::default();
    builder.push_record(header);
    for row in rows {
        builder.push_record(row.map(|cell| printable(&cell)));
    }
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    // The last column's padding is only blanks at the end of each line.
    let lines: Vec<String> = table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// `Label: value` lines with the values in one column.
pub fn labelled(lines: &[(&str, String)]) -> String {
    let width = lines
        .iter()
        .map(|(label, _)| label.len())
        .max()
        .unwrap_or(0)
        + 2;
    let line = |(label, value): &(&str, String)| {
        format!("{:width$}{}", format!("{label}:"), printable(value))
            .trim_end()
            .to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The text with control characters escaped.
pub fn printable(text: &str) -> String {
    let escape = |character: char| -> String {
        if character.is_control() {
            character.escape_unicode().to_string()
        } else {
            character.to_string()
        }
    };
    text.chars().map(escape).collect()
}

/// The time since an RFC 3339 time, rounded to seconds, as `3m12s`; `-` when it can't be told.
pub fn age(since: Option<&str>, now: OffsetDateTime) -> String {
    let Some(Ok(since)) = since.map(|text| OffsetDateTime::parse(text, &Rfc3339)) else {
        return "-".to_owned();
    };
    let seconds = (now - since).as_seconds_f64().round().max(0.0) as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Writes all of `text` to standard output.
pub fn write_stdout(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(CliError::Output)
}

/// Prints a failed command's error on standard error.
pub fn report(error: &CliError, json: bool) {
    if error.is_closed_pipe() {
        return;
    }
    let text = if json {
        serde_json::json!({ "code": error.exit_code(), "error": error.to_string() }).to_string()
    } else {
        let hint = error
            .hint()
            .map(|hint| format!("\n{hint}"))
            .unwrap_or_default();
        format!("error: {}{hint}", printable(&error.to_string()))
    };
    // Nobody can be told when standard error is closed; the exit code still speaks.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_left_aligned_with_two_blanks_and_no_trailing_ones() {
        let rows = vec![["1".into(), "long name".into()], ["22".into(), "x".into()]];
        assert_eq!(
            table(["ID", "NAME"], rows),
            "ID  NAME\n1   long name\n22  x"
        );
        assert_eq!(table(["ID", "NAME"], vec![]), "ID  NAME");
    }

    #[test]
    fn labels_share_one_column() {
        let lines = [("ID", "x".to_owned()), ("Template", "base".to_owned())];
        assert_eq!(labelled(&lines), "ID:       x\nTemplate: base");
    }

    /// Goal: text of a stranger can't drive the terminal.
    #[test]
    fn control_characters_are_escaped() {
        let shown = table(["A"], vec![["\u{1b}[2Jx\r\n\u{9b}y".into()]]);
        assert_eq!(shown, "A\n\\u{1b}[2Jx\\u{d}\\u{a}\\u{9b}y");
        assert_eq!(printable("naïve → ok"), "naïve → ok");
    }

    #[test]
    fn ages_read_as_hours_minutes_seconds() {
        let now = OffsetDateTime::parse("2026-01-02T00:00:00Z", &Rfc3339).unwrap();
        let check = |since: &str, expected: &str| assert_eq!(age(Some(since), now), expected);
        check("2026-01-01T23:59:15.400Z", "45s");
        check("2026-01-01T23:56:48Z", "3m12s");
        check("2026-01-01T00:00:00Z", "24h0m0s");
        check("2026-01-03T00:00:00Z", "0s");
        check("yesterday", "-");
        assert_eq!(age(None, now), "-");
    }
}
