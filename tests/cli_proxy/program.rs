//! The program under test, started in a folder of its own and ended with the test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// No single step of a test takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn oc() -> Command {
    Command::new(env!("CARGO_BIN_EXE_oc"))
}

/// A running `oc proxy`; killed when dropped.
pub struct Proxy {
    child: Child,
    stdout: Receiver<String>,
    /// `127.0.0.1:port`
    pub address: String,
    /// What was printed at the start.
    pub ready: Value,
}

impl Proxy {
    /// Starts with `policy.toml` and `audit.jsonl` of `folder`, on a free port.
    pub fn start(folder: &Path) -> Self {
        let mut command = oc();
        command
            .args(["proxy", "--json", "--listen", "127.0.0.1:0", "--policy"])
            .arg(folder.join("policy.toml"))
            .arg("--audit")
            .arg(folder.join("audit.jsonl"))
            .env("OC_TEST_VALUE", crate::run::VALUE)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.join("stderr")).unwrap());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, stdout) = sync_channel(64);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut proxy = Self {
            child,
            stdout,
            address: String::new(),
            ready: Value::Null,
        };
        proxy.ready = proxy.line();
        proxy.address = proxy.ready["listen"].as_str().unwrap().to_owned();
        proxy
    }

    /// The next line of its standard output.
    pub fn line(&self) -> Value {
        let line = self.stdout.recv_timeout(PATIENCE).expect("a line in time");
        serde_json::from_str(&line).unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn end(mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the proxy does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `done` gives something.
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{what} did not happen in time"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
