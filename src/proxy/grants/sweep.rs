//! Grants to tokens, as a stream.
//!
//! Invariant: finds that overlap are taken out together, with one token in their place. A program that
//! makes a host hand out guesses can't have a part of another grant left over by one.

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::automaton::StateID;
use zeroize::Zeroizing;

use super::Grant;
use crate::proxy::body::{StreamError, Transform};
use crate::proxy::entropy::reseal_possible;
use crate::proxy::forms::{Spelling, common_spellings};
use crate::proxy::reseal::{Guesses, Machine};
use crate::proxy::tally::Tally;

/// Bytes of all spellings that are searched for; of grants beyond it only those as they are.
const SPELLINGS_BYTES_MAX: usize = 256 * 1024;

/// What is searched for.
pub(crate) struct Sweep {
    machine: Machine,
    finds: Vec<Find>,
    guesses: Arc<Guesses>,
}

struct Find {
    length: usize,
    replacement: Vec<u8>,
    secret: String,
}

impl Sweep {
    /// `None` when none of the grants can be told from other text.
    pub fn of(grants: &[Arc<Grant>], guesses: &Arc<Guesses>) -> Option<Arc<Self>> {
        let mut all: HashMap<Spelling, Find> = HashMap::new();
        let mut bytes = 0;
        for grant in grants.iter().rev() {
            let binding = &grant.binding;
            let value = binding.value.expose();
            if !reseal_possible(value) {
                continue;
            }
            for (spelling, replacement) in common_spellings(value, &binding.token) {
                let length = spelling.bytes().len();
                let plain = spelling.bytes() == value;
                if !plain && bytes + length > SPELLINGS_BYTES_MAX {
                    continue;
                }
                bytes += length;
                all.entry(spelling).or_insert(Find {
                    length,
                    replacement,
                    secret: binding.name.clone(),
                });
            }
        }
        let all = all
            .into_iter()
            .map(|(spelling, find)| (spelling.into_bytes(), find));
        let (spellings, finds): (Vec<_>, Vec<_>) = all.unzip();
        let machine = (!spellings.is_empty()).then(|| Machine::of(&spellings))??;
        Some(Arc::new(Self {
            machine,
            finds,
            guesses: guesses.clone(),
        }))
    }

    /// `bytes` without grants, or `None` when there was none.
    pub fn all(self: &Arc<Self>, tally: &Arc<Tally>, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut sweeper = Sweeper::new(self.clone(), tally.clone());
        sweeper.held.extend_from_slice(bytes);
        let mut out = Vec::new();
        sweeper.run(true, &mut out);
        (out != bytes).then_some(out)
    }
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
    sweep: Arc<Sweep>,
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
    pub fn new(sweep: Arc<Sweep>, tally: Arc<Tally>) -> Self {
        Self {
            sweep,
            tally,
            state: None,
            held: Zeroizing::default(),
            read: 0,
            covers: Vec::new(),
            paused: 0,
        }
    }

    /// Runs, and counts a beginning at which the answer had paused when it comes to nothing.
    fn run_on(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.sweep.guesses.check()?;
        let beginning = self.held.get(..self.paused).map(<[u8]>::to_vec);
        let beginning = beginning.map(Zeroizing::new).unwrap_or_default();
        let before = out.len();
        self.run(last, out);
        let given = out.get(before..).unwrap_or_default();
        if !given.is_empty() {
            self.paused = 0;
            // A find would have its token there.
            if given.starts_with(&beginning) {
                self.sweep.guesses.count(beginning.len());
            }
        }
        Ok(())
    }

    fn run(&mut self, last: bool, out: &mut Vec<u8>) {
        while let Some(&byte) = self.held.get(self.read) {
            self.state = self.sweep.machine.next(self.state, byte);
            self.read += 1;
            self.note();
        }
        let depth = self
            .state
            .map_or(0, |state| self.sweep.machine.depth(state));
        let settled = match last {
            true => self.read,
            false => self.read.saturating_sub(depth),
        };
        self.give(settled, out);
    }

    /// Notes what ends with the byte that was read last.
    fn note(&mut self) {
        let machine = &self.sweep.machine;
        let ended = self
            .state
            .into_iter()
            .flat_map(|state| machine.ended(state));
        let finds = ended.filter_map(|find| Some((self.sweep.finds.get(find)?.length, find)));
        let Some((length, find)) = finds.max() else {
            return;
        };
        let mut cover = Cover {
            start: self.read.saturating_sub(length),
            end: self.read,
            find,
            told: false,
        };
        while let Some(before) = self.covers.pop_if(|before| before.end > cover.start) {
            cover.told |= before.told;
            // Whatever else begins where `before` does is shorter than what ended just now.
            if before.start < cover.start {
                (cover.start, cover.find) = (before.start, before.find);
            }
        }
        self.covers.push(cover);
    }

    /// Gives out everything before `settled`, in which no further find begins.
    fn give(&mut self, settled: usize, out: &mut Vec<u8>) {
        let mut given = 0;
        let mut over = 0;
        for cover in &mut self.covers {
            if cover.start >= settled {
                break;
            }
            out.extend_from_slice(&self.held[given..cover.start]);
            if let Some(find) = self.sweep.finds.get(cover.find)
                && !std::mem::replace(&mut cover.told, true)
            {
                out.extend_from_slice(&find.replacement);
                self.tally.names().resealed.insert(find.secret.clone());
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
        self.sweep.guesses.count(self.paused);
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
