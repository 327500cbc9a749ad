//! The keyring: where a sealed value opens, where it does not, and what is left of a shredded key.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use super::support::{note, open, stream};
use crate::events::{KeyError, Keyring, MasterKey, SealContext, Sealed, open_keyring};
use crate::secret::SecretValue;

const CANARY: &str = "sk-live-canary-0d5f2b7e91";
const HERE: SealContext<'static> = SealContext {
    event_kind: "secret.set.v1",
    name: "API_KEY",
};

struct Place {
    dir: TempDir,
    keyring: Keyring,
}

fn keys_path(dir: &Path) -> PathBuf {
    dir.join("keys.db")
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a folder");
    let (master, made) = MasterKey::load_or_create(&dir.path().join("master.key")).expect("a key");
    assert!(made);
    let keyring = Keyring::open(&keys_path(dir.path()), master, false).expect("a keyring");
    Place { dir, keyring }
}

fn canary() -> SecretValue {
    SecretValue::from(CANARY.to_owned())
}

/// `Result::expect_err` needs `Debug`, which secret things don't have.
fn error<T>(result: Result<T, KeyError>) -> String {
    match result {
        Ok(_) => panic!("it worked"),
        Err(error) => error.to_string(),
    }
}

/// All files in the folder that hold `needle`.
fn holders(dir: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).expect("the folder lists");
    files
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .filter(|path| {
            let bytes = std::fs::read(path).expect("the file reads");
            bytes.windows(needle.len()).any(|window| window == needle)
        })
        .collect()
}

/// Goal: a value opens where it was sealed, and a ciphertext moved to any other place does not.
#[test]
fn a_sealed_value_opens_only_in_its_place() {
    let Place { keyring, dir: _dir } = place();
    let (home, other) = (stream("project-1"), stream("project-2"));
    let sealed = keyring.seal(&home, &HERE, &canary()).expect("sealed");
    let opened = keyring.unseal(&home, &HERE, &sealed).expect("opened");
    assert_eq!(opened.expose(), CANARY.as_bytes());
    keyring
        .seal(&other, &HERE, &canary())
        .expect("the other stream has a key too");

    let altered = |change: fn(&mut Sealed)| {
        let mut sealed = sealed.clone();
        change(&mut sealed);
        sealed
    };
    let other_kind = SealContext {
        event_kind: "secret.rotated.v1",
        ..HERE
    };
    let other_name = SealContext {
        name: "API_KEY2",
        ..HERE
    };
    for (place, ctx, sealed) in [
        (&other, HERE, sealed.clone()),
        (&home, other_kind, sealed.clone()),
        (&home, other_name, sealed.clone()),
        (&stream("never-used"), HERE, sealed.clone()),
        (&home, HERE, altered(|s| s.key_version = 2)),
        (&home, HERE, altered(|s| s.nonce = BASE64.encode([0; 12]))),
        (&home, HERE, altered(|s| s.nonce = "short".into())),
        (
            &home,
            HERE,
            altered(|s| s.ciphertext = "not base64!".into()),
        ),
        (
            &home,
            HERE,
            altered(|s| s.ciphertext.replace_range(0..1, "_")),
        ),
        (&home, HERE, altered(|s| s.ciphertext = String::new())),
    ] {
        let message = error(keyring.unseal(place, &ctx, &sealed));
        assert!(message.contains("does not open"), "{message}");
        assert!(!message.contains(CANARY));
    }
    // Fields that run together don't open either.
    let joined = SealContext {
        event_kind: "secret.set.v1A",
        name: "PI_KEY",
    };
    assert!(keyring.unseal(&home, &joined, &sealed).is_err());
}

/// Goal: the same value sealed twice shows no equality, and the text form survives JSON.
#[test]
fn sealing_twice_gives_two_ciphertexts() {
    let Place { keyring, dir: _dir } = place();
    let home = stream("project-1");
    let first = keyring.seal(&home, &HERE, &canary()).expect("sealed");
    let second = keyring.seal(&home, &HERE, &canary()).expect("sealed");
    assert_ne!(first.ciphertext, second.ciphertext);
    let text = serde_json::to_string(&first).expect("JSON");
    let back: Sealed = serde_json::from_str(&text).expect("JSON");
    assert!(keyring.unseal(&home, &HERE, &back).is_ok());
    let huge = SecretValue::new(vec![b'x'; crate::secret::SECRET_VALUE_BYTES_MAX + 1]);
    assert!(error(keyring.seal(&home, &HERE, &huge)).contains("over 65536 bytes"));
}

/// Goal: no file of log, keyring or master key ever holds the value, in any usual spelling, while
/// open or closed.
#[tokio::test]
async fn the_value_is_in_no_file() {
    let Place { keyring, dir } = place();
    let log = open(dir.path());
    let home = stream("project-1");
    let sealed = keyring.seal(&home, &HERE, &canary()).expect("sealed");
    let mut append = note("project-1", 0);
    append.events[0].data = json!({ "name": HERE.name, "sealed": sealed });
    log.append(append).await.expect("appended");

    // The search does find what is there.
    assert!(!holders(dir.path(), sealed.ciphertext.as_bytes()).is_empty());
    let search = |dir: &Path| {
        let encoded = BASE64.encode(CANARY);
        for needle in [CANARY, encoded.trim_end_matches('='), &hex::encode(CANARY)] {
            assert_eq!(holders(dir, needle.as_bytes()), Vec::<PathBuf>::new());
        }
    };
    search(dir.path());
    log.close().await;
    drop(keyring);
    search(dir.path());
}

/// Goal: after shredding, the wrapped key is in no file, the value does not open, the stream gets
/// no new key, and other streams are unharmed; also after a restart.
#[test]
fn a_shredded_key_is_gone_for_good() {
    let Place { keyring, dir } = place();
    let (home, other) = (stream("project-1"), stream("project-2"));
    let sealed = keyring.seal(&home, &HERE, &canary()).expect("sealed");
    let others = keyring.seal(&other, &HERE, &canary()).expect("sealed");
    let wrapped: Vec<u8> = {
        let conn = Connection::open(keys_path(dir.path())).expect("the keyring opens");
        let sql = "SELECT wrapped FROM data_keys WHERE stream = 'project-1'";
        conn.query_row(sql, [], |row| row.get(0))
            .expect("a wrapped key")
    };
    assert_eq!(wrapped.len(), 48);
    assert!(
        !holders(dir.path(), &wrapped).is_empty(),
        "the search finds the key before"
    );

    assert!(keyring.shred(&home).expect("shredded"));
    assert_eq!(holders(dir.path(), &wrapped), Vec::<PathBuf>::new());
    assert_eq!(holders(dir.path(), &wrapped[..16]), Vec::<PathBuf>::new());
    assert!(!keyring.shred(&home).expect("nothing left"));
    assert!(!keyring.shred(&stream("never-used")).expect("nothing there"));
    drop(keyring);

    let (keyring, _) =
        open_keyring(&dir.path().join("master.key"), &keys_path(dir.path()), true).expect("opened");
    for refused in [
        error(keyring.unseal(&home, &HERE, &sealed)),
        error(keyring.seal(&home, &HERE, &canary())),
        error(keyring.derive(&home, "tokens")),
    ] {
        assert!(refused.contains("was destroyed"), "{refused}");
    }
    assert!(keyring.unseal(&other, &HERE, &others).is_ok());
}

/// Goal: derived keys differ by stream and label, stay the same over restarts, and are not the key
/// that seals.
#[test]
fn derived_keys_are_stable_and_apart() {
    let Place { keyring, dir } = place();
    let (home, other) = (stream("sandbox-1"), stream("sandbox-2"));
    let key = keyring.derive(&home, "tokens").expect("derived");
    assert_ne!(*key, *keyring.derive(&home, "tokens2").expect("derived"));
    assert_ne!(*key, *keyring.derive(&other, "tokens").expect("derived"));
    drop(keyring);
    let (keyring, made) =
        open_keyring(&dir.path().join("master.key"), &keys_path(dir.path()), true).expect("opened");
    assert!(!made);
    assert_eq!(*key, *keyring.derive(&home, "tokens").expect("derived"));
}

/// Goal: a wrong master key and a lost keyring are named as what they are.
#[test]
fn a_wrong_master_key_and_a_lost_keyring_are_recognised() {
    let Place { keyring, dir } = place();
    drop(keyring);
    let path = keys_path(dir.path());
    let wrong = error(Keyring::open(
        &path,
        MasterKey::generate().expect("a key"),
        true,
    ));
    assert!(
        wrong.contains("put back the one it was made with"),
        "{wrong}"
    );
    std::fs::write(&path, "").expect("emptied");
    let master = || MasterKey::from_hex(&"ab".repeat(32)).expect("a key");
    let lost = error(Keyring::open(&path, master(), true));
    assert!(
        lost.contains("missing or empty") && lost.contains("backup"),
        "{lost}"
    );
    std::fs::remove_file(&path).expect("removed");
    assert!(error(Keyring::open(&path, master(), true)).contains("missing or empty"));
    assert!(!path.exists(), "the refusal made a new keyring");
    std::fs::write(&path, "no database at all ".repeat(300)).expect("written");
    assert!(error(Keyring::open(&path, master(), true)).contains("not a database"));
}

/// Goal: the key file is private from birth, and anything but a private file of ours with exactly
/// one key is refused with the command that mends it.
#[test]
fn the_master_key_file_is_private_or_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("master.key");
    let (_, made) = MasterKey::load_or_create(&path).expect("made");
    assert!(made);
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("lists").count(),
        1,
        "nothing is left over"
    );
    assert!(!MasterKey::load_or_create(&path).expect("loaded").1);

    for loose in [0o604, 0o640, 0o660, 0o622, 0o700] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(loose)).expect("set");
        let message = error(MasterKey::load_or_create(&path));
        assert!(
            message.contains(&format!("chmod 600 {}", path.display())),
            "{message}"
        );
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("set");
    for text in ["", "abc", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66)] {
        std::fs::write(&path, text).expect("written");
        assert!(error(MasterKey::load_or_create(&path)).contains("64 hexadecimal digits"));
    }
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("linked");
    assert!(error(MasterKey::load_or_create(&link)).contains("can't be opened"));
}

/// Goal: rotation re-wraps every key, the old master key stops working, and a crash between any two
/// of its steps leaves a pair of files that opens.
#[test]
fn rotating_the_master_key_survives_a_crash_at_each_step() {
    let Place { keyring, dir } = place();
    let (master, keys) = (dir.path().join("master.key"), keys_path(dir.path()));
    let streams: Vec<_> = (0..300).map(|n| stream(&format!("project-{n}"))).collect();
    let sealed: Vec<_> = streams
        .iter()
        .map(|stream| keyring.seal(stream, &HERE, &canary()).expect("sealed"))
        .collect();
    keyring.shred(&streams[7]).expect("shredded");
    let old = std::fs::read_to_string(&master).expect("read");
    drop(keyring);
    let check = || {
        let (keyring, _) = open_keyring(&master, &keys, true).expect("opened");
        for (index, (stream, sealed)) in streams.iter().zip(&sealed).enumerate().step_by(50) {
            assert!(keyring.unseal(stream, &HERE, sealed).is_ok(), "key {index}");
        }
        keyring
    };
    // A crash after the new key was staged.
    let next = MasterKey::stage_next(&master).expect("staged");
    let keyring = check();
    // A crash after the keys were re-wrapped.
    assert_eq!(keyring.rotate_master(next).expect("rotated"), 299);
    assert!(
        keyring.unseal(&streams[0], &HERE, &sealed[0]).is_ok(),
        "it goes on at once"
    );
    drop(keyring);
    drop(check());
    // `open_keyring` has finished it.
    assert!(!MasterKey::next_path(&master).exists());
    assert_ne!(std::fs::read_to_string(&master).expect("read"), old);
    drop(check());
    let old = MasterKey::from_hex(&old).expect("the old key");
    assert!(error(Keyring::open(&keys, old, true)).contains("put back the one"));
}
