//! Credentials that hosts hand out for a secret (access and refresh tokens of OAuth 2.0), sealed like
//! the secret itself.
//!
//! Where its owner asks for it, an answer of a secret's hosts that hands one out has a sealed token in
//! its place ([`FieldSealer`]), or is refused where none can be put there ([`NameGuard`]). The proxy
//! remembers what that stands for, puts it into requests to the secret's hosts, and takes it out of
//! their answers ([`Sweeper`]).
//!
//! Invariants:
//! - What is remembered is in this process's memory alone, and ends with the sandbox's proxy, not
//!   before: whoever could have one forgotten could read its echo. A token whose grant is gone is inert.
//! - Whatever is remembered is searched for, in all its usual spellings: what can't be is not sealed,
//!   and its answer is refused.
//! - A grant goes where all secrets it may have been handed out for may go, and is as revoked as any.
//! - Whoever makes a host hand out what it chooses learns nothing of other values by it: secrets are
//!   taken out of an answer before grants, and a find that overlaps another grant's ends the answer.

mod chain;
mod fields;
mod guard;
mod sweep;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use self::chain::Chain;
pub(crate) use self::fields::{FieldSealer, Syntax};
pub(crate) use self::guard::NameGuard;
use self::sweep::Sweep;
pub(crate) use self::sweep::{Sweeper, sweep_fields};
use super::entropy::reseal_possible;
use super::forms::common_spellings;
use super::placement::Placement;
use super::policy::Binding;
use super::refusal::Refusal;
use super::reseal::Guesses;
use super::token::SealedToken;
use crate::secret::SecretValue;

/// Grants remembered for one sandbox.
const GRANTS_MAX: usize = 64;
/// Bytes of all their spellings; the automaton over them takes ten times as much.
const SPELLINGS_BYTES_MAX: usize = 512 * 1024;
/// Answers in which finds of two grants may overlap, for one sandbox.
const OVERLAPS_MAX: u32 = 3;

/// A secret for which something may have been handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    /// Its token.
    pub token: SealedToken,
    /// Its name.
    pub name: String,
}

/// Something that was handed out.
pub(crate) struct Grant {
    /// The secrets it may have been handed out for; one at least.
    pub parents: Arc<[Parent]>,
    /// Token and value. It has its first secret's name.
    pub binding: Binding,
}

/// What was handed out to one sandbox.
#[derive(Default)]
pub(crate) struct Grants {
    kept: Mutex<Kept>,
    /// For as long as the sandbox's proxy is there: new grants make no new guesses.
    guesses: Guesses,
    /// Answers in which finds of two grants overlapped.
    overlaps: AtomicU32,
}

#[derive(Default)]
struct Kept {
    all: Vec<Arc<Grant>>,
    /// Bytes of their spellings.
    bytes: usize,
    /// Made when it is needed; absent when `all` changed since.
    sweep: Option<Arc<Sweep>>,
}

impl Grants {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Changed in steps that each leave it whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token that stands for `value`, handed out for `parents`: the same as before if it was.
    /// [`Refusal::ResponseGrant`] for one too many, too long or too easy to guess to be searched for.
    pub fn seal(
        &self,
        value: SecretValue,
        parents: &Arc<[Parent]>,
    ) -> Result<SealedToken, Refusal> {
        self.check()?;
        let mut kept = self.lock();
        let same = |one: &&Arc<Grant>| {
            one.parents == *parents && one.binding.value.expose() == value.expose()
        };
        if let Some(known) = kept.all.iter().find(same) {
            return Ok(known.binding.token);
        }
        let first = parents.first().ok_or(Refusal::Internal)?;
        if kept.all.len() >= GRANTS_MAX || !reseal_possible(value.expose()) {
            return Err(Refusal::ResponseGrant);
        }
        let token = SealedToken::generate();
        let spellings = common_spellings(value.expose(), &token);
        let bytes = spellings.map(|(spelling, _)| spelling.bytes().len());
        let bytes = kept.bytes + bytes.sum::<usize>();
        if bytes > SPELLINGS_BYTES_MAX {
            return Err(Refusal::ResponseGrant);
        }
        let binding = Binding {
            name: first.name.clone(),
            token,
            value,
            hosts: Vec::new(),
            placement: Placement::default(),
        };
        let parents = parents.clone();
        kept.all.push(Arc::new(Grant { parents, binding }));
        kept.bytes = bytes;
        kept.sweep = None;
        Ok(token)
    }

    /// What `token` stands for.
    pub fn find(&self, token: &SealedToken) -> Option<Arc<Grant>> {
        let kept = self.lock();
        let mut all = kept.all.iter();
        all.find(|one| one.binding.token == *token).cloned()
    }

    /// Bytes of the longest of them.
    pub fn longest(&self) -> usize {
        let kept = self.lock();
        let lengths = kept.all.iter().map(|one| one.binding.value.expose().len());
        lengths.max().unwrap_or(0)
    }

    /// Refuses when a program was stopped from guessing grants.
    pub fn check(&self) -> Result<(), Refusal> {
        match self.overlaps.load(Ordering::Relaxed) {
            0..OVERLAPS_MAX => self.guesses.check(),
            _ => Err(Refusal::Guessing),
        }
    }

    /// Counts an answer that can't go on, since finds of two grants overlap in it.
    fn overlap(&self) -> Refusal {
        self.overlaps.fetch_add(1, Ordering::Relaxed);
        Refusal::ResponseGrant
    }

    /// What to take out of answers; `None` when there is nothing.
    fn sweep(&self) -> Result<Option<Arc<Sweep>>, Refusal> {
        let mut kept = self.lock();
        if kept.all.is_empty() {
            return Ok(None);
        }
        if kept.sweep.is_none() {
            kept.sweep = Sweep::of(&kept.all).map(Arc::new);
        }
        kept.sweep.clone().map(Some).ok_or(Refusal::Internal)
    }
}

#[cfg(test)]
mod tests;
