//! The master key: 32 random bytes as 64 hexadecimal digits in a file that only the server reads.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::KeyError;

const KEY_BYTES: usize = 32;
const TEXT_BYTES: usize = 2 * KEY_BYTES;

/// The key that wraps all data keys. Wiped on drop; has no `Debug`.
pub struct MasterKey(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl MasterKey {
    /// Reads the key file, or makes it (mode 0600, synced with its folder, never over another
    /// file). Returns whether it was made now. A file that others can read, that belongs to
    /// somebody else or that holds anything but a key is refused.
    pub fn load_or_create(path: &Path) -> Result<(MasterKey, bool), KeyError> {
        match Self::load(path)? {
            Some(key) => Ok((key, false)),
            None => {
                let key = Self::generate()?;
                key.store(path)?;
                Ok((key, true))
            }
        }
    }

    /// A key from 64 hexadecimal digits (white space around them is ignored).
    pub fn from_hex(text: &str) -> Result<MasterKey, KeyError> {
        Self::parse(text.as_bytes(), "the given text")
    }

    /// A new random key.
    pub fn generate() -> Result<MasterKey, KeyError> {
        let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
        getrandom::fill(key.as_mut_slice())
            .map_err(|_| KeyError::Crypto("the system gave no randomness"))?;
        Ok(MasterKey(key))
    }

    /// Where the next key waits while the keyring is re-wrapped: `<path>.next`.
    pub fn next_path(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".next");
        name.into()
    }

    /// Makes a new key and stores it beside the present one, *before* [`super::Keyring::rotate_master`],
    /// so that a crash at any moment leaves a file that opens the keyring.
    pub fn stage_next(path: &Path) -> Result<MasterKey, KeyError> {
        let (key, _) = Self::load_or_create(&Self::next_path(path))?;
        Ok(key)
    }

    /// Puts the staged key in the place of the old one, *after* [`super::Keyring::rotate_master`].
    pub fn promote_next(path: &Path) -> Result<(), KeyError> {
        std::fs::rename(Self::next_path(path), path)
            .and_then(|()| sync_folder(path))
            .map_err(|error| io_error(path, "replaced", &error))
    }

    /// Reads the key file; `None` when there is none.
    pub(super) fn load(path: &Path) -> Result<Option<MasterKey>, KeyError> {
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
                path: path.to_owned(),
                owner: meta.uid(),
                me,
            });
        }
        if meta.mode() & 0o177 != 0 {
            return Err(KeyError::Mode {
                path: path.to_owned(),
                mode: meta.mode() & 0o7777,
            });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(TEXT_BYTES + 16));
        file.take(u64::try_from(TEXT_BYTES).unwrap_or(0) + 8)
            .read_to_end(&mut text)
            .map_err(|error| io_error(path, "read", &error))?;
        Self::parse(&text, &path.display().to_string()).map(Some)
    }

    pub(super) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    fn parse(text: &[u8], source_name: &str) -> Result<MasterKey, KeyError> {
        let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
        hex::decode_to_slice(text.trim_ascii(), key.as_mut_slice()).map_err(|_| {
            KeyError::NotAKey {
                source_name: source_name.to_owned(),
            }
        })?;
        Ok(MasterKey(key))
    }

    /// Whole or not at all: written aside, synced, then linked, which never replaces a file.
    fn store(&self, path: &Path) -> Result<(), KeyError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let fresh = PathBuf::from(name);
        let mut text = Zeroizing::new([0_u8; TEXT_BYTES + 1]);
        text[TEXT_BYTES] = b'\n';
        hex::encode_to_slice(self.expose(), &mut text[..TEXT_BYTES])
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
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

fn io_error(path: &Path, action: &'static str, error: &io::Error) -> KeyError {
    KeyError::Io {
        path: path.to_owned(),
        action,
        detail: error.to_string(),
    }
}
