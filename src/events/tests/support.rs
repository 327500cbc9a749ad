//! What the tests share: folders, commands, copies of a live folder.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use ulid::Ulid;

use crate::events::{Actor, Append, EventLog, Expected, LogOptions, NewEvent, OpenError, StreamId};

pub fn open(dir: &Path) -> EventLog {
    try_open(dir).unwrap_or_else(|error| panic!("the log opens: {error}"))
}

pub fn try_open(dir: &Path) -> Result<EventLog, OpenError> {
    EventLog::open(LogOptions {
        dir: dir.to_owned(),
    })
}

/// Why the log in `dir` does not open, as the operator reads it.
pub fn refusal(dir: &Path) -> String {
    match try_open(dir) {
        Ok(_) => panic!("the log opened"),
        Err(error) => error.to_string(),
    }
}

pub fn stream(name: &str) -> StreamId {
    StreamId::new(name).expect("a stream name")
}

pub fn event(name: &str, value: impl serde::Serialize) -> NewEvent {
    NewEvent {
        id: Ulid::generate(),
        stream: stream(name),
        kind: "test.happened.v1".into(),
        data: json!({ "value": value }),
    }
}

pub fn command(expected: &[(&str, Expected)], events: Vec<NewEvent>) -> Append {
    Append {
        command: Ulid::generate(),
        expected: expected
            .iter()
            .map(|(name, expected)| (stream(name), *expected))
            .collect(),
        events,
        actor: Actor::system(),
        correlation: Some(Ulid::generate()),
        causation: None,
    }
}

/// One event with no expectation.
pub fn note(name: &str, value: impl serde::Serialize) -> Append {
    command(&[], vec![event(name, value)])
}

/// Appends `count` commits of one event each to `name`.
pub async fn fill(log: &EventLog, name: &str, count: usize) {
    for value in 0..count {
        log.append(note(name, value)).await.expect("appended");
    }
}

/// Waits until the witness has seen all of the log.
pub async fn witnessed(log: &EventLog) {
    while log.verify().await.expect("whole").witness != Some(log.head()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The folder's files as a power cut would leave them, with the log still open.
pub fn copy(from: &Path, to: &Path) {
    for file in ["log.db", "log.db-wal", "head.witness"] {
        let target = to.join(file);
        match std::fs::read(from.join(file)) {
            Ok(bytes) => std::fs::write(target, bytes).expect("copied"),
            Err(_) => drop(std::fs::remove_file(target)),
        }
    }
    drop(std::fs::remove_file(to.join("log.db-shm")));
}
