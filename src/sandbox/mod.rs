//! The box: how a sandbox is isolated, and how the host talks to what runs inside.
//!
//! Invariants:
//! - nothing here ever sees a real secret value; a [`SandboxSpec`] holds sizes, a name and the
//!   public half of the sandbox's certificate authority;
//! - a sandbox outlives the process that made it: a supervisor of its own holds it, and any later
//!   server finds it again with [`Driver::attach`];
//! - whatever leaves a sandbox arrives at [`EgressAttachment::accept`], and only there. While no
//!   server is attached, every connection is reset;
//! - a limit that this machine can't enforce is reported as such, never assumed.

/// The host side of the protocol with the program inside each sandbox.
pub mod guest;
/// What apt has to know of a sandbox's programs.
pub mod host_packages;
mod namespace;
mod stats;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::{CheckpointId, SandboxId};

pub use guest::{
    Attachment, DirEntry, GuestClient, GuestError, LEAVE_TIME_MAX, LogBatch, SessionInfo,
    SessionOutput, StartSession, StartTerminal, StdinSink, TerminalSize,
};
pub use namespace::attachment::{EgressAttachment, EgressConnection, ExitWatch};
pub use namespace::diff::Differences;
pub use namespace::doctor::{Check, doctor, doctor_by};
pub use namespace::inventory::{FoundDisk, Inventory, Loose, remove_found};
pub use namespace::pool::private_mounts;
pub use namespace::roots::store_check;
pub use namespace::supervisor::{Exit, supervisor_main};
pub use namespace::{Frozen, NamespaceDriver, SUPERVISE_SUBCOMMAND};
pub use stats::{Gauges, Stats};

/// A stream socket that listens at `path`, whatever the path's length, replacing a stale one.
pub fn listen_stream(path: &std::path::Path) -> std::io::Result<std::os::fd::OwnedFd> {
    const BACKLOG: i32 = 64;
    namespace::packet::listen(path, rustix::net::SocketType::STREAM, BACKLOG)
}

/// Largest number of CPUs one sandbox may be given.
pub const CPU_COUNT_MAX: u32 = 64;
/// Smallest memory of a sandbox, in MiB: below this an interpreter does not start.
pub const MEMORY_MB_MIN: u64 = 64;
/// Largest certificate authority accepted in a [`SandboxSpec`], in bytes of PEM.
pub const CA_PEM_BYTES_MAX: usize = 16 * 1024;

/// What a sandbox is to be. Equal specs make equal sandboxes; nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its name, its host name and the name of its folder.
    pub id: SandboxId,
    /// Whole CPUs it may use at once.
    pub cpu_count: u32,
    /// Processor time in percent of one CPU, when it is not that of `cpu_count`.
    #[serde(default)]
    pub cpu_percent: Option<u32>,
    /// Memory of all its processes together, in MiB.
    pub memory_mb: u64,
    /// Size of its private disk, in MiB.
    pub disk_mb: u64,
    /// `false`: names do not resolve and every connection is rejected at once.
    pub network: bool,
    /// The PEM certificate its programs shall trust besides the public roots; may be empty.
    pub ca_pem: String,
}

impl SandboxSpec {
    /// Processor time it may use, in percent of one CPU.
    pub fn cpu_percent(&self) -> u32 {
        let whole = self.cpu_count.saturating_mul(100);
        self.cpu_percent.unwrap_or(whole)
    }

    /// Refuses sizes no driver can honour and text that is not a PEM certificate.
    pub(crate) fn validate(&self) -> Result<(), DriverError> {
        let bad = |what: String| {
            Err(DriverError::Refused {
                id: self.id.clone(),
                what,
            })
        };
        if self.cpu_count == 0 || self.cpu_count > CPU_COUNT_MAX {
            return bad(format!(
                "cpu_count is {}, not 1 to {CPU_COUNT_MAX}",
                self.cpu_count
            ));
        }
        if self.memory_mb < MEMORY_MB_MIN || self.memory_mb > 1 << 24 {
            return bad(format!(
                "memory_mb is {}, below {MEMORY_MB_MIN} or absurd",
                self.memory_mb
            ));
        }
        if self.ca_pem.len() > CA_PEM_BYTES_MAX || self.ca_pem.contains("PRIVATE KEY") {
            return bad("ca_pem is too long or holds a private key".to_owned());
        }
        Ok(())
    }
}

/// Where new disks lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskStore {
    /// In files beside each other; copies share blocks where the host's file system can.
    #[default]
    Files,
    /// In a file system in one file that shares blocks, of the best kind there is here.
    Pool,
    /// The same, of that kind.
    PoolXfs,
    /// The same, of that kind.
    PoolBtrfs,
}

/// How far a limit reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// All processes of the sandbox together stay under it.
    Sandbox,
    /// Each process alone stays under it; many processes may pass it together.
    Process,
    /// Not enforced on this machine.
    None,
}

/// Which limits of a sandbox are enforced, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `memory_mb`.
    pub memory: Enforcement,
    /// `cpu_count`.
    pub cpu: Enforcement,
    /// The number of processes and threads.
    pub pids: Enforcement,
    /// `disk_mb`.
    pub disk: Enforcement,
    /// Whether all processes can be stopped at one instant, as a snapshot of the disk needs.
    pub freeze: bool,
}

/// A copy of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// What it takes of the host's disk, in bytes; blocks it shares with others are counted too.
    pub size_bytes: u64,
    /// For how long the sandbox's processes stood still.
    pub paused: std::time::Duration,
}

/// What a driver can do on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `namespace`.
    pub driver: String,
    /// Root inside is an unprivileged user of the host; `false`: there is no root inside at all.
    pub root_inside: bool,
    /// `v1`, `hybrid`, `v2` or `none`.
    pub cgroups: String,
    /// The limits a sandbox made now would have.
    pub limits: Limits,
}

/// A living sandbox.
#[derive(Debug)]
pub struct Running {
    /// Whose.
    pub id: SandboxId,
    /// Where the guest listens (a path that may exceed the 107 bytes of a socket address).
    pub guest_socket: PathBuf,
    /// What leaves the sandbox arrives here. One server is attached at a time: a later
    /// attachment ends an earlier one.
    pub egress: EgressAttachment,
    /// Which limits are enforced.
    pub limits: Limits,
    /// When it was started, in milliseconds of the Unix epoch.
    pub started_unix_ms: u64,
    /// Process id of its supervisor, for operators; never a handle to signal by.
    pub supervisor_pid: u32,
    /// What it uses.
    pub gauges: Arc<dyn Gauges>,
    exit: ExitWatch,
}

impl Running {
    /// Resolves when the supervisor, and with it every process of the sandbox, is gone.
    pub async fn exited(&self) {
        self.exit.wait().await;
    }

    /// A watch that can be held apart from the egress attachment.
    pub fn exit_watch(&self) -> ExitWatch {
        self.exit.clone()
    }
}

/// Why a driver did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The spec can't be honoured.
    #[error("sandbox {id}: refused: {what}")]
    Refused {
        /// Whose spec.
        id: SandboxId,
        /// What is wrong with it.
        what: String,
    },
    /// A step of making, finding or removing the sandbox failed.
    #[error("sandbox {id}: {what}")]
    Failed {
        /// Which sandbox.
        id: SandboxId,
        /// Which step, and the system's reason.
        what: String,
    },
    /// Others come first, and did not end in time.
    #[error("too much is under way at once")]
    Busy,
    /// A file operation of the driver itself failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// How sandboxes are isolated.
#[async_trait]
pub trait Driver: Send + Sync {
    /// What this machine lets the driver do.
    fn capabilities(&self) -> Capabilities;

    /// Makes the disk and starts the sandbox. Idempotent: when it already runs this attaches to
    /// it; when its disk exists this starts it again on that disk.
    async fn create(&self, spec: &SandboxSpec) -> Result<Running, DriverError>;

    /// Attaches to a living sandbox; `None` when it does not run.
    async fn attach(&self, id: &SandboxId) -> Result<Option<Running>, DriverError>;

    /// Puts the sandbox to sleep: its processes stop where they are and stay, also when this
    /// process ends, until [`Driver::resume`]. Answers with the memory they hold, in bytes, as far as
    /// it is counted; `None` when this machine can't do it or the sandbox does not run. Idempotent.
    async fn hibernate(&self, id: &SandboxId) -> Result<Option<u64>, DriverError>;

    /// Lets the processes of a sleeping sandbox go on. Idempotent: nothing happens where none sleep.
    async fn resume(&self, id: &SandboxId) -> Result<(), DriverError>;

    /// Gives a living sandbox another size: memory in MiB, processor time in percent of one CPU.
    async fn resize(
        &self,
        id: &SandboxId,
        memory_mb: u64,
        cpu_percent: u32,
    ) -> Result<(), DriverError>;

    /// Memory of a sandbox that the system can't take back by itself, in bytes; `None` where nobody
    /// counts it or nothing runs.
    async fn memory_used(&self, id: &SandboxId) -> Option<u64>;

    /// Copies the disk of a running sandbox as it is at one instant, during which its processes stand
    /// still. Nothing is there of the copy when this fails. Idempotent: a copy that is there stays.
    async fn snapshot(&self, id: &SandboxId, to: &CheckpointId) -> Result<Snapshot, DriverError>;

    /// Gives a copy another name: it is there for as long as one of the two is, and takes room once.
    /// Idempotent.
    async fn link_snapshot(
        &self,
        from: &CheckpointId,
        to: &CheckpointId,
    ) -> Result<Snapshot, DriverError>;

    /// Gives a sandbox that does not run (or is not there yet) the disk of a copy instead of what it
    /// has. It has the one or the other, whatever happens meanwhile. Idempotent.
    async fn restore(&self, id: &SandboxId, from: &CheckpointId) -> Result<(), DriverError>;

    /// Removes a copy. Sandboxes that were given it keep theirs. Idempotent.
    async fn forget_snapshot(&self, id: &CheckpointId) -> Result<(), DriverError>;

    /// Every copy of which anything is left on this machine.
    async fn snapshots(&self) -> Result<Vec<CheckpointId>, DriverError>;

    /// Starts to tell what differs between two copies, in lines of JSON.
    async fn compare_snapshots(
        &self,
        from: &CheckpointId,
        to: &CheckpointId,
    ) -> Result<Differences, DriverError>;

    /// Kills the sandbox; its disk stays and [`Driver::create`] starts it again on it. Idempotent.
    async fn stop(&self, id: &SandboxId) -> Result<(), DriverError>;

    /// Kills the sandbox and removes all it left: processes, mounts, cgroups, disk. Idempotent.
    async fn destroy(&self, id: &SandboxId) -> Result<(), DriverError>;

    /// What a sandbox uses now; `None` when it does not run.
    async fn stats(&self, id: &SandboxId) -> Result<Option<Stats>, DriverError>;

    /// A folder for what is noted about a sandbox on this side: out of its reach, and removed by
    /// [`Driver::destroy`]. It may not be there yet.
    fn log_folder(&self, id: &SandboxId) -> PathBuf;

    /// Every sandbox of which anything is left on this machine, running or not.
    async fn list(&self) -> Result<Vec<SandboxId>, DriverError>;
}

/// The address of a synthetic answer, and of nothing else (RFC 2544 benchmark range).
pub const SYNTHETIC_NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
