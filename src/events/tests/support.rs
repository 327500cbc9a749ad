//! What the tests share: folders, commands, copies of a live folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;
use ulid::Ulid;

use crate::events::engines::Engine;
use crate::events::engines::sqlite::{self, Sqlite};
use crate::events::index::{Index, Sizes};
use crate::events::verify::Depth;
use crate::events::{
    Actor, Append, EngineError, EventLog, Expected, LogOptions, NewEvent, OpenError, Recorded,
    StreamId,
};

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

/// Waits until the index has put something into its database: an orderly end seals it then.
pub async fn indexed(dir: &Path) {
    let stored = || {
        let db = rusqlite::Connection::open(dir.join("index.db")).ok()?;
        let any = "SELECT EXISTS (SELECT 1 FROM runs)";
        db.query_row(any, [], |row| row.get::<_, bool>(0)).ok()
    };
    while !dir.join("index.db").exists() || stored() != Some(true) {
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

/// An index of which next to nothing stays in memory.
pub const SMALL: Sizes = Sizes {
    batch_events: 24,
    pending_events_max: 200,
    retry: Duration::from_millis(20),
};

/// Opens the log in `dir` with a small index. Start-up walks only the end of more than 20 events.
pub fn try_open_small(dir: &Path) -> Result<EventLog, OpenError> {
    let engine = Sqlite::open(dir)?;
    start_small(dir, Box::new(engine)).map_err(|error| sqlite::doubt(dir, error))
}

pub fn open_small(dir: &Path) -> EventLog {
    try_open_small(dir).unwrap_or_else(|error| panic!("the log opens: {error}"))
}

/// A log on `engine` with a small index in `dir`.
pub fn start_small(dir: &Path, engine: Box<dyn Engine>) -> Result<EventLog, EngineError> {
    let index = Index::open_sized(dir, engine.view().log(), SMALL)?;
    let depth = Depth {
        whole_events_max: 20,
        tail_events: 7,
    };
    EventLog::prove(dir.to_owned(), engine, index, depth)
}

/// All events of a log, page by page.
pub async fn everything(log: &EventLog) -> Vec<Arc<Recorded>> {
    let mut all: Vec<Arc<Recorded>> = Vec::new();
    loop {
        let from = all.len() as u64 + 1;
        let page = log.read_all(from, 97).await.expect("read");
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// Goal: what the index finds is what the log says. Every stream's last revision, every event and
/// command by id, and the long streams from a few places in them.
pub async fn assert_index_agrees(log: &EventLog) {
    let all = everything(log).await;
    assert_eq!(all.len() as u64, log.head().position);
    let agrees = log.readers().run(move |view| {
        let mut streams: BTreeMap<&StreamId, Vec<u64>> = BTreeMap::new();
        let mut commit = 0;
        for event in &all {
            let positions = streams.entry(&event.stream).or_default();
            assert_eq!(event.revision, positions.len() as u64, "{}", event.stream);
            positions.push(event.position);
            let found = view.position_of(event.id)?;
            assert_eq!(found, Some(event.position), "event {}", event.id);
            if commit != event.commit {
                commit = event.commit;
                let found = view.commit_of(event.command)?.map(|commit| commit.number);
                assert_eq!(found, Some(commit), "command {}", event.command);
            }
        }
        for (name, positions) in streams {
            let last = positions.len() - 1;
            assert_eq!(view.stream_revision(name)?, Some(last as u64), "{name}");
            let starts = [0, last / 2, last + 1];
            for from in starts.into_iter().take(if last > 0 { 3 } else { 1 }) {
                let limit = if from == 0 { 1_000 } else { 65 };
                let read = view.stream(name, from as u64, limit)?;
                let read: Vec<u64> = read.iter().map(|event| event.position).collect();
                let wanted = positions.iter().skip(from).take(limit);
                assert!(read.iter().eq(wanted), "{name} from {from}, {limit}");
            }
        }
        assert_eq!(view.position_of(Ulid::generate())?, None);
        Ok::<_, EngineError>(view.commit_of(Ulid::generate())?.is_none())
    });
    assert!(agrees.await.expect("read"));
}

/// Runs `test` on a thread whose mounts are its own, after `prepare` has made some: nothing is left
/// behind even when it fails. Prints that it is skipped where mounts can't be made.
pub fn with_mounts(
    prepare: impl FnOnce() -> rustix::io::Result<()> + Send + 'static,
    test: impl FnOnce() + Send + 'static,
) {
    let alone = move || {
        // SAFETY: of the thread's state only the mount table and the working directory are taken
        // apart; no file descriptor table is, and this thread is ours alone.
        let mounted = unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
            .and_then(|()| {
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change("/", private)
            })
            .and_then(|()| prepare());
        match mounted {
            Ok(()) => test(),
            Err(error) => println!("skipped: a disk of its own can't be mounted: {error}"),
        }
    };
    std::thread::spawn(alone)
        .join()
        .expect("the test thread ended well");
}
