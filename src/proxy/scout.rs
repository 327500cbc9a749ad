//! Where a spelling of a value might begin: a search for the first bytes of all spellings, many
//! times as fast as reading every byte through the automaton.
//!
//! Invariant: before a place it gives, no spelling begins; what it passes over needs no other look.

use aho_corasick::{AhoCorasick, AhoCorasickKind, packed};

/// How much of each spelling is looked for, in bytes. Every spelling is longer.
pub(crate) const PREFIX_BYTES: usize = 4;
/// Distinct beginnings up to which the vectorised search is fast.
const PACKED_MAX: usize = 64;

/// A search for beginnings.
pub(crate) enum Scout {
    /// Compares sixteen places and more at once.
    Packed(packed::Searcher),
    /// One table look-up a byte, for many beginnings and for machines without vectors.
    Table(AhoCorasick),
}

impl Scout {
    /// A scout for spellings that begin so; `None` when the library can't make one.
    pub fn new<'a>(spellings: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut beginnings: Vec<&[u8]> = spellings
            .map(|spelling| spelling.get(..PREFIX_BYTES).unwrap_or(spelling))
            .collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        if beginnings.len() <= PACKED_MAX
            && let Some(searcher) = packed::Searcher::new(&beginnings)
        {
            return Some(Self::Packed(searcher));
        }
        let kind = Some(AhoCorasickKind::DFA);
        let table = AhoCorasick::builder().kind(kind).build(&beginnings);
        table.ok().map(Self::Table)
    }

    /// The first place from `at` on where a spelling may begin, as far as its beginning is all in
    /// `bytes`: in the last [`PREFIX_BYTES`] less one nothing is found.
    pub fn next(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let rest = bytes.get(at..)?;
        let found = match self {
            Self::Packed(searcher) => searcher.find(rest).map(|found| found.start()),
            Self::Table(table) => table.find(rest).map(|found| found.start()),
        };
        found.map(|start| at + start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whichever way it searches, it finds every beginning and nothing else.
    #[test]
    fn every_beginning_is_found_by_few_and_by_many() {
        for count in [1, 10, PACKED_MAX, PACKED_MAX + 1, 1_000] {
            let spellings: Vec<String> = (0..count).map(|n| format!("{n:04}-and-more")).collect();
            let scout = Scout::new(spellings.iter().map(String::as_bytes)).expect("a scout");
            assert_eq!(matches!(scout, Scout::Packed(_)), count <= PACKED_MAX);
            for spelling in &spellings {
                for before in 0..70 {
                    let text = format!("{}{}", "x".repeat(before), &spelling[..PREFIX_BYTES]);
                    assert_eq!(scout.next(text.as_bytes(), 0), Some(before), "{text}");
                    assert_eq!(scout.next(text.as_bytes(), before + 1), None);
                    assert_eq!(scout.next(&text.as_bytes()[..text.len() - 1], 0), None);
                }
            }
        }
    }
}
