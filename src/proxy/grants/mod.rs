//! Credentials that hosts hand out for a secret (access and refresh tokens of OAuth 2.0), sealed like
//! the secret itself.
//!
//! Where its owner asks for it, an answer of a secret's hosts that hands one out has a sealed token in
//! its place ([`FieldSealer`]). The proxy remembers what that stands for, puts it into requests to the
//! secret's hosts, and takes it out of their answers ([`Sweeper`]).
//!
//! Invariants:
//! - What is remembered is in this process's memory alone, and ends with the sandbox's proxy. A token
//!   whose grant is forgotten is inert.
//! - A grant goes where its secret may go, and is as revoked as that is.
//! - Whoever makes a host hand out what it chooses learns nothing of other values by it: secrets are
//!   taken out of an answer before grants, and finds of grants that overlap are taken out together.

mod chain;
mod fields;
mod sweep;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use self::chain::Chain;
pub(crate) use self::fields::{FieldSealer, Syntax};
pub(crate) use self::sweep::{Sweep, Sweeper};
use super::placement::Placement;
use super::policy::Binding;
use super::reseal::Guesses;
use super::token::SealedToken;
use crate::secret::SecretValue;

/// Grants remembered for one sandbox; beyond it the one unused the longest is forgotten.
const GRANTS_MAX: usize = 16;

/// The secret for which something is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    /// Its token.
    pub token: SealedToken,
    /// Its name.
    pub name: String,
}

/// Something that was handed out.
pub(crate) struct Grant {
    /// The secret it was handed out for.
    pub parent: SealedToken,
    /// Token and value. It has its secret's name, and may stand anywhere in requests.
    pub binding: Binding,
}

/// What was handed out to one sandbox.
#[derive(Default)]
pub(crate) struct Grants(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// The one used last is the last.
    all: Vec<Arc<Grant>>,
    /// Made when it is needed; absent when `all` changed since.
    sweep: Option<Option<Arc<Sweep>>>,
    /// For as long as the sandbox's proxy is there: new grants make no new guesses.
    guesses: Arc<Guesses>,
}

impl Grants {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Changed in steps that each leave it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token that stands for `value`, handed out for `parent`: the same as before if it was.
    pub fn seal(&self, value: SecretValue, parent: &Parent) -> SealedToken {
        let mut kept = self.lock();
        let known = kept.all.iter().position(|one| {
            one.parent == parent.token && one.binding.value.expose() == value.expose()
        });
        if let Some(known) = known {
            let known = kept.all.remove(known);
            let token = known.binding.token;
            kept.all.push(known);
            return token;
        }
        if kept.all.len() >= GRANTS_MAX {
            kept.all.remove(0);
        }
        let token = SealedToken::generate();
        let binding = Binding {
            name: parent.name.clone(),
            token,
            value,
            hosts: Vec::new(),
            placement: Placement::default(),
        };
        let parent = parent.token;
        kept.all.push(Arc::new(Grant { parent, binding }));
        kept.sweep = None;
        token
    }

    /// What `token` stands for.
    pub fn find(&self, token: &SealedToken) -> Option<Arc<Grant>> {
        let mut kept = self.lock();
        let at = kept
            .all
            .iter()
            .position(|one| one.binding.token == *token)?;
        let found = kept.all.remove(at);
        kept.all.push(found.clone());
        Some(found)
    }

    /// Bytes of the longest of them.
    pub fn longest(&self) -> usize {
        let kept = self.lock();
        let lengths = kept.all.iter().map(|one| one.binding.value.expose().len());
        lengths.max().unwrap_or(0)
    }

    /// What to take out of answers; `None` when there is nothing.
    pub fn sweep(&self) -> Option<Arc<Sweep>> {
        let mut kept = self.lock();
        let Kept {
            all,
            sweep,
            guesses,
        } = &mut *kept;
        sweep.get_or_insert_with(|| Sweep::of(all, guesses)).clone()
    }
}

#[cfg(test)]
mod tests;
