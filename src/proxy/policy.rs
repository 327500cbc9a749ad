//! What one sandbox may reach and which secrets go where: immutable, swapped as a whole.

mod rules;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use self::rules::Applicable;
pub(crate) use self::rules::{HostRules, Lookup};
use super::grants::Grants;
use super::name::{CanonicalName, Host, HostPattern};
use super::placement::Placement;
use super::refusal::Refusal;
use super::revoked::Revoked;
use super::tally::Tally;
use super::token::SealedToken;
use crate::secret::SecretValue;

/// Distinct sets of applicable secrets whose rules are kept ready. Hosts with the same secrets
/// share one entry, so that real policies need a handful.
const RULE_SETS_MAX: usize = 64;

/// Policies with other values whose values are still searched for in answers.
const FORMER_MAX: usize = 4;

/// One secret as one sandbox holds it.
pub struct Binding {
    /// The secret's name, for the audit trail.
    pub name: String,
    /// What the sandbox sees.
    pub token: SealedToken,
    /// What the bound hosts see.
    pub value: SecretValue,
    /// Hosts that may receive the value; empty means any host.
    pub hosts: Vec<HostPattern>,
    /// Where in requests to them it may stand; the default is anywhere.
    pub placement: Placement,
}

impl Binding {
    fn applies_to(&self, name: &CanonicalName) -> bool {
        self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.matches(name))
    }

    fn goes_to(&self, host: &Host) -> bool {
        match host {
            Host::Name(name) => self.applies_to(name),
            Host::Address(_) => false,
        }
    }
}

/// The rules of one sandbox at one time.
pub struct Policy {
    allowlist: Vec<HostPattern>,
    secrets: Arc<Secrets>,
    network_enabled: bool,
    reseal: bool,
    sets: Mutex<HashMap<Vec<bool>, Arc<Applicable>>>,
    withdrawn: Vec<(SealedToken, String)>,
    revoked: Arc<Revoked>,
    grants: Arc<Grants>,
    /// The secrets of policies before this one that had other values, newest first.
    former: Vec<Arc<Secrets>>,
}

struct Secrets {
    bindings: Vec<Binding>,
    by_token: HashMap<SealedToken, usize>,
}

impl Secrets {
    /// The secret that `token` stands for, and its place among the bindings.
    fn find(&self, token: &SealedToken) -> Option<(usize, &Binding)> {
        let &index = self.by_token.get(token)?;
        Some((index, self.bindings.get(index)?))
    }
}

impl Policy {
    /// `allowlist` empty means no restriction of hosts. `reseal` off leaves responses untouched.
    pub fn new(
        allowlist: Vec<HostPattern>,
        bindings: Vec<Binding>,
        network_enabled: bool,
        reseal: bool,
    ) -> Self {
        let by_token = bindings
            .iter()
            .enumerate()
            .map(|(i, binding)| (binding.token, i))
            .collect();
        let secrets = Arc::new(Secrets { bindings, by_token });
        Self {
            allowlist,
            secrets,
            network_enabled,
            reseal,
            sets: Mutex::default(),
            withdrawn: Vec::new(),
            revoked: Arc::default(),
            grants: Arc::default(),
            former: Vec::new(),
        }
    }

    /// Adds tokens whose secrets were revoked, with the secrets' names: they stay inert, and what
    /// is under way with them is cut when a proxy takes this policy.
    pub fn with_revoked(mut self, tokens: Vec<(SealedToken, String)>) -> Self {
        self.withdrawn = tokens;
        self
    }

    /// Joins this policy with those before it in one proxy: what it revokes ends at once in all
    /// of them, and what was handed out under them stays.
    pub(crate) fn joined(mut self, revoked: &Arc<Revoked>, grants: &Arc<Grants>) -> Self {
        revoked.add(&self.withdrawn);
        self.revoked = revoked.clone();
        self.grants = grants.clone();
        self
    }

    /// Goes on searching answers for the values that secrets of `before` had until now: a host may
    /// have stored one, and it may still be valid there. The last [`FORMER_MAX`] are remembered.
    pub(crate) fn following(mut self, before: &Self) -> Self {
        let rotated = self.secrets.bindings.iter().any(|one| {
            let old = before.secrets.find(&one.token);
            old.is_some_and(|(_, old)| old.value.expose() != one.value.expose())
        });
        self.former = before.former.clone();
        if rotated {
            self.former.insert(0, before.secrets.clone());
            self.former.truncate(FORMER_MAX);
        }
        self
    }

    /// Whether `host` may be spoken to at all; the name of the rule that allowed it.
    pub(crate) fn judge(&self, host: &Host) -> Result<&'static str, Refusal> {
        if !self.network_enabled {
            return Err(Refusal::NetworkDisabled);
        }
        if self.allowlist.is_empty() {
            return Ok("no_restriction");
        }
        let listed = self.allowlist.iter().any(|pattern| match host {
            Host::Name(name) => pattern.matches(name),
            Host::Address(_) => *pattern == HostPattern::Any,
        });
        if listed {
            Ok("egress_allowlist")
        } else {
            Err(Refusal::NotAllowed)
        }
    }

    /// Why a request of `tally` to `host` that began under another policy may not go on under this one.
    pub(crate) fn forbids(&self, host: &Host, tally: &Tally) -> Option<Refusal> {
        let revoked = self.revoked.judge(tally);
        revoked.or_else(|| self.judge(host).err()).or_else(|| {
            let sent = tally.names();
            let unbound = |name: &&String| {
                let mut bindings = self.secrets.bindings.iter();
                !bindings.any(|one| one.name == **name && one.goes_to(host))
            };
            let secret = sent.substituted.iter().find(unbound)?.clone();
            Some(Refusal::TokenUnbound { secret })
        })
    }

    /// Whether bytes that no rule can look into may go to `name`: it carries no secret, and the
    /// allowlist is absent or names the host itself.
    pub(crate) fn permits_opaque(&self, name: &CanonicalName) -> bool {
        let named = self.allowlist.iter().any(|pattern| pattern.names(name));
        (self.allowlist.is_empty() || named) && !self.has_secrets_for(name)
    }

    /// Whether a secret may go to `name`.
    pub(crate) fn has_secrets_for(&self, name: &CanonicalName) -> bool {
        self.secrets
            .bindings
            .iter()
            .any(|binding| binding.applies_to(name))
    }

    /// The rules for one host. `substitute` is off on paths that must not carry a value.
    pub(crate) fn rules_for(&self, host: &Host, substitute: bool, strict: bool) -> Arc<HostRules> {
        let applies = |binding: &Binding| binding.goes_to(host);
        let set: Vec<bool> = self.secrets.bindings.iter().map(applies).collect();
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if sets.len() >= RULE_SETS_MAX && !sets.contains_key(&set) {
            sets.clear();
        }
        let applicable = sets.entry(set).or_insert_with_key(|set| {
            let mut applying = self.secrets.bindings.iter().zip(set);
            Arc::new(Applicable {
                narrowed: applying.any(|(one, set)| *set && !one.placement.is_anywhere()),
                secrets: self.secrets.clone(),
                set: set.clone(),
                former: self.former.clone(),
                patterns: OnceLock::new(),
            })
        });
        let applicable = applicable.clone();
        Arc::new(HostRules {
            host: host.clone(),
            applicable,
            revoked: self.revoked.clone(),
            grants: self.grants.clone(),
            substitute,
            strict,
            reseal: self.reseal,
            judged: None,
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Rules for one host with one secret, and a second secret bound elsewhere.
    pub(crate) struct Fixture {
        pub rules: Arc<HostRules>,
        pub strict: Arc<HostRules>,
        pub token: SealedToken,
        pub elsewhere: SealedToken,
    }

    /// A secret with this value for one host, which may stand anywhere.
    pub(crate) fn secret(token: SealedToken, value: &str, host: &str) -> Binding {
        Binding {
            name: "KEY".into(),
            token,
            value: SecretValue::from(value.to_owned()),
            hosts: vec![host.parse().unwrap()],
            placement: Placement::default(),
        }
    }

    pub(crate) fn fixture(host: &str, value: &str) -> Fixture {
        let (token, elsewhere) = (SealedToken::generate(), SealedToken::generate());
        let bindings = vec![
            Binding {
                name: "HERE".into(),
                ..secret(token, value, host)
            },
            Binding {
                name: "ELSEWHERE".into(),
                ..secret(elsewhere, "other-value-0002", "elsewhere.example")
            },
        ];
        let policy = Policy::new(Vec::new(), bindings, true, true);
        let host = host.parse().unwrap();
        Fixture {
            rules: policy.rules_for(&host, true, false),
            strict: policy.rules_for(&host, true, true),
            token,
            elsewhere,
        }
    }
}

#[cfg(test)]
mod tests;
