//! `oc log repair`: the way out for a log that does not open.
//!
//! Every commit that verifies from the first one on is copied into a new log with the same identity
//! and the same hashes; the damaged folder is kept as it is, under another name. Nothing is deleted.
//!
//! ```text
//! log/             damaged           new               new            new
//! log.repairing/   new, repair.json  damaged           -              -
//! log.damaged-…/                                       damaged        damaged
//! log/repair.json  no                yes               yes            no
//!                  built ──exchange──▶      ──rename──▶      ──tidy──▶ done
//! ```
//!
//! The copy is read whole before the exchange, which is one system call, so at every moment `log/` is
//! one of the two: the damaged log or the new one. A repair that was cut off is finished by the next
//! one, which the table above tells where it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;
use ulid::Ulid;

use super::copy::Prefix;
use super::engines::Reader;
use super::engines::sqlite::{self, Copying, Held, Purpose};
use super::error::{EngineError, OpenError};
use super::event::Head;
use super::maintenance::DataFolder;
use super::stream::StreamId;
use super::verify;

const BUILDING: &str = "log.repairing";
const PLAN: &str = "repair.json";
/// Streams that are named in a report.
const STREAMS_MAX: usize = 1_000;
/// Commits behind the damage that are looked at.
const BEHIND_COMMITS_MAX: usize = 100_000;

/// Why a log could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A server has the folder, or it can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Not even the first commit is left.
    #[error(
        "nothing of the event log in {dir} can be kept ({reason}): restore a backup with \
         `oc restore`. Nothing was changed"
    )]
    NothingLeft {
        /// The log's folder.
        dir: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The new log can't be written.
    #[error(
        "the repaired log can't be written: {0}; nothing was changed, the command can be repeated"
    )]
    Copy(#[from] EngineError),
    /// The disk gives one thing and then another: what was reported is not what can be copied.
    #[error(
        "two readings of the damaged log in {dir} differ: it verifies up to position {first}, then \
         up to position {second}. Copy the folder to a sound disk and repair it there; nothing was \
         changed"
    )]
    Unsteady {
        /// The log's folder.
        dir: PathBuf,
        /// Last position that verified at first.
        first: u64,
        /// Last position that was copied.
        second: u64,
    },
    /// A step of the file system failed.
    #[error("{path} can't be {action}: {source}; the command can be repeated")]
    Io {
        /// What.
        path: PathBuf,
        /// `renamed`, …
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// A folder of a repair's name that no repair has made.
    #[error("{path} is in the way and not of an earlier repair: move it away")]
    InTheWay {
        /// The folder.
        path: PathBuf,
    },
}

/// What a repair found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairReport {
    /// The log's identity.
    pub log: Ulid,
    /// Where the verified prefix ends: all of that is kept.
    pub kept: Head,
    /// What is wrong behind it; `None`: the log is whole and in order.
    pub fault: Option<String>,
    /// What is known to be lost; `None`: nothing that anyone knows of.
    pub dropped: Option<Dropped>,
    /// Where the damaged log is now; `None`: nothing was changed.
    pub aside: Option<PathBuf>,
}

/// What lies behind the kept prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// First commit and position that are dropped.
    pub first: (u64, u64),
    /// Last commit and position known of, from the log or its witness.
    pub last: (u64, u64),
    /// Events that can still be read in the damaged log, by stream; at most 1 000 streams.
    pub streams: BTreeMap<StreamId, u64>,
}

#[derive(Serialize, Deserialize)]
struct Plan {
    aside: String,
}

/// What came after which step, for tests that stop there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// What an earlier repair had built is deleted, but for its plan.
    Emptied,
    /// Its plan is deleted too.
    Forgotten,
    Planned,
    Built,
    Exchanged,
    SetAside,
}

impl DataFolder {
    /// Looks what a repair would keep and drop; changes nothing but the lock file.
    pub fn examine(&self) -> Result<RepairReport, RepairError> {
        let held = self.hold()?;
        examine(held.view(), |_| Ok(()))
    }

    /// Keeps the verified prefix of a stopped server's log and sets the damaged log aside. A log
    /// that is in order is left alone. Finishes a repair that was cut off.
    pub fn repair(&self) -> Result<RepairReport, RepairError> {
        self.repair_with(|_| Ok(()))
    }

    pub(super) fn repair_with(
        &self,
        mut after: impl FnMut(Step) -> Result<(), EngineError>,
    ) -> Result<RepairReport, RepairError> {
        // The fence comes before anything is touched: of two repairs, one waits outside.
        let held = self.hold()?;
        let finished = self.finish_earlier(&mut after)?;
        let building = self.root().join(BUILDING);
        let mut report = examine(held.view(), |_| Ok(()))?;
        if report.fault.is_none() {
            report.aside = finished;
            return Ok(report);
        }
        if report.kept.commit == 0 {
            return Err(RepairError::NothingLeft {
                dir: self.log(),
                reason: report.fault.unwrap_or_default(),
            });
        }
        let plan = Plan {
            aside: self.free_name(),
        };
        // The plan comes first: it is what tells a folder of ours from others.
        fs::create_dir(&building).map_err(failed(&building, "created"))?;
        fs::set_permissions(
            &building,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .map_err(failed(&building, "created"))?;
        write_plan(&building.join(PLAN), &plan)?;
        after(Step::Planned)?;
        self.copy(held.view(), report.kept, &building)?;
        after(Step::Built)?;
        exchange(&building, &self.log())?;
        after(Step::Exchanged)?;
        report.aside = Some(self.set_aside(&plan)?);
        after(Step::SetAside)?;
        self.forget_plan()?;
        Ok(report)
    }

    /// Copies the prefix that ends at `kept` and reads the copy whole, from its file: it must be
    /// what was reported.
    fn copy(&self, view: &dyn Reader, kept: Head, building: &Path) -> Result<(), RepairError> {
        let mut copy = Copying::create(building, view.log())?;
        let mut prefix = Prefix::new(view);
        prefix.extend(view, Some(kept.position), |commits| copy.append(commits))?;
        let copied = copy.finish(Purpose::Serve)?;
        if copied != kept {
            return Err(RepairError::Unsteady {
                dir: self.log(),
                first: kept.position,
                second: copied.position,
            });
        }
        let made = sqlite::attach(building)?;
        verify::everything(made.as_ref(), copied, Some(copied)).map_err(EngineError::from)?;
        Ok(())
    }

    fn hold(&self) -> Result<Held, RepairError> {
        let unreadable = |reason: String| RepairError::NothingLeft {
            dir: self.log(),
            reason,
        };
        match Held::open(&self.log()) {
            Ok(Some(held)) => Ok(held),
            Ok(None) => Err(unreadable(format!("{} is missing or empty", sqlite::FILE))),
            Err(OpenError::Damaged { detail, .. }) => Err(unreadable(detail)),
            Err(other) => Err(other.into()),
        }
    }

    /// Brings a repair that was cut off to a state without remains. Returns where the damaged log
    /// is, if it was exchanged already. The caller holds the fence.
    fn finish_earlier(
        &self,
        after: &mut impl FnMut(Step) -> Result<(), EngineError>,
    ) -> Result<Option<PathBuf>, RepairError> {
        let building = self.root().join(BUILDING);
        let (exchanged, built) = (self.log().join(PLAN), building.join(PLAN));
        match (exchanged.exists(), building.exists(), built.exists()) {
            (false, false, _) => Ok(None),
            (false, true, true) => {
                // Never in use, and of a log that is still there as it was.
                clear(&building, after)?;
                Ok(None)
            }
            (false, true, false) | (true, true, true) => {
                // A crash between the folder and its plan, made or deleted, leaves an empty one.
                match fs::remove_dir(&building) {
                    Ok(()) => Ok(None),
                    Err(_) => Err(RepairError::InTheWay { path: building }),
                }
            }
            (true, still_there, _) => {
                let text = fs::read(&exchanged).map_err(failed(&exchanged, "read"))?;
                let plan = serde_json::from_slice::<Plan>(&text)
                    .map_err(io::Error::from)
                    .map_err(failed(&exchanged, "read"))?;
                let aside = match still_there {
                    true => self.set_aside(&plan)?,
                    false => self.root().join(&plan.aside),
                };
                self.forget_plan()?;
                Ok(Some(aside))
            }
        }
    }

    fn set_aside(&self, plan: &Plan) -> Result<PathBuf, RepairError> {
        let (building, aside) = (self.root().join(BUILDING), self.root().join(&plan.aside));
        fs::rename(&building, &aside)
            .and_then(|()| File::open(self.root())?.sync_all())
            .map_err(failed(&building, "renamed"))?;
        Ok(aside)
    }

    fn forget_plan(&self) -> Result<(), RepairError> {
        let plan = self.log().join(PLAN);
        fs::remove_file(&plan)
            .and_then(|()| File::open(self.log())?.sync_all())
            .map_err(failed(&plan, "removed"))
    }

    /// `log.damaged-<time>`, a name that is not taken.
    fn free_name(&self) -> String {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let now = OffsetDateTime::now_utc().format(format).unwrap_or_default();
        let mut name = format!("log.damaged-{now}");
        while self.root().join(&name).exists() {
            name.push('x');
        }
        name
    }
}

/// Walks the verified prefix, giving its commits to `take`, and finds out what is behind it.
fn examine(
    view: &dyn Reader,
    take: impl FnMut(&[super::engines::Commit]) -> Result<(), EngineError>,
) -> Result<RepairReport, RepairError> {
    let mut prefix = Prefix::new(view);
    let unreadable = prefix.extend(view, None, take)?;
    let kept = prefix.head;
    let witness = view.witnessed();
    let mut last = (kept.commit, kept.position);
    let fault = match (unreadable, &witness) {
        (Some(fault), _) => Some(fault.to_string()),
        (None, Err(error)) => Some(error.to_string()),
        (None, Ok(None)) => None,
        (None, Ok(Some(seen))) if seen.position > kept.position => Some(format!(
            "the log ends at position {}, its witness has seen position {}",
            kept.position, seen.position
        )),
        (None, Ok(Some(seen))) => verify::holds(view, seen)
            .err()
            .map(|error| error.to_string()),
    };
    // Every commit may be sound in a file that is not: a server would refuse it all the same.
    let fault = fault.or_else(|| view.check_files().err().map(|error| error.to_string()));
    if let Ok(Some(seen)) = witness
        && seen.position > last.1
    {
        last = (seen.commit, seen.position);
    }
    let mut streams = BTreeMap::new();
    if fault.is_some() {
        behind(view, kept.position, &mut last, &mut streams);
    }
    let dropped = (last.1 > kept.position).then(|| Dropped {
        first: (kept.commit + 1, kept.position + 1),
        last,
        streams,
    });
    Ok(RepairReport {
        log: view.log(),
        kept,
        fault,
        dropped,
        aside: None,
    })
}

/// What can still be read behind the prefix, from the end backwards.
fn behind(
    view: &dyn Reader,
    kept: u64,
    last: &mut (u64, u64),
    streams: &mut BTreeMap<StreamId, u64>,
) {
    let mut before = u64::MAX;
    for _ in 0..BEHIND_COMMITS_MAX {
        let Ok(page) = view.commits_before(before, 1) else {
            return;
        };
        let Some(commit) = page.first().filter(|commit| commit.first_position() > kept) else {
            return;
        };
        let head = commit.head();
        if head.position > last.1 {
            *last = (head.commit, head.position);
        }
        for event in &commit.events {
            if streams.len() < STREAMS_MAX || streams.contains_key(&event.stream) {
                *streams.entry(event.stream.clone()).or_default() += 1;
            }
        }
        before = commit.first_position();
    }
}

/// Deletes what a repair has built. Its plan goes last: a folder that has none is not ours.
fn clear(
    building: &Path,
    after: &mut impl FnMut(Step) -> Result<(), EngineError>,
) -> Result<(), RepairError> {
    let plan = building.join(PLAN);
    let sync = || File::open(building)?.sync_all();
    let delete_rest = || {
        for entry in fs::read_dir(building)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false if entry.path() == plan => {}
                false => fs::remove_file(entry.path())?,
            }
        }
        sync()
    };
    delete_rest().map_err(failed(building, "emptied"))?;
    after(Step::Emptied)?;
    fs::remove_file(&plan)
        .and_then(|()| sync())
        .map_err(failed(&plan, "removed"))?;
    after(Step::Forgotten)?;
    fs::remove_dir(building).map_err(failed(building, "removed"))
}

fn write_plan(path: &Path, plan: &Plan) -> Result<(), RepairError> {
    let text = serde_json::to_vec(plan)
        .map_err(io::Error::from)
        .map_err(failed(path, "written"))?;
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(&text)?;
        file.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(failed(path, "written"))
}

/// The two folders take each other's place, in one step.
fn exchange(building: &Path, log: &Path) -> Result<(), RepairError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, building, CWD, log, RenameFlags::EXCHANGE)
        .map_err(io::Error::from)
        .and_then(|()| File::open(log.parent().unwrap_or(Path::new(".")))?.sync_all())
        .map_err(failed(log, "exchanged for the repaired log"))
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RepairError {
    let path = path.to_owned();
    move |source| RepairError::Io {
        path,
        action,
        source,
    }
}
