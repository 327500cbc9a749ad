//! Checkpoints: verified by strangers, and what they show of a log that was changed since.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::damage::forger;
use super::export::python;
use super::support::{fill, open};
use crate::events::engines::sqlite;
use crate::events::proof::head_at;
use crate::events::{
    Checkpoint, CheckpointFolder, CheckpointKey, CheckpointOptions, EventLog, Keeper, Known,
};

fn key(dir: &Path) -> Arc<CheckpointKey> {
    let (key, _) = CheckpointKey::load_or_create(&dir.join(CheckpointKey::FILE))
        .unwrap_or_else(|error| panic!("a key: {error}"));
    Arc::new(key)
}

/// Whether openssl takes the note's signature; `None` without an openssl that can.
fn openssl(dir: &Path, note: &str, pem: &str) -> Option<bool> {
    use base64::Engine as _;
    let (text, signatures) = note.split_once("\n\n").expect("a note");
    let signature = signatures
        .trim_end()
        .rsplit(' ')
        .next()
        .expect("a signature");
    let signature = base64::engine::general_purpose::STANDARD.decode(signature);
    let signature = signature.expect("base64").split_off(4);
    for (name, bytes) in [
        ("text", format!("{text}\n").as_bytes()),
        ("key", pem.as_bytes()),
        ("signature", &signature),
    ] {
        std::fs::write(dir.join(name), bytes).expect("written");
    }
    let words = "pkeyutl -verify -pubin -inkey key -rawin -in text -sigfile signature";
    let run = Command::new("openssl")
        .args(words.split(' '))
        .current_dir(dir)
        .output();
    match run {
        Ok(output) => Some(output.status.success()),
        Err(error) => {
            println!("skipped: openssl can't be started: {error}");
            None
        }
    }
}

/// Goal: a checkpoint says where the log ends, and two strangers who know nothing of this program
/// take its signature and no other text's.
#[tokio::test]
async fn strangers_verify_a_checkpoint() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(&dir.path().join("log"));
    fill(&log, "a", 5).await;
    let key = key(dir.path());
    let (checkpoint, note) = key.sign_head(&log);
    let public = key.public(log.id());
    assert_eq!(checkpoint.head, log.head());
    let opened = Checkpoint::open(&note, &public).expect("signed");
    assert_eq!((opened.log, opened.head), (log.id(), log.head()));
    log.holds(opened.into()).await.expect("held");

    let forged = note.replace("position 5", "position 6");
    if let Some(verified) = openssl(dir.path(), &note, &public.pem()) {
        assert!(verified, "openssl refuses the signature");
        assert_eq!(openssl(dir.path(), &forged, &public.pem()), Some(false));
    }
    let verify = |note: &str, public: &str| {
        let path = dir.path().join("note");
        std::fs::write(&path, note).expect("written");
        let path = path.to_str().expect("UTF-8").to_owned();
        python("fixtures/verify_note.py", &[&path, public])
    };
    if let Some(said) = verify(&note, &public.to_string()) {
        let chain = hex::encode(log.head().chain);
        assert_eq!(said, Ok(format!("5:{chain}\n")));
        let said = verify(&forged, &public.to_string()).expect("Python");
        assert!(said.expect_err("forged").contains("not of this text"));
        let other = tempfile::tempdir().expect("a folder");
        let other = self::key(other.path()).public(log.id()).to_string();
        let said = verify(&note, &other).expect("Python");
        assert!(
            said.expect_err("another key")
                .contains("signed by another key")
        );
    }
    log.close().await;
}

/// A folder's log as another history of the same log: the copy goes on differently.
async fn rewritten(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    super::support::copy(from, to);
    let log = open(to);
    fill(&log, "forged", 4).await;
    log.close().await;
}

fn options(dir: &Path) -> CheckpointOptions {
    CheckpointOptions {
        dir: dir.join("notes"),
        every: Duration::from_secs(3600),
        every_commits: 1_000_000,
    }
}

async fn refused(log: EventLog, key: Arc<CheckpointKey>, options: CheckpointOptions) -> String {
    let started = Keeper::start(log.clone(), key, options).await;
    log.close().await;
    match started {
        Ok(_) => panic!("the keeper took another history"),
        Err(error) => error.to_string(),
    }
}

/// Goal: a history that was re-made in the log itself, witness and all, does not pass an older
/// checkpoint: neither when asked for nor when the server starts again.
#[tokio::test]
async fn an_old_checkpoint_catches_a_rewritten_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let (live, forged) = (dir.path().join("log"), dir.path().join("forged"));
    let log = open(&live);
    fill(&log, "a", 3).await;
    log.close().await;
    rewritten(&live, &forged).await;
    let log = open(&live);
    fill(&log, "a", 2).await;
    let key = key(dir.path());
    let keeper = Keeper::start(log.clone(), key.clone(), options(dir.path()));
    let keeper = keeper.await.unwrap_or_else(|error| panic!("{error}"));
    let head = log.head();
    keeper.stop().await;
    log.close().await;

    let folder = CheckpointFolder::open(&dir.path().join("notes")).expect("a folder");
    let log = open(&forged);
    let kept = folder
        .latest(&key.public(log.id()))
        .expect("signed")
        .expect("kept");
    assert_eq!(kept.head, head, "written at the end");
    let fault = log.holds(kept.into()).await.expect_err("another history");
    assert!(
        fault
            .to_string()
            .contains("history up to here was rewritten"),
        "{fault}"
    );
    log.verify().await.expect("whole in itself");
    let said = refused(log, key.clone(), options(dir.path())).await;
    assert!(
        said.contains("cut off or rewritten") && said.contains("commit 5"),
        "{said}"
    );

    // The same log with its end taken away, witness and all.
    let short = dir.path().join("short");
    std::fs::create_dir_all(&short).expect("a folder");
    let log = open(&live);
    let beyond = Known {
        commit: 9,
        ..kept.into()
    };
    let fault = log.holds(beyond).await.expect_err("beyond the end");
    assert!(fault.to_string().contains("the end was cut off"), "{fault}");
    log.close().await;

    // Another key's notes are not ours.
    let other = tempfile::tempdir().expect("a folder");
    let log = open(&live);
    let said = refused(log, self::key(other.path()), options(dir.path())).await;
    assert!(
        said.contains("signed by another key") && said.contains("move the old"),
        "{said}"
    );
}

/// Goal: notes come at their interval when the head moved, numbered, and the key file is private.
#[tokio::test]
async fn checkpoints_are_written_as_the_log_grows() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(&dir.path().join("log"));
    let key = key(dir.path());
    let options = CheckpointOptions {
        every: Duration::from_millis(1),
        ..options(dir.path())
    };
    let notes = options.dir.clone();
    let keeper = Keeper::start(log.clone(), key.clone(), options).await;
    let keeper = keeper.unwrap_or_else(|error| panic!("{error}"));
    fill(&log, "a", 2).await;
    let first = notes.join(format!("{:020}.note", 2));
    for _ in 0..500 {
        if first.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(first.exists(), "no note came");
    fill(&log, "a", 1).await;
    keeper.stop().await;
    assert!(
        notes.join(format!("{:020}.note", 3)).exists(),
        "no last note"
    );
    let folder = CheckpointFolder::open(&notes).expect("a folder");
    let latest = folder.latest(&key.public(log.id())).expect("signed");
    assert_eq!(latest.map(|latest| latest.head), Some(log.head()));
    log.close().await;
    use std::os::unix::fs::PermissionsExt;
    let key = std::fs::metadata(dir.path().join(CheckpointKey::FILE)).expect("a file");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

/// Goal: a search for a commit ends in a log with a gap too, whichever is missing. Method: the search
/// runs on a thread of its own, which is not waited for any longer than it can take.
#[tokio::test]
async fn a_search_for_a_commit_ends_in_a_log_with_a_gap() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "a", 12).await;
    log.close().await;
    forger(dir.path())
        .execute(
            "DELETE FROM blocks WHERE first_position BETWEEN 4 AND 6",
            [],
        )
        .expect("deleted");
    let path = dir.path().to_owned();
    let (tell, told) = std::sync::mpsc::sync_channel(13);
    std::thread::spawn(move || {
        let view = sqlite::attach(&path).expect("attached");
        for commit in 1..=13 {
            let found = head_at(view.as_ref(), commit).expect("read");
            let _ = tell.send((commit, found.map(|head| head.commit)));
        }
    });
    for wanted in 1..=13 {
        let there = (1..=12).contains(&wanted) && !(4..=6).contains(&wanted);
        let found = told.recv_timeout(Duration::from_secs(20));
        assert_eq!(
            found,
            Ok((wanted, there.then_some(wanted))),
            "it goes on for ever"
        );
    }
}
