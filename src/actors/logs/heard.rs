//! What of a sandbox's log outlives a sleep: its one writer, and how far into the output of each session
//! it has got, so that the observers that come after the wake go on where those before stopped.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::writer::{PIECES_MAX, Piece, write};
use crate::sandbox::SessionOutput;

/// A position in a session's output, in bytes of both streams.
pub type Place = Arc<AtomicU64>;

/// The way to a log's writer, and the count of the bytes that did not get there.
pub type Writer = (mpsc::Sender<Piece>, Arc<AtomicU64>);

/// See the module.
#[derive(Debug, Default)]
pub struct Heard {
    writer: OnceLock<Writer>,
    /// Of observed sessions, by their ids.
    places: Mutex<HashMap<String, Place>>,
    /// The newest batch of lines of files that was taken.
    pub batch: AtomicU64,
    /// Commands whose output goes from their capture to the log, asleep or not.
    captured: Mutex<HashSet<String>>,
}

impl Heard {
    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn captured(&self) -> MutexGuard<'_, HashSet<String>> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer of the log in `folder`, which this is the only one of. It ends with the last way to it.
    pub fn writer(&self, folder: PathBuf) -> Writer {
        let start = || {
            let (pieces, receiver) = mpsc::channel(PIECES_MAX);
            let dropped = Arc::new(AtomicU64::new(0));
            tokio::spawn(write(folder, receiver, dropped.clone()));
            (pieces, dropped)
        };
        self.writer.get_or_init(start).clone()
    }

    /// All places that are known now.
    pub fn known(&self) -> HashMap<String, u64> {
        let places = self.places();
        let places = places.iter();
        places
            .map(|(id, place)| (id.clone(), place.load(Ordering::Relaxed)))
            .collect()
    }

    /// The place of a session, to be moved on.
    pub fn place(&self, id: &str) -> Place {
        self.places().entry(id.to_owned()).or_default().clone()
    }

    /// A session has ended and was heard to its end, or is gone.
    pub fn forget(&self, id: &str) {
        self.places().remove(id);
    }

    /// A command's capture begins, and needs no observer; or it is over.
    pub fn set_captured(&self, id: &str, captured: bool) {
        match captured {
            true => drop(self.captured().insert(id.to_owned())),
            false => drop(self.captured().remove(id)),
        }
    }

    /// Whether a command is captured now.
    pub fn is_captured(&self, id: &str) -> bool {
        self.captured().contains(id)
    }
}

/// What is new of what an observer is given.
#[derive(Debug)]
pub struct Walk {
    /// What is before this is known. `None`: what was put out before the observer came.
    known: Option<u64>,
    /// Where the next data begins, if the guest says it.
    at: Option<u64>,
    replayed: bool,
}

impl Walk {
    /// From a place on, or from now on.
    pub fn from(known: Option<u64>) -> Self {
        Self {
            known,
            at: None,
            replayed: false,
        }
    }

    /// The new part of a piece, and how many new bytes before it were missed.
    pub fn take(&mut self, piece: SessionOutput) -> (Option<SessionOutput>, u64) {
        let new = match piece {
            SessionOutput::Position(at) => {
                let expected = self.at.max(self.known);
                self.at = Some(at);
                return (
                    None,
                    expected.map_or(0, |expected| at.saturating_sub(expected)),
                );
            }
            SessionOutput::ReplayEnd => {
                self.replayed = true;
                None
            }
            SessionOutput::Stdout(data) => self.cut(data).map(SessionOutput::Stdout),
            SessionOutput::Stderr(data) => self.cut(data).map(SessionOutput::Stderr),
            exit @ SessionOutput::Exit { .. } => Some(exit),
        };
        (new, 0)
    }

    /// Where it is now, if the guest said where it began.
    pub fn at(&self) -> Option<u64> {
        self.at
    }

    fn cut(&mut self, mut data: Bytes) -> Option<Bytes> {
        let begin = self.at;
        self.at = begin.map(|begin| begin.saturating_add(data.len() as u64));
        match (self.known, begin) {
            (Some(known), Some(begin)) => {
                let old = known.saturating_sub(begin);
                data.advance(usize::try_from(old).unwrap_or(usize::MAX).min(data.len()));
            }
            (Some(0), None) => {}
            (Some(_) | None, _) if !self.replayed => return None,
            (Some(_) | None, _) => {}
        }
        (!data.is_empty()).then_some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each byte is new once, from wherever one goes on; what a guest dropped is counted; a
    /// guest that says no positions is believed in what it calls old.
    #[test]
    fn each_byte_is_new_once() {
        let text = "abcdefghij";
        let exit = || SessionOutput::Exit {
            code: 0,
            timed_out: false,
            signal: None,
        };
        let check = |known, start: Option<usize>, replay: usize, new: &str, lost: u64| {
            for cut in start.unwrap_or(0)..=replay {
                let mut pieces: Vec<_> = start
                    .map(|start| SessionOutput::Position(start as u64))
                    .into_iter()
                    .collect();
                for range in [start.unwrap_or(0)..cut, cut..replay] {
                    pieces.push(SessionOutput::Stdout(text[range].into()));
                }
                pieces.push(SessionOutput::ReplayEnd);
                pieces.push(SessionOutput::Stderr(text[replay..].into()));
                pieces.push(exit());
                let (mut walk, mut seen, mut missed) = (Walk::from(known), String::new(), 0);
                let mut ended = false;
                for piece in pieces {
                    let (piece, gap) = walk.take(piece);
                    missed += gap;
                    match piece {
                        Some(SessionOutput::Stdout(data) | SessionOutput::Stderr(data)) => {
                            seen.push_str(std::str::from_utf8(&data).unwrap());
                        }
                        Some(SessionOutput::Exit { .. }) => ended = true,
                        other => assert_eq!(other, None),
                    }
                }
                assert_eq!((seen.as_str(), missed), (new, lost), "{known:?} {start:?}");
                assert!(ended);
                assert_eq!(walk.at(), start.map(|_| text.len() as u64));
            }
        };
        check(Some(0), Some(0), 6, "abcdefghij", 0);
        check(Some(4), Some(0), 6, "efghij", 0);
        check(Some(8), Some(0), 6, "ij", 0);
        check(Some(2), Some(5), 6, "fghij", 3);
        check(None, Some(3), 6, "ghij", 0);
        check(Some(0), None, 6, "abcdefghij", 0);
        check(Some(4), None, 6, "ghij", 0);
        check(None, None, 6, "ghij", 0);
    }

    /// Goal: a gap in the middle is counted.
    #[test]
    fn a_gap_is_counted() {
        let mut walk = Walk::from(Some(0));
        assert_eq!(walk.take(SessionOutput::Position(0)), (None, 0));
        let data = SessionOutput::Stdout("abc".into());
        assert_eq!(walk.take(data.clone()), (Some(data.clone()), 0));
        assert_eq!(walk.take(SessionOutput::Position(10)), (None, 7));
        assert_eq!(walk.take(data.clone()), (Some(data), 0));
        assert_eq!(walk.at(), Some(13));
    }
}
