//! Opening the log: where it proves itself before anyone may use it.
//!
//! The engine has its lock and its witness; then the chain is walked (how much of it, see
//! `verify.rs`) and the index brought up to the head. A log that is in doubt does not open, and a
//! refused opening changes nothing of it.

use std::path::Path;

use super::engines::sqlite::{self, Sqlite};
use super::engines::{Engine, Reader};
use super::error::{EngineError, OpenError};
use super::event::Head;
use super::index::Index;
use super::log::{EventLog, LogOptions};
use super::verify::{self, Depth};

impl EventLog {
    /// Opens the log in `options.dir`, or creates it there. Blocks: call it at start-up.
    pub fn open(options: LogOptions) -> Result<EventLog, OpenError> {
        let dir = options.dir;
        let engine = Sqlite::open(&dir)?;
        let doubt = |error: EngineError| sqlite::doubt(&dir, error);
        let index = Index::open(&dir, engine.view().log()).map_err(doubt)?;
        Self::prove(dir.clone(), Box::new(engine), index, Depth::default()).map_err(doubt)
    }

    /// Starts on an engine when the log in it proves itself.
    pub(super) fn prove(
        dir: std::path::PathBuf,
        engine: Box<dyn Engine>,
        mut index: Index,
        depth: Depth,
    ) -> Result<EventLog, EngineError> {
        let reader = engine.view();
        let head = reader.head()?;
        let seen = reader.witnessed()?;
        let known = index.head();
        if known.is_some_and(|known| verify::holds(reader, &known).is_err()) {
            index.clear()?;
        }
        verify::at_open(reader, head, seen, &mut index, depth)?;
        Self::start(dir, engine, index)
    }

    /// A log in memory, for tests of what is built on a log. Nothing of it survives.
    #[cfg(test)]
    pub fn in_memory() -> EventLog {
        let engine = super::engines::memory::Memory::new();
        let index = Index::in_memory(engine.log());
        Self::start(Path::new("memory").to_owned(), Box::new(engine), index)
            .expect("memory does not fail")
    }

    /// Takes the log in `dir` as it is, after checking all of it, and makes a new witness. This
    /// gives up whatever the old witness proved to be missing: the operator's word, never ours.
    pub fn accept_head(dir: &Path) -> Result<Head, OpenError> {
        let prove = |reader: &dyn Reader| {
            let head = reader.head()?;
            verify::everything(reader, head, None)?;
            Ok(head)
        };
        sqlite::accept_head(dir, |reader| {
            prove(reader).map_err(|error: EngineError| sqlite::doubt(dir, error))
        })
    }
}
