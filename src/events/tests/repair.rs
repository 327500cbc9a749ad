//! Repair: what verifies is kept with the same hashes, what does not is named and set aside, and a
//! repair cut off at any step is finished by the next one.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;

use super::support::{fill, note, open, refusal, stream};
use crate::events::error::EngineError;
use crate::events::repair::Step;
use crate::events::{DataFolder, EventLog, Head, RepairReport};

const CANARY: &str = "a-value-to-find-in-the-file";

/// A stopped server's folder: 12 events in 12 commits, the 11th of which holds the canary.
async fn stopped() -> (TempDir, DataFolder, Head) {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = DataFolder::new(dir.path());
    let log = open(&folder.log());
    fill(&log, "a", 10).await;
    log.append(note("b", CANARY)).await.expect("appended");
    log.append(note("c", 2)).await.expect("appended");
    let head = log.head();
    log.close().await;
    (dir, folder, head)
}

/// Changes one bit of the first byte of `text` in the log's file.
fn flip(folder: &DataFolder, text: &str) {
    let path = folder.log().join("log.db");
    let mut bytes = std::fs::read(&path).expect("readable");
    let found = bytes.windows(text.len()).position(|w| w == text.as_bytes());
    bytes[found.expect("it is there")] ^= 0x20;
    std::fs::write(&path, bytes).expect("written");
}

fn repaired(folder: &DataFolder) -> RepairReport {
    folder
        .repair()
        .unwrap_or_else(|error| panic!("repaired: {error}"))
}

/// The log opens, ends at `head`, verifies and goes on.
async fn assert_serves(folder: &DataFolder, head: Head) {
    let log = open(&folder.log());
    assert_eq!(log.head(), head);
    log.verify().await.expect("verified");
    fill(&log, "a", 1).await;
    log.close().await;
}

fn remains(folder: &DataFolder) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.root()).expect("lists").flatten();
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.file_name().into()).collect();
    names.sort();
    names
}

/// Goal: damage in the middle keeps everything before it, byte for byte, says what is dropped, and
/// keeps the damaged log; looking first changes nothing.
#[tokio::test]
async fn the_verified_prefix_is_kept_and_the_rest_set_aside() {
    let (_dir, folder, head) = stopped().await;
    let log = open(&folder.log());
    let at_ten = log.head_at(10).await.expect("readable").expect("a head");
    let id = log.id();
    log.close().await;
    flip(&folder, CANARY);
    let damaged = std::fs::read(folder.log().join("log.db")).expect("readable");
    let said = refusal(&folder.log());
    assert!(said.contains("oc log repair"), "{said}");

    let looked = folder.examine().expect("examined");
    assert!(std::fs::read(folder.log().join("log.db")).expect("readable") == damaged);
    let report = repaired(&folder);
    assert_eq!((report.log, report.kept), (id, at_ten));
    assert!(
        report
            .fault
            .as_ref()
            .is_some_and(|fault| fault.contains("event 11")),
        "{report:?}"
    );
    let dropped = report.dropped.clone().expect("something is dropped");
    assert_eq!(
        (dropped.first, dropped.last),
        ((11, 11), (head.commit, head.position))
    );
    assert_eq!(
        dropped.streams.get(&stream("c")),
        Some(&1),
        "what can still be read"
    );
    assert_eq!(
        RepairReport {
            aside: report.aside.clone(),
            ..looked
        },
        report
    );

    let aside = report.aside.expect("set aside");
    assert!(
        std::fs::read(aside.join("log.db")).expect("readable") == damaged,
        "it was changed"
    );
    assert_eq!(remains(&folder).len(), 2, "{:?}", remains(&folder));
    assert_serves(&folder, at_ten).await;
    let again = repaired(&folder);
    assert_eq!(
        (again.fault, again.aside),
        (None, None),
        "a whole log was repaired"
    );
}

/// Goal: a lost end, a lost witness, a broken chain and a damaged page each have this way out.
#[tokio::test]
async fn every_kind_of_damage_has_a_way_out() {
    type Damage = fn(&Path);
    let witness: Damage = |log| std::fs::remove_file(log.join("head.witness")).expect("removed");
    let end: Damage = |log| {
        let conn = forger(log);
        conn.execute("DELETE FROM blocks WHERE first_position >= 9", [])
            .expect("deleted");
    };
    let gap: Damage = |log| {
        let conn = forger(log);
        conn.execute("DELETE FROM blocks WHERE first_position = 7", [])
            .expect("deleted");
    };
    let swapped: Damage = |log| {
        let conn = forger(log);
        let sql = "UPDATE blocks SET records = (SELECT records FROM blocks WHERE first_position = 4) \
                   WHERE first_position = 5";
        conn.execute(sql, []).expect("swapped");
    };
    let cases = [
        ("witness", witness, 12, "witness"),
        ("end", end, 8, "its witness has seen position 12"),
        ("gap", gap, 6, "commit 7"),
        ("swapped", swapped, 4, ""),
    ];
    for (name, damage, kept, fault) in cases {
        let (_dir, folder, _) = stopped().await;
        damage(&folder.log());
        let said = refusal(&folder.log());
        assert!(said.contains("oc log repair"), "{name}: {said}");
        let report = repaired(&folder);
        assert_eq!(report.kept.position, kept, "{name}");
        assert!(
            report
                .fault
                .as_ref()
                .is_some_and(|said| said.contains(fault)),
            "{name}: {report:?}"
        );
        let last = report.dropped.map(|dropped| dropped.last);
        assert_eq!(last, (kept < 12).then_some((12, 12)), "{name}");
        assert_serves(&folder, report.kept).await;
    }
}

fn forger(log: &Path) -> Connection {
    let conn = Connection::open(log.join("log.db")).expect("the database opens");
    for trigger in ["blocks_are_fixed_1", "blocks_are_fixed_2"] {
        conn.execute(&format!("DROP TRIGGER {trigger}"), [])
            .expect("dropped");
    }
    conn
}

/// Goal: pages that the disk lost end the prefix where they are, however many follow; a log of
/// which nothing is left is not made an empty one.
#[tokio::test]
async fn lost_pages_end_the_prefix_and_nothing_left_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = DataFolder::new(dir.path());
    let log = open(&folder.log());
    for value in 0..200 {
        log.append(note("a", "x".repeat(500 + value)))
            .await
            .expect("appended");
    }
    log.close().await;
    let path = folder.log().join("log.db");
    let whole = std::fs::read(&path).expect("readable");
    let pages = whole.len() / 4096;
    let (mut kept, mut fewest) = (Vec::new(), u64::MAX);
    for page in (3..pages).step_by(7) {
        let mut bytes = whole.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0);
        std::fs::write(&path, bytes).expect("written");
        match folder.examine() {
            Ok(report) => {
                assert!(report.fault.is_some(), "page {page}: {report:?}");
                fewest = fewest.min(report.kept.position);
                kept.push(report.kept.position);
            }
            // The page with the table's root.
            Err(error) => assert!(error.to_string().contains("oc restore"), "{error}"),
        }
    }
    assert!(kept.len() > 3 && fewest < 200, "no page mattered: {kept:?}");
    std::fs::write(&path, &whole[..4096]).expect("written");
    let said = folder.repair().expect_err("nothing is left").to_string();
    assert!(
        said.contains("Nothing was changed") && said.contains("oc restore"),
        "{said}"
    );
    assert_eq!(remains(&folder), [PathBuf::from("log")]);
}

/// Goal: cut off after any step, the log folder is a whole log (damaged or new), a server's start
/// is refused or works accordingly, and the next repair ends well.
#[tokio::test]
async fn a_repair_cut_off_anywhere_is_finished_by_the_next() {
    for stop in [Step::Built, Step::Exchanged, Step::SetAside] {
        let (_dir, folder, _) = stopped().await;
        flip(&folder, CANARY);
        let cut = folder.repair_with(|step| match step == stop {
            true => Err(EngineError::Io("cut off by the test".into())),
            false => Ok(()),
        });
        assert!(
            cut.expect_err("cut off")
                .to_string()
                .contains("cut off by the test")
        );
        match stop {
            Step::Built => assert!(refusal(&folder.log()).contains("damaged")),
            _ => open(&folder.log()).close().await,
        }
        let report = repaired(&folder);
        assert_eq!(report.kept.position, 10, "{stop:?}");
        let aside = report.aside.expect("the damaged log");
        assert!(aside.join("log.db").exists(), "{stop:?}");
        let names = remains(&folder);
        assert_eq!(names.len(), 2, "{stop:?}: {names:?}");
        assert!(!folder.log().join("repair.json").exists());
        assert_serves(&folder, report.kept).await;
    }
}

/// Goal: a repair killed while it deletes what an earlier one had built is finished by the next.
#[tokio::test]
async fn a_repair_cut_off_while_it_clears_an_earlier_one_is_finished_by_the_next() {
    for stop in [Step::Emptied, Step::Forgotten] {
        let (_dir, folder, _) = stopped().await;
        flip(&folder, CANARY);
        let cut_at = |stop: Step| {
            let cut = folder.repair_with(|step| match step == stop {
                true => Err(EngineError::Io("cut off by the test".into())),
                false => Ok(()),
            });
            let said = cut.expect_err("cut off").to_string();
            assert!(said.contains("cut off by the test"), "{said}");
        };
        cut_at(Step::Built);
        cut_at(stop);
        let left = std::fs::read_dir(folder.root().join("log.repairing")).expect("lists");
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        match stop {
            Step::Emptied => assert_eq!(left, ["repair.json"]),
            _ => assert!(left.is_empty(), "{left:?}"),
        }
        let report = repaired(&folder);
        assert_eq!(report.kept.position, 10, "{stop:?}");
        assert_eq!(remains(&folder).len(), 2, "{:?}", remains(&folder));
        assert_serves(&folder, report.kept).await;
    }
}

/// Goal: a disk that gives less at the second reading than at the first does not make the repair
/// drop what it reported as kept. Method: the log's end is taken away between the two.
#[tokio::test]
async fn two_readings_that_differ_change_nothing() {
    let (_dir, folder, _) = stopped().await;
    flip(&folder, CANARY);
    let failed = folder.repair_with(|step| {
        if step == Step::Planned {
            forger(&folder.log())
                .execute("DELETE FROM blocks WHERE first_position >= 5", [])
                .expect("deleted");
        }
        Ok(())
    });
    let said = failed.expect_err("refused").to_string();
    assert!(
        said.contains("up to position 10, then up to position 4") && said.contains("sound disk"),
        "{said}"
    );
    let names = remains(&folder);
    assert_eq!(names, ["log", "log.repairing"].map(PathBuf::from));
    assert!(!folder.log().join("repair.json").exists(), "exchanged");
}

/// Goal: a file in which every commit is sound but not what SQLite keeps beside them is refused by
/// the server and made whole by the repair, without loss.
#[tokio::test]
async fn damage_beside_the_commits_is_repaired_without_loss() {
    let (_dir, folder, head) = stopped().await;
    let path = folder.log().join("log.db");
    let mut bytes = std::fs::read(&path).expect("readable");
    let canary = bytes
        .windows(CANARY.len())
        .position(|window| window == CANARY.as_bytes());
    let page = canary.expect("it is there") / 4096 * 4096;
    assert_eq!(bytes[page], 0x0d, "no leaf of a table");
    // The count of free bytes between its cells.
    bytes[page + 7] ^= 0x10;
    std::fs::write(&path, bytes).expect("written");
    let said = refusal(&folder.log());
    assert!(said.contains("oc log repair"), "{said}");
    let report = repaired(&folder);
    assert!(report.fault.is_some() && report.aside.is_some());
    assert_eq!((report.kept, report.dropped), (head, None));
    assert_serves(&folder, head).await;
}

/// Goal: a folder that only looks like a repair's is not touched, and a running server keeps its
/// log.
#[tokio::test]
async fn a_repair_keeps_off_what_is_not_its_own() {
    let (_dir, folder, _) = stopped().await;
    let log: EventLog = open(&folder.log());
    // What another repair is building is no more touched than the log itself.
    let others = folder.root().join("log.repairing");
    std::fs::create_dir(&others).expect("a folder");
    std::fs::write(others.join("repair.json"), r#"{"aside":"x"}"#).expect("written");
    let said = folder.repair().expect_err("in use").to_string();
    assert!(said.contains("in use by another server"), "{said}");
    assert!(others.join("repair.json").exists(), "it was deleted");
    std::fs::remove_dir_all(&others).expect("removed");
    log.close().await;
    let foreign = folder.root().join("log.repairing");
    std::fs::create_dir(&foreign).expect("a folder");
    std::fs::write(foreign.join("precious"), "x").expect("written");
    let said = folder.repair().expect_err("in the way").to_string();
    assert!(said.contains("move it away"), "{said}");
    assert!(foreign.join("precious").exists());
}

/// Goal: where many commits share a row, damage to one keeps those before it, whether the damage is
/// to an event's text or to what tells the commits apart.
#[tokio::test]
async fn damage_inside_a_row_keeps_the_commits_before_it() {
    for needle in ["value of 12", "\u{10}test.happened.v1"] {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::new(dir.path());
        let log = open(&folder.log());
        let waiting = (0..40).map(|n| {
            let log = log.clone();
            async move { log.append(note("a", format!("value of {n:02}"))).await }
        });
        for appended in futures_util::future::join_all(waiting).await {
            appended.expect("appended");
        }
        let groups = log.stats().groups;
        assert!(
            groups < 20,
            "the commits did not share rows: {groups} groups"
        );
        log.close().await;
        let path = folder.log().join("log.db");
        let mut bytes = std::fs::read(&path).expect("readable");
        let value = "value of 12";
        // Pages keep stale copies of rows in their unused parts: all of them are damaged.
        for end in value.len()..=bytes.len() {
            if bytes[..end].ends_with(value.as_bytes()) {
                // The last one of its kind up to the value: in the same commit.
                let before = &bytes[..end];
                let at = before
                    .windows(needle.len())
                    .rposition(|w| w == needle.as_bytes());
                bytes[at.expect("it is there")] ^= 0x40;
            }
        }
        std::fs::write(&path, bytes).expect("written");
        let report = repaired(&folder);
        assert!(report.fault.is_some(), "{needle:?}");
        let log = open(&folder.log());
        let kept = log.read_all(1, 100).await.expect("read");
        let last = kept
            .last()
            .expect("something is kept")
            .data
            .get()
            .to_owned();
        let wanted: u64 = 12;
        assert_eq!(
            report.kept.position, wanted,
            "{needle:?}: the last is {last}"
        );
        log.close().await;
    }
}
