//! Making a data folder from a backup: everything verified, whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use ulid::Ulid;

use super::files::{copy_file, failed, is_empty, make_empty, sha256, sync_folder};
use super::{
    BackupError, CONFIG, FORMAT, KEYS, LOG, MANIFEST, MASTER, Manifest, check_keys, extend,
    not_a_backup, verify_log,
};
use crate::config::{MasterSource, configured_master};
use crate::events::checkpoint::CheckpointKey;
use crate::events::copy::Prefix;
use crate::events::engines::sqlite::{self, Copying, Purpose};
use crate::events::event::Head;
use crate::events::maintenance::DataFolder;

/// Largest manifest read, in bytes.
const TEXT_BYTES_MAX: u64 = 1024 * 1024;

impl DataFolder {
    /// Restores `backup` into this folder, which must be new or empty; everything is verified
    /// first, and the folder appears whole or not at all. `master` overrules the key in the backup.
    ///
    /// A key from a file becomes the folder's `master.key` if that is where the backup's
    /// configuration has a server look for it; else it is only used to check the keyring.
    pub fn restore(
        &self,
        backup: &Path,
        master: Option<&MasterSource>,
    ) -> Result<Manifest, BackupError> {
        if !is_empty(self.root())? {
            return Err(BackupError::NotEmpty {
                path: self.root().to_owned(),
            });
        }
        let manifest = manifest(backup)?;
        let mut name = self.root().as_os_str().to_owned();
        name.push(format!(".restoring-{}", Ulid::generate()));
        let building = DataFolder::new(Path::new(&name));
        let made = building.restore_here(backup, &manifest, master, self.root());
        let moved = made.and_then(|()| {
            fs::rename(building.root(), self.root())
                .and_then(|()| sync_folder(self.root()))
                .map_err(failed(self.root(), "put in its place"))
        });
        if let Err(error) = moved {
            // Ours alone, and worth nothing half made; what matters is the error before.
            let _ = fs::remove_dir_all(building.root());
            return Err(error);
        }
        Ok(manifest)
    }

    fn restore_here(
        &self,
        backup: &Path,
        manifest: &Manifest,
        master: Option<&MasterSource>,
        target: &Path,
    ) -> Result<(), BackupError> {
        make_empty(self.root())?;
        let head = Head {
            position: manifest.positions,
            commit: manifest.commits,
            chain: manifest.chain,
        };
        verify_log(&backup.join(LOG), manifest.log, head)?;
        let source = sqlite::attach(&backup.join(LOG))?;
        let mut copy = Copying::create(&self.log(), manifest.log)?;
        let mut prefix = Prefix::new(source.as_ref());
        extend(&mut prefix, source.as_ref(), head, &mut copy)?;
        copy.finish(Purpose::Serve)?;
        copy_file(&backup.join(KEYS), &self.keys())?;
        // Of the copy, before anything opens it: what is checked is what is used.
        if sha256(&self.keys())? != manifest.keys_sha256 {
            let reason = format!("its {KEYS} is not the one it was made with");
            return Err(not_a_backup(backup, reason));
        }
        for name in [CONFIG, CheckpointKey::FILE] {
            if backup.join(name).exists() {
                copy_file(&backup.join(name), &self.root().join(name))?;
            }
        }
        let in_backup = backup.join(MASTER);
        let master = match master {
            Some(given) => given.clone(),
            None if in_backup.exists() => MasterSource::File(in_backup),
            None => return Err(BackupError::NoMaster),
        };
        check_keys(&self.keys(), Some(&master))?;
        if master.file().is_some() && takes_its_own_key(backup, target)? {
            master.load()?.store(&self.root().join(MASTER))?;
        }
        Ok(())
    }
}

/// Whether a server on `target`, with the configuration in the backup, uses the key kept there.
fn takes_its_own_key(backup: &Path, target: &Path) -> Result<bool, BackupError> {
    let source = configured_master(target, &backup.join(CONFIG), false)
        .map_err(|error| not_a_backup(backup, error.to_string()))?;
    let own = std::path::absolute(target.join(MASTER)).map_err(failed(target, "used"))?;
    Ok(source == MasterSource::File(own))
}

fn manifest(backup: &Path) -> Result<Manifest, BackupError> {
    let path = backup.join(MANIFEST);
    let text = match File::open(&path) {
        Ok(file) => {
            let mut text = String::new();
            io::Read::read_to_string(&mut io::Read::take(file, TEXT_BYTES_MAX), &mut text)
                .map_err(failed(&path, "read"))?;
            text
        }
        Err(error) => {
            let reason = format!("{MANIFEST} can't be read ({error})");
            return Err(not_a_backup(backup, reason));
        }
    };
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|error| not_a_backup(backup, format!("{MANIFEST}: {error}")))?;
    match manifest.format == FORMAT {
        true => Ok(manifest),
        false => Err(not_a_backup(
            backup,
            format!(
                "its format is {}, this program knows {FORMAT}",
                manifest.format
            ),
        )),
    }
}
