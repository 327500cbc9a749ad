//! Damage: every way the files can be wrong is refused in words that say what to do, or has
//! changed nothing.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, params};
use tempfile::TempDir;

use super::support::{copy, fill, note, open, refusal, stream, witnessed};
use crate::events::chain::{chain_hash, content_hash};
use crate::events::engines::sqlite::Sqlite;
use crate::events::engines::{Commit, Engine, record};
use crate::events::index::Index;
use crate::events::plan::Plan;
use crate::events::prepare::prepare;
use crate::events::verify::walk;
use crate::events::view::View;
use crate::events::{EventLog, Recorded};

const CANARY: &str = "a-value-to-find-in-the-file";

/// A closed log of 12 events, whose WAL is empty, and its folder.
async fn closed_log() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "a", 10).await;
    log.append(note("b", CANARY)).await.expect("appended");
    log.append(note("b", 2)).await.expect("appended");
    log.close().await;
    dir
}

/// The folder of an open log of 10 events as a power cut would leave it: all of it in the WAL.
async fn cut_off_log() -> TempDir {
    let (live, dir) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("one"),
    );
    let log = open(live.path());
    fill(&log, "a", 10).await;
    witnessed(&log).await;
    copy(live.path(), dir.path());
    log.close().await;
    dir
}

fn cut(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the file opens");
    file.set_len(bytes).expect("the file is cut");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("the file reads");
    bytes[at] ^= 0x20;
    std::fs::write(path, bytes).expect("the file is written");
}

fn find(path: &Path, text: &str) -> usize {
    let bytes = std::fs::read(path).expect("the file reads");
    bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
        .expect("it is there")
}

/// The database as anyone with the file and no respect for triggers can write it.
pub fn forger(dir: &Path) -> Connection {
    let conn = Connection::open(dir.join("log.db")).expect("the database opens");
    for trigger in ["log_is_fixed", "blocks_are_fixed"] {
        for number in [1, 2] {
            conn.execute_batch(&format!("DROP TRIGGER {trigger}_{number}"))
                .expect("dropped");
        }
    }
    conn
}

/// Writes other content in the place of the commit at `position`.
pub fn forge(conn: &Connection, position: u64, change: impl FnOnce(&mut Commit)) {
    let sql = "SELECT records FROM blocks WHERE first_position = ?1";
    let bytes: Vec<u8> = conn
        .query_row(sql, [position.cast_signed()], |row| row.get(0))
        .expect("a commit");
    let mut commit = record::decode(position, &bytes, usize::MAX, |_, _| true)
        .expect("as it was written")
        .remove(0);
    change(&mut commit);
    let mut bytes = Vec::new();
    record::encode(&commit, &mut bytes).expect("encoded");
    let sql = "UPDATE blocks SET records = ?2 WHERE first_position = ?1";
    conn.execute(sql, params![position.cast_signed(), bytes])
        .expect("forged");
}

fn event(commit: &mut Commit) -> &mut Recorded {
    Arc::make_mut(&mut commit.events[0])
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// Goal: an open log that lost its last moments on disk opens with all that was acknowledged.
#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let dir = cut_off_log().await;
    let log = open(dir.path());
    assert_eq!(log.head().position, 10);
    log.verify().await.expect("verified");
    log.close().await;
}

/// Goal: whatever length the WAL is cut to, the log refuses to start, says so, and leaves the files
/// as they were; only the operator's word opens it with what is left.
#[tokio::test]
async fn a_truncated_wal_is_noticed_at_every_length() {
    let whole = cut_off_log().await;
    let bytes = std::fs::metadata(whole.path().join("log.db-wal"))
        .expect("a WAL")
        .len();
    let dir = tempfile::tempdir().expect("a folder");
    // Odd places from the end to the beginning; near the beginning there is not even a schema.
    let lengths = (1..30)
        .map(|n| bytes - n * 1_373)
        .chain([bytes - 1, 31, 5_000]);
    let mut opened_shorter = 0;
    for length in lengths {
        copy(whole.path(), dir.path());
        cut(&dir.path().join("log.db-wal"), length);
        let before = std::fs::read(dir.path().join("log.db-wal")).expect("read");
        let message = refusal(dir.path());
        let after = std::fs::read(dir.path().join("log.db-wal")).expect("read");
        assert!(before == after, "the refusal at {length} changed the WAL");
        if length > 20_000 {
            // The schema is whole, so the log can tell how much is missing.
            assert_says(
                &message,
                &["acknowledged events are missing", "position 10", "backup"],
            );
            let left = EventLog::accept_head(dir.path()).expect("accepted");
            assert!(left.position < 10, "at {length} nothing was missing");
            let log = open(dir.path());
            assert_eq!(log.head(), left);
            fill(&log, "a", 1).await;
            log.close().await;
            opened_shorter += 1;
        }
    }
    assert!(
        opened_shorter > 20,
        "only {opened_shorter} lengths were past the schema"
    );
}

/// Goal: a byte flipped in the WAL makes SQLite drop the tail without a word; the witness speaks.
#[tokio::test]
async fn a_flipped_byte_in_the_wal_is_noticed() {
    let dir = cut_off_log().await;
    let wal = dir.path().join("log.db-wal");
    let middle = std::fs::read(&wal).expect("read").len() * 3 / 4;
    flip(&wal, middle);
    assert_says(
        &refusal(dir.path()),
        &["ends at position", "acknowledged events are missing"],
    );
}

/// Goal: a byte flipped in an event's data is found by its hash, with the event's position.
#[tokio::test]
async fn a_flipped_byte_in_an_event_is_noticed() {
    let dir = closed_log().await;
    let database = dir.path().join("log.db");
    flip(&database, find(&database, CANARY));
    let parts = [
        "damaged",
        "event 11",
        "does not match its hash",
        "restore the folder",
        "backup",
    ];
    assert_says(&refusal(dir.path()), &parts);
}

/// Goal: a database cut short, emptied or gone never opens as a shorter or a new log.
#[tokio::test]
async fn a_truncated_database_is_noticed() {
    let dir = closed_log().await;
    let database = dir.path().join("log.db");
    let bytes = std::fs::metadata(&database).expect("a database").len();
    cut(&database, bytes / 2);
    assert_says(
        &refusal(dir.path()),
        &["damaged", "restore the folder from a backup"],
    );
    cut(&database, 700);
    refusal(dir.path());
    cut(&database, 0);
    let parts = [
        "ends at position 0",
        "seen position 12",
        "acknowledged events are missing",
    ];
    assert_says(&refusal(dir.path()), &parts);
    std::fs::remove_file(&database).expect("removed");
    assert_says(&refusal(dir.path()), &parts);
    assert!(!database.exists(), "the refusal made a new database");
    std::fs::write(
        &database,
        "this is some other file, long enough to look like one".repeat(99),
    )
    .expect("written");
    assert_says(&refusal(dir.path()), &["damaged", "not a database"]);
}

/// Goal: without a witness nobody can tell whether the log is whole, so it does not start.
#[tokio::test]
async fn a_lost_witness_is_not_made_up_for() {
    let dir = closed_log().await;
    let witness = dir.path().join("head.witness");
    let bytes = std::fs::read(&witness).expect("read");
    std::fs::remove_file(&witness).expect("removed");
    let parts = ["head.witness is missing", "oc audit accept-head"];
    assert_says(&refusal(dir.path()), &parts);
    std::fs::write(&witness, vec![0; bytes.len()]).expect("written");
    assert_says(&refusal(dir.path()), &["head.witness is unreadable"]);
    let other = closed_log().await;
    std::fs::copy(other.path().join("head.witness"), &witness).expect("copied");
    assert_says(&refusal(dir.path()), &["head.witness is of another log"]);

    EventLog::accept_head(dir.path()).expect("accepted");
    let log = open(dir.path());
    assert_eq!(log.head().position, 12);
    log.close().await;
}

/// Goal: a crash between the two syncs, which leaves the log ahead of its witness, opens.
#[tokio::test]
async fn a_log_ahead_of_its_witness_opens_and_catches_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "a", 4).await;
    let stale = std::fs::read(dir.path().join("head.witness")).expect("read");
    fill(&log, "a", 3).await;
    log.close().await;
    std::fs::write(dir.path().join("head.witness"), stale).expect("written");
    let log = open(dir.path());
    assert_eq!(log.head().position, 7);
    witnessed(&log).await;
    log.close().await;
}

/// Goal: a forger who also makes the hashes anew is caught one level higher each time: content
/// hash, commit, chain, witness.
#[tokio::test]
async fn a_forged_history_is_noticed() {
    type Forgery = fn(&Connection);
    let remove = "DELETE FROM blocks WHERE first_position = ";
    let forgeries: [(Forgery, &str); 6] = [
        (
            |conn| forge(conn, 5, |commit| event(commit).content_hash = [0; 32]),
            "event 5: its content does not match its hash",
        ),
        (
            |conn| forge(conn, 12, |commit| event(commit).stream = stream("c")),
            "event 12: its content does not match its hash",
        ),
        (
            |conn| {
                forge(conn, 6, |commit| {
                    event(commit).revision = 7;
                    event(commit).content_hash = content_hash(event(commit));
                })
            },
            "commit 6: the chain hash does not follow",
        ),
        (
            |conn| forge(conn, 6, |commit| commit.chain = [0; 32]),
            "commit 6: the chain hash does not follow",
        ),
        (
            |conn| forge(conn, 6, |commit| commit.number = 7),
            "event 6: its content does not match its hash",
        ),
        (
            |conn| forge(conn, 12, |commit| commit.chain = [0; 32]),
            "the witness has seen another history",
        ),
    ];
    for (forgery, says) in forgeries {
        let dir = closed_log().await;
        forgery(&forger(dir.path()));
        assert_says(&refusal(dir.path()), &[says]);
    }
    for (position, says) in [
        (12, "acknowledged events are missing"),
        (5, "a commit is missing"),
    ] {
        let dir = closed_log().await;
        forger(dir.path())
            .execute_batch(&format!("{remove}{position}"))
            .expect("removed");
        assert_says(&refusal(dir.path()), &[says]);
    }
}

/// Goal: a history in which everything was made anew, hash by hash, is another history to the
/// witness; and should the operator accept it, what it says must still be possible.
#[tokio::test]
async fn a_history_made_anew_is_noticed() {
    type Change = fn(&mut Recorded);
    let changes: [(Change, &str); 2] = [
        (
            |event| event.recorded_at -= time::Duration::days(1),
            "time goes backwards",
        ),
        (|event| event.revision += 1, "revisions have a gap"),
    ];
    for (change, says) in changes {
        let dir = closed_log().await;
        let conn = forger(dir.path());
        let mut chain = None;
        for position in 6..=12 {
            forge(&conn, position, |commit| {
                if position == 6 {
                    let sql = "SELECT records FROM blocks WHERE first_position = 5";
                    let bytes: Vec<u8> = conn.query_row(sql, [], |row| row.get(0)).expect("read");
                    chain = Some(
                        record::decode(5, &bytes, usize::MAX, |_, _| true).expect("whole")[0].chain,
                    );
                    change(event(commit));
                }
                event(commit).content_hash = content_hash(event(commit));
                let previous = chain.expect("the commit before");
                let hash = [&event(commit).content_hash.clone()];
                commit.chain = chain_hash(commit.number, &previous, hash);
                chain = Some(commit.chain);
            });
        }
        drop(conn);
        assert_says(
            &refusal(dir.path()),
            &["the witness has seen another history"],
        );
        let refused = EventLog::accept_head(dir.path()).expect_err("impossible");
        assert_says(&refused.to_string(), &[says]);
    }
}

/// Goal: of a log too large to be walked whole at start-up, the end is. Method: the walk such a log
/// gets, on a small one.
#[tokio::test]
async fn a_partial_check_covers_the_tail() {
    let dir = closed_log().await;
    let log = open(dir.path());
    let head = log.head();
    log.close().await;
    let walk = |position: u64| {
        let copied = tempfile::tempdir().expect("a folder");
        copy(dir.path(), copied.path());
        let conn = forger(copied.path());
        if position > 0 {
            let kind = |commit: &mut Commit| event(commit).kind = "x".into();
            forge(&conn, position, kind);
        }
        drop(conn);
        let engine = Sqlite::open(copied.path()).expect("opened");
        let from = engine.view().commits(8, 1).expect("read")[0].head();
        walk(engine.view(), from, head, |_| {}).map_err(|error| error.to_string())
    };
    assert_eq!(
        walk(0).map(|report| (report.commits, report.events)),
        Ok((4, 4))
    );
    assert!(
        walk(3).is_ok(),
        "left to the replay, to `oc audit verify` and to the next read of it"
    );
    assert_says(&walk(10).expect_err("broken"), &["event 10", "content"]);
}

/// Goal: what is done to the files while the log is open is found by `verify`, by the next read of
/// the event, and by the writer before it writes again.
#[tokio::test]
async fn tampering_with_an_open_log_is_noticed() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "a", 5).await;
    log.verify().await.expect("whole so far");
    forge(&forger(dir.path()), 3, |commit| {
        event(commit).kind = "test.forged.v1".into();
    });
    let parts = ["event 3", "does not match its hash"];
    assert_says(&log.verify().await.expect_err("broken").to_string(), &parts);
    assert_says(
        &log.read_all(3, 1).await.expect_err("broken").to_string(),
        &parts,
    );
    Connection::open(dir.path().join("log.db"))
        .expect("the database opens")
        .execute_batch("DELETE FROM blocks WHERE first_position = 5")
        .expect("forged");
    let refused = log
        .append(note("b", 6))
        .await
        .expect_err("stopped")
        .to_string();
    assert_says(&refused, &["stopped", "head moved under its writer"]);
    log.close().await;
}

/// Goal: time never goes backwards in the log, whatever the clock does. Method: an event from the
/// future, as a clock that was wrong leaves it, then one of now.
#[tokio::test]
async fn recorded_time_never_goes_backwards() {
    let dir = tempfile::tempdir().expect("a folder");
    let future = time::OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .expect("a time")
        + time::Duration::days(300);
    {
        let mut engine = Sqlite::open(dir.path()).expect("opened");
        let head = engine.view().head().expect("a head");
        let index = Index::in_memory(engine.view().log());
        let view = View::new(engine.reader().expect("a reader"), index.lookup());
        let mut plan = Plan::new(&view, head, future, 0);
        plan.add(prepare(note("a", 1)).expect("prepared"))
            .expect("planned");
        let (_, commits) = plan.finish();
        engine.append(&head, &commits).expect("appended");
    }
    EventLog::accept_head(dir.path()).expect("accepted");
    let log = open(dir.path());
    let done = log.append(note("a", 2)).await.expect("appended");
    assert_eq!(done.events[0].recorded_at, future);
    log.verify().await.expect("verified");
    log.close().await;
}

/// Goal: the database itself refuses to change or remove what is recorded.
#[tokio::test]
async fn the_database_is_append_only_by_itself() {
    let dir = closed_log().await;
    let conn = Connection::open(dir.path().join("log.db")).expect("the database opens");
    for sql in [
        "UPDATE blocks SET records = zeroblob(9)",
        "DELETE FROM blocks",
        "UPDATE log SET id = zeroblob(16)",
        "DELETE FROM log",
    ] {
        let refused = conn.execute_batch(sql).expect_err("refused").to_string();
        assert_says(&refused, &["append-only"]);
    }
}

/// Goal: a log of a newer program is left alone.
#[tokio::test]
async fn a_newer_format_is_refused() {
    let dir = closed_log().await;
    let conn = Connection::open(dir.path().join("log.db")).expect("the database opens");
    conn.pragma_update(None, "user_version", 9).expect("set");
    drop(conn);
    assert_says(
        &refusal(dir.path()),
        &["has format 9", "run a newer version"],
    );
}
