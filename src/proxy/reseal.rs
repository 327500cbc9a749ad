//! Values to tokens, as a stream: no value of a binding leaves towards the sandbox.
//!
//! Invariants:
//! - The output does not depend on how the input was cut.
//! - Of overlapping finds the one that begins first wins, then the longest, so a value that
//!   contains another is never left half.
//! - Only bytes that are at this moment the beginning of a spelling are held back: an event
//!   stream is delivered as it comes. At most the longest spelling less one byte is held.

mod machine;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use aho_corasick::automaton::StateID;
use zeroize::Zeroizing;

use self::machine::Bytes256;
pub(crate) use self::machine::Machine;
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

/// Spellings of so many bytes are made into an automaton when one is needed: it takes about a
/// millisecond then, and in most sandboxes no answer ever holds the beginning of a value.
const READ_LATE_BYTES_MAX: usize = 8 * 1024;

/// Every spelling of every value a host may receive.
pub(crate) struct Patterns {
    scout: Scout,
    spellings: Vec<Zeroizing<Vec<u8>>>,
    machine: OnceLock<Option<Machine>>,
    finds: Vec<Find>,
    guesses: Guesses,
    /// The bytes with which spellings begin.
    firsts: Bytes256,
    /// Bytes of the shortest spelling.
    shortest: usize,
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
    /// A beginning of so many bytes, at which an answer paused, came to nothing.
    pub fn count(&self, bytes: usize) {
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
        let spellings = all.keys().map(|one| Zeroizing::new(one.bytes().to_vec()));
        let spellings: Vec<_> = spellings.collect();
        let lengths = all.keys().map(|pattern| pattern.bytes().len());
        let machine = Machine::of(&spellings)?;
        let machine = match lengths.clone().sum::<usize>() {
            0..=READ_LATE_BYTES_MAX => OnceLock::new(),
            _ => OnceLock::from(Some(machine)),
        };
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
            spellings,
            machine,
            finds,
            guesses: Guesses::default(),
            firsts: Bytes256::of(all.keys().filter_map(|one| one.bytes().first())),
            shortest: lengths.clone().min()?,
            #[cfg(test)]
            longest: lengths.max()?,
            names,
        }))
    }

    /// The automaton; `None` never, since the same one was made when this was: whoever finds none
    /// all the same lets nothing pass.
    fn machine(&self) -> Option<&Machine> {
        let made = self.machine.get_or_init(|| Machine::of(&self.spellings));
        made.as_ref()
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

    /// At most how many of the bytes read up to `state` may still become a spelling.
    fn depth(&self, state: Option<StateID>) -> usize {
        // Where something has begun, there is an automaton.
        let machine = state.and_then(|state| Some((self.machine()?, state)));
        machine.map_or(0, |(machine, state)| machine.depth(state))
    }

    /// Tells beginning and end of each spelling in `bytes`, of those that end at one place the
    /// shortest, in the order of their ends.
    pub fn each_find(&self, bytes: &[u8], mut tell: impl FnMut(usize, usize)) {
        let Some(mut at) = self.scout.next(bytes, 0) else {
            return;
        };
        let Some(machine) = self.machine() else {
            return tell(0, bytes.len());
        };
        let mut state = None;
        while let Some(&byte) = bytes.get(at) {
            state = machine.next(state, byte);
            at += 1;
            let ended = state.into_iter().flat_map(|state| machine.ended(state));
            let lengths = ended.filter_map(|pattern| Some(self.finds.get(pattern)?.length));
            if let Some(shortest) = lengths.min() {
                tell(at - shortest, at);
            }
            if state.is_none() {
                match self.scout.next(bytes, at) {
                    Some(candidate) => at = candidate,
                    None => return,
                }
            }
        }
    }

    /// How many of the last bytes of `bytes`, in which no spelling begins before the last few, may
    /// be the beginning of one.
    fn pending(&self, bytes: &[u8]) -> usize {
        let tail = bytes.len().min(PREFIX_BYTES - 1);
        let begins = |bytes: &[u8]| {
            let first = bytes
                .first()
                .is_some_and(|&byte| self.firsts.contains(byte));
            first && self.spellings.iter().any(|one| one.starts_with(bytes))
        };
        let mut sizes = (1..=tail).rev();
        let found = sizes.find(|size| begins(&bytes[bytes.len() - size..]));
        found.unwrap_or(0)
    }
}

/// Turns values into tokens in one stream.
pub(crate) struct Resealer {
    patterns: Arc<Patterns>,
    tally: Arc<Tally>,
    /// `None` where nothing has begun.
    state: Option<StateID>,
    /// Bytes not yet given out.
    held: Zeroizing<Vec<u8>>,
    /// How many of them, the last, no automaton has read: fewer than tell a beginning.
    unread: usize,
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
        Self {
            patterns,
            tally,
            state: None,
            held: Zeroizing::default(),
            unread: 0,
            best: None,
            paused: 0,
        }
    }

    /// Reads the last `unread` bytes of `held` and gives out what is settled; `last` settles
    /// everything.
    fn run(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let (mut at, mut given) = (self.held.len() - self.unread, 0);
        loop {
            at = self.read(at)?;
            let live = at - self.patterns.depth(self.state);
            match self.best.take() {
                Some(best) if last || at < self.held.len() || best.start < live => {
                    self.replace(best, given, out);
                    given = best.end;
                    // What began inside the find is gone with it: read on from its end.
                    at = best.end;
                    self.state = None;
                }
                best => {
                    let keep_from = if last { self.held.len() } else { live };
                    out.extend_from_slice(&self.held[given..keep_from]);
                    self.unread = self.held.len() - at.max(keep_from);
                    self.held.drain(..keep_from);
                    self.best = best.map(|best| Candidate {
                        start: best.start - keep_from,
                        end: best.end - keep_from,
                        pattern: best.pattern,
                    });
                    return Ok(());
                }
            }
        }
    }

    /// Reads as [`run`](Self::run) does, and counts a beginning at which the answer had paused when
    /// it comes to nothing.
    fn read_on(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let beginning = self.held.get(..self.paused).map(<[u8]>::to_vec);
        let beginning = beginning.map(Zeroizing::new).unwrap_or_default();
        let before = out.len();
        self.run(last, out)?;
        let given = out.get(before..).unwrap_or_default();
        if !given.is_empty() {
            self.paused = 0;
            // A find would have its token there.
            if given.starts_with(&beginning) {
                self.patterns.guesses.count(beginning.len());
            }
        }
        Ok(())
    }

    /// Reads until a find is settled or only bytes are left that don't tell whether something begins
    /// in them; returns how far it came.
    fn read(&mut self, mut at: usize) -> Result<usize, Refusal> {
        let patterns = &*self.patterns;
        while at < self.held.len() {
            if self.best.is_none() && self.state.is_none() {
                match patterns.scout.next(&self.held, at) {
                    Some(candidate) => at = candidate,
                    None => return Ok(self.held.len() - patterns.pending(&self.held[at..])),
                }
            }
            let machine = patterns.machine().ok_or(Refusal::Internal)?;
            self.state = machine.next(self.state, self.held[at]);
            at += 1;
            let length =
                |pattern: &usize| patterns.finds.get(*pattern).map_or(0, |find| find.length);
            let ended = self
                .state
                .into_iter()
                .flat_map(|state| machine.ended(state));
            if let Some(pattern) = ended.max_by_key(length) {
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
        Ok(at)
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
        self.held.extend_from_slice(input);
        self.unread += input.len();
        self.read_on(false, out)
    }

    fn flush(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.paused = self.held.len();
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.read_on(true, out)
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
    // One that is all in it begins in it.
    if bytes.len() < patterns.shortest || patterns.scout.next(bytes, 0).is_none() {
        return None;
    }
    let mut stream = Resealer::new(patterns.clone(), tally.clone());
    stream.held.extend_from_slice(bytes);
    stream.unread = bytes.len();
    let mut out = Vec::with_capacity(bytes.len());
    if stream.run(true, &mut out).is_err() {
        // Nothing of what can't be searched.
        return Some(Vec::new());
    }
    (out != bytes).then_some(out)
}

#[cfg(test)]
mod tests;
