//! What happened to the secrets of one request, by name, gathered from headers and streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::decision::Unfinished;
use super::placement::Why;
use super::refusal::Refusal;
use super::turns::Share;

/// Name recorded for a well-formed token this sandbox does not hold (another sandbox's, or one
/// from before a fork). Not a possible secret name.
pub(crate) const UNKNOWN_TOKEN: &str = "(unknown)";

/// Names seen so far; shared by the parts of one request that run side by side. Its decision is
/// handed over with the last of them, when nobody can add to it any more, or when the tally is
/// [closed](Self::close).
#[derive(Default)]
pub(crate) struct Tally {
    names: Mutex<Names>,
    refusal: OnceLock<Refusal>,
    share: Option<Share>,
    /// The request was handed to the connection to its host.
    left: AtomicBool,
    end: Mutex<End>,
}

/// What becomes of the decision.
#[derive(Default)]
struct End {
    closed: bool,
    decision: Option<Unfinished>,
}

/// Names of secrets; bounded by the number of bindings of a policy.
#[derive(Default, Clone)]
pub(crate) struct Names {
    /// Substituted into the request.
    pub substituted: BTreeSet<String>,
    /// Token passed as the inert text it is.
    pub unbound: BTreeSet<String>,
    /// Why, where the host alone does not tell; the first reason stays.
    pub unbound_why: BTreeMap<String, &'static str>,
    /// How often those with a bound were substituted.
    pub counts: BTreeMap<String, u32>,
    /// Value found in the response and turned back into its token.
    pub resealed: BTreeSet<String>,
}

impl Tally {
    /// A tally of a request of the sandbox whose share this is.
    pub fn of(share: Share) -> Self {
        let mut tally = Self::default();
        tally.share = Some(share);
        tally
    }

    /// The decision of the request whose parts these are.
    pub fn decided(&self, decision: Unfinished) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.decision = Some(decision);
        if end.closed {
            drop(end);
            self.hand_over();
        }
    }

    /// Takes no more: what is still under way is given up, and the decision is handed over without
    /// waiting for it.
    pub fn close(&self) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.closed = true;
        drop(end);
        self.hand_over();
    }

    /// Whether nothing may be added any more.
    pub fn is_closed(&self) -> bool {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.closed
    }

    fn hand_over(&self) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let decision = end.decision.take();
        drop(end);
        if let Some(decision) = decision {
            decision.hand_over(self);
        }
    }

    /// Where the processor time and memory for the bodies come from.
    pub fn share(&self) -> Share {
        self.share.clone().unwrap_or_else(Share::nobodys)
    }

    /// The names, to add to or to read.
    pub fn names(&self) -> MutexGuard<'_, Names> {
        // A set of names can't be left half-written by a panic.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request is handed to the connection to its host: from now on, what is put into it may
    /// be read there.
    pub fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// Whether anything of the request may have come to its host.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Remembers why a stream was broken off; the first reason stays.
    pub fn refuse(&self, refusal: Refusal) {
        let _ = self.refusal.set(refusal);
    }

    /// Why a stream was broken off, if it was for a rule.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.get()
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.hand_over();
    }
}

impl Names {
    /// Counts a substitution; whether it is within `max`.
    pub fn count(&mut self, name: &str, max: u32) -> bool {
        let count = self.counts.entry(name.to_owned()).or_default();
        let within = *count < max;
        *count += u32::from(within);
        within
    }

    /// A token passed inert.
    pub fn passed(&mut self, name: &str, why: Option<Why>) {
        self.unbound.insert(name.to_owned());
        if let Some(why) = why.filter(|why| *why != Why::Host) {
            let first = self.unbound_why.entry(name.to_owned());
            first.or_insert(why.name());
        }
    }
}
