//! Crypto-shredding, judged by an attacker who has every file and the master key: they take each
//! window of bytes of each file for a wrapped data key and try it.

use std::path::{Path, PathBuf};

use aes_gcm_siv::aead::{Aead, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hkdf::Hkdf;
use serde_json::json;
use sha2::Sha256;

use super::support::{note, open, stream};
use crate::events::{Keyring, MasterKey, SealContext, Sealed};
use crate::secret::SecretValue;

const CANARY: &str = "sk-live-canary-77ab01c3d9";
const NAME: &str = "API_KEY";
const KIND: &str = "secret.set.v1";
/// A nonce and a wrapped data key (32 bytes and their tag), as `keys.db` has them side by side.
const WINDOW_BYTES: usize = 12 + 48;

// What follows is written from the documentation of `keys/`, not with its code.

fn joined(fields: &[&[u8]]) -> Vec<u8> {
    let field = |field: &&[u8]| [&(field.len() as u32).to_be_bytes()[..], field].concat();
    fields.iter().flat_map(field).collect()
}

fn derived(key: &[u8], info: &[u8]) -> Aes256GcmSiv {
    let mut out = [0; 32];
    let expanded = Hkdf::<Sha256>::new(None, key).expand(&joined(&[info]), &mut out);
    expanded.expect("32 bytes");
    Aes256GcmSiv::new_from_slice(&out).expect("32 bytes")
}

fn decrypt(cipher: &Aes256GcmSiv, nonce: &[u8], sealed: &[u8], place: &[u8]) -> Option<Vec<u8>> {
    let nonce = Nonce::from(<[u8; 12]>::try_from(nonce).ok()?);
    let payload = Payload {
        msg: sealed,
        aad: place,
    };
    cipher.decrypt(&nonce, payload).ok()
}

/// The value, if any window of any file is its data key under the master key in `master.key`.
fn attack(dir: &Path, stream: &str, sealed: &Sealed) -> Option<Vec<u8>> {
    let master = std::fs::read_to_string(dir.join("master.key")).expect("the master key");
    let master = hex::decode(master.trim()).expect("hexadecimal");
    let unwrap = derived(&master, b"oc.keys.wrap.v1");
    let version = sealed.key_version.to_be_bytes();
    let wrapped_at = joined(&[b"oc.keys.data.v1", stream.as_bytes(), &version]);
    let sealed_at = joined(&[
        stream.as_bytes(),
        KIND.as_bytes(),
        NAME.as_bytes(),
        &version,
    ]);
    let nonce = BASE64.decode(&sealed.nonce).expect("base64");
    let ciphertext = BASE64.decode(&sealed.ciphertext).expect("base64");
    let files = files(dir);
    assert!(files.len() >= 4, "the attacker sees too little: {files:?}");
    for file in files {
        let bytes = std::fs::read(&file).expect("readable");
        for window in bytes.windows(WINDOW_BYTES) {
            let (key_nonce, wrapped) = window.split_at(12);
            // The zeros of empty pages are no key; all else is tried.
            if window.iter().all(|byte| *byte == 0) {
                continue;
            }
            if let Some(key) = decrypt(&unwrap, key_nonce, wrapped, &wrapped_at) {
                let open = derived(&key, b"oc.keys.seal.v1");
                if let Some(value) = decrypt(&open, &nonce, &ciphertext, &sealed_at) {
                    return Some(value);
                }
            }
        }
    }
    None
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// Goal: before the shredding the attack works, so it is a real one; afterwards it does not, on
/// any file, while log and keyring are open and when they are closed. The ciphertext is still in
/// the log.
#[tokio::test]
async fn a_shredded_value_stays_sealed_even_with_the_master_key() {
    let dir = tempfile::tempdir().expect("a folder");
    let (master, _) = MasterKey::load_or_create(&dir.path().join("master.key")).expect("a key");
    let keyring = Keyring::open(&dir.path().join("keys.db"), master, false).expect("a keyring");
    let log = open(&dir.path().join("log"));
    let (home, ctx) = (
        stream("project-1"),
        SealContext {
            event_kind: KIND,
            name: NAME,
        },
    );
    // Neighbours, so that the key is not alone on its page.
    for index in 0..20 {
        let other = stream(&format!("project-other-{index}"));
        let value = SecretValue::from("another".to_owned());
        keyring.seal(&other, &ctx, &value).expect("sealed");
    }
    let value = SecretValue::from(CANARY.to_owned());
    let sealed = keyring.seal(&home, &ctx, &value).expect("sealed");
    let mut append = note("project-1", 0);
    append.events[0].data = json!({ "name": NAME, "sealed": sealed });
    log.append(append).await.expect("appended");
    let found = attack(dir.path(), "project-1", &sealed);
    assert_eq!(
        found.as_deref(),
        Some(CANARY.as_bytes()),
        "the attack is no attack"
    );

    assert!(keyring.shred(&home).expect("shredded"));
    assert_eq!(attack(dir.path(), "project-1", &sealed), None, "while open");
    log.close().await;
    drop(keyring);
    assert_eq!(attack(dir.path(), "project-1", &sealed), None, "closed");
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).expect("readable");
        let needle = sealed.ciphertext.as_bytes();
        bytes.windows(needle.len()).any(|window| window == needle)
    };
    assert!(
        files(dir.path()).iter().any(holds),
        "the history lost the ciphertext"
    );
}
