//! The index on disk: believed only with its seal, made anew otherwise, and never a wrong answer.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use ulid::Ulid;

use super::support::{
    SMALL, assert_index_agrees, command, event, fill, note, open_small, start_small, stream,
};
use crate::events::engines::memory::Memory;
use crate::events::engines::sqlite::Sqlite;
use crate::events::engines::{Commit, Engine, Reader};
use crate::events::index::Index;
use crate::events::verify::{Depth, at_open};
use crate::events::{AppendError, EngineError, EventLog, Expected, Head, NewEvent};

const FILES: [&str; 2] = ["index.db", "index.seal"];

/// A closed log of 300 events whose index is sealed.
async fn sealed() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open_small(dir.path());
    grow(&log, 100).await;
    log.close().await;
    for file in FILES {
        assert!(
            dir.path().join(file).exists(),
            "no {file} after an orderly end"
        );
    }
    dir
}

/// Adds `commits` of three events each, over a few streams.
async fn grow(log: &EventLog, commits: usize) {
    for value in 0..commits {
        let names = [
            "all".to_owned(),
            format!("s-{}", value % 9),
            format!("r-{value}"),
        ];
        let events = names.iter().map(|name| event(name, value)).collect();
        log.append(command(&[], events)).await.expect("appended");
    }
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("lists").flatten();
    let read = |entry: fs::DirEntry| {
        let bytes = fs::read(entry.path()).expect("read");
        (entry.file_name().into_string().expect("UTF-8"), bytes)
    };
    entries.map(read).collect()
}

fn put_back(dir: &Path, files: &[(String, Vec<u8>)]) {
    for entry in fs::read_dir(dir).expect("lists").flatten() {
        fs::remove_file(entry.path()).expect("removed");
    }
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).expect("written");
    }
}

/// Whether the index in `dir` would be believed.
fn believed(dir: &Path) -> bool {
    let engine = Sqlite::open(dir).expect("opened");
    let index = Index::open_sized(dir, engine.view().log(), SMALL).expect("an index");
    index.head().is_some()
}

/// Goal: an orderly end leaves an index that the next start believes, with the right answers; the
/// seal is broken while the log is open, so a kill leaves none and the index is made anew.
#[tokio::test]
async fn an_index_is_believed_after_an_orderly_end_only() {
    let dir = sealed().await;
    let whole = files(dir.path());
    assert!(believed(dir.path()), "a sealed index");
    assert!(!believed(dir.path()), "its seal is broken by now");
    put_back(dir.path(), &whole);
    let log = open_small(dir.path());
    assert!(!dir.path().join("index.seal").exists());
    assert_index_agrees(&log).await;
    grow(&log, 30).await;
    assert_index_agrees(&log).await;
    // As a kill leaves it, with the database ahead of any seal.
    let cut = files(dir.path());
    assert_index_agrees(&log).await;
    log.close().await;
    let other = tempfile::tempdir().expect("a folder");
    put_back(other.path(), &cut);
    let log = open_small(other.path());
    assert_eq!(log.head().position, 390);
    assert_index_agrees(&log).await;
    log.close().await;
    let log = open_small(other.path());
    assert_index_agrees(&log).await;
    log.close().await;
}

/// Goal: whatever is wrong with the index's files, the log opens with right answers. Method: each
/// kind of loss and mix-up, then bits flipped all over both files.
#[tokio::test]
async fn a_doubtful_index_is_made_anew() {
    let dir = sealed().await;
    let whole = files(dir.path());
    let (live, other) = (tempfile::tempdir().expect("a folder"), sealed().await);
    // A write-ahead file of the index with rows that its seal knows nothing of.
    put_back(live.path(), &whole);
    let log = open_small(live.path());
    grow(&log, 40).await;
    while fs::metadata(live.path().join("index.db-wal")).map_or(0, |meta| meta.len()) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let ahead = fs::read(live.path().join("index.db-wal")).expect("read");
    log.close().await;
    let later = files(live.path());
    let of = |files: &[(String, Vec<u8>)], name: &str| {
        files
            .iter()
            .find(|(file, _)| file == name)
            .expect("there")
            .1
            .clone()
    };
    let (old_seal, new_seal) = (of(&whole, "index.seal"), of(&later, "index.seal"));
    let others = files(other.path());
    let write =
        |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("written");
    let remove = |name: &str| fs::remove_file(dir.path().join(name)).expect("removed");
    type Change<'a> = Box<dyn Fn() + 'a>;
    let changes: Vec<(&str, bool, Change<'_>)> = vec![
        ("nothing", true, Box::new(|| ())),
        ("no database", false, Box::new(|| remove("index.db"))),
        (
            "an empty database",
            false,
            Box::new(|| write("index.db", b"")),
        ),
        ("no seal", false, Box::new(|| remove("index.seal"))),
        (
            "an empty seal",
            false,
            Box::new(|| write("index.seal", b"")),
        ),
        (
            "half a seal",
            false,
            Box::new(|| write("index.seal", &old_seal[..old_seal.len() / 2])),
        ),
        (
            "a later seal",
            false,
            Box::new(|| write("index.seal", &new_seal)),
        ),
        (
            "a later database",
            false,
            Box::new(|| write("index.db", &of(&later, "index.db"))),
        ),
        (
            "another log's index",
            false,
            Box::new(|| {
                for file in FILES {
                    write(file, &of(&others, file));
                }
            }),
        ),
        (
            "a later index with its seal",
            true,
            Box::new(|| {
                for file in FILES {
                    write(file, &of(&later, file));
                }
            }),
        ),
        (
            "a write-ahead file from later",
            true,
            Box::new(|| write("index.db-wal", &ahead)),
        ),
    ];
    for (what, believable, change) in changes {
        put_back(dir.path(), &whole);
        change();
        assert_eq!(believed(dir.path()), believable, "{what}");
        put_back(dir.path(), &whole);
        change();
        let log = open_small(dir.path());
        assert_eq!(log.head().position, 300, "{what}");
        assert_index_agrees(&log).await;
        // It also takes what comes next.
        grow(&log, 20).await;
        assert_index_agrees(&log).await;
        log.close().await;
    }
}

/// Goal: no flipped bit in the index's files changes an answer.
#[tokio::test]
async fn no_flipped_bit_in_the_index_changes_an_answer() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = sealed().await;
    let whole = files(dir.path());
    for round in 0..12 {
        put_back(dir.path(), &whole);
        let path = dir.path().join(FILES[round % 2]);
        let mut bytes = fs::read(&path).expect("read");
        let (at, bit) = (
            random.random_range(0..bytes.len()),
            random.random_range(0..8),
        );
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).expect("written");
        let log = open_small(dir.path());
        assert_index_agrees(&log).await;
        log.close().await;
    }
}

/// Goal: ids that share their first 62 bits, the smallest and the largest of all, and ids older
/// than all that are stored are told apart, in memory, on disk and after opening again.
#[tokio::test]
async fn ids_that_look_alike_are_told_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    let memory = Memory::new();
    let log = start_small(dir.path(), Box::new(memory.clone())).expect("started");
    let near = Ulid::generate().0 & !0xffff;
    let mut ids: Vec<u128> = (0..40).map(|n| near + n).collect();
    // The same place, its neighbours, and both ends.
    ids.extend((1..40).map(|n| near + (n << 66)));
    ids.extend((0..30).map(|n| u128::MAX - n));
    ids.extend(0..30);
    let append = |id: u128| {
        let mut append = note(&format!("s-{}", id % 5), 1);
        append.command = Ulid::from(id);
        append.events[0].id = Ulid::from(id);
        append
    };
    for id in &ids {
        let done = log.append(append(*id)).await.expect("appended");
        assert!(!done.replayed, "{id:x} was taken for another");
        fill(&log, "others", 1).await;
    }
    let check = async |log: &EventLog| {
        for id in &ids {
            assert!(
                log.append(append(*id)).await.expect("answered").replayed,
                "{id:x}"
            );
            let mut twin = append(*id);
            twin.command = Ulid::generate();
            let refused = log.append(twin).await.expect_err("taken");
            assert!(
                matches!(refused, AppendError::DuplicateEvent { .. }),
                "{refused}"
            );
        }
        assert_index_agrees(log).await;
    };
    check(&log).await;
    log.close().await;
    // Without one, some of them had found no place on disk.
    assert!(
        dir.path().join("index.seal").exists(),
        "the index has no seal"
    );
    let log = start_small(dir.path(), Box::new(memory.clone())).expect("started");
    check(&log).await;
    log.close().await;
}

/// Goal: look-ups are right at every moment while batches go from memory to disk. Method: one
/// writer, and threads that look for streams and ids that are there already, all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_are_right_while_batches_move() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = start_small(dir.path(), Box::new(Memory::new())).expect("started");
    let first = note("early", 1);
    log.append(first.clone()).await.expect("appended");
    let done = Arc::new(AtomicBool::new(false));
    let lookers: Vec<_> = (0..3)
        .map(|_| {
            let (log, done, first) = (log.clone(), Arc::clone(&done), first.clone());
            tokio::spawn(async move {
                let mut rounds = 0_u64;
                while !done.load(Ordering::Relaxed) || rounds < 5 {
                    rounds += 1;
                    let known = log.stream_head(&stream("all")).await.expect("read");
                    let known = known.map_or(0, |(revision, _)| revision + 1);
                    let from = known.saturating_sub(rounds % 90);
                    let read = log
                        .read_stream(&stream("all"), from, 100)
                        .await
                        .expect("read");
                    let revisions: Vec<_> = read.iter().map(|event| event.revision).collect();
                    assert!(from + read.len() as u64 >= known.min(from + 100));
                    assert!(revisions.iter().copied().eq(from..from + read.len() as u64));
                    let early = log.stream_head(&stream("early")).await.expect("read");
                    assert_eq!(early.map(|(revision, _)| revision), Some(0));
                    assert!(log.append(first.clone()).await.expect("answered").replayed);
                }
            })
        })
        .collect();
    grow(&log, 1_500).await;
    done.store(true, Ordering::Relaxed);
    for looker in lookers {
        looker.await.expect("it saw right answers");
    }
    assert_index_agrees(&log).await;
    log.close().await;
}

/// A reader that remembers the first position of which a page was asked for.
struct Watched<'a>(&'a Memory, Cell<u64>);

impl Reader for Watched<'_> {
    fn log(&self) -> Ulid {
        self.0.log()
    }

    fn head(&self) -> Result<Head, EngineError> {
        self.0.head()
    }

    fn commits(&self, from: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        if limit > 1 {
            self.1.set(self.1.get().min(from));
        }
        self.0.commits(from, limit)
    }

    fn commits_before(&self, before: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        self.0.commits_before(before, limit)
    }

    fn witnessed(&self) -> Result<Option<Head>, EngineError> {
        self.0.witnessed()
    }

    fn check_files(&self) -> Result<(), EngineError> {
        self.0.check_files()
    }
}

/// Goal: of a large log that was closed in order only the end is walked, of one that was not all;
/// and whatever of the history is not the index's, the index is made anew.
#[tokio::test]
async fn the_depth_of_the_check_follows_size_and_seal() {
    let memory = Memory::new();
    let dir = tempfile::tempdir().expect("a folder");
    let log = start_small(dir.path(), Box::new(memory.clone())).expect("started");
    grow(&log, 100).await;
    log.close().await;
    let whole = files(dir.path());
    let head = memory.head().expect("a head");
    let depth = |whole_events_max, tail_events| Depth {
        whole_events_max,
        tail_events,
    };
    let walked = |depth, seen: Option<u64>| {
        let counting = Watched(&memory, Cell::new(u64::MAX));
        let mut index = Index::open_sized(dir.path(), memory.log(), SMALL).expect("an index");
        let seen = seen.map(|position| memory.commits(position, 1).expect("read")[0].head());
        at_open(&counting, head, seen, &mut index, depth).expect("in order");
        assert_eq!(index.head(), Some(head));
        counting.1.get()
    };
    for (bounds, seen, from) in [
        (depth(300, 7), None, 1),
        (depth(299, 300), None, 1),
        (depth(299, 7), None, 295),
        (depth(299, 7), Some(300), 295),
        (depth(299, 7), Some(150), 151),
        (depth(299, 7), Some(3), 4),
    ] {
        put_back(dir.path(), &whole);
        assert_eq!(walked(bounds, seen), from, "{bounds:?}, {seen:?}");
    }
    put_back(dir.path(), &whole);
    fs::remove_file(dir.path().join("index.seal")).expect("removed");
    assert_eq!(walked(depth(299, 7), None), 1, "without a seal");
}

/// Goal: an index that knows more than the log, or another history of the same log, is made anew.
#[tokio::test]
async fn an_index_of_another_history_is_not_believed() {
    let memory = Memory::new();
    let dir = tempfile::tempdir().expect("a folder");
    let log = start_small(dir.path(), Box::new(memory.clone())).expect("started");
    grow(&log, 60).await;
    log.close().await;
    let index = files(dir.path());
    for commits in [0, 20, 59, 60] {
        let other = memory.prefix(commits);
        put_back(dir.path(), &index);
        let log = start_small(dir.path(), Box::new(other.clone())).expect("started");
        assert_eq!(log.head().commit, commits as u64);
        assert!(
            log.stream_head(&stream("r-59"))
                .await
                .expect("read")
                .is_none()
                == (commits < 60)
        );
        // It goes another way from there.
        let events: Vec<NewEvent> = vec![event("all", "another"), event("r-59", "way")];
        let expected = match commits {
            60 => Expected::Revision(0),
            _ => Expected::NoStream,
        };
        log.append(command(&[("r-59", expected)], events))
            .await
            .expect("appended");
        grow(&log, 80).await;
        assert_index_agrees(&log).await;
        log.close().await;
        put_back(dir.path(), &index);
        let log = start_small(dir.path(), Box::new(other.clone())).expect("started");
        assert_index_agrees(&log).await;
        log.close().await;
    }
}
