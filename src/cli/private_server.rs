//! A server of our own in a folder of its own, for `oc demo` and `oc bench`.
//!
//! Invariants: the server is this same program; everything it writes is inside the folder (its
//! HOME too); it is ended with the value that owns it; every wait is bounded.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::client::Api;
use super::error::CliError;
use super::settings::ApiKey;

/// How long a server may take until it says where it listens.
const START_MS_MAX: u64 = 15_000;
/// How long a server may take to end after it was asked.
const STOP_MS_MAX: u64 = 5_000;
/// How often the endpoint file is looked at.
const POLL_MS: u64 = 10;
/// How much of the end of a log is shown, in lines.
const TAIL_LINES: usize = 20;
/// How much of a log is read for that, in bytes.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What keeps a private server from doing its work.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file or process of ours.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried, to what.
        action: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended, or did not say where it listens.
    #[error("the server did not start ({reason}); the end of its log:\n{tail}")]
    Start {
        /// What was seen.
        reason: String,
        /// The end of its log.
        tail: String,
    },
    /// A call to it failed.
    #[error(transparent)]
    Call(#[from] CliError),
}

/// A folder under the system's temporary one, removed with all it holds when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new folder, for this user only.
    pub fn create(name: &str) -> Result<Self, ServerError> {
        Self::create_in(&std::env::temp_dir(), name)
    }

    /// A new folder in `parent`, for this user only.
    pub fn create_in(parent: &Path, name: &str) -> Result<Self, ServerError> {
        let path = parent.join(format!("{name}-{}", ulid::Ulid::generate()));
        let action = || format!("create {}", path.display());
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed(action))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves the folder in place.
    pub fn keep(self) -> PathBuf {
        let path = self.0.clone();
        std::mem::forget(self);
        path
    }

    /// Removes the folder and tells whether that worked.
    pub fn remove(self) -> Result<(), ServerError> {
        let path = self.keep();
        fs::remove_dir_all(&path).map_err(failed(|| format!("remove {}", path.display())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The last resort of a failed run; an orderly one calls `remove` and sees the error.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The file a server writes when it is ready.
#[derive(Deserialize)]
struct Endpoint {
    url: String,
    pid: u32,
}

/// A running server.
pub struct PrivateServer {
    folder: PathBuf,
    arguments: Vec<OsString>,
    key: Zeroizing<String>,
    child: Child,
    /// A client for it; a restarted server may listen elsewhere.
    pub api: Api,
}

impl PrivateServer {
    /// Starts `oc serve` with its data in `folder` and `more` arguments, and waits for it.
    pub async fn start(folder: &Path, more: Vec<OsString>) -> Result<Self, ServerError> {
        let mut arguments: Vec<OsString> = vec!["serve".into(), "--data-dir".into()];
        arguments.extend([
            folder.join("data").into(),
            "--listen".into(),
            "127.0.0.1:0".into(),
        ]);
        arguments.extend(more);
        let key = Zeroizing::new(format!("osb_{}", *random_hex(32)?));
        let mut child = spawn(folder, &arguments, &key)?;
        let api = ready(folder, &mut child, &key).await?;
        Ok(Self {
            folder: folder.to_owned(),
            arguments,
            key,
            child,
            api,
        })
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL: no chance to tidy up, as in a crash.
    pub async fn crash(&mut self) -> Result<(), ServerError> {
        self.child
            .kill()
            .await
            .map_err(failed(|| "kill the server".to_owned()))
    }

    /// Starts it again on the same data.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        let endpoint = endpoint_file(&self.folder);
        match fs::remove_file(&endpoint) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(|| format!("remove {}", endpoint.display()))(error));
            }
            _ => {}
        }
        self.child = spawn(&self.folder, &self.arguments, &self.key)?;
        self.api = ready(&self.folder, &mut self.child, &self.key).await?;
        Ok(())
    }

    /// SIGTERM, a bounded wait, then SIGKILL; tells whether the first was enough.
    pub async fn stop(&mut self) -> bool {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
        {
            // A process that has just ended needs no signal.
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = timeout(Duration::from_millis(STOP_MS_MAX), self.child.wait()).await;
        if ended.is_err() {
            // It is killed again on drop, should this fail.
            let _ = self.child.kill().await;
        }
        ended.is_ok()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.folder)
    }
}

/// `bytes` random bytes as hex, wiped on drop.
pub fn random_hex(bytes: usize) -> Result<Zeroizing<String>, ServerError> {
    let mut random = Zeroizing::new(vec![0; bytes]);
    getrandom::fill(&mut random)
        .map_err(|error| failed(|| "get random bytes".to_owned())(io::Error::other(error)))?;
    Ok(Zeroizing::new(hex::encode(&*random)))
}

/// Gives an I/O error the words for what was tried.
pub fn failed(action: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> ServerError {
    |source| ServerError::System {
        action: action(),
        source,
    }
}

fn spawn(folder: &Path, arguments: &[OsString], key: &str) -> Result<Child, ServerError> {
    let start = || -> io::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_file(folder))?;
        let home = folder.join("home");
        fs::create_dir_all(&home)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).env_clear().env("HOME", home);
        // Plain text: its log is read by people through our own output.
        command
            .env("OPENCOMPUTER_BOOTSTRAP_KEY", key)
            .env("NO_COLOR", "1");
        for name in ["PATH", "RUST_LOG", "TMPDIR"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // A group of its own: Ctrl-C is for us, who then stop it in good order.
        command.process_group(0).kill_on_drop(true).spawn()
    };
    start().map_err(failed(|| "start `oc serve`".to_owned()))
}

async fn ready(folder: &Path, child: &mut Child, key: &str) -> Result<Api, ServerError> {
    let started = Instant::now();
    let failure = |reason: String| ServerError::Start {
        reason,
        tail: tail(folder),
    };
    while started.elapsed() < Duration::from_millis(START_MS_MAX) {
        match child.try_wait() {
            Ok(Some(status)) => return Err(failure(format!("it ended with {status}"))),
            Ok(None) => {}
            Err(error) => return Err(failed(|| "wait for the server".to_owned())(error)),
        }
        let endpoint = fs::read(endpoint_file(folder)).ok();
        // Half a file is not there yet; another's file is of an earlier server.
        let endpoint = endpoint.and_then(|text| serde_json::from_slice::<Endpoint>(&text).ok());
        if let Some(endpoint) = endpoint.filter(|endpoint| Some(endpoint.pid) == child.id()) {
            return Ok(Api::new(
                &endpoint.url,
                Some(&ApiKey::from(key.to_owned())),
            )?);
        }
        sleep(Duration::from_millis(POLL_MS)).await;
    }
    Err(failure(format!("no endpoint after {START_MS_MAX} ms")))
}

fn endpoint_file(folder: &Path) -> PathBuf {
    folder.join("data/endpoint.json")
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("server.log")
}

fn tail(folder: &Path) -> String {
    let mut text = Vec::new();
    let read = fs::File::open(log_file(folder))
        .and_then(|file| file.take(LOG_BYTES_MAX).read_to_end(&mut text));
    if let Err(error) = read {
        return format!("(no log: {error})");
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    lines
        .into_iter()
        .skip(skipped)
        .map(|line| format!("  | {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_goes_with_its_owner() {
        let scratch = Scratch::create("oc-test").unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
        let scratch = Scratch::create("oc-test").unwrap();
        let path = scratch.path().to_owned();
        scratch.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn random_text_is_long_and_differs() {
        let (one, two) = (random_hex(32).unwrap(), random_hex(32).unwrap());
        assert!(one.len() == 64 && *one != *two);
    }
}
