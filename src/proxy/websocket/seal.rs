//! What happens to the content of messages under the rules of the moment.
//!
//! Invariant: an answer is searched for every value that may have gone to the host on this
//! connection, not only for those of the present rules.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use super::{Stop, Way};
use crate::proxy::body::{StreamError, Transform};
use crate::proxy::escape::Place;
use crate::proxy::policy::HostRules;
use crate::proxy::refusal::Refusal;
use crate::proxy::reseal::{Patterns, Resealer, reseal_all};
use crate::proxy::substitute::{Substituter, substitute_all};
use crate::proxy::tally::Tally;

/// Sets of values an answer is searched for: those of the present and of former rules.
const PATTERN_SETS_MAX: usize = 4;

/// The rules both ways of a relay go by.
pub(super) struct Seal {
    tally: Arc<Tally>,
    rules: Mutex<Rules>,
}

struct Rules {
    current: Arc<HostRules>,
    /// The newest first.
    patterns: Vec<Arc<Patterns>>,
    /// A message to the host is under way, perhaps by former rules.
    sending: bool,
}

impl Seal {
    pub fn new(rules: Arc<HostRules>, tally: Arc<Tally>) -> Self {
        let patterns = rules.patterns().cloned().into_iter().collect();
        Self {
            tally,
            rules: Mutex::new(Rules {
                current: rules,
                patterns,
                sending: false,
            }),
        }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        // Both fields are replaced whole; a panic can't leave one half-written.
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules for what begins from now on.
    pub fn renew(&self, rules: Arc<HostRules>) -> Result<(), Stop> {
        let newest = rules.patterns().cloned();
        let mut kept = self.rules();
        if !kept.sending && self.tally.names().substituted.is_empty() {
            // The host was told nothing that it could tell.
            kept.patterns.clear();
        }
        if let Some(newest) = newest {
            kept.patterns.retain(|known| !Arc::ptr_eq(known, &newest));
            kept.patterns.insert(0, newest);
        }
        kept.current = rules;
        if kept.patterns.len() > PATTERN_SETS_MAX {
            return Err(Stop::Renewed);
        }
        Ok(())
    }

    /// What a message goes through whose first byte that is no white space is `first`; `None`
    /// when it passes as it is.
    pub fn message(&self, way: Way, first: u8) -> Option<Box<dyn Transform>> {
        let mut rules = self.rules();
        rules.sending |= way == Way::Up;
        match way {
            Way::Up if rules.current.watches_tokens() => {
                let place = match first {
                    b'{' | b'[' => Place::Json,
                    _ => Place::Raw,
                };
                let rules = rules.current.clone();
                Some(Box::new(Substituter::new(rules, place, self.tally.clone())))
            }
            Way::Up => None,
            Way::Down if rules.patterns.is_empty() => None,
            Way::Down => {
                let new =
                    |patterns: &Arc<Patterns>| Resealer::new(patterns.clone(), self.tally.clone());
                Some(Box::new(Chain(rules.patterns.iter().map(new).collect())))
            }
        }
    }

    /// A message is complete.
    pub fn message_ended(&self, way: Way) {
        if way == Way::Up {
            self.rules().sending = false;
        }
    }

    /// The payload of a control frame, changed; `None` when it passes as it is.
    pub fn whole(&self, way: Way, bytes: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        let rules = self.rules();
        match way {
            Way::Up if rules.current.watches_tokens() => {
                substitute_all(&rules.current, Place::Raw, &self.tally, bytes)
            }
            Way::Up => Ok(None),
            Way::Down => {
                let mut changed: Option<Zeroizing<Vec<u8>>> = None;
                for patterns in &rules.patterns {
                    let bytes = changed.as_deref().map_or(bytes, Vec::as_slice);
                    if let Some(clean) = reseal_all(patterns, &self.tally, bytes) {
                        changed = Some(Zeroizing::new(clean));
                    }
                }
                Ok(changed)
            }
        }
    }
}

/// Several re-sealers, one after the other.
struct Chain(Vec<Resealer>);

impl Chain {
    /// `bytes` through all re-sealers, each of which is told the end when `last`.
    fn run(&mut self, bytes: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let Some((end, before)) = self.0.split_last_mut() else {
            out.extend_from_slice(bytes);
            return Ok(());
        };
        let mut between: Option<Zeroizing<Vec<u8>>> = None;
        for stream in before {
            let mut next = Zeroizing::new(Vec::new());
            stream.push(between.as_deref().map_or(bytes, Vec::as_slice), &mut next)?;
            if last {
                stream.finish(&mut next)?;
            }
            between = Some(next);
        }
        end.push(between.as_deref().map_or(bytes, Vec::as_slice), out)?;
        if last {
            end.finish(out)?;
        }
        Ok(())
    }
}

impl Transform for Chain {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.run(input, false, out)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.run(&[], true, out)
    }
}
