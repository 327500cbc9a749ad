//! `oc checkpoint diff`: lines of JSON from the server, passed on or put in words as they come.
//!
//! Invariants: one line is held at a time, up to [`LINE_BYTES_MAX`]; a reply without its summary is
//! one that broke off, and a failure.

use std::io::Write;

use serde::Deserialize;

use super::Context;
use super::error::CliError;
use super::output::printable;

/// Longest line: a path of any depth that is told, escaped.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Line {
    path: String,
    change: String,
    what: Vec<String>,
    from: Option<Told>,
    to: Option<Told>,
    reason: Option<String>,
    summary: Option<Summary>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Told {
    #[serde(rename = "type")]
    kind: String,
    mode: String,
    uid: u32,
    gid: u32,
    size: Option<u64>,
    target: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Summary {
    added: u64,
    removed: u64,
    changed: u64,
    unknown: u64,
    complete: bool,
}

/// Prints what differs between two checkpoints.
pub async fn run(context: &Context, from: &str, to: &str) -> Result<(), CliError> {
    let mut lines = Lines::default();
    let mut summary = None;
    let json = context.output.json;
    let path = ["sandboxes", "checkpoints", from, "diff", to];
    let download = context.api.download(&path, &[], |piece| {
        lines.push(piece, |text| {
            let mut line: Line = serde_json::from_slice(text)
                .map_err(|error| CliError::BadReply(format!("a line is no JSON: {error}")))?;
            let mut out = std::io::stdout().lock();
            let printed = match (json, line.summary.take()) {
                (true, found) => {
                    summary = found.or(summary.take());
                    out.write_all(text).and_then(|()| out.write_all(b"\n"))
                }
                (false, Some(found)) => {
                    let told = writeln!(out, "{}", in_words(&found));
                    summary = Some(found);
                    told
                }
                // Where it is: nothing to print.
                (false, None) if line.change.is_empty() => Ok(()),
                (false, None) => writeln!(out, "{}", row(&line)),
            };
            printed.map_err(CliError::Output)
        })
    });
    download.await?;
    match summary {
        Some(summary) if summary.complete => Ok(()),
        Some(_) => Err(CliError::Dropped(
            "the comparison took too long: what is listed is not all".to_owned(),
        )),
        None => Err(CliError::Dropped(
            "the comparison broke off: what is listed is not all".to_owned(),
        )),
    }
}

fn in_words(summary: &Summary) -> String {
    let mut text = format!(
        "{} added, {} removed, {} changed",
        summary.added, summary.removed, summary.changed
    );
    if summary.unknown > 0 {
        text += &format!(", {} not compared", summary.unknown);
    }
    text
}

fn row(line: &Line) -> String {
    let path = printable(&line.path);
    let slash = |told: &Option<Told>| match told {
        Some(told) if told.kind == "directory" => "/",
        _ => "",
    };
    match line.change.as_str() {
        "added" => format!("A  {path}{}", slash(&line.to)),
        "removed" => format!("D  {path}{}", slash(&line.from)),
        "changed" => {
            let (from, to) = (line.from.as_ref(), line.to.as_ref());
            let what: Vec<String> = line
                .what
                .iter()
                .map(|what| changed(what, from, to))
                .collect();
            format!("M  {path}{}  ({})", slash(&line.to), what.join(", "))
        }
        _ => {
            let reason = line.reason.as_deref().unwrap_or("no reason given");
            format!("?  {path}  ({})", printable(reason))
        }
    }
}

/// One of the things that changed, with what it was and is where that is short.
fn changed(what: &str, from: Option<&Told>, to: Option<&Told>) -> String {
    let (Some(from), Some(to)) = (from, to) else {
        return printable(what);
    };
    let values = match what {
        "type" => (from.kind.clone(), to.kind.clone()),
        "mode" => (from.mode.clone(), to.mode.clone()),
        "owner" => (
            format!("{}:{}", from.uid, from.gid),
            format!("{}:{}", to.uid, to.gid),
        ),
        "size" => (
            from.size.unwrap_or_default().to_string(),
            to.size.unwrap_or_default().to_string(),
        ),
        "target" => (
            from.target.clone().unwrap_or_default(),
            to.target.clone().unwrap_or_default(),
        ),
        other => return printable(other),
    };
    printable(&format!("{what} {} → {}", values.0, values.1))
}

/// Bytes that come in pieces, as lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(
        &mut self,
        piece: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.0.extend_from_slice(part);
            if self.0.len() > LINE_BYTES_MAX {
                return Err(CliError::BadReply("a line is too long".to_owned()));
            }
            if self.0.pop_if(|last| *last == b'\n').is_some() {
                take(&self.0)?;
                self.0.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in ["on", "e\ntwo\n\nth", "", "ree\n"] {
            let take = |text: &[u8]| {
                seen.push(String::from_utf8_lossy(text).into_owned());
                Ok(())
            };
            lines.push(piece.as_bytes(), take).unwrap();
        }
        assert_eq!(seen, ["one", "two", "", "three"]);
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        assert!(lines.push(&long, |_| Ok(())).is_err());
    }

    /// Goal: a name can't draw on the terminal, and what changed is told with both values.
    #[test]
    fn differences_are_put_in_words() {
        let check = |json: &str, expected: &str| {
            let line: Line = serde_json::from_str(json).unwrap();
            assert_eq!(row(&line), expected);
        };
        check(
            r#"{"path":"/a\u001b[2J","change":"added","to":{"type":"file"}}"#,
            "A  /a\\u{1b}[2J",
        );
        check(
            r#"{"path":"/d","change":"removed","from":{"type":"directory"}}"#,
            "D  /d/",
        );
        check(
            r#"{"path":"/f","change":"changed","what":["mode","size","content"],
                "from":{"type":"file","mode":"0644","size":1},
                "to":{"type":"file","mode":"0755","size":2}}"#,
            "M  /f  (mode 0644 → 0755, size 1 → 2, content)",
        );
        check(
            r#"{"path":"/x","change":"unknown","reason":"denied"}"#,
            "?  /x  (denied)",
        );
    }
}
