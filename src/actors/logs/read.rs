//! Reading a log: what was there, then what comes.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use time::OffsetDateTime;

use super::segments::{Place, read};
use super::{Heard, LogLine, LogSource};
use crate::actors::aggregate::Reject;
use crate::actors::entity::Failure;
use crate::actors::platform::{Caller, Platform};
use crate::ids::SandboxId;

/// Lines taken in one look at what is new.
const MORE_MAX: usize = 256;

/// Which lines are asked for.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Not before.
    pub since: Option<OffsetDateTime>,
    /// Not after.
    pub until: Option<OffsetDateTime>,
    /// With this in them.
    pub text: Option<String>,
    /// From these; empty: from all.
    pub sources: Vec<LogSource>,
    /// Of what is there, the newest so many.
    pub limit: usize,
}

impl LogQuery {
    fn takes(&self, line: &LogLine) -> bool {
        let wanted = |text: &String| line.line.contains(text.as_str());
        self.since.is_none_or(|since| line.time >= since)
            && self.until.is_none_or(|until| line.time <= until)
            && self.text.as_ref().is_none_or(wanted)
            && (self.sources.is_empty() || self.sources.contains(&line.source))
    }

    fn of(&self, record: &[u8]) -> Option<LogLine> {
        let line = serde_json::from_slice(record).ok();
        line.filter(|line| self.takes(line))
    }
}

/// A reader's place in one sandbox's log.
#[derive(Debug, Clone)]
pub struct LogReader {
    folder: PathBuf,
    query: LogQuery,
    place: Option<Place>,
}

impl LogReader {
    pub(super) fn new(folder: PathBuf, query: LogQuery) -> Self {
        Self {
            folder,
            query,
            place: None,
        }
    }

    /// The newest lines that are there, oldest first.
    pub async fn history(&mut self) -> io::Result<VecDeque<LogLine>> {
        self.look(Self::look_back).await
    }

    /// Some of the lines that came since, none left out.
    pub async fn more(&mut self) -> io::Result<VecDeque<LogLine>> {
        self.look(Self::look_on).await
    }

    /// Looks into the files, on a thread for that.
    async fn look<T: Send + 'static>(
        &mut self,
        look: impl FnOnce(&mut Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut own = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let found = look(&mut own)?;
            Ok::<_, io::Error>((own, found))
        });
        let (own, found) = looked.await.map_err(io::Error::other)??;
        *self = own;
        Ok(found)
    }

    pub(super) fn look_back(&mut self) -> io::Result<VecDeque<LogLine>> {
        let (mut lines, limit) = (VecDeque::new(), self.query.limit);
        self.place = read(&self.folder, None, |record| {
            if let Some(line) = self.query.of(record) {
                if lines.len() == limit {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
            ControlFlow::Continue(())
        })?;
        Ok(lines)
    }

    pub(super) fn look_on(&mut self) -> io::Result<VecDeque<LogLine>> {
        let mut lines = VecDeque::new();
        let place = read(&self.folder, self.place, |record| {
            lines.extend(self.query.of(record));
            match lines.len() < MORE_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        self.place = place.or(self.place);
        Ok(lines)
    }
}

impl Platform {
    /// How far the sandbox's log has got, also while it sleeps.
    pub(in crate::actors) fn heard_of(&self, id: &SandboxId) -> Arc<Heard> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.entry(id.clone()).or_default().clone()
    }

    /// The sandbox is gone for good.
    pub(in crate::actors) fn forget_heard(&self, id: &SandboxId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.remove(id);
    }

    /// A reader of a sandbox's log, which is there for as long as the sandbox is, asleep or not.
    ///
    /// # Errors
    /// Not found; [`Failure::Gone`].
    pub async fn read_log(
        &self,
        caller: &Caller,
        id: &SandboxId,
        query: LogQuery,
    ) -> Result<LogReader, Failure> {
        self.log_is_there(caller, id).await?;
        Ok(LogReader::new(self.driver.log_folder(id), query))
    }

    /// Whether a sandbox's log is still there.
    ///
    /// # Errors
    /// As [`Platform::read_log`].
    pub async fn log_is_there(&self, caller: &Caller, id: &SandboxId) -> Result<(), Failure> {
        let state = self.get_sandbox(caller, id).await?;
        match state.phase.status() {
            Some(status @ "stopped") => Err(Failure::Gone(status)),
            Some(_) => Ok(()),
            None => Err(Reject::not_found("sandbox").into()),
        }
    }
}
