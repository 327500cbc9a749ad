use std::sync::Arc;

use bytes::Bytes;
use time::OffsetDateTime;

use super::read::{LogQuery, LogReader};
use super::segments::{SEGMENT_BYTES_MAX, Segments};
use super::writer::{Exec, LINE_BYTES_MAX, Lines, Piece};
use super::{LogLine, LogSource};

fn exec(id: &str) -> Arc<Exec> {
    Arc::new(Exec {
        id: id.to_owned(),
        command: "cmd".to_owned(),
        argv: vec!["a".to_owned()],
    })
}

fn output(exec: &Arc<Exec>, source: LogSource, data: &[u8]) -> Piece {
    Piece::Output {
        exec: exec.clone(),
        source,
        data: Bytes::copy_from_slice(data),
    }
}

fn taken(lines: &mut Lines, piece: Piece) -> Vec<LogLine> {
    let mut found = Vec::new();
    lines.take(piece, OffsetDateTime::UNIX_EPOCH, &mut |line| {
        found.push(line)
    });
    found
}

/// Goal: lines come out the same however output is cut into pieces; unfinished ones end with their
/// process, whose exit is the last entry.
#[test]
fn lines_are_the_same_at_every_cut() {
    let text = b"one\r\n\ntwo \xff\nrest";
    for cut in 0..=text.len() {
        let (mut lines, own, other) = (Lines::default(), exec("1"), exec("2"));
        let mut found = taken(
            &mut lines,
            output(&own, LogSource::ExecStdout, &text[..cut]),
        );
        assert!(taken(&mut lines, output(&other, LogSource::ExecStdout, b"x")).is_empty());
        assert!(taken(&mut lines, output(&own, LogSource::ExecStderr, b"err")).is_empty());
        found.extend(taken(
            &mut lines,
            output(&own, LogSource::ExecStdout, &text[cut..]),
        ));
        found.extend(taken(&mut lines, Piece::Exit { exec: own, code: 3 }));
        let shown: Vec<_> = found
            .iter()
            .map(|line| (line.source, line.line.as_str(), line.exit_code))
            .collect();
        let (out, err) = (LogSource::ExecStdout, LogSource::ExecStderr);
        let wanted = [
            (out, "one", None),
            (out, "", None),
            (out, "two \u{fffd}", None),
            (out, "rest", None),
            (err, "err", None),
            (out, "", Some(3)),
        ];
        assert_eq!(shown, wanted, "cut at {cut}");
        assert!(
            found
                .iter()
                .all(|line| line.exec_id.as_deref() == Some("1"))
        );
    }
}

/// Goal: a line without end takes bounded memory and loses nothing.
#[test]
fn long_lines_are_cut() {
    let (mut lines, own) = (Lines::default(), exec("1"));
    let mut found = Vec::new();
    for _ in 0..7 {
        let piece = output(&own, LogSource::ExecStdout, &[b'x'; LINE_BYTES_MAX - 1]);
        found.extend(taken(&mut lines, piece));
    }
    found.extend(taken(&mut lines, Piece::Exit { exec: own, code: 0 }));
    assert!(found.iter().all(|line| line.line.len() <= LINE_BYTES_MAX));
    let bytes: usize = found.iter().map(|line| line.line.len()).sum();
    assert_eq!(bytes, 7 * (LINE_BYTES_MAX - 1));
}

/// Goal: lines of one byte, whose records are hundreds of times as long, take bounded memory; what is
/// left out is counted to the byte.
#[test]
fn short_lines_take_bounded_memory() {
    let exec = Arc::new(Exec {
        argv: vec!["a".repeat(1000)],
        ..Arc::into_inner(exec("1")).unwrap()
    });
    let data = vec![b'\n'; 32 * 1024];
    let piece = |_| output(&exec, LogSource::ExecStdout, &data);
    let pieces = (0..8).map(piece).collect();
    let records = Lines::default().records(pieces, 5, OffsetDateTime::UNIX_EPOCH);
    assert!(records.len() < 5 * 1024 * 1024, "{}", records.len());
    let text = String::from_utf8(records).unwrap();
    let kept = text.lines().count() - 1;
    assert!(kept > 1000, "{kept}");
    let missing = format!("[{} bytes of output came", 8 * 32 * 1024 - kept + 5);
    assert!(text.lines().last().unwrap().contains(&missing), "{missing}");
}

fn record(number: usize, source: LogSource) -> Vec<u8> {
    let line = LogLine {
        time: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(number as i64),
        source,
        line: format!("line {number:06} {}", "x".repeat(1000)),
        path: None,
        exec_id: None,
        command: None,
        argv: None,
        exit_code: None,
    };
    let mut record = serde_json::to_vec(&line).unwrap();
    record.push(b'\n');
    record
}

fn numbers(lines: impl IntoIterator<Item = LogLine>) -> Vec<usize> {
    let number = |line: LogLine| line.line[5..11].parse().unwrap();
    lines.into_iter().map(number).collect()
}

/// Goal: a log keeps its newest 8 to 16 MiB, over any number of openings; a reader that follows it
/// misses nothing that is kept and gets nothing twice.
#[test]
fn a_log_is_a_ring_that_can_be_followed() {
    const COUNT: usize = 40_000;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("log");
    let query = LogQuery {
        limit: 5,
        ..LogQuery::default()
    };
    let mut reader = LogReader::new(at.clone(), query.clone());
    assert!(
        reader.look_back().unwrap().is_empty(),
        "no log is an empty one"
    );
    let (mut followed, mut segments) = (Vec::new(), Segments::open(&at).unwrap());
    for number in 0..COUNT {
        segments
            .append(&record(number, LogSource::ExecStdout))
            .unwrap();
        if number % 10_000 == 0 {
            segments = Segments::open(&at).unwrap();
        }
        if number % 100 == 0 {
            followed.extend(numbers(reader.look_on().unwrap()));
        }
    }
    followed.extend(numbers(reader.look_on().unwrap()));
    assert_eq!(followed, (0..COUNT).collect::<Vec<_>>());
    let files = std::fs::read_dir(&at).unwrap().flatten();
    let sizes: Vec<_> = files.map(|file| file.metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 2);
    assert!(
        sizes.iter().all(|size| *size <= SEGMENT_BYTES_MAX),
        "{sizes:?}"
    );
    let mut late = LogReader::new(at.clone(), query);
    let newest = numbers(late.look_back().unwrap());
    assert_eq!(newest, (COUNT - 5..COUNT).collect::<Vec<_>>());
    assert!(late.look_on().unwrap().is_empty());
    // One that slept too long goes on with the oldest there is.
    for number in COUNT..2 * COUNT {
        segments
            .append(&record(number, LogSource::ExecStdout))
            .unwrap();
    }
    let first = numbers(late.look_on().unwrap())[0];
    assert!(first > COUNT && first < 2 * COUNT, "{first}");
}

/// Goal: filters take what they say; a record that was cut off by a crash is passed over.
#[test]
fn filters_take_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(folder.path()).unwrap();
    for number in 0..6 {
        let source = [LogSource::ExecStdout, LogSource::VarLog][number % 2];
        segments.append(&record(number, source)).unwrap();
        let half = &record(9, source)[..40];
        segments.append(half).unwrap();
        segments = Segments::open(folder.path()).unwrap();
    }
    let look = |query: LogQuery| {
        let query = LogQuery { limit: 10, ..query };
        let mut reader = LogReader::new(folder.path().to_owned(), query);
        numbers(reader.look_back().unwrap())
    };
    let at = |second| Some(OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second));
    let all = LogQuery::default();
    assert_eq!(look(all.clone()), [0, 1, 2, 3, 4, 5]);
    let sources = vec![LogSource::VarLog];
    assert_eq!(
        look(LogQuery {
            sources,
            ..all.clone()
        }),
        [1, 3, 5]
    );
    let text = Some("000004".to_owned());
    assert_eq!(
        look(LogQuery {
            text,
            ..all.clone()
        }),
        [4]
    );
    let (since, until) = (at(2), at(3));
    assert_eq!(
        look(LogQuery {
            since,
            until,
            ..all
        }),
        [2, 3]
    );
}
