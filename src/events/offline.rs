//! The log of a server that does not run: verified and exported as it lies there.
//!
//! The fence is held meanwhile, so no server starts on it; nothing but the lock file is changed.

use std::io::Write;
use std::path::Path;

use ulid::Ulid;

use super::engines::Reader;
use super::engines::sqlite::{self, Held};
use super::error::{EngineError, ExportError, OpenError, VerifyError};
use super::event::Head;
use super::export::{Audience, Progress};
use super::proof::{self, Known, StreamReport};
use super::stream::StreamId;
use super::verify::{self, VerifyReport};

/// A stopped server's log.
pub struct OfflineLog(Held);

impl OfflineLog {
    /// Opens the log in `dir` without judging it; a running server has the folder for itself.
    pub fn open(dir: &Path) -> Result<OfflineLog, OpenError> {
        let held = Held::open(dir)?.ok_or_else(|| {
            let what = format!("{} is missing or empty", sqlite::FILE);
            sqlite::doubt(dir, EngineError::Damaged(what))
        })?;
        Ok(OfflineLog(held))
    }

    /// The log's identity.
    pub fn id(&self) -> Ulid {
        self.view().log()
    }

    /// Reads and checks everything, the witness too, and compares it with what is `known` from
    /// elsewhere; counts the events of `stream`. Takes time in proportion to the log.
    pub fn verify(
        &self,
        known: &[Known],
        stream: Option<&StreamId>,
    ) -> Result<(VerifyReport, Option<StreamReport>), VerifyError> {
        let view = self.view();
        let head = view.head()?;
        view.check_files()?;
        let seen = view.witnessed()?;
        if let Some(seen) = &seen {
            verify::holds(view, seen)?;
        }
        let mut found: Option<StreamReport> = None;
        let report = verify::walk(view, Head::beginning(view.log()), head, |commits| {
            for event in commits.iter().flat_map(|commit| &commit.events) {
                if stream == Some(&event.stream) {
                    found = Some(StreamReport {
                        stream: event.stream.clone(),
                        events: event.revision + 1,
                        last_revision: event.revision,
                    });
                }
            }
        })?;
        for known in known {
            proof::holds(view, known)?;
        }
        let witness = seen;
        Ok((VerifyReport { witness, ..report }, found))
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
        self.0.view()
    }
}
