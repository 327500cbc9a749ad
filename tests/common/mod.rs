//! A private server for a test: the real `oc serve` on a folder, a port and a home of its own.
//!
//! Invariants: whatever a test started is gone when its [`Server`] is dropped, also when the test
//! failed: the server, the supervisors and guests of its sandboxes, their control groups, mounts
//! and files. Only processes that have something of *this* server's folder open are ended, so tests
//! can run side by side with others.
#![allow(dead_code)] // each test program uses its own part of the harness

pub mod api;
pub mod boxes;
pub mod checkpoints;
pub mod offline;
pub mod world;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[allow(unused_imports)] // as above
pub use api::{Api, Reply};
#[allow(unused_imports)] // as above
pub use boxes::Sandbox;

/// The API key of every test's first organization.
pub const KEY: &str = "osb_00000000000000000000000000000000000000000000000000000000000000aa";
/// The API key of the second organization, where a test has one.
pub const OTHER_KEY: &str = "osb_00000000000000000000000000000000000000000000000000000000000000bb";
/// Longest a server may take to answer or to end; generous, because builds may run beside it.
const PATIENCE: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(10);

/// A data folder with, most of the time, a server on it.
pub struct Server {
    // Dropped last: everything in it must be let go before.
    root: TempDir,
    data: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
    url: String,
    client: reqwest::Client,
}

impl Server {
    /// A running server on a new data folder, with one organization whose key is [`KEY`].
    pub fn start() -> Self {
        let mut server = Self::prepare();
        server.restart();
        server
    }

    /// A running server that knows a second organization too, whose key is [`OTHER_KEY`].
    ///
    /// There is no command for making one yet: its two events are put into the log of the stopped
    /// server through the library.
    pub fn start_with_two_orgs() -> Self {
        let mut server = Self::start();
        server.stop();
        offline::add_org(&server.data, "other", OTHER_KEY);
        server.restart();
        server
    }

    /// A folder with no server yet.
    pub fn prepare() -> Self {
        let root = tempfile::Builder::new()
            .prefix("oc-test-")
            .tempdir()
            .expect("a temporary folder");
        let data = root.path().join("data");
        Self::prepare_in(root, data)
    }

    /// As [`prepare`](Self::prepare), with the data in a place of the caller's.
    pub fn prepare_in(root: TempDir, data: PathBuf) -> Self {
        fs::create_dir_all(root.path().join("home")).expect("a home");
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .expect("an HTTP client");
        Self {
            root,
            data,
            args: Vec::new(),
            child: None,
            url: String::new(),
            client,
        }
    }

    /// Further arguments of `oc serve`, from the next start on.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A folder for the test's own files.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Everything the server ever said on its outputs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("server.log")
    }

    /// `oc serve` as a command that was not run yet.
    pub fn command(&self) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data)
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path().join("home"))
            .env("OC_LISTEN", "127.0.0.1:0")
            .env("OPENCOMPUTER_BOOTSTRAP_KEY", KEY)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        command
    }

    /// Starts the server on its folder and waits until it answers.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let mut child = self.command().spawn().expect("`oc serve` starts");
        let deadline = Instant::now() + PATIENCE;
        self.url = loop {
            if let Some(url) = endpoint(&self.data, child.id()) {
                break url;
            }
            if let Some(status) = child.try_wait().expect("the server can be asked for") {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server did not come up:\n{}", self.log());
            }
            std::thread::sleep(POLL);
        };
        self.child = Some(child);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().expect("the killed server is reaped");
        }
    }

    /// SIGTERM, and the status it ends with.
    pub fn stop(&mut self) -> ExitStatus {
        let child = self.child.as_ref().expect("the server runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
        self.wait_end()
    }

    /// Waits until the server ended by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        match wait(&mut child) {
            Some(status) => status,
            None => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server did not end:\n{}", self.log());
            }
        }
    }

    /// Whether the server has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut().expect("a server was started");
        child
            .try_wait()
            .expect("the server can be asked for")
            .is_some()
    }

    /// Starts the server where it must refuse, and gives what it says on its error output.
    pub fn refusal(&self, change: impl FnOnce(&mut Command)) -> String {
        let said = self.root.path().join("refusal.log");
        let mut command = self.command();
        command
            .stderr(File::create(&said).expect("a file"))
            .stdout(Stdio::null());
        change(&mut command);
        let mut child = command.spawn().expect("`oc serve` starts");
        let status = wait(&mut child).unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server runs where it had to refuse");
        });
        let said = fs::read_to_string(said).expect("what it said");
        assert_eq!(status.signal(), None, "refusing is not crashing: {said}");
        assert_eq!(status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap_or_default();
        last.strip_prefix("oc: ")
            .unwrap_or_else(|| panic!("no `oc:` line in:\n{said}"))
            .to_owned()
    }

    /// The running server's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Where the server listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The API with the first organization's key.
    pub fn api(&self) -> Api {
        Api::new(self.client.clone(), &self.url, Some(KEY))
    }

    /// The API with the second organization's key.
    pub fn other(&self) -> Api {
        self.api().with_key(OTHER_KEY)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        world::sweep(&self.data);
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(8 * 1024);
            let tail = log.get(log.ceil_char_boundary(from)..).unwrap_or_default();
            eprintln!("---- the server's last words ----\n{tail}");
        }
    }
}

/// The origin that process `pid` announced in `data`.
fn endpoint(data: &Path, pid: u32) -> Option<String> {
    let text = fs::read_to_string(data.join("endpoint.json")).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    let own = value["pid"].as_u64() == Some(pid.into());
    own.then(|| value["url"].as_str().map(str::to_owned))
        .flatten()
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("the server can be asked for") {
            return Some(status);
        }
        std::thread::sleep(POLL);
    }
    None
}
