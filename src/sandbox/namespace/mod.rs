//! The namespace driver: containment by the host's kernel, with no external program.
//!
//! Invariants:
//! - a sandbox is held by a supervisor process of its own, which holds the lock of its folder;
//!   "runs" means that the supervisor answers on its control socket, whatever files say;
//! - the supervisor starts with an empty environment and no descriptor of the server's;
//! - every operation can be repeated: what is already there is recognised, what is already gone
//!   is fine.
//!
//! It is weaker than a virtual machine: a fault in the host's kernel is a way out.

pub(super) mod attachment;
mod cgroup;
mod child;
mod control;
pub(super) mod diff;
mod dns;
pub(super) mod doctor;
mod ending;
mod gauges;
mod held;
mod host_ids;
mod image;
pub(super) mod inventory;
mod java;
mod launch;
mod leftover;
mod linking;
mod merged;
mod names;
mod net;
mod netlink;
mod nft;
pub(super) mod packet;
mod plan;
pub(super) mod pool;
mod remove;
mod rootfs;
pub(super) mod roots;
mod seccomp;
mod serve;
mod snapshot;
mod spawner;
mod starting;
pub(super) mod supervisor;
mod sys;
mod template;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use self::attachment::Supervisor;
use self::cgroup::{Layout, data_tag};
use self::control::Want;
use self::diff::Differences;
use self::doctor::Check;
use self::gauges::{RunGauges, living_supervisor};
use self::plan::Plan;
use self::roots::Roots;
use self::snapshot::run_blocking;
use self::spawner::Spawner;
use self::supervisor::{Exit, Report};
use self::template::Template;
use super::{
    Capabilities, DiskStore, Driver, DriverError, Enforcement, Gauges, Limits, Running,
    SandboxSpec, Snapshot, Stats,
};
use crate::ids::{CheckpointId, SandboxId};

/// The hidden subcommand of `oc` that [`super::supervisor_main`] serves.
pub const SUPERVISE_SUBCOMMAND: &str = "supervise";
/// This program, even after its file was replaced by an upgrade.
const SELF: &str = "/proc/self/exe";
/// Folder of templates, beside the sandboxes' folders; not a sandbox id.
const TEMPLATES: &str = ".base";
/// How long a supervisor may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Sandboxes made of namespaces, control groups and a system call filter.
#[derive(Debug, Clone)]
pub struct NamespaceDriver {
    data: PathBuf,
    roots: Roots,
    template: PathBuf,
    groups: Layout,
    privileged: bool,
    disks_are_images: bool,
    spawner: Arc<Spawner>,
    /// The right to compare disks.
    comparing: Arc<Semaphore>,
}

impl NamespaceDriver {
    /// A driver whose sandboxes live below `data_dir`, made with mode 0700 if missing. Makes or
    /// finds the base template, which takes some milliseconds; on a machine with delegated
    /// cgroup2 it moves this process into a group of its own.
    pub fn new(data_dir: &Path) -> Result<Self, DriverError> {
        Self::with_store(data_dir, Path::new(SELF), DiskStore::Files)
    }

    /// As [`new`](Self::new), with the disks in `store`.
    pub fn in_store(data_dir: &Path, store: DiskStore) -> Result<Self, DriverError> {
        Self::with_store(data_dir, Path::new(SELF), store)
    }

    /// As [`new`](Self::new), with `program` (an `oc`) as the supervisors' program.
    pub fn with_program(data_dir: &Path, program: &Path) -> Result<Self, DriverError> {
        Self::with_store(data_dir, program, DiskStore::Files)
    }

    /// Both.
    pub fn with_store(
        data_dir: &Path,
        program: &Path,
        store: DiskStore,
    ) -> Result<Self, DriverError> {
        let failed = |what: &str| {
            let what = format!("{what} in {}", data_dir.display());
            |source| DriverError::Io { what, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .map_err(failed("make the folder of sandboxes"))?;
        let data = data_dir
            .canonicalize()
            .map_err(failed("find the folder of sandboxes"))?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))
            .map_err(failed("close the folder of sandboxes"))?;
        let privileged = host_ids::can_be_given();
        // Before the spawner, which has the mounts that there are then.
        let roots = Roots::open(&data, store, privileged)
            .map_err(io::Error::other)
            .map_err(failed("open the store of disks"))?;
        let template = Template::ensure(&data.join(TEMPLATES), privileged)
            .map_err(failed("make the base template"))?;
        let template = template
            .program
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        let driver = Self {
            groups: Layout::detect(&data_tag(&data)),
            data,
            roots,
            template,
            privileged,
            disks_are_images: privileged && image::possible().is_ok(),
            // After the groups: on cgroup2 this process may just have moved.
            spawner: Arc::new(Spawner::new(program)),
            comparing: diff::turns(),
        };
        driver.forget_old_templates();
        Ok(driver)
    }

    /// Stops every process of a running sandbox at one instant, for a consistent copy of its
    /// disk. `None` when it does not run.
    pub async fn freeze(&self, id: &SandboxId) -> Result<Option<Frozen>, DriverError> {
        let supervisor = self.supervisor(id, Want::Freeze).await?;
        Ok(supervisor.map(Frozen))
    }

    /// The process that supervisors are forked from. Sandboxes do without it; the next one that is
    /// started has it started anew.
    pub fn spawner_pid(&self) -> Option<u32> {
        self.spawner.pid()
    }

    /// How the last run of a sandbox ended; `None` while it runs or when nobody saw the end.
    pub fn last_exit(&self, id: &SandboxId) -> Option<Exit> {
        let text = fs::read(self.roots.home(id).exit()).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Removes templates that no sandbox was started from; best effort.
    fn forget_old_templates(&self) {
        let mut used = BTreeSet::from([self.template.clone()]);
        let Ok(homes) = self.homes() else { return };
        let plans = homes.iter().map(|id| self.roots.home(id).plan());
        for plan in plans.chain(self.plans_of_copies()) {
            let plan = fs::read(plan).unwrap_or_default();
            match serde_json::from_slice::<Plan>(&plan) {
                Ok(plan) => drop(used.insert(plan.template)),
                // Which one it uses is unknown, so all are kept.
                Err(_) => return,
            }
        }
        let Ok(entries) = fs::read_dir(self.data.join(TEMPLATES)) else {
            return;
        };
        for entry in entries.flatten() {
            // A draft may be another server's, in the making right now.
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !hidden && !used.contains(&entry.path()) {
                let _ = remove::remove_tree(&entry.path());
            }
        }
    }

    fn homes(&self) -> io::Result<Vec<SandboxId>> {
        let mut found = Vec::new();
        for root in self.roots.all() {
            let entries = fs::read_dir(root)?.flatten();
            found.extend(entries.filter_map(|e| e.file_name().to_str()?.parse::<SandboxId>().ok()));
        }
        Ok(found)
    }

    async fn supervisor(
        &self,
        id: &SandboxId,
        want: Want,
    ) -> Result<Option<Supervisor>, DriverError> {
        let path = self.roots.home(id).control_socket();
        Supervisor::ask(&path, want)
            .await
            .map_err(|source| DriverError::Io {
                what: format!("{id}: ask its supervisor"),
                source,
            })
    }

    /// Asks a supervisor to end its sandbox, and waits for it. One that does not answer properly
    /// is dealt with by [`NamespaceDriver::end`].
    async fn ask_to_end(&self, id: &SandboxId) {
        if let Ok(Some(supervisor)) = self.supervisor(id, Want::Kill).await {
            let _ = tokio::time::timeout(END_TIMEOUT, supervisor.exit.wait()).await;
        }
    }

    /// Runs `work`, which blocks, on a thread for such work.
    async fn blocking<T: Send + 'static>(
        &self,
        id: &SandboxId,
        work: impl FnOnce(&Self, &SandboxId) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let (driver, owned) = (self.clone(), id.clone());
        let done = tokio::task::spawn_blocking(move || work(&driver, &owned)).await;
        done.unwrap_or_else(|error| {
            Err(DriverError::Failed {
                id: id.clone(),
                what: error.to_string(),
            })
        })
    }
}

/// A frozen sandbox. It runs on as soon as this is dropped, or its holder dies.
#[derive(Debug)]
#[must_use = "the sandbox runs on when this is dropped"]
pub struct Frozen(#[allow(dead_code, reason = "held for its end")] Supervisor);

#[async_trait]
impl Driver for NamespaceDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "namespace".to_owned(),
            root_inside: self.privileged,
            cgroups: self.groups.kind().to_owned(),
            limits: Limits {
                disk: match self.disks_are_images {
                    true => Enforcement::Sandbox,
                    false => Enforcement::None,
                },
                ..self.groups.limits()
            },
        }
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Running, DriverError> {
        spec.validate()?;
        if let Some(running) = self.attach(&spec.id).await? {
            return Ok(running);
        }
        let failed = |what: String| DriverError::Failed {
            id: spec.id.clone(),
            what,
        };
        let (driver, owned) = (self.clone(), spec.clone());
        let report = tokio::task::spawn_blocking(move || driver.start(&owned)).await;
        let patience = match report.map_err(|error| failed(error.to_string()))?? {
            Report::Started => Duration::ZERO,
            // Another create was faster: its sandbox, soon, is the one that was asked for.
            Report::AlreadyRuns => END_TIMEOUT,
            Report::Failed(why) => return Err(failed(why)),
        };
        let deadline = Instant::now() + patience;
        loop {
            if let Some(running) = self.attach(&spec.id).await? {
                return Ok(running);
            }
            if Instant::now() >= deadline {
                return Err(failed("it ended at once; its log says why".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn attach(&self, id: &SandboxId) -> Result<Option<Running>, DriverError> {
        let Some(supervisor) = self.supervisor(id, Want::Attach).await? else {
            return Ok(None);
        };
        self.blocking(id, |driver, id| {
            driver.unstill(id);
            Ok(())
        })
        .await?;
        let home = self.roots.home(id);
        Ok(Some(Running {
            id: id.clone(),
            guest_socket: home.guest_socket(),
            limits: supervisor.info.limits,
            started_unix_ms: supervisor.info.started_unix_ms,
            supervisor_pid: supervisor.pid,
            gauges: Arc::new(RunGauges::of(&home, supervisor.pid, id, &self.groups)),
            exit: supervisor.exit.clone(),
            egress: supervisor.into_egress(),
        }))
    }

    async fn hibernate(&self, id: &SandboxId) -> Result<Option<u64>, DriverError> {
        self.blocking(id, |driver, id| {
            if !held::is_held(&driver.roots.home(id)) {
                return Ok(None);
            }
            let group = driver.group_of(id);
            match group.freeze(true) {
                Ok(()) => {}
                // Half of a sleep is none: the processes must not stay stopped.
                Err(error) => {
                    let _ = group.freeze(false);
                    tracing::warn!(sandbox = %id, %error, "the processes can't be stopped in place");
                    return Ok(None);
                }
            }
            group.reclaim();
            Ok(Some(group.working_set().unwrap_or(0)))
        })
        .await
    }

    async fn resume(&self, id: &SandboxId) -> Result<(), DriverError> {
        self.blocking(id, |driver, id| match driver.group_of(id).freeze(false) {
            Err(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::Unsupported
                ) =>
            {
                Err(DriverError::Io {
                    what: format!("{id}: let its processes go on"),
                    source: e,
                })
            }
            _ => Ok(()),
        })
        .await
    }

    async fn resize(
        &self,
        id: &SandboxId,
        memory_mb: u64,
        cpu_percent: u32,
    ) -> Result<(), DriverError> {
        self.blocking(id, move |driver, id| {
            let resized = driver.group_of(id).resize(memory_mb, cpu_percent);
            resized.map_err(|source| DriverError::Io {
                what: format!("{id}: set its limits"),
                source,
            })
        })
        .await
    }

    async fn memory_used(&self, id: &SandboxId) -> Option<u64> {
        let used = self.blocking(id, |driver, id| Ok(driver.group_of(id).working_set()));
        used.await.ok().flatten()
    }

    async fn snapshot(&self, id: &SandboxId, to: &CheckpointId) -> Result<Snapshot, DriverError> {
        self.take_snapshot(id, to).await
    }

    async fn link_snapshot(
        &self,
        from: &CheckpointId,
        to: &CheckpointId,
    ) -> Result<Snapshot, DriverError> {
        let (driver, from, to) = (self.clone(), *from, *to);
        run_blocking(move || driver.link_copy(&from, &to)).await
    }

    async fn restore(&self, id: &SandboxId, from: &CheckpointId) -> Result<(), DriverError> {
        let from = *from;
        let give = move |driver: &Self, id: &SandboxId| driver.give_disk(id, &from);
        self.blocking(id, give).await
    }

    async fn forget_snapshot(&self, id: &CheckpointId) -> Result<(), DriverError> {
        let (driver, id) = (self.clone(), *id);
        run_blocking(move || driver.forget_copy(&id)).await
    }

    async fn snapshots(&self) -> Result<Vec<CheckpointId>, DriverError> {
        let driver = self.clone();
        run_blocking(move || driver.all_copies()).await
    }

    async fn compare_snapshots(
        &self,
        from: &CheckpointId,
        to: &CheckpointId,
    ) -> Result<Differences, DriverError> {
        self.compare(from, to).await
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), DriverError> {
        self.ask_to_end(id).await;
        self.blocking(id, Self::end).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), DriverError> {
        let doomed = image::doom(&self.roots.home(id));
        self.ask_to_end(id).await;
        self.blocking(id, Self::clear).await?;
        let Some(disk) = doomed else { return Ok(()) };
        let released = tokio::task::spawn_blocking(move || image::released(&disk)).await;
        let failed = |source| DriverError::Io {
            what: format!("{id}: wait for its disk"),
            source,
        };
        released.map_err(io::Error::other).flatten().map_err(failed)
    }

    async fn stats(&self, id: &SandboxId) -> Result<Option<Stats>, DriverError> {
        let home = self.roots.home(id);
        let (id, groups) = (id.clone(), self.groups.clone());
        let read = tokio::task::spawn_blocking(move || {
            let pid = living_supervisor(&home)?;
            Some(RunGauges::of(&home, pid, &id, &groups).read())
        });
        Ok(read.await.unwrap_or_default())
    }

    fn log_folder(&self, id: &SandboxId) -> PathBuf {
        self.roots.home(id).printed()
    }

    async fn list(&self) -> Result<Vec<SandboxId>, DriverError> {
        let homes = self.homes().map_err(|source| DriverError::Io {
            what: format!("list {}", self.data.display()),
            source,
        })?;
        let mut all: Vec<_> = homes.into_iter().chain(self.groups.leftovers()).collect();
        all.sort();
        all.dedup();
        Ok(all)
    }
}
