//! What a supervisor is told at its start, and where everything of one sandbox lies.
//!
//! ```text
//! <data>/sandboxes/                 0700
//!   .base/<hash>/                   a template, shared and never changed
//!   <id>/                           0700
//!     plan.json                     the last start's plan
//!     disk.img                      what the sandbox wrote, see [`super::image`]; kept until destroyed
//!     disk/{root,usr}/{upper,work}  the same, as the supervisor sees it (or a plain folder)
//!     run/                          lock, control.sock, guest.sock, state.json, exit.json, log
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroup::Layout;
use super::host_ids;
use super::rootfs::Disk;
use super::template::Template;
use crate::ids::SandboxId;
use crate::sandbox::SandboxSpec;

/// Longest plan read, in bytes.
pub const PLAN_BYTES_MAX: u64 = 64 * 1024;

/// The folder of one sandbox.
#[derive(Debug, Clone)]
pub struct Home(pub PathBuf);

impl Home {
    /// The folder of `id` below `data`.
    pub fn of(data: &Path, id: &SandboxId) -> Self {
        Self(data.join(id.as_str()))
    }

    /// What the sandbox wrote.
    pub fn disk(&self) -> Disk {
        Disk(self.0.join("disk"))
    }

    /// The file system in a file that the disk lies in, where it has one.
    pub fn image(&self) -> PathBuf {
        self.0.join("disk.img")
    }

    /// Sockets and state of the running sandbox.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Held with `flock` as long as a supervisor lives.
    pub fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }

    /// Where the supervisor listens.
    pub fn control_socket(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    /// Where the guest listens.
    pub fn guest_socket(&self) -> PathBuf {
        self.run().join("guest.sock")
    }

    /// Which processes hold the sandbox.
    pub fn state(&self) -> PathBuf {
        self.run().join("state.json")
    }

    /// How the last run ended.
    pub fn exit(&self) -> PathBuf {
        self.run().join("exit.json")
    }

    /// The supervisor's own words.
    pub fn log(&self) -> PathBuf {
        self.run().join("log")
    }

    /// What the sandbox's programs printed.
    pub fn printed(&self) -> PathBuf {
        self.0.join("printed")
    }

    /// The last start's plan.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }
}

/// All a supervisor needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// What the sandbox is to be.
    pub spec: SandboxSpec,
    /// Its folder.
    pub home: PathBuf,
    /// The template's folder.
    pub template: PathBuf,
    /// Where to make its control groups.
    pub groups: Layout,
    /// Whether root inside is a user of its own; needs root.
    pub privileged: bool,
    /// The empty file system that a new disk is a copy of; `None`: a plain folder.
    #[serde(default)]
    pub blank: Option<PathBuf>,
    /// First of the host's ids that own its disk; `None`: that of its own range. A fork's disk has the
    /// owners it had.
    #[serde(default)]
    pub first_id: Option<u32>,
}

impl Plan {
    /// The sandbox's folder.
    pub fn home(&self) -> Home {
        Home(self.home.clone())
    }

    /// First of the host's ids behind the users inside.
    pub fn first_id(&self) -> u32 {
        let own = || host_ids::first_of(&self.spec.id);
        self.first_id.unwrap_or_else(own)
    }

    /// The template.
    pub fn template(&self) -> Template {
        Template::at(&self.template)
    }
}

/// Which processes hold a sandbox; enough to tell them from later ones of the same number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The supervisor.
    pub supervisor_pid: u32,
    /// When it started, in ticks since boot.
    pub supervisor_start: u64,
    /// Which boot that was.
    pub boot_id: String,
}

/// Writes `value` to `path` so that a reader finds the old content or the new, never a part.
pub fn write_atomically(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, serde_json::to_vec(value)?)?;
    std::fs::rename(&draft, path)
}
