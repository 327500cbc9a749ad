//! A key in a file: 32 random bytes as 64 hexadecimal digits that only this user may read.
//!
//! Invariants: a file is private from birth, is there whole or not at all, and never replaces
//! another one; a file that others can read, that belongs to somebody else, that is a link or that
//! holds anything but a key is refused in words that mend it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::KeyError;

/// Length of a key, in bytes.
pub const KEY_BYTES: usize = 32;
const TEXT_BYTES: usize = 2 * KEY_BYTES;

/// A key, wiped on drop.
pub type KeyBytes = Box<Zeroizing<[u8; KEY_BYTES]>>;

/// 32 random bytes.
pub fn generate() -> Result<KeyBytes, KeyError> {
    let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
    getrandom::fill(key.as_mut_slice())
        .map_err(|_| KeyError::Crypto("the system gave no randomness"))?;
    Ok(key)
}

/// Reads the key at `path`, which is a `what` (for messages); `None` when there is no file.
pub fn load(path: &Path, what: &'static str) -> Result<Option<KeyBytes>, KeyError> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path, "opened", &error)),
    };
    // Of the open file, not of the path, which could be exchanged meanwhile.
    let meta = file
        .metadata()
        .map_err(|error| io_error(path, "examined", &error))?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Err(KeyError::Owner {
            what,
            path: path.to_owned(),
            owner: meta.uid(),
            me,
        });
    }
    if meta.mode() & 0o177 != 0 {
        return Err(KeyError::Mode {
            what,
            path: path.to_owned(),
            mode: meta.mode() & 0o7777,
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(TEXT_BYTES + 16));
    file.take(u64::try_from(TEXT_BYTES).unwrap_or(0) + 8)
        .read_to_end(&mut text)
        .map_err(|error| io_error(path, "read", &error))?;
    parse(&text, what, &path.display().to_string()).map(Some)
}

/// The key that `text` spells; white space around it is ignored.
pub fn parse(text: &[u8], what: &'static str, source_name: &str) -> Result<KeyBytes, KeyError> {
    let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
    hex::decode_to_slice(text.trim_ascii(), key.as_mut_slice()).map_err(|_| KeyError::NotAKey {
        what,
        source_name: source_name.to_owned(),
    })?;
    Ok(key)
}

/// Writes `key` to `path`, which must not exist. Whole or not at all: written aside, synced, then
/// linked, which never replaces a file.
pub fn create(path: &Path, key: &[u8; KEY_BYTES]) -> Result<(), KeyError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let mut text = Zeroizing::new([0_u8; TEXT_BYTES + 1]);
    text[TEXT_BYTES] = b'\n';
    hex::encode_to_slice(key, &mut text[..TEXT_BYTES])
        .map_err(|_| KeyError::Crypto("the key has no text form"))?;
    let write = || {
        if let Err(error) = std::fs::remove_file(&fresh)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_slice())?;
        file.sync_all()?;
        std::fs::hard_link(&fresh, path)?;
        std::fs::remove_file(&fresh)?;
        sync_folder(path)
    };
    write().map_err(|error| io_error(path, "created", &error))
}

/// Syncs the folder that `path` is in, so that its name survives a power cut.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

pub fn io_error(path: &Path, action: &'static str, error: &io::Error) -> KeyError {
    KeyError::Io {
        path: path.to_owned(),
        action,
        detail: error.to_string(),
    }
}
