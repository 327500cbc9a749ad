//! What lies in a folder of sandboxes while no server runs on it: for those who compare it with the
//! records. Nothing is changed by looking, and nothing is removed that somebody holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::leftover::unmount_below;
use super::plan::{Home, Plan};
use super::pool::{self, Pool};
use super::snapshot::{CHECKPOINTS, DRAFT, blocks_below};
use super::template::Template;
use super::{TEMPLATES, held, host_ids, remove};
use crate::ids::{CheckpointId, SandboxId};

/// Begins the names of empty file systems.
const BLANK: &str = ".blank-";
/// A pool in the making.
const POOL_DRAFT: &str = ".pool.draft";
/// What a home may hold of half-made files.
const HOME_DRAFTS: [&str; 4] = ["disk.draft", "disk.new", "plan.draft", "run/state.draft"];

/// A disk: a sandbox's, or the copy that a checkpoint is.
#[derive(Debug, Clone)]
pub struct FoundDisk {
    /// The folder it lies in.
    pub folder: PathBuf,
    /// Somebody holds it: its supervisor lives.
    pub held: bool,
    /// Whether there is a disk at all.
    pub is_there: bool,
    /// The size it shows, in bytes; `None` for one that is a plain folder.
    pub shown_bytes: Option<u64>,
    /// What it takes of the host's disk, in bytes; shared blocks are counted too.
    pub taken_bytes: u64,
    /// Why its plan can't be read.
    pub bad_plan: Option<String>,
}

/// Something that nothing refers to.
#[derive(Debug, Clone)]
pub struct Loose {
    /// Where it is.
    pub path: PathBuf,
    /// What it takes of the host's disk, in bytes.
    pub taken_bytes: u64,
}

/// All that lies there.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Disks of sandboxes.
    pub sandboxes: BTreeMap<SandboxId, FoundDisk>,
    /// Whole copies.
    pub copies: BTreeMap<CheckpointId, FoundDisk>,
    /// Files and folders that somebody began and nobody finished.
    pub half_made: Vec<Loose>,
    /// Templates that no disk began with, besides the present one.
    pub unused_templates: Vec<Loose>,
    /// What templates and empty file systems take, in bytes.
    pub templates_bytes: u64,
    /// What is there and not known.
    pub unknown: Vec<PathBuf>,
    pool: Option<Pool>,
}

impl Inventory {
    /// Looks at the folder of sandboxes `data`, and into the pool in it; one that isn't there is empty.
    pub fn take(data: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        let mut templates = Some(BTreeSet::new());
        // As long as this looks, and those who remove what it has found.
        found.pool = match host_ids::can_be_given() {
            true => Pool::open(data, None).map_err(io::Error::other)?,
            false => None,
        };
        let pool = found.pool.as_ref().map(|pool| pool.root().to_owned());
        let roots: Vec<_> = [data.to_owned()].into_iter().chain(pool).collect();
        for root in &roots {
            found.take_root(root, &mut templates)?;
        }
        for root in &roots {
            found.take_templates(&root.join(TEMPLATES), templates.as_ref())?;
        }
        Ok(found)
    }

    fn take_root(&mut self, root: &Path, templates: &mut Used) -> io::Result<()> {
        for path in entries(root)? {
            match name_of(&path) {
                TEMPLATES | pool::MOUNT => {}
                POOL_DRAFT => self.half_made.extend(loose(path)),
                name if pool::Kind::ALL.iter().any(|kind| kind.file_name() == name) => {}
                CHECKPOINTS => self.take_copies(&path, templates)?,
                name => match name.parse::<SandboxId>() {
                    Ok(id) => {
                        let disk = found_disk(&path, templates);
                        if !disk.held {
                            let drafts = HOME_DRAFTS.map(|name| path.join(name));
                            self.half_made.extend(drafts.into_iter().filter_map(loose));
                        }
                        self.sandboxes.insert(id, disk);
                    }
                    Err(_) => self.unknown.push(path),
                },
            }
        }
        Ok(())
    }

    fn take_copies(&mut self, folder: &Path, templates: &mut Used) -> io::Result<()> {
        for path in entries(folder)? {
            let name = name_of(&path);
            if name.starts_with(DRAFT) {
                self.half_made.extend(loose(path));
            } else if let Ok(id) = name.parse() {
                self.copies.insert(id, found_disk(&path, templates));
            } else {
                self.unknown.push(path);
            }
        }
        Ok(())
    }

    /// With `used` unknown every template counts as used.
    fn take_templates(
        &mut self,
        folder: &Path,
        used: Option<&BTreeSet<PathBuf>>,
    ) -> io::Result<()> {
        let present = Template::present(folder, host_ids::can_be_given());
        for path in entries(folder)? {
            let name = name_of(&path);
            let is_draft =
                name.starts_with(DRAFT) || (name.starts_with(BLANK) && name.contains(".draft-"));
            if is_draft {
                self.half_made.extend(loose(path));
                continue;
            }
            let taken_bytes = blocks_below(&path);
            let known = used.is_none_or(|used| used.contains(&path))
                || present.as_ref().is_ok_and(|present| *present == path)
                || name.starts_with(BLANK);
            match known {
                true => self.templates_bytes += taken_bytes,
                false => self.unused_templates.push(Loose { path, taken_bytes }),
            }
        }
        Ok(())
    }
}

/// Removes a file or a folder that [`Inventory`] has found. Blocks.
pub fn remove_found(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_dir() => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => {
            if held::is_held(&Home(path.to_owned())) {
                return Err(io::Error::other("its supervisor lives"));
            }
            unmount_below(path);
            remove::remove_tree(path)
        }
    }
}

/// Templates that plans name; `None` once a plan could not be read.
type Used = Option<BTreeSet<PathBuf>>;

fn found_disk(folder: &Path, templates: &mut Used) -> FoundDisk {
    let (image, plain) = (folder.join("disk.img"), folder.join("disk"));
    let file = fs::metadata(&image).ok().filter(fs::Metadata::is_file);
    // Of a copy, or of a sandbox that began in a plain folder.
    let is_plain = || plain.join("root").is_dir();
    let plan = fs::read(folder.join("plan.json"))
        .and_then(|plan| Ok(serde_json::from_slice::<Plan>(&plan)?));
    let bad_plan = match plan {
        Ok(plan) => {
            if let Some(used) = templates {
                used.insert(plan.template.clone());
            }
            None
        }
        Err(error) => {
            *templates = None;
            Some(error.to_string())
        }
    };
    FoundDisk {
        folder: folder.to_owned(),
        held: held::is_held(&Home(folder.to_owned())),
        is_there: file.is_some() || is_plain(),
        taken_bytes: file
            .as_ref()
            .map_or_else(|| blocks_below(folder), |file| file.blocks() * 512),
        shown_bytes: file.map(|file| file.len()),
        bad_plan,
    }
}

fn loose(path: PathBuf) -> Option<Loose> {
    fs::symlink_metadata(&path).ok()?;
    let taken_bytes = blocks_below(&path);
    Some(Loose { path, taken_bytes })
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
