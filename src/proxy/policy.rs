//! What one sandbox may reach and which secrets go where: immutable, swapped as a whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use http::header::{HeaderMap, HeaderName};
use http::request;
use tokio::task::spawn_blocking;

use super::name::{CanonicalName, Host, HostPattern};
use super::placement::{Judged, Placement, Why, foreign, foreign_behind};
use super::refusal::Refusal;
use super::reseal::Patterns;
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
    /// of them.
    pub(crate) fn joined(mut self, revoked: &Arc<Revoked>) -> Self {
        revoked.add(&self.withdrawn);
        self.revoked = revoked.clone();
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
            substitute,
            strict,
            reseal: self.reseal,
            judged: None,
        })
    }
}

/// The secrets that go to some set of hosts.
struct Applicable {
    secrets: Arc<Secrets>,
    set: Vec<bool>,
    /// One of them may not stand just anywhere.
    narrowed: bool,
    former: Vec<Arc<Secrets>>,
    patterns: OnceLock<Result<Option<Arc<Patterns>>, Refusal>>,
}

impl Applicable {
    fn bindings(&self) -> impl Iterator<Item = &Binding> + Clone {
        let bindings = self.secrets.bindings.iter().zip(&self.set);
        bindings.filter(|(_, set)| **set).map(|(one, _)| one)
    }

    /// The same secrets with the values they had before.
    fn former(&self) -> impl Iterator<Item = &Binding> {
        self.former.iter().flat_map(move |old| {
            let found = self.bindings().filter_map(|one| old.find(&one.token));
            found.map(|(_, binding)| binding)
        })
    }
}

/// What a token found in a request stands for.
pub(crate) enum Lookup<'a> {
    /// A secret this host may receive, there.
    Bound(&'a Binding),
    /// A secret of this sandbox that must not go there, and why.
    Unbound(&'a Binding, Why),
    /// One that was revoked, by its name.
    Revoked(String),
    /// Nothing in this sandbox.
    Unknown,
}

/// The rules for requests to one host.
pub(crate) struct HostRules {
    host: Host,
    applicable: Arc<Applicable>,
    revoked: Arc<Revoked>,
    substitute: bool,
    strict: bool,
    reseal: bool,
    /// What the secrets' placements say of the request at hand.
    judged: Option<Judged>,
}

impl HostRules {
    /// The rules for one request, of which the placements of the host's secrets judge method and
    /// path. Refuses one that brings another credential where a secret is to be the only one.
    pub fn for_request(self: Arc<Self>, parts: &request::Parts) -> Result<Arc<Self>, Refusal> {
        let Applicable { secrets, set, .. } = &*self.applicable;
        if !self.applicable.narrowed {
            return Ok(self);
        }
        if let Some(place) = foreign(parts, self.applicable.bindings()) {
            return Err(Refusal::ForeignCredential { place });
        }
        let bindings = secrets.bindings.iter().zip(set.iter().copied());
        Ok(Arc::new(Self {
            host: self.host.clone(),
            applicable: self.applicable.clone(),
            revoked: self.revoked.clone(),
            judged: Some(Judged::request(parts, bindings)),
            ..*self
        }))
    }

    /// Refuses another credential behind a body, where a secret is to be the only one.
    pub fn check_trailers(&self, trailers: &HeaderMap) -> Result<(), Refusal> {
        match foreign_behind(trailers, self.applicable.bindings()) {
            Some(place) => Err(Refusal::ForeignCredential { place }),
            None => Ok(()),
        }
    }

    /// What `token` stands for in a field of the head, or (`None`) in path, query, body or frames.
    pub fn look_up(&self, token: &SealedToken, field: Option<&HeaderName>) -> Lookup<'_> {
        if let Some(name) = self.revoked.name(token) {
            return Lookup::Revoked(name);
        }
        let Applicable { secrets, set, .. } = &*self.applicable;
        let Some((index, binding)) = secrets.find(token) else {
            return Lookup::Unknown;
        };
        let applies = set.get(index).copied().unwrap_or(false);
        let why = match applies {
            false if set.contains(&true) => Some(Why::HostOfAnother),
            false => Some(Why::Host),
            true if !self.substitute => Some(Why::Plain),
            true if !self.still_binds(token) => Some(Why::Host),
            true => self.misfit(index, binding, field),
        };
        match why {
            Some(why) => Lookup::Unbound(binding, why),
            None => Lookup::Bound(binding),
        }
    }

    fn misfit(&self, index: usize, binding: &Binding, field: Option<&HeaderName>) -> Option<Why> {
        let placement = &binding.placement;
        let by_request = match &self.judged {
            Some(judged) => judged.misfit(index),
            // Whoever forgot to have the request judged sends no such secret.
            None => placement.judges_requests().then_some(Why::Method),
        };
        let by_place = || (!placement.takes_field(field)).then_some(Why::Place);
        by_request.or_else(by_place)
    }

    /// Whether the present policy binds the secret to the host, as the one of these rules did.
    fn still_binds(&self, token: &SealedToken) -> bool {
        self.revoked.permits(|policy| {
            let binds = || {
                let found = policy.secrets.find(token);
                found.is_some_and(|(_, binding)| binding.goes_to(&self.host))
            };
            let same = Arc::ptr_eq(&policy.secrets, &self.applicable.secrets);
            (same || binds()) && policy.judge(&self.host).is_ok()
        })
    }

    /// Why `token`, of this secret, may not be replaced although it could be when it was looked up.
    pub fn withdrawn(&self, token: &SealedToken, name: &str) -> Option<Refusal> {
        let secret = || name.to_owned();
        if self.revoked.name(token).is_some() {
            return Some(Refusal::Revoked { secret: secret() });
        }
        let unbound = !self.still_binds(token);
        unbound.then(|| Refusal::TokenUnbound { secret: secret() })
    }

    /// Refuses a target that with the values in place is another path than the one judged.
    pub fn check_target(&self, path: &str) -> Result<(), Refusal> {
        match &self.judged {
            Some(judged) if !judged.takes_target(path) => Err(Refusal::Framing(
                "a value in the path makes it ambiguous, and another secret goes by the path",
            )),
            _ => Ok(()),
        }
    }

    /// Whether cookies of this host stay on this side.
    pub fn keeps_cookies(&self) -> bool {
        self.applicable.narrowed
            && self
                .applicable
                .bindings()
                .any(|one| one.placement.keeps_cookies())
    }

    /// Names of the secrets that may go to this host.
    pub fn secret_names(&self) -> impl Iterator<Item = &str> {
        self.applicable.bindings().map(|one| one.name.as_str())
    }

    /// Whether a token that can't be replaced refuses the request.
    pub fn strict(&self) -> bool {
        self.strict
    }

    /// Whether any token can be replaced.
    pub fn substitutes(&self) -> bool {
        self.substitute && self.applicable.set.contains(&true)
    }

    /// Bytes of the longest value a token can be replaced by.
    pub fn longest_value(&self) -> usize {
        let bindings = self.applicable.bindings();
        let lengths = bindings.map(|binding| binding.value.expose().len());
        lengths.max().unwrap_or(0)
    }

    /// Whether request bodies must be read at all, if only to record inert tokens.
    pub fn watches_tokens(&self) -> bool {
        !self.applicable.set.is_empty()
    }

    /// Builds what [`patterns`](Self::patterns) gives, away from the runtime's threads: for a long
    /// value it takes long enough to be felt by other connections.
    pub async fn prepare(self: &Arc<Self>) -> Result<(), Refusal> {
        if self.applicable.patterns.get().is_none() {
            let rules = self.clone();
            // A build that panicked or was cancelled is tried again where it is needed.
            let _ = spawn_blocking(move || rules.check_searchable()).await;
        }
        self.check_searchable()
    }

    /// Refuses a host whose answers can't be searched: its values are too many or too long.
    pub fn check_searchable(&self) -> Result<(), Refusal> {
        self.built().map(drop)
    }

    /// What to look for in responses, built on first use. Also `None` where that failed: whoever
    /// sends anything asks [`check_searchable`](Self::check_searchable) first.
    pub fn patterns(&self) -> Option<&Arc<Patterns>> {
        self.built().ok().flatten()
    }

    fn built(&self) -> Result<Option<&Arc<Patterns>>, Refusal> {
        if !self.reseal || !self.applicable.set.contains(&true) {
            return Ok(None);
        }
        let Applicable { patterns, .. } = &*self.applicable;
        let built = patterns.get_or_init(|| {
            let (bindings, former) = (self.applicable.bindings(), self.applicable.former());
            // Rotated values must not be in the way of the present ones.
            Patterns::build(bindings.clone().chain(former)).or_else(|_| Patterns::build(bindings))
        });
        built.as_ref().map(Option::as_ref).map_err(Refusal::clone)
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
