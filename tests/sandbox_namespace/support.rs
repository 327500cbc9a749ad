//! Sandboxes for tests: gone at the end of each test, however it ends.
#![allow(dead_code)] // each test program uses its own part

use std::collections::BTreeSet;
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

    /// Where the host finds what the sandbox wrote below `/`, as its supervisor sees it.
    pub fn upper(&self, world: &World) -> std::path::PathBuf {
        let supervisor = format!("/proc/{}/root", self.running.supervisor_pid);
        let sandboxes = world.dir.path().canonicalize().unwrap().join("sandboxes");
        let disk = sandboxes.join(self.running.id.as_str()).join("disk");
        Path::new(&supervisor)
            .join(disk.strip_prefix("/").unwrap())
            .join("root/upper")
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

/// Everything a sandbox could leave on the machine and that names it.
pub fn traces(names: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mentions = |text: &str| names.iter().any(|name| text.contains(name.as_str()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| mentions(line))
            .map(str::to_owned),
    );
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let cgroup = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
        // A dead process is gone when its foster parent, the machine's init, has looked.
        if mentions(&cgroup) && !status.contains("State:\tZ") {
            found.push(process.path().display().to_string());
        }
    }
    let mut folders = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if mentions(&entry.path().display().to_string()) {
                    found.push(entry.path().display().to_string());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Paths that loop devices of this machine have behind them.
pub fn loops() -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    devices
        .filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok())
        .collect()
}
