//! Opening the log: where it proves itself before anyone may use it.
//!
//! The fence first, then the witness against the log, then the chain (how much of it, see
//! `verify.rs`). A log that is in doubt does not open, and a refused opening changes nothing but
//! the lock file.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::engines::sqlite::{self, Sqlite};
use super::engines::{Engine, Reader};
use super::error::{EngineError, OpenError};
use super::event::Head;
use super::fence::Fence;
use super::log::{EventLog, LogOptions};
use super::verify;
use super::witness::{Found, Seen, Witness};

impl EventLog {
    /// Opens the log in `options.dir`, or creates it there. Blocks: call it at start-up.
    pub fn open(options: LogOptions) -> Result<EventLog, OpenError> {
        let dir = options.dir;
        make_folder(&dir).map_err(|error| io_error(&dir, "created", &error))?;
        let fence = Fence::raise(&dir)?;
        let found = look(&dir)?;
        let Some(engine) = Sqlite::open(&dir, found == Found::Missing)? else {
            return Err(match found {
                Found::Seen(seen) => behind(&dir, 0, 0, &seen.head),
                _ => nothing_left(&dir),
            });
        };
        let witness = prove(&dir, engine.view(), found)?;
        Self::start(dir, Box::new(engine), witness, fence)
    }

    /// Takes the log in `dir` as it is, after checking all of it, and makes a new witness. This
    /// gives up whatever the old witness proved to be missing: the operator's word, never ours.
    pub fn accept_head(dir: &Path) -> Result<Head, OpenError> {
        let _fence = Fence::raise(dir)?;
        let engine = Sqlite::open(dir, false)?.ok_or_else(|| nothing_left(dir))?;
        let damaged = |error: EngineError| doubt(dir, error);
        let head = engine.view().head().map_err(damaged)?;
        verify::everything(engine.view(), head, head).map_err(|error| damaged(error.into()))?;
        let seen = Seen {
            log: engine.view().log(),
            head,
        };
        Witness::create(dir, &seen)
            .map_err(|error| io_error(&Witness::path(dir), "written", &error))?;
        Ok(head)
    }
}

/// Makes the folder when it is missing, and syncs its entry in the parent: a new folder must not
/// vanish in a power cut with everything that was synced inside it.
fn make_folder(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    match dir.canonicalize()?.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn look(dir: &Path) -> Result<Found, OpenError> {
    Witness::look(dir).map_err(|error| io_error(&Witness::path(dir), "read", &error))
}

fn nothing_left(dir: &Path) -> OpenError {
    let detail = format!("{} is missing or empty", sqlite::FILE);
    OpenError::Damaged {
        dir: dir.to_owned(),
        detail,
    }
}

/// Checks the log against its witness and itself; makes or catches up the witness.
fn prove(dir: &Path, view: &dyn Reader, found: Found) -> Result<Witness, OpenError> {
    let path = Witness::path(dir);
    let head = view.head().map_err(|error| doubt(dir, error))?;
    let lost = |state| OpenError::WitnessLost {
        path: path.clone(),
        state,
    };
    let seen = match found {
        Found::Seen(seen) if seen.log == view.log() => seen,
        Found::Seen(_) => return Err(lost("of another log")),
        Found::Unreadable => return Err(lost("unreadable")),
        Found::Missing if head.commit > 0 => return Err(lost("missing")),
        Found::Missing => Seen {
            log: view.log(),
            head,
        },
    };
    if head.commit < seen.head.commit || head.position < seen.head.position {
        return Err(behind(dir, head.position, head.commit, &seen.head));
    }
    verify::at_open(view, head, seen.head).map_err(|error| doubt(dir, error.into()))?;
    let witness = if found == Found::Missing {
        Witness::create(dir, &seen)
    } else {
        Witness::open(dir).and_then(|mut witness| {
            if seen.head != head {
                witness.record(&Seen { head, ..seen })?;
            }
            Ok(witness)
        })
    };
    witness.map_err(|error| io_error(&path, "written", &error))
}

fn behind(dir: &Path, log_position: u64, log_commit: u64, seen: &Head) -> OpenError {
    OpenError::BehindWitness {
        dir: dir.to_owned(),
        log_position,
        log_commit,
        witness_position: seen.position,
        witness_commit: seen.commit,
    }
}

/// An engine's error while opening. What is not a matter of access is taken as damage.
pub(super) fn doubt(dir: &Path, error: EngineError) -> OpenError {
    match error {
        EngineError::Damaged(detail) => OpenError::Damaged {
            dir: dir.to_owned(),
            detail,
        },
        other => OpenError::Io {
            path: dir.join(sqlite::FILE),
            action: "read",
            detail: other.to_string(),
        },
    }
}

pub(super) fn io_error(path: &Path, action: &'static str, error: &io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_owned(),
        action,
        detail: error.to_string(),
    }
}
