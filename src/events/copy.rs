//! Copying a log commit by commit, each one verified on the way.

use super::engines::{Commit, Reader};
use super::error::EngineError;
use super::event::Head;
use super::verify::{Walk, branches};

/// Events read and written at once.
const PAGE_EVENTS: usize = 512;

/// The verified prefix of a log, as far as a copy has come.
pub struct Prefix {
    walk: Walk,
    /// Where it ends.
    pub head: Head,
}

impl Prefix {
    /// Of the log behind `reader`: nothing yet.
    pub fn new(reader: &dyn Reader) -> Self {
        let head = Head::beginning(reader.log());
        Self {
            walk: Walk::new(head),
            head,
        }
    }

    /// Goes on up to and with position `until` (`None`: to the end), giving commits to `take` once
    /// they are verified. `Ok(Some(fault))`: the log can't be read or believed beyond
    /// [`Prefix::head`]; an error is one of `take`.
    pub fn extend(
        &mut self,
        reader: &dyn Reader,
        until: Option<u64>,
        mut take: impl FnMut(&[Commit]) -> Result<(), EngineError>,
    ) -> Result<Option<EngineError>, EngineError> {
        loop {
            if until.is_some_and(|until| self.head.position >= until) {
                return Ok(None);
            }
            let next = self.head.position + 1;
            let page = reader
                .commits(next, PAGE_EVENTS)
                .or_else(|fault| alone(reader, next).ok_or(fault));
            let mut page = match page {
                Ok(page) if page.is_empty() => return Ok(None),
                Ok(page) => page,
                Err(fault) => return Ok(Some(fault)),
            };
            if let Some(until) = until {
                page.retain(|commit| commit.first_position() <= until);
            }
            let mut fault = None;
            let mut sound = 0;
            for commit in &page {
                let sound_so_far = self
                    .walk
                    .commit(commit)
                    .and_then(|()| branches(reader, commit));
                if let Err(error) = sound_so_far {
                    fault = Some(EngineError::from(error));
                    break;
                }
                self.head = commit.head();
                sound += 1;
            }
            let sound = page.get(..sound).unwrap_or_default();
            if !sound.is_empty() {
                take(sound)?;
            }
            if fault.is_some() {
                return Ok(fault);
            }
        }
    }
}

/// The commit that begins at `position`, when it can be read although the page of commits it is in
/// can't: backwards, nothing behind it is looked at.
fn alone(reader: &dyn Reader, position: u64) -> Option<Vec<Commit>> {
    let page = reader.commits_before(position + 1, 1).ok()?;
    let is_it = |commit: &&Commit| commit.first_position() == position;
    page.first().filter(is_it)?;
    Some(page)
}
