//! Rotating the master key, cut off at every step: something opens the keyring, and a repetition
//! ends well.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::support::{fill, open, stream};
use crate::config::MasterSource;
use crate::events::keys::{Step, rotate};
use crate::events::{DataFolder, KeyError, Keyring, MasterKey, SealContext, Sealed};
use crate::secret::SecretValue;

const HERE: SealContext<'static> = SealContext {
    event_kind: "secret.set.v1",
    name: "API_KEY",
};

/// A folder whose keyring has sealed some values.
struct Place {
    dir: TempDir,
    sealed: Vec<Sealed>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (master, _) = MasterKey::load_or_create(&dir.path().join("master.key")).expect("a key");
        let keyring = Keyring::open(&dir.path().join("keys.db"), master, false).expect("a keyring");
        let seal = |index: usize| {
            let value = SecretValue::from(format!("value {index}"));
            let home = stream(&format!("project-{index}"));
            keyring.seal(&home, &HERE, &value).expect("sealed")
        };
        let sealed = (0..30).map(seal).collect();
        Self { dir, sealed }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A source outside our files: a command that prints the key in `name`.
    fn command(&self, name: &str) -> MasterSource {
        let path = self.path(name).to_str().expect("UTF-8").to_owned();
        MasterSource::Command(vec!["cat".into(), path])
    }

    /// Whether `source` opens the keyring and every value in it.
    fn opens(&self, source: &MasterSource) -> bool {
        let Ok((keyring, made)) = source.open_keyring(&self.path("keys.db"), true) else {
            return false;
        };
        assert!(!made);
        for (index, sealed) in self.sealed.iter().enumerate() {
            let home = stream(&format!("project-{index}"));
            let value = keyring.unseal(&home, &HERE, sealed).expect("opens");
            assert_eq!(value.expose(), format!("value {index}").as_bytes());
        }
        true
    }

    fn rotate_until(&self, source: &MasterSource, new: Option<&Path>, stop: Option<Step>) -> bool {
        let keys = self.path("keys.db");
        let cut = KeyError::Crypto("cut off by the test");
        let mut cut = Some(cut);
        let after = |step| match stop == Some(step) {
            true => Err(cut.take().expect("once")),
            false => Ok(()),
        };
        match rotate(source, new, &keys, after) {
            Ok(rotated) => {
                assert!(rotated.keys == 30 || rotated.finished_earlier);
                true
            }
            Err(error) => {
                assert!(error.to_string().contains("cut off by the test"), "{error}");
                false
            }
        }
    }
}

const STEPS: [Option<Step>; 4] = [
    Some(Step::Staged),
    Some(Step::Rewrapped),
    Some(Step::Promoted),
    None,
];

/// Goal: whatever the step a rotation ends at, the next start works, and so does the next rotation;
/// a key that is not in use any more opens nothing.
#[test]
fn a_rotation_cut_off_anywhere_can_be_repeated() {
    for stop in STEPS {
        for start_between in [false, true] {
            let place = Place::new();
            let source = MasterSource::File(place.path("master.key"));
            let first = std::fs::read_to_string(place.path("master.key")).expect("a key");
            assert_eq!(place.rotate_until(&source, None, stop), stop.is_none());
            assert!(
                !start_between || place.opens(&source),
                "start after {stop:?}"
            );
            assert!(
                place.rotate_until(&source, None, None),
                "repeat after {stop:?}"
            );
            assert!(place.opens(&source));
            assert!(!place.path("master.key.next").exists());
            std::fs::write(place.path("old"), first).expect("written");
            assert!(
                !place.opens(&place.command("old")),
                "the old key opens after {stop:?}"
            );
        }
    }
}

/// Goal: a key that this program does not keep is exchanged by the operator, and either the old or
/// the new one opens the keyring at every step.
#[test]
fn a_key_from_elsewhere_rotates_to_a_file() {
    for stop in STEPS {
        let place = Place::new();
        std::fs::rename(place.path("master.key"), place.path("outside")).expect("renamed");
        let (source, new) = (place.command("outside"), place.path("new.key"));
        place.rotate_until(&source, Some(&new), stop);
        let opened = [place.opens(&source), place.opens(&place.command("new.key"))];
        assert_eq!(opened.iter().filter(|opens| **opens).count(), 1, "{stop:?}");
        assert!(place.rotate_until(&source, Some(&new), None), "{stop:?}");
        assert!(place.opens(&place.command("new.key")), "{stop:?}");
        assert!(!place.opens(&source), "{stop:?}");
    }
}

/// Goal: what can't be rotated is refused in words that say what to do, and nothing is changed.
#[tokio::test]
async fn a_rotation_is_refused_with_the_way_out() {
    let place = Place::new();
    let folder = DataFolder::new(place.dir.path());
    let file = MasterSource::File(place.path("master.key"));
    let said = |source: &MasterSource, new: Option<&Path>| {
        folder
            .rotate_master(source, new, None)
            .err()
            .map(|error| error.to_string())
    };
    let check = |said: Option<String>, parts: &[&str]| {
        let said = said.expect("a refusal");
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
    };
    let log = open(&folder.log());
    fill(&log, "a", 1).await;
    check(
        said(&file, None),
        &["in use by another server", "stop that one first"],
    );
    log.close().await;

    let outside = place.command("master.key");
    check(
        said(&outside, None),
        &["the output of `cat`", "--new-key-file"],
    );
    let new = place.path("new.key");
    check(said(&file, Some(&new)), &["leave out `--new-key-file`"]);
    assert!(!new.exists());
    std::fs::write(place.path("wrong"), "7".repeat(64)).expect("written");
    check(
        said(&place.command("wrong"), Some(&new)),
        &["does not open with this master key"],
    );
    let missing = MasterSource::File(place.path("missing"));
    check(
        said(&missing, None),
        &["missing", "restore it from a backup"],
    );
    assert!(place.opens(&file), "a refusal changed something");
    assert!(!place.path("master.key.next").exists());

    let old = place.path("old.key");
    let rotated = folder.rotate_master(&file, None, Some(&old));
    assert_eq!(rotated.map(|rotated| rotated.keys).ok(), Some(30));
    assert!(
        MasterKey::load(&old).is_ok_and(|key| key.is_some()),
        "the old key was not kept"
    );
    assert!(!place.opens(&place.command("old.key")) && place.opens(&file));
}
