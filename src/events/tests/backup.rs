//! Backups of a log and a keyring that are in use: consistent, verified, and whole or not at all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::support::{note, open, stream};
use crate::config::MasterSource;
use crate::events::{DataFolder, EventLog, KeyError, Keyring, MasterKey, SealContext, Sealed};
use crate::secret::SecretValue;

const HERE: SealContext<'static> = SealContext {
    event_kind: "test.happened.v1",
    name: "API_KEY",
};

struct Place {
    folder: DataFolder,
    log: EventLog,
    keyring: Arc<Keyring>,
    master: MasterSource,
}

fn place(dir: &Path) -> Place {
    let folder = DataFolder::new(&dir.join("data"));
    let log = open(&folder.log());
    let path = folder.root().join("master.key");
    let (master, _) = MasterKey::load_or_create(&path).expect("a key");
    let keyring = Keyring::open(&folder.keys(), master, false).expect("a keyring");
    Place {
        folder,
        log,
        keyring: Arc::new(keyring),
        master: MasterSource::File(path),
    }
}

/// Seals a value and appends it; every third one is deleted and its key destroyed soon after.
async fn work(log: EventLog, keyring: Arc<Keyring>, writer: usize, stop: Arc<AtomicBool>) {
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("project-{writer}-{round}");
        let value = SecretValue::from(format!("value of {name}"));
        let sealed = keyring.seal(&stream(&name), &HERE, &value).expect("sealed");
        let mut append = note(&name, 0);
        append.events[0].data = json!({ "sealed": sealed });
        log.append(append).await.expect("appended");
        if round % 3 == 0 {
            log.append(note(&name, "deleted")).await.expect("appended");
            keyring.shred(&stream(&name)).expect("shredded");
        }
        tokio::task::yield_now().await;
    }
}

/// Every value in the restored log opens, unless its delete is in the log too.
async fn assert_consistent(folder: &DataFolder) -> usize {
    let master = MasterKey::load(&folder.root().join("master.key")).expect("a key");
    let keyring = Keyring::open(&folder.keys(), master.expect("there"), true).expect("opens");
    let log = open(&folder.log());
    log.verify().await.expect("verified");
    let mut opened = 0;
    let mut next = 1;
    loop {
        let page = log.read_all(next, 500).await.expect("read");
        let Some(last) = page.last() else { break };
        next = last.position + 1;
        for event in &page {
            let data: serde_json::Value = serde_json::from_str(event.data.get()).expect("JSON");
            if data.get("sealed").is_none() {
                continue;
            }
            let sealed: Sealed = serde_json::from_value(data["sealed"].clone()).expect("sealed");
            match keyring.unseal(&event.stream, &HERE, &sealed) {
                Ok(value) => {
                    let wanted = format!("value of {}", event.stream);
                    assert_eq!(value.expose(), wanted.as_bytes());
                    opened += 1;
                }
                Err(KeyError::Shredded { stream }) => {
                    let head = log.stream_head(&stream).await.expect("read");
                    assert!(
                        head.is_some_and(|(revision, _)| revision == 1),
                        "{stream} is not deleted"
                    );
                }
                Err(error) => panic!("{}: {error}", event.stream),
            }
        }
    }
    log.close().await;
    opened
}

/// Goal: backups taken while values are sealed, deleted and shredded at full speed are consistent:
/// restored, each value opens or its delete is there. The writers are not disturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_restores_consistently() {
    let dir = tempfile::tempdir().expect("a folder");
    let Place {
        folder,
        log,
        keyring,
        master,
    } = place(dir.path());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| tokio::spawn(work(log.clone(), keyring.clone(), writer, stop.clone())))
        .collect();
    let mut heads = Vec::new();
    for round in 0..3 {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        let (from, to) = (folder.clone(), dir.path().join(format!("backup-{round}")));
        let source = master.clone();
        let made = tokio::task::spawn_blocking(move || from.backup(&to, Some(&source), round == 2));
        let manifest = made
            .await
            .expect("runs")
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(manifest.keys_checked && manifest.positions <= log.head().position);
        let then = log
            .head_at(manifest.commits)
            .await
            .expect("read")
            .expect("there");
        assert_eq!(
            (then.position, then.chain),
            (manifest.positions, manifest.chain)
        );
        heads.push(manifest);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("no writer failed");
    }
    log.verify().await.expect("verified");
    log.close().await;
    drop(keyring);
    let mut opened = 0;
    for (round, manifest) in heads.iter().enumerate() {
        let backup = dir.path().join(format!("backup-{round}"));
        assert_eq!(backup.join("master.key").exists(), round == 2);
        let restored = DataFolder::new(&dir.path().join(format!("restored-{round}")));
        // The last one has the key with it.
        let given = (round < 2).then_some(&master);
        let said = restored
            .restore(&backup, given)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(&said, manifest);
        opened += assert_consistent(&restored).await;
    }
    assert!(opened > 10, "the load sealed next to nothing: {opened}");
}

/// Goal: what is no whole backup, or does not belong together, is refused, and the target stays
/// as it was.
#[tokio::test]
async fn a_doubtful_backup_is_not_restored() {
    let dir = tempfile::tempdir().expect("a folder");
    let Place {
        folder,
        log,
        keyring,
        master,
    } = place(dir.path());
    let value = SecretValue::from("value of project-1".to_owned());
    let sealed = keyring
        .seal(&stream("project-1"), &HERE, &value)
        .expect("sealed");
    let mut append = note("project-1", 0);
    append.events[0].data = json!({ "sealed": sealed });
    log.append(append).await.expect("appended");
    log.close().await;
    drop(keyring);
    // Of a stopped server as well.
    let backup = dir.path().join("backup");
    folder
        .backup(&backup, Some(&master), false)
        .unwrap_or_else(|error| panic!("{error}"));
    let target = dir.path().join("restored");
    let restore = |backup: &Path, master: Option<&MasterSource>| {
        let error = DataFolder::new(&target)
            .restore(backup, master)
            .expect_err("refused");
        assert!(!target.exists(), "a refusal left something: {error}");
        let parent = std::fs::read_dir(dir.path()).expect("lists").flatten();
        let left = parent.filter(|e| e.file_name().to_string_lossy().contains("restoring"));
        assert_eq!(left.count(), 0, "a refusal left something");
        error.to_string()
    };
    let wrong = dir.path().join("wrong.key");
    let (_, made) = MasterKey::load_or_create(&wrong).expect("a key");
    assert!(made);
    let said = restore(&backup, Some(&MasterSource::File(wrong)));
    assert!(
        said.contains("does not open with this master key"),
        "{said}"
    );
    let said = restore(&backup, None);
    assert!(said.contains("--master-key-file"), "{said}");
    let said = restore(&folder.log(), Some(&master));
    assert!(said.contains("is no whole backup"), "{said}");
    let manifest = backup.join("backup.json");
    let text = std::fs::read_to_string(&manifest).expect("readable");
    std::fs::write(
        &manifest,
        text.replace("\"positions\": 1", "\"positions\": 2"),
    )
    .expect("written");
    let said = restore(&backup, Some(&master));
    assert!(said.contains("does not end there"), "{said}");
    std::fs::write(&manifest, &text).expect("written");
    let file = backup.join("log/log.db");
    let mut bytes = std::fs::read(&file).expect("readable");
    let needle = sealed.ciphertext.as_bytes();
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .expect("there");
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).expect("written");
    let said = restore(&backup, Some(&master));
    assert!(said.contains("does not match its hash"), "{said}");
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).expect("written");

    let again = folder
        .backup(&backup, Some(&master), false)
        .expect_err("not empty");
    assert!(again.to_string().contains("new or empty"), "{again}");
    let full = DataFolder::new(folder.root()).restore(&backup, Some(&master));
    assert!(
        full.expect_err("not empty")
            .to_string()
            .contains("new or empty")
    );
    std::fs::create_dir(&target).expect("an empty folder");
    let restored = DataFolder::new(&target);
    restored
        .restore(&backup, Some(&master))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(assert_consistent(&restored).await, 1);
}

/// Goal: a log and a keyring of two backups are not put together, although both are the same
/// server's and sound: values sealed in between would not open.
#[tokio::test]
async fn a_keyring_of_another_backup_is_not_restored() {
    let dir = tempfile::tempdir().expect("a folder");
    let Place {
        folder,
        log,
        keyring,
        master,
    } = place(dir.path());
    let backups = ["older", "newer"].map(|name| dir.path().join(name));
    for (index, backup) in backups.iter().enumerate() {
        let name = format!("project-{index}");
        let value = SecretValue::from(format!("value of {name}"));
        let sealed = keyring.seal(&stream(&name), &HERE, &value).expect("sealed");
        let mut append = note(&name, 0);
        append.events[0].data = json!({ "sealed": sealed });
        log.append(append).await.expect("appended");
        folder
            .backup(backup, Some(&master), false)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    log.close().await;
    drop(keyring);
    let [older, newer] = backups;
    let own = std::fs::read(newer.join("keys.db")).expect("readable");
    std::fs::copy(older.join("keys.db"), newer.join("keys.db")).expect("copied");
    let target = DataFolder::new(&dir.path().join("restored"));
    let said = target.restore(&newer, Some(&master));
    let said = said.expect_err("refused").to_string();
    assert!(said.contains("is not the one it was made with"), "{said}");
    assert!(!target.root().exists(), "a refusal left something");
    std::fs::write(newer.join("keys.db"), own).expect("written");
    target
        .restore(&newer, Some(&master))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(assert_consistent(&target).await, 2);
}
