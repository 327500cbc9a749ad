//! Sandboxes for tests: gone at the end of each test, however it ends.

use std::path::Path;
use std::time::Duration;

use opencomputer::ids::SandboxId;
use opencomputer::sandbox::guest::{GuestClient, RunOutput, StartSession};
use opencomputer::sandbox::{Driver, NamespaceDriver, Running, SandboxSpec};

/// A self-signed certificate made for these tests; its key was thrown away.
pub const CA_PEM: &str = include_str!("ca.pem");

/// A folder with its driver, and the sandboxes made in it.
pub struct World {
    pub driver: NamespaceDriver,
    pub dir: tempfile::TempDir,
}

/// One sandbox.
pub struct Sandbox {
    pub running: Running,
    pub guest: GuestClient,
}

/// Whether this process is root; says so when not.
pub fn root_or_skip() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_oc"))
}

pub fn spec() -> SandboxSpec {
    SandboxSpec {
        id: SandboxId::generate(),
        cpu_count: 1,
        cpu_percent: None,
        memory_mb: 256,
        disk_mb: 1024,
        network: true,
        ca_pem: CA_PEM.to_owned(),
    }
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver =
            NamespaceDriver::with_program(&dir.path().join("sandboxes"), program()).unwrap();
        Self { driver, dir }
    }

    pub async fn start(&self, spec: &SandboxSpec) -> Sandbox {
        let running = self.driver.create(spec).await.unwrap();
        Sandbox::of(running).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let driver = self.driver.clone();
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                for id in driver.list().await.unwrap() {
                    driver.destroy(&id).await.unwrap();
                }
            });
        });
        let cleaned = cleaning.join();
        if !std::thread::panicking() {
            cleaned.unwrap();
        }
    }
}

impl Sandbox {
    pub async fn of(running: Running) -> Self {
        let guest = GuestClient::connect(&running.guest_socket).await.unwrap();
        guest.hello(Duration::from_secs(10)).await.unwrap();
        Self { running, guest }
    }

    /// Runs a shell line as the user `sandbox`.
    pub async fn run(&self, line: &str) -> RunOutput {
        self.run_as(line, false).await
    }

    /// Runs a shell line as root inside.
    pub async fn run_as_root(&self, line: &str) -> RunOutput {
        self.run_as(line, true).await
    }

    async fn run_as(&self, line: &str, as_root: bool) -> RunOutput {
        run(&self.guest, line, as_root).await
    }

    /// The standard output of a shell line that must succeed, without the last line feed.
    pub async fn output(&self, line: &str) -> String {
        let output = self.run(line).await;
        let text = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.exit_code, 0, "{line}: {text} {errors}");
        text
    }
}

/// Both streams of a command as text.
pub fn text(output: &RunOutput) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// Runs a shell line as the user `sandbox`.
pub async fn run_by(guest: &GuestClient, line: &str) -> RunOutput {
    run(guest, line, false).await
}

async fn run(guest: &GuestClient, line: &str, as_root: bool) -> RunOutput {
    let env = [
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("HOME", if as_root { "/root" } else { "/home/sandbox" }),
    ];
    let session = StartSession {
        session_id: format!("{:08x}", rand::random::<u32>()),
        cmd: line.to_owned(),
        env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        cwd: "/".to_owned(),
        timeout: Some(Duration::from_secs(60)),
        as_root,
        ..StartSession::default()
    };
    guest.run(session, 1 << 20).await.unwrap()
}
