//! Where the server is and which key opens it.
//!
//! Invariants:
//! - Precedence, for each value by itself: flag, environment, `~/.oc/config.json`,
//!   `~/.oc/local.json`, default.
//! - The key of `local.json` belongs to the server that wrote it: it is used only together with
//!   that file's own URL, so that it never travels to another server.
//! - Files with keys are 0600 in a 0700 directory and are replaced atomically.
//! - A key is never formatted; [`ApiKey::masked`] is the only text made of one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// The public service, used when nothing else is configured.
pub const DEFAULT_API_URL: &str = "https://app.opencomputer.dev";

/// Largest configuration file read, in bytes.
const SETTINGS_BYTES_MAX: u64 = 64 * 1024;
/// Characters of a key shown at each end.
const MASK_SHOWN: usize = 4;

/// An API key in memory: wiped on drop, never printed whole.
#[derive(Clone)]
pub struct ApiKey(Arc<Zeroizing<String>>);

impl ApiKey {
    /// The key for the `X-API-Key` header; not for output.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// First and last four characters; all hidden when that would show half of it or more.
    pub fn masked(&self) -> String {
        let characters: Vec<char> = self.0.chars().collect();
        if characters.len() <= 4 * MASK_SHOWN {
            return "****".to_owned();
        }
        let first: String = characters.iter().take(MASK_SHOWN).collect();
        let last: String = characters
            .iter()
            .skip(characters.len() - MASK_SHOWN)
            .collect();
        format!("{first}...{last}")
    }
}

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self(Arc::new(Zeroizing::new(key)))
    }
}

/// A configuration file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// There is no home directory to look in.
    #[error("HOME is not set, so there is no place for the configuration; set HOME or use flags")]
    NoHome,
    /// Reading or writing failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not the JSON object it should be.
    #[error("{} is not a valid configuration file ({reason}); correct it or remove it", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped; never the content.
        reason: String,
    },
}

/// Everything a value may come from, so that precedence is decided without touching the process.
#[derive(Default)]
pub struct Sources {
    /// `--api-url`
    pub flag_url: Option<String>,
    /// `--api-key`
    pub flag_key: Option<ApiKey>,
    /// `OPENCOMPUTER_API_URL`
    pub env_url: Option<String>,
    /// `OPENCOMPUTER_API_KEY`
    pub env_key: Option<ApiKey>,
    /// `HOME`
    pub home: Option<PathBuf>,
}

impl Sources {
    /// The environment of this process; empty variables count as unset.
    pub fn from_environment() -> Self {
        let variable = |name| {
            std::env::var(name)
                .ok()
                .filter(|text: &String| !text.is_empty())
        };
        Self {
            env_url: variable("OPENCOMPUTER_API_URL"),
            env_key: variable("OPENCOMPUTER_API_KEY").map(ApiKey::from),
            home: std::env::var_os("HOME")
                .filter(|home: &OsString| !home.is_empty())
                .map(Into::into),
            ..Self::default()
        }
    }
}

/// The configuration of one command.
pub struct Settings {
    /// As configured, without a trailing `/`; [`super::client::Api`] adds `/api`.
    pub api_url: String,
    /// None: calls go out without a credential.
    pub api_key: Option<ApiKey>,
    /// Where `oc config set` writes; None without a home directory.
    pub config_file: Option<PathBuf>,
}

impl Settings {
    /// Applies the precedence. Missing files are empty files; broken ones are errors.
    pub fn resolve(sources: Sources) -> Result<Self, SettingsError> {
        let folder = sources.home.as_deref().map(folder);
        let read = |name: &str| match &folder {
            Some(folder) => read_object(&folder.join(name)),
            None => Ok(Map::new()),
        };
        let (config, local) = (read("config.json")?, read("local.json")?);
        let local_url = text(&local, "api_url");
        let api_url = sources
            .flag_url
            .or(sources.env_url)
            .or_else(|| text(&config, "api_url"))
            .or_else(|| local_url.clone())
            .unwrap_or_else(|| DEFAULT_API_URL.to_owned());
        let api_url = api_url.trim_end_matches('/').to_owned();
        let is_local = local_url.is_some_and(|url| url.trim_end_matches('/') == api_url);
        let api_key = sources
            .flag_key
            .or(sources.env_key)
            .or_else(|| text(&config, "api_key").map(ApiKey::from))
            .or_else(|| {
                is_local
                    .then(|| text(&local, "api_key").map(ApiKey::from))
                    .flatten()
            });
        let config_file = folder.map(|folder| folder.join("config.json"));
        Ok(Self {
            api_url,
            api_key,
            config_file,
        })
    }
}

/// Sets one field of `~/.oc/config.json` and keeps the others, known or not.
pub fn set_field(home: &Path, field: &str, value: &str) -> Result<(), SettingsError> {
    let path = folder(home).join("config.json");
    let mut object = read_object(&path)?;
    object.insert(field.to_owned(), Value::String(value.to_owned()));
    write_object(&path, &object)
}

/// Takes `field` out of `~/.oc/config.json`; whether it was there.
pub fn clear_field(home: &Path, field: &str) -> Result<bool, SettingsError> {
    let path = folder(home).join("config.json");
    let mut object = read_object(&path)?;
    let was = object.remove(field).is_some();
    if was {
        write_object(&path, &object)?;
    }
    Ok(was)
}

/// The key in `~/.oc/config.json`, wherever else there are others.
pub fn kept_key(home: &Path) -> Result<Option<ApiKey>, SettingsError> {
    let object = read_object(&folder(home).join("config.json"))?;
    Ok(text(&object, "api_key").map(ApiKey::from))
}

/// Writes `~/.oc/local.json`: how the commands of this machine find the server `oc serve`
/// started here. Mode 0600 in a 0700 directory, replaced atomically and synced.
pub fn write_local(home: &Path, api_url: &str, api_key: &str) -> Result<(), SettingsError> {
    let mut object = Map::new();
    object.insert("api_url".to_owned(), Value::String(api_url.to_owned()));
    object.insert("api_key".to_owned(), Value::String(api_key.to_owned()));
    write_object(&folder(home).join("local.json"), &object)
}

fn folder(home: &Path) -> PathBuf {
    home.join(".oc")
}

fn text(object: &Map<String, Value>, field: &str) -> Option<String> {
    object
        .get(field)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

fn read_object(path: &Path) -> Result<Map<String, Value>, SettingsError> {
    let failed = |source| SettingsError::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(SETTINGS_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let malformed = |reason| SettingsError::Malformed {
        path: path.to_owned(),
        reason,
    };
    if bytes.len() as u64 > SETTINGS_BYTES_MAX {
        return Err(malformed(format!("larger than {SETTINGS_BYTES_MAX} bytes")));
    }
    // The parser's message may quote the content, which may be a key: only the place is told.
    serde_json::from_slice(&bytes)
        .map_err(|error| malformed(format!("line {}, column {}", error.line(), error.column())))
}

fn write_object(path: &Path, object: &Map<String, Value>) -> Result<(), SettingsError> {
    let failed = |source| SettingsError::File {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let folder = path.parent().ok_or(SettingsError::NoHome)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(SETTINGS_BYTES_MAX as usize));
    serde_json::to_writer_pretty(&mut *bytes, object).map_err(|error| failed(error.into()))?;
    bytes.push(b'\n');
    replace_private(folder, path, &bytes).map_err(failed)
}

/// A reader sees the old file or the new one, never a part, and never one that others may read.
fn replace_private(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    let draft = folder.join(format!(".draft-{}", ulid::Ulid::generate()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // The first error is the one worth telling; a draft that stays is only litter.
        let _ = fs::remove_file(&draft);
    }
    written.and_then(|()| File::open(folder)?.sync_all())
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
