//! Values to tokens, as a stream: no value of a binding leaves towards the sandbox.
//!
//! Invariants:
//! - The output does not depend on how the input was cut.
//! - Of overlapping finds the one that begins first wins, then the longest, so a value that
//!   contains another is never left half.
//! - Only bytes that are at this moment the beginning of a spelling are held back: an event
//!   stream is delivered as it comes. At most the longest spelling less one byte is held.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use zeroize::Zeroizing;

use super::body::{STEP_BYTES_MAX, StreamError, Transform};
use super::entropy::reseal_possible;
use super::forms::{Spelling, Spellings, spellings};
use super::policy::Binding;
use super::refusal::Refusal;
use super::scout::{PREFIX_BYTES, Scout};
use super::tally::Tally;

/// Bytes read at a time while some are held back.
const SETTLING_BYTES: usize = 128;
/// Shorter beginnings are met everywhere.
const GUESS_BYTES_MIN: usize = 5;
/// Different lengths of beginnings that may come to nothing, for all answers under one policy.
const GUESSES_MAX: u32 = 12;

/// One automaton over every spelling of every value a host may receive.
pub(crate) struct Patterns {
    scout: Scout,
    nfa: NFA,
    start: StateID,
    /// At most how many of the bytes read so far may still become a spelling; absent means none.
    /// Sorted by state: there are as many states as bytes in all spellings, so size matters.
    depth: Vec<(StateID, u32)>,
    finds: Vec<Find>,
    guesses: Guesses,
    #[cfg(test)]
    longest: usize,
    /// The values as they look in the name of a field, which has no upper case.
    names: Vec<Zeroizing<Vec<u8>>>,
}

/// How often answers paused within the beginning of a value that then was none.
///
/// Where an answer pauses, the bytes that may be the beginning of a value are held back, and whoever
/// reads the rest can tell how many they are. A program that has a host echo its guesses learns a
/// value that way, byte by byte. It is stopped after a few bytes: each length at which a beginning
/// came to nothing counts once, and honest text meets few.
#[derive(Default)]
pub(crate) struct Guesses(AtomicU64);

impl Guesses {
    fn count(&self, bytes: usize) {
        if bytes >= GUESS_BYTES_MIN {
            self.0.fetch_or(1 << bytes.min(63), Ordering::Relaxed);
        }
    }

    /// Refuses when there were too many.
    pub fn check(&self) -> Result<(), Refusal> {
        match self.0.load(Ordering::Relaxed).count_ones() {
            0..=GUESSES_MAX => Ok(()),
            _ => Err(Refusal::Guessing),
        }
    }
}

/// What a pattern stands for.
struct Find {
    length: usize,
    replacement: Vec<u8>,
    secret: String,
}

impl Patterns {
    /// `None` when none of the values can be recognised (all too short), [`Refusal::Internal`] when
    /// there is something to search for that can't be.
    pub fn build<'a>(
        bindings: impl Iterator<Item = &'a Binding>,
    ) -> Result<Option<Arc<Self>>, Refusal> {
        let bindings = bindings.filter(|binding| reseal_possible(binding.value.expose()));
        let bindings: Vec<&Binding> = bindings.collect();
        let lower = |binding: &&Binding| binding.value.expose().to_ascii_lowercase();
        let names = bindings.iter().map(lower).map(Zeroizing::new).collect();
        let all = spellings(bindings).ok_or(Refusal::Internal)?;
        if all.is_empty() {
            return Ok(None);
        }
        let built = Self::of(&all, names);
        built.map(Some).ok_or(Refusal::Internal)
    }

    /// [`build`](Self::build) of values that can be searched for.
    #[cfg(test)]
    pub fn new<'a>(bindings: impl Iterator<Item = &'a Binding>) -> Option<Arc<Self>> {
        Self::build(bindings).expect("few and short values")
    }

    fn of(all: &Spellings<'_>, names: Vec<Zeroizing<Vec<u8>>>) -> Option<Arc<Self>> {
        let scout = Scout::new(all.keys().map(Spelling::bytes))?;
        let nfa = NFA::new(all.keys().map(Spelling::bytes)).ok()?;
        let start = nfa.start_state(Anchored::No).ok()?;
        let mut depth: HashMap<StateID, usize> = HashMap::new();
        // A spelling that no other one continues is settled at its last byte: there the bytes
        // that may still grow are fewer than it. Interiors come second and win.
        for interior in [false, true] {
            for pattern in all.keys().map(Spelling::bytes) {
                let mut state = start;
                for (read, &byte) in (1..).zip(pattern) {
                    state = nfa.next_state(Anchored::No, state, byte);
                    if interior && read < pattern.len() {
                        depth.insert(state, read);
                    } else if !interior && read == pattern.len() {
                        depth.insert(state, read - 1);
                    }
                }
            }
        }
        let mut depth: Vec<(StateID, u32)> = depth
            .into_iter()
            .map(|(state, read)| (state, read as u32))
            .collect();
        depth.sort_unstable_by_key(|(state, _)| *state);
        #[cfg(test)]
        let longest = all.keys().map(|pattern| pattern.bytes().len()).max()?;
        // The automaton numbers patterns in the order it was given them, which for an unchanged
        // map is the order of this second walk.
        let finds = all
            .iter()
            .map(|(pattern, (replacement, secret))| Find {
                length: pattern.bytes().len(),
                replacement: replacement.clone(),
                secret: (*secret).to_owned(),
            })
            .collect();
        Some(Arc::new(Self {
            scout,
            nfa,
            start,
            depth,
            finds,
            guesses: Guesses::default(),
            #[cfg(test)]
            longest,
            names,
        }))
    }

    /// Takes what was guessed so far as if it had not been.
    #[cfg(fuzzing)]
    pub fn forget_guesses(&self) {
        self.guesses.0.store(0, Ordering::Relaxed);
    }

    /// Refuses when a program was stopped from guessing values.
    pub fn check_guesses(&self) -> Result<(), Refusal> {
        self.guesses.check()
    }

    /// Whether the name of a header field holds a value.
    pub fn is_in_name(&self, name: &str) -> bool {
        self.names.iter().any(|value| {
            value.len() <= name.len() && memchr::memmem::find(name.as_bytes(), value).is_some()
        })
    }

    fn depth(&self, state: StateID) -> usize {
        match self.depth.binary_search_by_key(&state, |(state, _)| *state) {
            Ok(at) => self.depth[at].1 as usize,
            Err(_) => 0,
        }
    }

    /// The longest pattern that ends in `state`.
    fn found(&self, state: StateID) -> Option<usize> {
        if !self.nfa.is_match(state) {
            return None;
        }
        (0..self.nfa.match_len(state))
            .map(|index| self.nfa.match_pattern(state, index).as_usize())
            .max_by_key(|&pattern| self.finds.get(pattern).map_or(0, |find| find.length))
    }

    /// Tells beginning and end of each spelling in `bytes`, of those that end at one place the
    /// shortest, in the order of their ends.
    pub fn each_find(&self, bytes: &[u8], mut tell: impl FnMut(usize, usize)) {
        let (mut at, mut state) = (0, self.start);
        loop {
            if state == self.start {
                at = self.skip(bytes, at);
            }
            let Some(&byte) = bytes.get(at) else {
                return;
            };
            state = self.nfa.next_state(Anchored::No, state, byte);
            at += 1;
            if self.nfa.is_match(state) {
                let ended = (0..self.nfa.match_len(state))
                    .map(|index| self.nfa.match_pattern(state, index).as_usize());
                let lengths = ended.filter_map(|pattern| Some(self.finds.get(pattern)?.length));
                if let Some(shortest) = lengths.min() {
                    tell(at - shortest, at);
                }
            }
        }
    }

    /// Where in `bytes`, from `at` on, something may begin that needs reading.
    fn skip(&self, bytes: &[u8], at: usize) -> usize {
        // A spelling may begin in the tail and go on in what is still to come.
        let tail = bytes.len().saturating_sub(PREFIX_BYTES - 1).max(at);
        self.scout.next(bytes, at).unwrap_or(tail)
    }

    /// How many of the last bytes of `bytes`, in which no spelling begins before the last few, may
    /// be the beginning of one.
    fn pending(&self, bytes: &[u8]) -> usize {
        let tail = bytes.len().saturating_sub(PREFIX_BYTES - 1);
        let state = bytes[tail..].iter().fold(self.start, |state, &byte| {
            self.nfa.next_state(Anchored::No, state, byte)
        });
        self.depth(state)
    }
}

/// Turns values into tokens in one stream.
pub(crate) struct Resealer {
    patterns: Arc<Patterns>,
    tally: Arc<Tally>,
    state: StateID,
    /// Bytes not yet given out; the automaton has read all of them between calls.
    held: Zeroizing<Vec<u8>>,
    best: Option<Candidate>,
    /// How many bytes were held back when the answer last paused; 0: it did not, or none were.
    paused: usize,
}

/// A find that another, which began earlier and is not complete, may still swallow.
#[derive(Clone, Copy)]
struct Candidate {
    start: usize,
    end: usize,
    pattern: usize,
}

impl Resealer {
    pub fn new(patterns: Arc<Patterns>, tally: Arc<Tally>) -> Self {
        let state = patterns.start;
        Self {
            patterns,
            tally,
            state,
            held: Zeroizing::default(),
            best: None,
            paused: 0,
        }
    }

    /// Reads `held` from `at` on and gives out what is settled; `last` settles everything.
    fn run(&mut self, mut at: usize, last: bool, out: &mut Vec<u8>) {
        let mut given = 0;
        loop {
            at = self.read(at);
            let live = at - self.patterns.depth(self.state);
            match self.best.take() {
                Some(best) if last || at < self.held.len() || best.start < live => {
                    self.replace(best, given, out);
                    given = best.end;
                    // What began inside the find is gone with it: read on from its end.
                    at = best.end;
                    self.state = self.patterns.start;
                }
                best => {
                    let keep_from = if last { self.held.len() } else { live };
                    out.extend_from_slice(&self.held[given..keep_from]);
                    self.held.drain(..keep_from);
                    self.best = best.map(|best| Candidate {
                        start: best.start - keep_from,
                        end: best.end - keep_from,
                        pattern: best.pattern,
                    });
                    return;
                }
            }
        }
    }

    /// Reads as [`run`](Self::run) does, and counts a beginning at which the answer had paused when
    /// it comes to nothing.
    fn read_on(&mut self, at: usize, last: bool, out: &mut Vec<u8>) {
        let beginning = self.held.get(..self.paused).map(<[u8]>::to_vec);
        let beginning = beginning.map(Zeroizing::new).unwrap_or_default();
        let before = out.len();
        self.run(at, last, out);
        let given = out.get(before..).unwrap_or_default();
        if !given.is_empty() {
            self.paused = 0;
            // A find would have its token there.
            if given.starts_with(&beginning) {
                self.patterns.guesses.count(beginning.len());
            }
        }
    }

    /// Reads until a find is settled or the bytes end; returns how far it came.
    fn read(&mut self, mut at: usize) -> usize {
        let patterns = &*self.patterns;
        while at < self.held.len() {
            if self.best.is_none() && self.state == patterns.start {
                at = patterns.skip(&self.held, at);
                if at == self.held.len() {
                    break;
                }
            }
            self.state = patterns
                .nfa
                .next_state(Anchored::No, self.state, self.held[at]);
            at += 1;
            if let Some(pattern) = patterns.found(self.state) {
                let start = at - patterns.finds[pattern].length;
                if self.best.is_none_or(|best| start <= best.start) {
                    self.best = Some(Candidate {
                        start,
                        end: at,
                        pattern,
                    });
                }
            }
            if self
                .best
                .is_some_and(|best| at - patterns.depth(self.state) > best.start)
            {
                break;
            }
        }
        at
    }

    fn replace(&self, find: Candidate, given: usize, out: &mut Vec<u8>) {
        let Some(found) = self.patterns.finds.get(find.pattern) else {
            return;
        };
        out.extend_from_slice(&self.held[given..find.start]);
        out.extend_from_slice(&found.replacement);
        self.tally.names().resealed.insert(found.secret.clone());
    }
}

impl Drop for Resealer {
    fn drop(&mut self) {
        // Broken off where it paused: as good as an answer to a guess.
        self.patterns.guesses.count(self.paused);
    }
}

impl Transform for Resealer {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.patterns.guesses.check()?;
        let at = self.held.len();
        self.held.extend_from_slice(input);
        self.read_on(at, false, out);
        Ok(())
    }

    fn flush(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.paused = self.held.len();
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.read_on(self.held.len(), true, out);
        Ok(())
    }

    fn passes(&mut self, input: &[u8]) -> usize {
        if !self.held.is_empty() {
            return 0;
        }
        match self.patterns.scout.next(input, 0) {
            Some(candidate) => candidate,
            None => input.len() - self.patterns.pending(input),
        }
    }

    fn step_bytes_max(&self) -> usize {
        // Bytes are held back: a few more settle them, and what follows can pass uncopied.
        if self.held.is_empty() {
            STEP_BYTES_MAX
        } else {
            SETTLING_BYTES
        }
    }
}

/// `bytes` with every value in it turned back, or `None` when there was none.
pub(crate) fn reseal_all(
    patterns: &Arc<Patterns>,
    tally: &Arc<Tally>,
    bytes: &[u8],
) -> Option<Vec<u8>> {
    // No spelling begins in it, and one that is all in it begins in it.
    patterns.scout.next(bytes, 0)?;
    let mut stream = Resealer::new(patterns.clone(), tally.clone());
    stream.held.extend_from_slice(bytes);
    let mut out = Vec::with_capacity(bytes.len());
    stream.run(0, true, &mut out);
    (out != bytes).then_some(out)
}

#[cfg(test)]
mod tests;
