//! The task that turns output into lines and writes them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::segments::Segments;
use super::{LogLine, LogSource};

/// Longest line kept as one, in bytes; a longer one is cut into several.
pub const LINE_BYTES_MAX: usize = 8 * 1024;
/// Pieces on their way to the writer; one is 32 KiB at most.
pub const PIECES_MAX: usize = 256;
/// Pieces written at once.
const BATCH_MAX: usize = 8;
/// Records written at once, in bytes (4 MiB) and one record more: short lines take much more room than
/// the program's own bytes did. What is beyond is counted, not kept.
const RECORDS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What one sandbox's log is written with at most, bytes a second: 16 MiB.
const BYTES_PER_SEC_MAX: usize = 16 * 1024 * 1024;
/// Commands whose last line may be unfinished; beyond it one line is ended early.
const UNFINISHED_MAX: usize = 512;

/// What a program was started as.
#[derive(Debug)]
pub struct Exec {
    pub id: String,
    pub command: String,
    pub argv: Vec<String>,
}

/// Something to write.
#[derive(Debug)]
pub enum Piece {
    Output {
        exec: Arc<Exec>,
        source: LogSource,
        data: Bytes,
    },
    Exit {
        exec: Arc<Exec>,
        code: i32,
    },
    File {
        path: String,
        line: String,
    },
}

/// Writes what comes until every sender is gone. A log that can't be written is told once in the
/// server's own, and nothing else.
pub async fn write(folder: PathBuf, mut pieces: mpsc::Receiver<Piece>, dropped: Arc<AtomicU64>) {
    let (mut lines, mut segments, mut told) = (Lines::default(), None, false);
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while pieces.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let missing = dropped.swap(0, Ordering::Relaxed);
        let (taken, own, begun) = (std::mem::take(&mut batch), folder.clone(), Instant::now());
        let worked = tokio::task::spawn_blocking(move || {
            let records = lines.records(taken, missing, OffsetDateTime::now_utc());
            let written = append(segments, &own, &records);
            (lines, records.len(), written)
        });
        // It does not panic, and ends early only with the server.
        let Ok((back, length, written)) = worked.await else {
            return;
        };
        lines = back;
        segments = match written {
            Ok(open) => Some(open),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, folder = %folder.display(), "a sandbox's log can't be written");
                }
                None
            }
        };
        // No sandbox takes more than half a processor for its log.
        let pause = Duration::from_secs_f64(length as f64 / BYTES_PER_SEC_MAX as f64);
        tokio::time::sleep(pause.max(begun.elapsed())).await;
    }
}

fn append(open: Option<Segments>, folder: &Path, records: &[u8]) -> std::io::Result<Segments> {
    let mut open = match open {
        Some(open) => open,
        None => Segments::open(folder)?,
    };
    open.append(records)?;
    Ok(open)
}

fn encode(line: &LogLine, records: &mut Vec<u8>) {
    // Plain data: it always serializes.
    if serde_json::to_writer(&mut *records, line).is_ok() {
        records.push(b'\n');
    }
}

fn plain(source: LogSource, line: String, time: OffsetDateTime) -> LogLine {
    LogLine {
        time,
        source,
        line,
        path: None,
        exec_id: None,
        command: None,
        argv: None,
        exit_code: None,
    }
}

/// Lines that have no end yet.
#[derive(Default)]
pub(super) struct Lines(HashMap<(String, bool), Vec<u8>>);

impl Lines {
    /// The records of the lines that pieces end; `missing` bytes did not come this far.
    pub fn records(
        &mut self,
        pieces: Vec<Piece>,
        mut missing: u64,
        now: OffsetDateTime,
    ) -> Vec<u8> {
        let mut records = Vec::new();
        for piece in pieces {
            self.take(
                piece,
                now,
                &mut |line| match records.len() < RECORDS_BYTES_MAX || line.exit_code.is_some() {
                    true => encode(&line, &mut records),
                    false => missing += line.line.len() as u64 + 1,
                },
            );
        }
        if missing > 0 {
            let text = format!("[{missing} bytes of output came too fast to be kept]");
            encode(&plain(LogSource::ExecStderr, text, now), &mut records);
        }
        records
    }

    /// Hands over each line that a piece ends.
    pub fn take(&mut self, piece: Piece, now: OffsetDateTime, each: &mut impl FnMut(LogLine)) {
        match piece {
            Piece::File { path, line } => each(LogLine {
                path: Some(path),
                ..plain(LogSource::VarLog, line, now)
            }),
            Piece::Output { exec, source, data } => {
                let key = (exec.id.clone(), source == LogSource::ExecStderr);
                let mut line = self.0.remove(&key).unwrap_or_default();
                for part in data.split_inclusive(|byte| *byte == b'\n') {
                    let (mut rest, ended) = match part.strip_suffix(b"\n") {
                        Some(rest) => (rest, true),
                        None => (part, false),
                    };
                    while line.len() + rest.len() > LINE_BYTES_MAX {
                        let (fits, later) = rest.split_at(LINE_BYTES_MAX - line.len());
                        line.extend_from_slice(fits);
                        rest = later;
                        each(of(&exec, source, &std::mem::take(&mut line), now));
                    }
                    line.extend_from_slice(rest);
                    if ended {
                        each(of(&exec, source, &std::mem::take(&mut line), now));
                    }
                }
                if line.is_empty() {
                    return;
                }
                match self.0.len() < UNFINISHED_MAX {
                    true => drop(self.0.insert(key, line)),
                    false => each(of(&exec, source, &line, now)),
                }
            }
            Piece::Exit { exec, code } => {
                for (is_error, source) in [
                    (false, LogSource::ExecStdout),
                    (true, LogSource::ExecStderr),
                ] {
                    if let Some(line) = self.0.remove(&(exec.id.clone(), is_error)) {
                        each(of(&exec, source, &line, now));
                    }
                }
                each(LogLine {
                    exit_code: Some(code),
                    ..of(&exec, LogSource::ExecStdout, b"", now)
                });
            }
        }
    }
}

fn of(exec: &Exec, source: LogSource, line: &[u8], time: OffsetDateTime) -> LogLine {
    let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
    LogLine {
        exec_id: Some(exec.id.clone()),
        command: Some(exec.command.clone()),
        argv: Some(exec.argv.clone()),
        ..plain(source, line, time)
    }
}
