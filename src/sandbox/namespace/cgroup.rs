//! Limits of a sandbox's processes together, on every layout of control groups.
//!
//! | Layout | Limits | Freezing |
//! |---|---|---|
//! | v1 | a group per hierarchy (memory, pids, cpu) | freezer hierarchy |
//! | hybrid | as v1 | the cgroup2 tree, whose core files work without controllers |
//! | v2 | one delegated group | the same group |
//! | none | none here; see the resource limits in [`super::child`] | no |
//!
//! Invariants: every group lies under this process' own group, so that limits set on us hold for
//! our sandboxes; a group is named after its server and its sandbox; one that can't be made or set
//! is reported as "not enforced", never assumed.

mod gauges;
mod live;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ids::SandboxId;
use crate::sandbox::{Enforcement, Limits};

/// Most processes and threads in one sandbox.
pub const PIDS_MAX: u64 = oc_guest::TASKS_MAX;
/// Period of the CPU quota.
const CPU_PERIOD_US: u64 = 100_000;
/// The server's own leaf on v2, where a group with limits may hold no processes itself.
const SERVER_LEAF: &str = "oc-server";
/// How long an emptied group may stay busy.
const REMOVE_WAIT: Duration = Duration::from_secs(2);

/// Where groups of sandboxes are made; found once per server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Tells this server's groups from those of others that share its own group.
    tag: String,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    cpu: Option<PathBuf>,
    freezer: Option<PathBuf>,
    /// The cgroup2 tree: all limits when `unified_limits`, else freezing only.
    unified: Option<PathBuf>,
    unified_limits: bool,
}

impl Layout {
    /// Looks at this process' own groups and keeps those in which it may make others.
    pub fn detect(tag: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut layout = Self {
            tag: tag.to_owned(),
            ..Self::parse(&mounts, &own)
        };
        let all = [
            &mut layout.memory,
            &mut layout.pids,
            &mut layout.cpu,
            &mut layout.freezer,
        ];
        for group in all {
            group.take_if(|path| !writable(path));
        }
        layout.unified.take_if(|path| !writable(path));
        layout.prepare_unified();
        layout
    }

    fn parse(mounts: &str, own: &str) -> Self {
        let v1 = |controller: &str| {
            let path = own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let controllers = fields.next()?;
                controllers
                    .split(',')
                    .any(|c| c == controller)
                    .then(|| fields.next())
                    .flatten()
            })?;
            mount_point(mounts, "cgroup", Some(controller), path)
        };
        let unified = own.lines().find_map(|line| line.strip_prefix("0::"));
        Self {
            tag: String::new(),
            memory: v1("memory"),
            pids: v1("pids"),
            cpu: v1("cpu"),
            freezer: v1("freezer"),
            unified: unified.and_then(|path| mount_point(mounts, "cgroup2", None, path)),
            unified_limits: false,
        }
    }

    /// On v2, moves this process to a leaf of its own and hands the controllers down.
    fn prepare_unified(&mut self) {
        let Some(own) = self.unified.clone() else {
            return;
        };
        let base = match own.file_name() {
            Some(name) if name == SERVER_LEAF => own.parent().map(Path::to_owned).unwrap_or(own),
            _ => own,
        };
        let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        let has = |c: &str| offered.split_ascii_whitespace().any(|o| o == c);
        if has("memory") && has("pids") {
            let leaf = base.join(SERVER_LEAF);
            let moved = ensure_dir(&leaf).and_then(|()| fs::write(leaf.join("cgroup.procs"), "0"));
            let wanted = if has("cpu") {
                "+memory +pids +cpu"
            } else {
                "+memory +pids"
            };
            let handed =
                moved.and_then(|()| fs::write(base.join("cgroup.subtree_control"), wanted));
            self.unified_limits = handed.is_ok();
        }
        self.unified = Some(base);
    }

    /// `v1`, `hybrid`, `v2` or `none`.
    pub fn kind(&self) -> &'static str {
        match (self.memory.is_some() || self.pids.is_some(), &self.unified) {
            (true, Some(_)) => "hybrid",
            (true, None) => "v1",
            (false, Some(_)) if self.unified_limits => "v2",
            _ => "none",
        }
    }

    /// What a sandbox made with this layout would be held to.
    pub fn limits(&self) -> Limits {
        let by = |v1: &Option<PathBuf>, fallback| match v1 {
            Some(_) => Enforcement::Sandbox,
            None if self.unified_limits => Enforcement::Sandbox,
            None => fallback,
        };
        Limits {
            memory: by(&self.memory, Enforcement::Process),
            cpu: by(&self.cpu, Enforcement::None),
            // Without a group, the kernel counts processes per user namespace.
            pids: by(&self.pids, Enforcement::Sandbox),
            disk: Enforcement::None,
            freeze: self.unified.is_some() || self.freezer.is_some(),
        }
    }

    /// Whether a group counts the processes; else the kernel must, per user namespace.
    pub fn counts_processes(&self) -> bool {
        self.pids.is_some() || self.unified_limits
    }

    fn bases(&self) -> impl Iterator<Item = &PathBuf> {
        [
            &self.memory,
            &self.pids,
            &self.cpu,
            &self.freezer,
            &self.unified,
        ]
        .into_iter()
        .flatten()
    }

    /// The groups of one sandbox, made or not.
    pub fn group(&self, id: &SandboxId) -> Group {
        Group {
            layout: self.clone(),
            name: format!("oc-{}-{id}", self.tag),
        }
    }

    /// This server's sandboxes that still have a group somewhere.
    pub fn leftovers(&self) -> Vec<SandboxId> {
        let prefix = format!("oc-{}-", self.tag);
        let mut found: Vec<SandboxId> = self
            .bases()
            .filter_map(|base| fs::read_dir(base).ok())
            .flatten()
            .flatten()
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix(&prefix)?
                    .parse()
                    .ok()
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }
}

/// The control groups of one sandbox.
#[derive(Debug, Clone)]
pub struct Group {
    layout: Layout,
    name: String,
}

impl Group {
    /// Makes the groups and sets their limits; says which of them hold.
    pub fn create(&self, cpu_percent: u32, memory_mb: u64) -> Limits {
        let memory = (memory_mb * 1024 * 1024).to_string();
        let quota = (u64::from(cpu_percent) * CPU_PERIOD_US / 100).to_string();
        let (period, pids) = (CPU_PERIOD_US.to_string(), PIDS_MAX.to_string());
        let mut limits = self.layout.limits();
        let v1 = |base: &Option<PathBuf>, files: &[(&str, &str)]| {
            base.as_ref()
                .is_none_or(|base| self.make(base, files).is_ok())
        };
        if !v1(&self.layout.memory, &[("memory.limit_in_bytes", &memory)]) {
            limits.memory = Enforcement::Process;
        }
        if !v1(&self.layout.pids, &[("pids.max", &pids)]) {
            limits.pids = Enforcement::None;
        }
        if !v1(
            &self.layout.cpu,
            &[("cpu.cfs_period_us", &period), ("cpu.cfs_quota_us", &quota)],
        ) {
            limits.cpu = Enforcement::None;
        }
        if let Some(base) = &self.layout.unified {
            let quota = format!("{quota} {period}");
            let files = [
                ("memory.max", memory.as_str()),
                ("memory.swap.max", "0"),
                ("memory.oom.group", "0"),
                ("pids.max", &pids),
                ("cpu.max", &quota),
            ];
            let files = if self.layout.unified_limits {
                &files[..]
            } else {
                &[]
            };
            self.make_unified(base, files, &mut limits);
        } else if !v1(&self.layout.freezer, &[]) {
            limits.freeze = false;
        }
        limits
    }

    fn make(&self, base: &Path, files: &[(&str, &str)]) -> io::Result<()> {
        let dir = base.join(&self.name);
        ensure_dir(&dir)?;
        for (file, value) in files {
            fs::write(dir.join(file), value)?;
        }
        // Without this a sandbox could pass its limit by the size of the swap; absent on kernels
        // that do not account for swap.
        let memsw = dir.join("memory.memsw.limit_in_bytes");
        if let Some((_, limit)) = files.iter().find(|(f, _)| *f == "memory.limit_in_bytes")
            && memsw.exists()
        {
            fs::write(memsw, limit)?;
        }
        Ok(())
    }

    fn make_unified(&self, base: &Path, files: &[(&str, &str)], limits: &mut Limits) {
        let dir = base.join(&self.name);
        if ensure_dir(&dir).is_err() {
            limits.freeze = false;
        }
        for (file, value) in files {
            if fs::write(dir.join(file), value).is_ok() {
                continue;
            }
            match *file {
                "memory.max" => limits.memory = Enforcement::Process,
                "cpu.max" => limits.cpu = Enforcement::None,
                "pids.max" => limits.pids = Enforcement::None,
                // Swap accounting is optional, and group kills are off by default.
                _ => {}
            }
        }
    }

    /// The cgroup2 folder, for a child to be born in.
    pub fn unified_dir(&self) -> Option<OwnedFd> {
        use rustix::fs::{Mode, OFlags};
        let dir = self.layout.unified.as_ref()?.join(&self.name);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, Mode::empty()).ok()
    }

    /// Moves process `pid` into all groups but the unified one, which it is born in. Slow on v1
    /// (some 2 ms a hierarchy): do it beside other work, before the process runs foreign code.
    pub fn adopt(&self, pid: u32, born_in_unified: bool, limits: &mut Limits) {
        let join = |base: &Option<PathBuf>| {
            let procs = base
                .as_ref()
                .map(|base| base.join(&self.name).join("cgroup.procs"));
            procs.is_none_or(|procs| fs::write(procs, pid.to_string()).is_ok())
        };
        if !join(&self.layout.memory) {
            limits.memory = Enforcement::Process;
        }
        if !join(&self.layout.pids) {
            limits.pids = Enforcement::None;
        }
        if !join(&self.layout.cpu) {
            limits.cpu = Enforcement::None;
        }
        let frozen_by = match &self.layout.unified {
            Some(_) if born_in_unified => &None,
            Some(_) => &self.layout.unified,
            None => &self.layout.freezer,
        };
        if !join(frozen_by) {
            limits.freeze = false;
        }
    }

    /// Stops (or lets run) every process at one instant; waits until it is so, at most a second.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let wait = |file: PathBuf, wanted: &str| {
            let deadline = Instant::now() + Duration::from_secs(1);
            loop {
                if fs::read_to_string(&file)?
                    .lines()
                    .any(|line| line == wanted)
                {
                    return Ok(());
                }
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        if let Some(base) = &self.layout.unified {
            let dir = base.join(&self.name);
            fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
            return wait(
                dir.join("cgroup.events"),
                if frozen { "frozen 1" } else { "frozen 0" },
            );
        }
        let base = self
            .layout
            .freezer
            .as_ref()
            .ok_or(io::ErrorKind::Unsupported)?;
        let state = base.join(&self.name).join("freezer.state");
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        fs::write(&state, wanted)?;
        wait(state, wanted)
    }

    /// Kills whatever is still in the groups. PID 1's death does this already; this is for the
    /// case that somebody moved a process, or that all of them are stopped (on v1 those don't die).
    pub fn kill(&self) {
        let _ = self.freeze(false);
        if let Some(base) = &self.layout.unified {
            let _ = fs::write(base.join(&self.name).join("cgroup.kill"), "1");
        }
    }

    /// Removes the groups, waiting a moment for the last process to be gone.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + REMOVE_WAIT;
        for base in self.layout.bases() {
            let dir = base.join(&self.name);
            loop {
                match fs::remove_dir(&dir) {
                    Ok(()) => break,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                    Err(e) if Instant::now() >= deadline => return Err(e),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        }
        Ok(())
    }
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

fn ensure_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// The folder of group `path` of the hierarchy of `kind` (and `controller`), as
/// `/proc/self/mountinfo` shows it. Its fields: id, parent, device, root, mount point, options,
/// optional ones, `-`, type, source, super options.
fn mount_point(mounts: &str, kind: &str, controller: Option<&str>, path: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        let fs_type = back.next()?;
        let options = back.nth(1)?;
        let wanted = controller.is_none_or(|c| options.split(',').any(|o| o == c));
        if fs_type != kind || !wanted {
            return None;
        }
        let mut front = front.split(' ').skip(3);
        let (root, point) = (front.next()?, front.next()?);
        // In a container the mount may show only a part of the hierarchy.
        let inside = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(point).join(inside))
    })
}

/// Tells this folder's control groups from those of other servers on the machine.
pub(super) fn data_tag(data: &Path) -> String {
    use sha2::Digest;
    let hash = hex::encode(sha2::Sha256::digest(data.as_os_str().as_encoded_bytes()));
    hash.chars().take(8).collect()
}

#[cfg(test)]
mod tests;
