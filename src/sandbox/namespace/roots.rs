//! The folders in which disks lie: the server's own, and the pool's where there is one. What is there
//! stays where it is, whatever the setting says; what is new is made where that says.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::plan::Home;
use super::pool::{self, Pool};
use super::snapshot::CHECKPOINTS;
use super::sys::StepError;
use super::{Check, image};
use crate::ids::{CheckpointId, SandboxId};
use crate::sandbox::DiskStore;

/// Bytes that are shared to find out whether a file system can.
const PROBE_BYTES: usize = 4096;

/// Where disks lie.
#[derive(Debug, Clone)]
pub struct Roots {
    own: PathBuf,
    pool: Option<Arc<Pool>>,
    new_in_pool: bool,
}

impl Roots {
    /// The folders below `data`. A pool that is there is mounted, and made when `store` wants one.
    pub fn open(data: &Path, store: DiskStore, privileged: bool) -> Result<Self, StepError> {
        let cannot = |what: String| StepError {
            step: "disks.store",
            source: io::Error::other(what),
        };
        let kind = kind_of(data, store).map_err(cannot)?;
        if kind.is_some() && !privileged {
            return Err(cannot("a pool of disks needs root".to_owned()));
        }
        // Without root nothing can have been made there.
        let pool = match privileged {
            true => Pool::open(data, kind)?,
            false => None,
        };
        Ok(Self {
            own: data.to_owned(),
            new_in_pool: kind.is_some() && pool.is_some(),
            pool: pool.map(Arc::new),
        })
    }

    /// Every folder.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        let pool = self.pool.iter().map(|pool| pool.root());
        [self.own.as_path()].into_iter().chain(pool)
    }

    fn for_new(&self) -> &Path {
        match &self.pool {
            Some(pool) if self.new_in_pool => pool.root(),
            _ => &self.own,
        }
    }

    /// The folder of a sandbox: where it is, or is to be.
    pub fn home(&self, id: &SandboxId) -> Home {
        let there = self.all().map(|root| Home::of(root, id));
        let found = there.into_iter().find(|home| home.0.exists());
        found.unwrap_or_else(|| Home::of(self.for_new(), id))
    }

    /// The folder that `home` lies in; refused when there is no room for something new.
    pub fn root_of<'a>(&'a self, home: &Home) -> io::Result<&'a Path> {
        match &self.pool {
            Some(pool) if home.0.starts_with(pool.root()) => {
                pool.check_room()?;
                Ok(pool.root())
            }
            _ => Ok(&self.own),
        }
    }

    /// A copy, where it is.
    pub fn copy(&self, id: &CheckpointId) -> PathBuf {
        let at = |root: &Path| root.join(CHECKPOINTS).join(id.to_string());
        let mut there = self.all().map(at);
        there
            .find(|copy| copy.exists())
            .unwrap_or_else(|| at(&self.own))
    }
}

/// How copies of disks are made in `data`, for `oc doctor`.
pub fn store_check(data: &Path, store: DiskStore) -> Check {
    let sharing = shares_blocks(data);
    let pool = kind_of(
        data,
        match store {
            DiskStore::Files => DiskStore::Pool,
            store => store,
        },
    );
    let fix_pool = "set `disks.store = \"pool\"` in oc.toml: new disks lie in a file system in one \
                    file that shares blocks; what is there stays readable";
    let copied = "what was written on a disk is copied for each checkpoint and fork";
    let (ok, detail, fix) = match (store, &pool, &sharing) {
        (DiskStore::Files, _, Ok(true)) => {
            let detail = "files, whose file system shares blocks: copies take no time and no room";
            (true, detail.to_owned(), None)
        }
        (DiskStore::Files, Ok(_), _) => {
            let why = sharing.map_or_else(|error| error.to_string(), |_| "can't".to_owned());
            let detail = format!(
                "files; sharing blocks in {}: {why}; {copied}",
                data.display()
            );
            (false, detail, Some(fix_pool.to_owned()))
        }
        (DiskStore::Files, Err(why), _) => (false, format!("files; {copied}"), Some(why.clone())),
        (_, Ok(kind), _) => {
            let name = kind.map_or("no kind", pool::Kind::name);
            let detail = format!(
                "a pool ({name}) in one file in {}; copies take no time and no room",
                data.display()
            );
            (true, detail, None)
        }
        (_, Err(why), _) => (false, format!("a pool is wanted: {why}"), Some(why.clone())),
    };
    Check {
        name: "disk store".to_owned(),
        ok,
        required: false,
        detail,
        fix,
    }
}

/// The kind of pool that a setting means: the one that is there, or one that can be made.
fn kind_of(data: &Path, store: DiskStore) -> Result<Option<pool::Kind>, String> {
    match pool::existing(data).filter(|_| store != DiskStore::Files) {
        None => pool::chosen(store),
        there => Ok(there),
    }
}

/// Whether files in `data`, or in what is there of its parents, can share blocks.
fn shares_blocks(data: &Path) -> io::Result<bool> {
    use std::io::Write;
    let there = data.ancestors().find(|folder| folder.is_dir());
    let there = there.ok_or(io::ErrorKind::NotFound)?;
    let (mut from, to) = (tempfile::tempfile_in(there)?, tempfile::tempfile_in(there)?);
    from.write_all(&[1; PROBE_BYTES])?;
    from.sync_all()?;
    Ok(image::share(&from, &to).is_ok())
}
