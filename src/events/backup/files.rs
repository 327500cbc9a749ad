//! Files and folders of a backup: private from birth, never over another one, synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::BackupError;

/// Whether the folder is missing or has nothing in it.
pub fn is_empty(dir: &Path) -> Result<bool, BackupError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed(dir, "read")(error)),
    }
}

/// A folder for nobody else's eyes with nothing in it.
pub fn make_empty(dir: &Path) -> Result<(), BackupError> {
    if !is_empty(dir)? {
        return Err(BackupError::NotEmpty {
            path: dir.to_owned(),
        });
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed(dir, "created"))
}

/// Copies a file to a new one of mode 0600, synced.
pub fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut source = File::open(from).map_err(failed(from, "read"))?;
    let mut target = private(to)?;
    io::copy(&mut source, &mut target)
        .and_then(|_| target.sync_all())
        .map_err(failed(to, "written"))
}

/// SHA-256 of a file's bytes.
pub fn sha256(path: &Path) -> Result<[u8; 32], BackupError> {
    let mut hash = Sha256::new();
    let mut read = || {
        let mut file = BufReader::new(File::open(path)?);
        loop {
            let bytes = file.fill_buf()?;
            if bytes.is_empty() {
                return Ok(());
            }
            hash.update(bytes);
            let taken = bytes.len();
            file.consume(taken);
        }
    };
    read().map_err(failed(path, "read"))?;
    Ok(hash.finalize().into())
}

/// Makes a file of mode 0600, synced with its folder.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let mut file = private(path)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder(path))
        .map_err(failed(path, "written"))
}

fn private(path: &Path) -> Result<File, BackupError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed(path, "created"))
}

pub fn sync_file(path: &Path) -> Result<(), BackupError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(failed(path, "synced"))
}

/// Syncs the folder that `path` is in.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    match path.canonicalize()?.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

pub fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io {
        path,
        action,
        source,
    }
}
