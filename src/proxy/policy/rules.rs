//! The rules for the requests to one host, made from a policy.

use std::sync::{Arc, OnceLock};

use http::header::{HeaderMap, HeaderName, UPGRADE};
use http::request;
use tokio::task::spawn_blocking;

use super::{Binding, Secrets};
use crate::proxy::content::asks_for_messages;
use crate::proxy::grants::{Grant, Grants, Parent};
use crate::proxy::name::Host;
use crate::proxy::placement::{Judged, Why, confining, foreign, foreign_behind};
use crate::proxy::refusal::Refusal;
use crate::proxy::reseal::Patterns;
use crate::proxy::revoked::Revoked;
use crate::proxy::token::SealedToken;

/// The secrets that go to some set of hosts.
pub(super) struct Applicable {
    pub secrets: Arc<Secrets>,
    pub set: Vec<bool>,
    /// One of them may not stand just anywhere.
    pub narrowed: bool,
    pub former: Vec<Arc<Secrets>>,
    pub patterns: OnceLock<Result<Option<Arc<Patterns>>, Refusal>>,
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
    /// Something that was handed out for such a secret.
    Granted(Arc<Grant>),
    /// A secret of this sandbox that must not go there, and why.
    Unbound(&'a Binding, Why),
    /// One that was revoked, by its name.
    Revoked(String),
    /// Nothing in this sandbox.
    Unknown,
}

/// The rules for requests to one host.
pub(crate) struct HostRules {
    pub(super) host: Host,
    pub(super) applicable: Arc<Applicable>,
    pub(super) revoked: Arc<Revoked>,
    pub(super) grants: Arc<Grants>,
    pub(super) substitute: bool,
    pub(super) strict: bool,
    pub(super) reseal: bool,
    /// What the secrets' placements say of the request at hand.
    pub(super) judged: Option<Judged>,
}

impl HostRules {
    /// The rules for one request, of which the placements of the host's secrets judge method and
    /// path. Refuses one that brings another credential where a secret is to be the only one.
    pub fn for_request(self: Arc<Self>, parts: &request::Parts) -> Result<Arc<Self>, Refusal> {
        let Applicable { secrets, set, .. } = &*self.applicable;
        if !self.applicable.narrowed {
            return Ok(self);
        }
        if self.seals_grants() && (asks_for_messages(parts) || parts.headers.contains_key(UPGRADE))
        {
            return Err(Refusal::GrantProtocol);
        }
        if let Some(secret) = confining(parts, self.applicable.bindings()) {
            let secret = secret.to_owned();
            return Err(Refusal::Confined { secret });
        }
        if let Some(place) = foreign(parts, self.applicable.bindings(), &self.grants) {
            return Err(Refusal::ForeignCredential { place });
        }
        let bindings = secrets.bindings.iter().zip(set.iter().copied());
        Ok(Arc::new(Self {
            host: self.host.clone(),
            applicable: self.applicable.clone(),
            revoked: self.revoked.clone(),
            grants: self.grants.clone(),
            judged: Some(Judged::request(parts, bindings)),
            ..*self
        }))
    }

    /// Refuses another credential behind a body, where a secret is to be the only one.
    pub fn check_trailers(&self, trailers: &HeaderMap) -> Result<(), Refusal> {
        match foreign_behind(trailers, self.applicable.bindings(), &self.grants) {
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
            return self.look_up_grant(token);
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

    /// The same of a token that was made here: it goes where every secret goes that it may have been
    /// handed out for, as long as all of them have such tokens sealed.
    fn look_up_grant(&self, token: &SealedToken) -> Lookup<'_> {
        let Some(grant) = self.grants.find(token) else {
            return Lookup::Unknown;
        };
        let tokens = || grant.parents.iter().map(|parent| &parent.token);
        if let Some(name) = tokens().find_map(|token| self.revoked.name(token)) {
            return Lookup::Revoked(name);
        }
        let Applicable { secrets, set, .. } = &*self.applicable;
        let mut first = None;
        for token in tokens() {
            let Some((index, parent)) = secrets.find(token) else {
                return Lookup::Unknown;
            };
            let applies = set.get(index).copied().unwrap_or(false);
            if !applies || !parent.placement.seals_tokens() || !self.still_binds(token) {
                return Lookup::Unbound(parent, Why::Host);
            }
            first.get_or_insert(parent);
        }
        match first {
            Some(parent) if !self.substitute => Lookup::Unbound(parent, Why::Plain),
            Some(_) => Lookup::Granted(grant),
            None => Lookup::Unknown,
        }
    }

    /// The secrets for which this host may hand out tokens that are to be sealed; `None` when there
    /// are none. One of another secret of the host can't be told from theirs.
    pub fn handed_out_for(&self) -> Option<Arc<[Parent]>> {
        if !self.seals_grants() {
            return None;
        }
        let sealing = self.applicable.bindings();
        let sealing = sealing.filter(|one| one.placement.seals_tokens());
        let parents = sealing.map(|binding| Parent {
            token: binding.token,
            name: binding.name.clone(),
        });
        Some(parents.collect())
    }

    /// Whether tokens that this host hands out are sealed.
    pub fn seals_grants(&self) -> bool {
        self.applicable.narrowed
            && self
                .applicable
                .bindings()
                .any(|one| one.placement.seals_tokens())
    }

    /// What was handed out to this sandbox.
    pub fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }

    /// The same where it is to be taken out of this host's answers.
    pub fn grants_sealed_here(&self) -> Option<&Arc<Grants>> {
        self.seals_grants().then_some(&self.grants)
    }

    /// Whether answers are looked into.
    pub fn looks_into_answers(&self) -> bool {
        self.patterns().is_some() || self.seals_grants()
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
        lengths.max().unwrap_or(0).max(self.grants.longest())
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
