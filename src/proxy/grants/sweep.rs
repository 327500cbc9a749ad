//! Grants to tokens, as a stream.
//!
//! Invariants:
//! - Finds of one grant that overlap are taken out together. Where one overlaps another grant's, the
//!   answer ends: a program that makes a host hand out guesses sees nothing of what they lie in.
//! - A grant is searched for from the moment it is made, also in answers that began before.

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::automaton::StateID;
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memmem;
use zeroize::Zeroizing;

use super::{Grant, Grants};
use crate::proxy::body::{StreamError, Transform};
use crate::proxy::forms::{Spelling, common_spellings};
use crate::proxy::refusal::Refusal;
use crate::proxy::reseal::Machine;
use crate::proxy::tally::Tally;

/// What is searched for.
pub(super) struct Sweep {
    machine: Machine,
    finds: Vec<Find>,
    /// The values as they look in the name of a field, which has no upper case.
    names: Vec<Zeroizing<Vec<u8>>>,
}

struct Find {
    length: usize,
    replacement: Vec<u8>,
    grant: Arc<Grant>,
}

impl Sweep {
    /// All spellings of all `grants`; `None` when no automaton can be made of them.
    pub fn of(grants: &[Arc<Grant>]) -> Option<Self> {
        let mut all: HashMap<Spelling, Find> = HashMap::new();
        let mut names = Vec::new();
        for grant in grants {
            let value = grant.binding.value.expose();
            names.push(Zeroizing::new(value.to_ascii_lowercase()));
            for (spelling, replacement) in common_spellings(value, &grant.binding.token) {
                let length = spelling.bytes().len();
                // The same value may have been handed out for other secrets before.
                all.entry(spelling).or_insert(Find {
                    length,
                    replacement,
                    grant: grant.clone(),
                });
            }
        }
        let all = all
            .into_iter()
            .map(|(spelling, find)| (spelling.into_bytes(), find));
        let (spellings, finds): (Vec<_>, Vec<_>) = all.unzip();
        let machine = Machine::of(&spellings)?;
        Some(Self {
            machine,
            finds,
            names,
        })
    }

    fn is_in_name(&self, name: &HeaderName) -> bool {
        let mut names = self.names.iter();
        names.any(|value| memmem::find(name.as_str().as_bytes(), value).is_some())
    }
}

/// Leaves nothing that was handed out in any field.
pub(crate) fn sweep_fields(
    fields: &mut HeaderMap,
    grants: &Arc<Grants>,
    tally: &Arc<Tally>,
) -> Result<(), Refusal> {
    grants.check()?;
    let Some(sweep) = grants.sweep()? else {
        return Ok(());
    };
    let named = fields.keys().filter(|name| sweep.is_in_name(name));
    for name in named.cloned().collect::<Vec<_>>() {
        fields.remove(name);
    }
    for value in fields.values_mut() {
        let mut sweeper = Sweeper::new(grants.clone(), tally.clone());
        sweeper.sweep = Some(sweep.clone());
        sweeper.held.extend_from_slice(value.as_bytes());
        let mut clean = Zeroizing::default();
        sweeper.run(true, &mut clean)?;
        if clean.as_slice() != value.as_bytes() {
            *value = HeaderValue::from_bytes(&clean).map_err(|_| Refusal::Internal)?;
        }
    }
    Ok(())
}

/// Bytes that are part of finds.
struct Cover {
    start: usize,
    end: usize,
    /// The find that begins first, whose token stands there.
    find: usize,
    /// Its token was given out.
    told: bool,
}

/// Turns grants into tokens in one stream.
pub(crate) struct Sweeper {
    grants: Arc<Grants>,
    /// `None` when nothing was handed out yet.
    sweep: Option<Arc<Sweep>>,
    tally: Arc<Tally>,
    state: Option<StateID>,
    /// Bytes not yet given out.
    held: Zeroizing<Vec<u8>>,
    /// How many of them were read.
    read: usize,
    /// In their order, apart.
    covers: Vec<Cover>,
    /// How many bytes were held back when the answer last paused; 0: it did not, or none were.
    paused: usize,
}

impl Sweeper {
    pub fn new(grants: Arc<Grants>, tally: Arc<Tally>) -> Self {
        Self {
            grants,
            sweep: None,
            tally,
            state: None,
            held: Zeroizing::default(),
            read: 0,
            covers: Vec::new(),
            paused: 0,
        }
    }

    /// Searches for what was handed out until now from the first byte that was not given out.
    fn renew(&mut self) -> Result<(), Refusal> {
        let newest = self.grants.sweep()?;
        let of = |sweep: &Option<Arc<Sweep>>| sweep.as_ref().map(Arc::as_ptr);
        if of(&newest) == of(&self.sweep) {
            return Ok(());
        }
        if !self.covers.is_empty() {
            // The rest of a find, of which the new automaton would not know the beginning.
            return Err(Refusal::ResponseGrant);
        }
        (self.sweep, self.state, self.read) = (newest, None, 0);
        Ok(())
    }

    /// Runs, and counts a beginning at which the answer had paused when it comes to nothing.
    fn run_on(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.grants.check()?;
        self.renew()?;
        let beginning = self.held.get(..self.paused).map(<[u8]>::to_vec);
        let beginning = beginning.map(Zeroizing::new).unwrap_or_default();
        let before = out.len();
        self.run(last, out)?;
        let given = out.get(before..).unwrap_or_default();
        if !given.is_empty() {
            self.paused = 0;
            // A find would have its token there.
            if given.starts_with(&beginning) {
                self.grants.guesses.count(beginning.len());
            }
        }
        Ok(())
    }

    fn run(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let Some(sweep) = self.sweep.clone() else {
            out.append(&mut self.held);
            return Ok(());
        };
        while let Some(&byte) = self.held.get(self.read) {
            self.state = sweep.machine.next(self.state, byte);
            self.read += 1;
            self.note(&sweep)?;
        }
        let depth = self.state.map_or(0, |state| sweep.machine.depth(state));
        let settled = match last {
            true => self.read,
            false => self.read.saturating_sub(depth),
        };
        self.give(&sweep, settled, out);
        Ok(())
    }

    /// Notes what ends with the byte that was read last.
    fn note(&mut self, sweep: &Sweep) -> Result<(), Refusal> {
        let ended = self.state.into_iter();
        let ended = ended.flat_map(|state| sweep.machine.ended(state));
        let ended = ended.filter_map(|find| Some((sweep.finds.get(find)?, find)));
        let Some((longest, find)) = ended.clone().max_by_key(|(one, _)| one.length) else {
            return Ok(());
        };
        let same = |one: &Find| Arc::ptr_eq(&one.grant, &longest.grant);
        if !ended.clone().all(|(one, _)| same(one)) {
            return Err(self.grants.overlap());
        }
        let mut cover = Cover {
            start: self.read.saturating_sub(longest.length),
            end: self.read,
            find,
            told: false,
        };
        while let Some(before) = self.covers.pop_if(|before| before.end > cover.start) {
            if !sweep.finds.get(before.find).is_some_and(same) {
                return Err(self.grants.overlap());
            }
            cover.told |= before.told;
            // Whatever else begins where `before` does is shorter than what ended just now.
            if before.start < cover.start {
                (cover.start, cover.find) = (before.start, before.find);
            }
        }
        self.covers.push(cover);
        Ok(())
    }

    /// Gives out everything before `settled`, in which no further find begins.
    fn give(&mut self, sweep: &Sweep, settled: usize, out: &mut Vec<u8>) {
        let mut given = 0;
        let mut over = 0;
        for cover in &mut self.covers {
            if cover.start >= settled {
                break;
            }
            out.extend_from_slice(&self.held[given..cover.start]);
            if let Some(find) = sweep.finds.get(cover.find)
                && !std::mem::replace(&mut cover.told, true)
            {
                out.extend_from_slice(&find.replacement);
                let parents = find.grant.parents.iter();
                let names = parents.map(|parent| parent.name.clone());
                self.tally.names().resealed.extend(names);
            }
            given = cover.end.min(settled);
            cover.start = given;
            over += usize::from(cover.end <= settled);
        }
        out.extend_from_slice(&self.held[given..settled]);
        self.covers.drain(..over);
        for cover in &mut self.covers {
            cover.start -= settled;
            cover.end -= settled;
        }
        self.held.drain(..settled);
        self.read -= settled;
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        // Broken off where it paused: as good as an answer to a guess.
        self.grants.guesses.count(self.paused);
    }
}

impl Transform for Sweeper {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.held.extend_from_slice(input);
        self.run_on(false, out)
    }

    fn flush(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.paused = self.held.len();
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.run_on(true, out)
    }
}
