//! The automaton over all spellings of values.

use std::collections::HashMap;

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use zeroize::Zeroizing;

/// Some of all bytes.
#[derive(Default)]
pub(super) struct Bytes256([u64; 4]);

impl Bytes256 {
    pub fn of<'a>(bytes: impl Iterator<Item = &'a u8>) -> Self {
        let mut set = Self::default();
        for byte in bytes {
            set.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
        set
    }

    pub fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }
}

/// One automaton over all spellings. It takes ten times their memory.
pub(crate) struct Machine {
    nfa: NFA,
    start: StateID,
    /// At most how many of the bytes read so far may still become a spelling; absent means none.
    /// Sorted by state: there are as many states as bytes in all spellings, so size matters.
    depth: Vec<(StateID, u32)>,
}

impl Machine {
    pub fn of(spellings: &[Zeroizing<Vec<u8>>]) -> Option<Self> {
        let nfa = NFA::new(spellings.iter().map(|spelling| spelling.as_slice())).ok()?;
        let start = nfa.start_state(Anchored::No).ok()?;
        let mut depth: HashMap<StateID, usize> = HashMap::new();
        // A spelling that no other one continues is settled at its last byte: there the bytes
        // that may still grow are fewer than it. Interiors come second and win.
        for interior in [false, true] {
            for pattern in spellings {
                let mut state = start;
                for (read, &byte) in (1..).zip(pattern.iter()) {
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
        Some(Self { nfa, start, depth })
    }

    pub fn depth(&self, state: StateID) -> usize {
        match self.depth.binary_search_by_key(&state, |(state, _)| *state) {
            Ok(at) => self.depth[at].1 as usize,
            Err(_) => 0,
        }
    }

    /// The next state; `None` where nothing has begun.
    pub fn next(&self, state: Option<StateID>, byte: u8) -> Option<StateID> {
        let state = state.unwrap_or(self.start);
        let next = self.nfa.next_state(Anchored::No, state, byte);
        (next != self.start).then_some(next)
    }

    /// The patterns that end in `state`.
    pub fn ended(&self, state: StateID) -> impl Iterator<Item = usize> + Clone {
        let count = match self.nfa.is_match(state) {
            true => self.nfa.match_len(state),
            false => 0,
        };
        (0..count).map(move |index| self.nfa.match_pattern(state, index).as_usize())
    }
}
