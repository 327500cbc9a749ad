//! Starting a supervisor: what it is told of the sandbox it is to hold.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::plan::{Home, Plan};
use super::supervisor::Report;
use super::{NamespaceDriver, TEMPLATES, image, snapshot};
use crate::sandbox::{DriverError, SandboxSpec};

impl NamespaceDriver {
    /// Starts a supervisor and waits until its sandbox runs. Blocks.
    pub(super) fn start(&self, spec: &SandboxSpec) -> Result<Report, DriverError> {
        let failed = |what| {
            move |source| DriverError::Io {
                what: format!("{}: {what}", spec.id),
                source,
            }
        };
        let home = self.roots.home(&spec.id);
        let root = match home.image().exists() {
            true => self.roots.root_of(&home).unwrap_or(&self.data),
            false => self
                .roots
                .root_of(&home)
                .map_err(failed("find room for its disk"))?,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(home.run())
            .map_err(failed("make its folder"))?;
        let plan = Plan {
            spec: spec.clone(),
            home: home.0.clone(),
            template: self.template_of(&home),
            groups: self.groups.clone(),
            privileged: self.privileged,
            blank: self.blank(root, spec.disk_mb),
            first_id: snapshot::owner_of(&home),
        };
        let told = serde_json::to_vec(&plan).map_err(io::Error::from);
        told.and_then(|told| self.spawner.start(&told))
            .map_err(failed("hear from its supervisor"))
    }

    /// The empty file system that a disk of `mb` MiB begins as, where disks have one. Blocks.
    fn blank(&self, root: &Path, mb: u64) -> Option<PathBuf> {
        if !self.disks_are_images {
            return None;
        }
        let folder = root.join(TEMPLATES);
        let made = fs::create_dir_all(&folder).and_then(|()| image::blank(&folder, mb));
        let failed = |error| tracing::error!(%error, "a disk's size will not be enforced");
        made.map_err(failed).ok()
    }

    /// A disk stays on the template it began with: its own layer was written over that one.
    fn template_of(&self, home: &Home) -> PathBuf {
        let plan = fs::read(home.plan()).unwrap_or_default();
        match serde_json::from_slice::<Plan>(&plan) {
            Ok(plan) if plan.template.is_dir() => plan.template,
            _ => self.template.clone(),
        }
    }
}
