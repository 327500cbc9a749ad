//! Secrets that were taken away while the sandbox runs: dead at once, also for what is under way.
//!
//! Invariants: from the moment [`Revoked::add`] returns, no token of a revoked secret is replaced
//! any more, not even in a body that began under an older policy, and it never comes to life again
//! in its sandbox. From the moment [`Revoked::set_present`] returns, no token is replaced for a host
//! that the present policy does not bind its secret to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::policy::Policy;
use super::refusal::Refusal;
use super::tally::Tally;
use super::token::SealedToken;

/// The revoked tokens of one sandbox, and its present policy; shared by all its policies, old ones
/// included.
#[derive(Default)]
pub(crate) struct Revoked {
    names: RwLock<HashMap<SealedToken, String>>,
    /// So that sandboxes without any pay nothing.
    any: AtomicBool,
    /// `None` for policies that no proxy has taken; dead when the proxy was closed.
    present: RwLock<Option<Weak<Policy>>>,
}

impl Revoked {
    /// Kills tokens; those that are dead already stay so.
    pub fn add(&self, tokens: &[(SealedToken, String)]) {
        if tokens.is_empty() {
            return;
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.extend(tokens.iter().cloned());
        self.any.store(true, Ordering::SeqCst);
    }

    /// The policy by which tokens are replaced from now on; `None` when none are.
    pub fn set_present(&self, policy: Option<&Arc<Policy>>) {
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        *present = Some(policy.map(Arc::downgrade).unwrap_or_default());
    }

    /// Whether the present policy, if there is any, `permits` what an older one did.
    pub fn permits(&self, permits: impl FnOnce(&Policy) -> bool) -> bool {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        match &*present {
            None => true,
            Some(policy) => policy.upgrade().is_some_and(|policy| permits(&policy)),
        }
    }

    /// The name of the secret whose token was revoked.
    pub fn name(&self, token: &SealedToken) -> Option<String> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(token).cloned()
    }

    /// Why the request of `tally` may not go on: it carries a secret that was revoked.
    pub fn judge(&self, tally: &Tally) -> Option<Refusal> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let revoked = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let sent = tally.names();
        let secret = revoked
            .values()
            .find(|name| sent.substituted.contains(*name))?;
        Some(Refusal::Revoked {
            secret: secret.clone(),
        })
    }
}
