//! The log of a server that does not run: verified and exported as it lies there.
//!
//! The fence is held meanwhile, so no server starts on it; nothing but the lock file is changed.

use std::io::Write;
use std::path::Path;

use ulid::Ulid;

use super::engines::sqlite::{self, Sqlite};
use super::engines::{Engine, Reader};
use super::error::{EngineError, ExportError, OpenError, VerifyError};
use super::event::Head;
use super::export::{Audience, Progress};
use super::fence::Fence;
use super::open::doubt;
use super::proof::{self, Known, StreamReport};
use super::stream::StreamId;
use super::verify::{self, VerifyReport};
use super::witness::{Found, Witness};

/// A stopped server's log.
pub struct OfflineLog {
    engine: Sqlite,
    found: Found,
    // Last: it falls after the files are closed.
    _fence: Fence,
}

impl OfflineLog {
    /// Opens the log in `dir` without judging it; a running server has the folder for itself.
    pub fn open(dir: &Path) -> Result<OfflineLog, OpenError> {
        let fence = Fence::raise(dir)?;
        let found =
            Witness::look(dir).map_err(|error| doubt(dir, EngineError::Io(error.to_string())))?;
        let engine = Sqlite::open(dir, false)?;
        let nothing = || {
            let what = format!("{} is missing or empty", sqlite::FILE);
            doubt(dir, EngineError::Damaged(what))
        };
        Ok(OfflineLog {
            engine: engine.ok_or_else(nothing)?,
            found,
            _fence: fence,
        })
    }

    /// The log's identity.
    pub fn id(&self) -> Ulid {
        self.view().log()
    }

    /// Reads and checks everything, the witness too, and compares it with what is `known` from
    /// elsewhere. Takes time in proportion to the log.
    pub fn verify(&self, known: &[Known]) -> Result<VerifyReport, VerifyError> {
        let lost = |what: &str| VerifyError::Broken {
            place: "the witness".into(),
            what: what.to_owned(),
        };
        let seen = match &self.found {
            Found::Seen(seen) if seen.log == self.id() => seen.head,
            Found::Seen(_) => return Err(lost("it is of another log")),
            Found::Missing => return Err(lost("it is missing")),
            Found::Unreadable => return Err(lost("it is unreadable")),
        };
        let report = verify::everything(self.view(), self.view().head()?, seen)?;
        for known in known {
            proof::holds(self.view(), known)?;
        }
        Ok(report)
    }

    /// Number of events and last revision of a stream; `None` when it has no event. Meaningful once
    /// the log is verified.
    pub fn stream_report(&self, stream: &StreamId) -> Result<Option<StreamReport>, EngineError> {
        let last = self.view().stream_revision(stream)?;
        Ok(last.map(|last_revision| StreamReport {
            stream: stream.clone(),
            events: last_revision + 1,
            last_revision,
        }))
    }

    /// Writes the whole log as JSON Lines; returns where it ends.
    pub fn export(&self, out: &mut dyn Write) -> Result<Head, ExportError> {
        let head = self.view().head()?;
        let mut progress = Progress::new(Audience::Everything, head);
        while let Some(piece) = progress.piece(self.view())? {
            out.write_all(&piece)?;
        }
        out.flush()?;
        Ok(head)
    }

    fn view(&self) -> &dyn Reader {
        self.engine.view()
    }
}
