//! What is swapped in a piece of a message, in either direction.

use std::sync::Arc;

use memchr::memmem;

use super::MESSAGE_BYTES_MAX;
use crate::proxy::body::{STEP_BYTES_MAX, StreamError, Transform};
use crate::proxy::escape::Place;
use crate::proxy::policy::HostRules;
use crate::proxy::refusal::Refusal;
use crate::proxy::reseal::{Patterns, Resealer, reseal_all};
use crate::proxy::substitute::Substituter;
use crate::proxy::tally::Tally;
use crate::proxy::token::{PREFIX, SealedToken, TOKEN_BYTES};

/// A piece with values in place may be so much longer than any message.
pub(super) const SWAPPED_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;

/// Where a text holds what is looked for: by ends, in their order, each with the latest beginning
/// of any that ends there or before. A message is at most 4 MiB, so both fit 32 bits.
#[derive(Default)]
pub(super) struct Spans(Vec<(u32, u32)>);

impl Spans {
    fn add(&mut self, start: usize, end: usize) {
        let (start, end) = (start as u32, end as u32);
        // One that begins before another that ended already tells nothing more.
        if self.0.last().is_none_or(|(_, latest)| *latest < start) {
            self.0.push((end, start));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one lies within `start..end`.
    pub fn any_within(&self, start: usize, end: usize) -> bool {
        let ended = self.0.partition_point(|(at, _)| *at as usize <= end);
        let last = ended.checked_sub(1).and_then(|at| self.0.get(at));
        last.is_some_and(|(_, latest)| *latest as usize >= start)
    }
}

/// One direction.
pub(super) struct Leaf {
    way: Way,
    tally: Arc<Tally>,
}

enum Way {
    Tokens { rules: Arc<HostRules>, place: Place },
    Values(Arc<Patterns>),
}

/// Tokens to values.
pub(super) fn tokens(rules: &Arc<HostRules>, tally: &Arc<Tally>, json: bool) -> Leaf {
    let place = if json { Place::Json } else { Place::Raw };
    Leaf {
        way: Way::Tokens {
            rules: rules.clone(),
            place,
        },
        tally: tally.clone(),
    }
}

/// Values to tokens.
pub(super) fn values(patterns: &Arc<Patterns>, tally: &Arc<Tally>) -> Leaf {
    Leaf {
        way: Way::Values(patterns.clone()),
        tally: tally.clone(),
    }
}

impl Leaf {
    /// Whether there is something in `bytes` that may have to be swapped.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        !self.spans(bytes).is_empty()
    }

    /// Where in `bytes` there is something that may have to be swapped.
    pub fn spans(&self, bytes: &[u8]) -> Spans {
        let mut spans = Spans::default();
        match &self.way {
            Way::Tokens { .. } => {
                for at in memmem::find_iter(bytes, PREFIX) {
                    if SealedToken::at(bytes.get(at..).unwrap_or_default()).is_some() {
                        spans.add(at, at + TOKEN_BYTES);
                    }
                }
            }
            Way::Values(patterns) => patterns.each_find(bytes, |start, end| spans.add(start, end)),
        }
        spans
    }

    /// Whether nothing of it may be left, for it would be a value; tokens may be.
    pub fn must_be_gone(&self) -> bool {
        matches!(self.way, Way::Values(_))
    }

    /// `bytes` with everything swapped, or `None` when there was nothing to swap.
    pub fn swap(&self, bytes: &[u8]) -> Result<Option<Vec<u8>>, StreamError> {
        match &self.way {
            Way::Values(patterns) => Ok(reseal_all(patterns, &self.tally, bytes)),
            Way::Tokens { .. } if !self.is_in(bytes) => Ok(None),
            Way::Tokens { rules, place } => {
                let (rules, tally) = (rules.clone(), self.tally.clone());
                let mut substituter = Substituter::new(rules, *place, tally);
                let mut out = Vec::new();
                for piece in bytes.chunks(substituter.step_bytes_max()) {
                    substituter.push(piece, &mut out)?;
                    if out.len() > SWAPPED_BYTES_MAX {
                        return Err(Refusal::MessageLength.into());
                    }
                }
                substituter.finish(&mut out)?;
                Ok((out != bytes).then_some(out))
            }
        }
    }

    /// A look at what is too long to be changed.
    pub fn probe(&self, refusal: Refusal) -> Probe {
        match &self.way {
            Way::Tokens { rules, place } => {
                let rules = rules.clone();
                let new = |tally| Box::new(Substituter::new(rules, *place, tally)) as _;
                Probe::new(new, &self.tally, refusal)
            }
            Way::Values(patterns) => {
                let new = |tally| Box::new(Resealer::new(patterns.clone(), tally)) as _;
                Probe::new(new, &self.tally, refusal)
            }
        }
    }

    pub fn step_bytes_max(&self) -> usize {
        match &self.way {
            Way::Values(_) => STEP_BYTES_MAX,
            Way::Tokens { rules, place } => {
                Substituter::new(rules.clone(), *place, self.tally.clone()).step_bytes_max()
            }
        }
    }
}

/// Passes bytes on as they are, and breaks off before the first that would have to be swapped.
pub(crate) struct Probe {
    inner: Box<dyn Transform>,
    seen: Arc<Tally>,
    tally: Arc<Tally>,
    refusal: Refusal,
}

impl Probe {
    /// `new` makes the transform that would do the swapping; it is given a tally of its own.
    pub fn new(
        new: impl FnOnce(Arc<Tally>) -> Box<dyn Transform>,
        tally: &Arc<Tally>,
        refusal: Refusal,
    ) -> Self {
        let seen = Arc::new(Tally::of(tally.share()));
        Self {
            inner: new(seen.clone()),
            seen,
            tally: tally.clone(),
            refusal,
        }
    }

    fn judge(&self) -> Result<(), StreamError> {
        let mut names = self.seen.names();
        if names.substituted.is_empty() && names.resealed.is_empty() {
            let mut passed = self.tally.names();
            passed.unbound.append(&mut names.unbound);
            for (name, why) in std::mem::take(&mut names.unbound_why) {
                passed.unbound_why.entry(name).or_insert(why);
            }
            return Ok(());
        }
        self.tally.refuse(self.refusal.clone());
        Err(self.refusal.clone().into())
    }

    fn pass(
        &mut self,
        out: &mut Vec<u8>,
        step: impl FnOnce(&mut dyn Transform, &mut Vec<u8>) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        let before = out.len();
        let done = step(&mut *self.inner, out).and_then(|()| self.judge());
        if done.is_err() {
            out.truncate(before);
        }
        done
    }
}

impl Transform for Probe {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.pass(out, |inner, out| inner.push(input, out))
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.pass(out, |inner, out| inner.finish(out))
    }

    fn step_bytes_max(&self) -> usize {
        self.inner.step_bytes_max()
    }
}
