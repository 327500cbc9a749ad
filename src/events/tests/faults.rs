//! What disks do: refuse writes, run out of room, tear pages, flip bits. Each is refused in words
//! that name the place and the way out, or changes nothing.
//!
//! Fault model: one fault at a time, in files that lie still. Torn means that a page of 4096 bytes
//! has its beginning from one write and its end from another one, or zeros.

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use tempfile::TempDir;

use super::support::{
    SMALL, assert_index_agrees, command, copy, event, everything, fill, indexed, note, open,
    open_small, refusal, start_small, stream, try_open, try_open_small, with_mounts, witnessed,
};
use crate::events::engines::memory::Memory;
use crate::events::{AppendError, EventLog};

const PAGE: usize = 4096;

/// A log of some pages, closed; and one version of its database from before.
async fn closed_log() -> (TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    for value in 0..12 {
        log.append(note("a", "x".repeat(1_500 + value)))
            .await
            .expect("appended");
    }
    log.close().await;
    let before = fs::read(dir.path().join("log.db")).expect("read");
    let log = open(dir.path());
    for value in 0..6 {
        let events = vec![event("b", value), event("a", "y".repeat(900))];
        log.append(command(&[], events)).await.expect("appended");
    }
    log.close().await;
    (dir, before)
}

async fn history(log: &EventLog) -> Vec<u8> {
    log.export_jsonl(Vec::new()).await.expect("exported").0
}

/// Whether the log in `dir` was refused; if not, its history is `original`.
async fn refused(dir: &Path, original: &[u8], what: &str) -> bool {
    match try_open(dir) {
        Err(error) => {
            let (said, place) = (error.to_string(), dir.display().to_string());
            assert!(said.contains(&place), "{what}: no place in {said:?}");
            let ways = ["backup", "run a newer version", "check that the folder"];
            assert!(
                ways.iter().any(|way| said.contains(way)),
                "{what}: no way out in {said:?}"
            );
            true
        }
        Ok(log) => {
            assert!(history(&log).await == original, "{what} changed history");
            log.close().await;
            false
        }
    }
}

/// Goal: a page of the database torn anywhere is noticed, or has changed nothing.
#[tokio::test]
async fn a_torn_page_of_the_database_is_noticed() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (whole, before) = closed_log().await;
    let log = open(whole.path());
    let original = history(&log).await;
    log.close().await;
    let bytes = fs::read(whole.path().join("log.db")).expect("read");
    assert_eq!(bytes.len() % PAGE, 0);
    let dir = tempfile::tempdir().expect("a folder");
    let (mut noticed, mut torn_pages) = (0, 0);
    for page in 0..bytes.len() / PAGE {
        for old in [false, true] {
            for end_is_new in [false, true] {
                let at = page * PAGE + random.random_range(1..PAGE);
                let (first, last) = match end_is_new {
                    false => (at, (page + 1) * PAGE),
                    true => (page * PAGE, at),
                };
                let mut torn = bytes.clone();
                for (index, byte) in torn.iter_mut().enumerate().take(last).skip(first) {
                    *byte = before.get(index).filter(|_| old).copied().unwrap_or(0);
                }
                copy(whole.path(), dir.path());
                torn_pages += usize::from(torn != bytes);
                fs::write(dir.path().join("log.db"), torn).expect("written");
                let what = format!("page {page} torn at {at}, {old}, {end_is_new}");
                noticed += usize::from(refused(dir.path(), &original, &what).await);
            }
        }
    }
    // Zeros in the free room of a page are as it was.
    assert!(
        noticed * 2 > torn_pages,
        "{noticed} of {torn_pages} were noticed"
    );
}

/// Goal: the write-ahead file's end torn anywhere, in a frame or between two, is noticed: its last
/// events were acknowledged and witnessed.
#[tokio::test]
async fn a_torn_end_of_the_wal_is_noticed() {
    let live = tempfile::tempdir().expect("a folder");
    let (whole, dir) = (
        tempfile::tempdir().expect("one"),
        tempfile::tempdir().expect("one"),
    );
    let log = open(live.path());
    fill(&log, "a", 8).await;
    witnessed(&log).await;
    copy(live.path(), whole.path());
    let original = history(&log).await;
    log.close().await;
    let wal = fs::read(whole.path().join("log.db-wal")).expect("read");
    for back in (1..PAGE + 24)
        .step_by(131)
        .chain([PAGE, PAGE + 23, PAGE + 24])
    {
        for fill in [0_u8, 0xff] {
            copy(whole.path(), dir.path());
            let mut torn = wal.clone();
            let from = torn.len() - back;
            torn[from..].fill(fill);
            let changed = torn != wal;
            fs::write(dir.path().join("log.db-wal"), torn).expect("written");
            let what = format!("{back} bytes of {fill}");
            assert_eq!(
                refused(dir.path(), &original, &what).await,
                changed,
                "{what}"
            );
        }
    }
}

/// Goal: a bit flipped anywhere in any file of the folder is refused in words, or history is as it
/// was. Method: every byte of SQLite's header and of the witness, random ones elsewhere; a closed log
/// for the database and the index, one as a power cut leaves it for the write-ahead file.
#[tokio::test]
async fn no_flipped_bit_in_any_file_changes_history() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let closed = tempfile::tempdir().expect("a folder");
    let log = open_small(closed.path());
    fill(&log, "a", 60).await;
    let original = history(&log).await;
    let cut = tempfile::tempdir().expect("a folder");
    witnessed(&log).await;
    indexed(closed.path()).await;
    copy(closed.path(), cut.path());
    log.close().await;
    let dir = tempfile::tempdir().expect("a folder");
    for (from, file, all_until, some) in [
        (&closed, "log.db", 100, 50),
        (&cut, "log.db-wal", 32, 40),
        (&closed, "head.witness", 104, 10),
        (&closed, "index.db", 16, 4),
        (&closed, "index.seal", 0, 10),
    ] {
        let bytes = fs::read(from.path().join(file)).expect("read");
        let places = (0..all_until)
            .step_by(3)
            .map(|at| (at, random.random_range(0..8)));
        let mut places: Vec<_> = places.collect();
        places.extend((0..some).map(|_| {
            (
                random.random_range(0..bytes.len()),
                random.random_range(0..8),
            )
        }));
        let mut noticed = 0;
        for (at, bit) in places {
            for entry in fs::read_dir(dir.path()).expect("lists").flatten() {
                fs::remove_file(entry.path()).expect("removed");
            }
            copy(from.path(), dir.path());
            if !file.starts_with("log.db-wal") {
                for name in ["index.db", "index.seal"] {
                    fs::copy(from.path().join(name), dir.path().join(name)).expect("copied");
                }
            }
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            fs::write(dir.path().join(file), flipped).expect("written");
            let what = format!("bit {bit} of byte {at} of {file}");
            noticed += usize::from(refused(dir.path(), &original, &what).await);
        }
        // The witness has another slot, and the index another making.
        let vital = file.starts_with("log.db");
        assert_eq!(noticed > 0, vital, "{noticed} flips in {file} were refused");
    }
}

/// Goal: a folder that can't be written is refused in words that say so, and nothing is changed;
/// writable again, it opens. Method: a read-only mount, which holds for root as well.
#[test]
fn a_read_only_folder_is_refused_and_unharmed() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_owned();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime")
    };
    runtime().block_on(async {
        let log = open_small(&path);
        fill(&log, "a", 60).await;
        log.close().await;
    });
    let bytes = |path: &Path| -> Vec<_> {
        let files = fs::read_dir(path).expect("lists").flatten();
        let mut files: Vec<_> = files
            .map(|f| (f.file_name(), fs::read(f.path()).expect("read")))
            .collect();
        files.sort();
        files
    };
    let before = bytes(&path);
    let mounted = path.clone();
    with_mounts(
        move || {
            mount_bind(&mounted, &mounted)?;
            mount_remount(&mounted, MountFlags::RDONLY | MountFlags::BIND, "")
        },
        move || {
            let said = refusal(&path);
            assert!(said.contains(&path.display().to_string()), "{said}");
            assert!(
                said.contains("Read-only") && said.contains("is writable"),
                "{said}"
            );
            assert!(bytes(&path) == before, "the refusal changed something");
        },
    );
    runtime().block_on(async {
        let log = open_small(dir.path());
        assert_eq!(log.head().position, 60);
        assert_index_agrees(&log).await;
        log.close().await;
    });
}

/// Takes all the room there is.
fn fill_up(dir: &Path) {
    use std::io::Write;
    let mut filler = fs::File::create(dir.join("filler")).expect("a file");
    for size in [64 * 1024, PAGE, 1] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
}

/// Goal: when there is no room for the index, at its first write or later, the log goes on as far as
/// memory may hold it, then refuses; every answer stays right, and with room all goes on. Method: a
/// log in memory whose index is on a small disk.
#[test]
fn a_full_disk_under_the_index_is_survived() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_owned();
    let mounted = path.clone();
    let test = async move || {
        let memory = Memory::new();
        let log = start_small(&path, Box::new(memory.clone())).expect("started");
        let mut recorded = 0;
        for round in 0..3 {
            fill_up(&path);
            let refused = loop {
                let append = note(&format!("s-{}", recorded % 11), recorded);
                match log.append(append.clone()).await {
                    Ok(_) => recorded += 1,
                    Err(error) => break (append, error),
                }
                assert!(recorded < (round + 1) * 5_000, "memory is not bounded");
            };
            let (append, error) = refused;
            assert!(matches!(error, AppendError::Full { .. }), "{error}");
            assert_eq!(log.head().position, recorded);
            assert_index_agrees(&log).await;
            fs::remove_file(path.join("filler")).expect("removed");
            // It is tried again by itself.
            let until = std::time::Instant::now() + SMALL.retry * 500;
            while let Err(error) = log.append(append.clone()).await {
                assert!(matches!(error, AppendError::Full { .. }), "{error}");
                assert!(
                    std::time::Instant::now() < until,
                    "it did not go on: {error}"
                );
                tokio::time::sleep(SMALL.retry).await;
            }
            recorded += 1;
            assert_index_agrees(&log).await;
        }
        fill(&log, "more", 300).await;
        assert_index_agrees(&log).await;
        log.close().await;
        let log = start_small(&path, Box::new(memory)).expect("started");
        assert_index_agrees(&log).await;
        log.close().await;
    };
    small_disk(&mounted, "size=1m", test);
}

/// Goal: the same with log and index on one disk, and a start while it is full: it refuses to write
/// and not to run.
#[test]
fn a_full_disk_under_log_and_index_is_survived() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_owned();
    let mounted = path.clone();
    let test = async move || {
        let log = open_small(&path);
        fill(&log, "a", 100).await;
        log.close().await;
        for reopen in [false, true, true] {
            let mut log = open_small(&path);
            if reopen {
                log.close().await;
                fill_up(&path);
                log = match try_open_small(&path) {
                    Ok(log) => log,
                    Err(error) => {
                        let said = error.to_string();
                        assert!(said.contains("space"), "{said}");
                        fs::remove_file(path.join("filler")).expect("removed");
                        open_small(&path)
                    }
                };
            } else {
                fill_up(&path);
            }
            let mut count = log.head().commit;
            let error = loop {
                if path.join("filler").exists() {
                    match log.append(note("a", count)).await {
                        Ok(_) => count += 1,
                        Err(error) => break Some(error),
                    }
                } else {
                    break None;
                }
            };
            if let Some(error) = error {
                assert!(matches!(error, AppendError::Full { .. }), "{error}");
                fs::remove_file(path.join("filler")).expect("removed");
            }
            assert_eq!(log.head().commit, count);
            assert_eq!(everything(&log).await.len() as u64, count);
            fill(&log, "a", 50).await;
            let head = log
                .stream_head(&stream("a"))
                .await
                .expect("read")
                .expect("there");
            assert_eq!(head.0, count + 49);
            assert_index_agrees(&log).await;
            log.verify().await.expect("verified");
            log.close().await;
        }
    };
    small_disk(&mounted, "size=2m", test);
}

/// Runs `test` with a small disk of its own at `dir`.
fn small_disk<F: Future<Output = ()>>(
    dir: &Path,
    size: &'static str,
    test: impl FnOnce() -> F + Send + 'static,
) {
    let dir = dir.to_owned();
    let size = std::ffi::CString::new(size).expect("no zero in it");
    with_mounts(
        move || mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), size.as_c_str()),
        move || {
            // All threads of this runtime are started here and so see the small disk.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.expect("a runtime").block_on(test());
        },
    );
}
