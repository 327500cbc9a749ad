//! One record for everything the proxy decides, and its way to the audit trail.
//!
//! Invariants: a decision holds names, sizes and rules, never a value, a path or a query. Every
//! connection or request that was judged ends in exactly one, handed over when all of it has ended:
//! also the rest of an upload that was answered before its end. When the
//! trail is full, new requests wait for it and are then refused; what is already under way is
//! recorded when there is room again, within a bound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{StatusCode, Version};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::timeout;
use ulid::Ulid;

use super::name::Host;
use super::refusal::Refusal;
use super::tally::Tally;

/// How long a request waits for room in the audit trail, and a record of a finished one too.
const BACKLOG_WAIT: Duration = Duration::from_secs(5);

/// Why a secret that was substituted did not reach its host: the request was refused before.
const NOT_SENT: &str = "not_sent";

/// How something left the sandbox, or tried to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP inside TLS that this proxy ended.
    Https,
    /// Bytes that were not looked into.
    Tunnel,
    /// HTTP without TLS; carries no secret.
    Http,
    /// A request to the explicit proxy.
    Connect,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The request was sent to the host.
    Allowed,
    /// The connection was passed through unread.
    Tunnelled,
    /// Nothing of it was sent, or it was broken off for a rule.
    Refused,
}

/// One entry of a sandbox's egress audit trail.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    /// When the connection or request arrived.
    #[serde(serialize_with = "time::serde::rfc3339::serialize")]
    pub at: OffsetDateTime,
    /// The host asked for, canonical, or what was asked for in its place.
    pub host: String,
    /// The port asked for.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
    /// The request's method, where one was read.
    pub method: Option<String>,
    /// What was decided.
    pub outcome: Outcome,
    /// The rule that decided ([`Refusal::rule`] for refusals).
    pub reason: String,
    /// Names of the secrets substituted in what was handed to the host.
    pub secrets: Vec<String>,
    /// Names of the secrets whose token passed inert, or whose request was refused before any of
    /// it was sent.
    pub unbound: Vec<String>,
    /// Why, by name, where that is more than that the host is not one of the secret's:
    /// `host_of_another_secret` (a key of one provider sent to another), `place`, `method`, `path`,
    /// `count`, `plain_http`, `revoked` or `not_sent`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unbound_why: BTreeMap<String, &'static str>,
    /// Names of the secrets found in the response.
    pub resealed: Vec<String>,
    /// Status the sandbox saw.
    pub status: Option<u16>,
    /// Milliseconds from the request's arrival to the head of the host's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Body bytes (for a tunnel all bytes) from the sandbox.
    pub bytes_up: u64,
    /// Body bytes (for a tunnel all bytes) to the sandbox.
    pub bytes_down: u64,
    /// The version of TLS with the program, where it was ended here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_tls: Option<&'static str>,
    /// The version of HTTP the program spoke, where a request was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_http: Option<&'static str>,
    /// The version of TLS with the host, where a connection to it was held for the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_tls: Option<&'static str>,
    /// The version of HTTP with the host, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_http: Option<&'static str>,
    /// [`Sending::request`] of what was announced of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announced: Option<String>,
    /// How often, when several in a row that differ in nothing but their time share this entry.
    #[serde(skip_serializing_if = "is_once")]
    pub times: u32,
}

fn is_once(times: &u32) -> bool {
    *times == 1
}

impl Decision {
    /// Takes `next` into this entry, if both are the same refusal of nothing: a program that asks
    /// again and again must not fill the trail with it.
    pub fn absorb(&mut self, next: &Self) -> bool {
        let same = self.outcome == Outcome::Refused
            && next.outcome == Outcome::Refused
            && (&self.host, self.port, self.protocol) == (&next.host, next.port, next.protocol)
            && (&self.method, &self.reason) == (&next.method, &next.reason)
            && (&self.unbound, self.status) == (&next.unbound, next.status)
            && self.unbound_why == next.unbound_why
            && self.spoken() == next.spoken();
        let empty = |one: &Self| {
            one.secrets.is_empty()
                && one.resealed.is_empty()
                && one.announced.is_none()
                && one.bytes_up + one.bytes_down == 0
        };
        if same && empty(self) && empty(next) {
            self.times = self.times.saturating_add(next.times);
            return true;
        }
        false
    }

    fn spoken(&self) -> [Option<&'static str>; 4] {
        [
            self.client_tls,
            self.client_http,
            self.host_tls,
            self.host_http,
        ]
    }
}

/// A version of TLS as records name it.
pub(crate) fn tls_version(session: &rustls::CommonState) -> Option<&'static str> {
    match session.protocol_version()? {
        rustls::ProtocolVersion::TLSv1_2 => Some("1.2"),
        rustls::ProtocolVersion::TLSv1_3 => Some("1.3"),
        _ => None,
    }
}

/// A version of HTTP as records name it.
fn http_version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

/// A request that is about to carry secrets to a host.
#[derive(Debug, Clone, Serialize)]
pub struct Sending {
    /// When it was about to.
    #[serde(serialize_with = "time::serde::rfc3339::serialize")]
    pub at: OffsetDateTime,
    /// The host, canonical.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The request's method.
    pub method: Option<String>,
    /// Names of the secrets in it. When its body is still to come, of all that may come with it.
    pub secrets: Vec<String>,
    /// What the decision about it is told by: [`Decision::announced`]. The same for all that is
    /// announced of one request.
    pub request: String,
}

/// A [`Sending`] that waits until it is recorded: the request goes on only when `recorded` is
/// answered, and is refused when that is dropped.
#[derive(Debug)]
pub struct Announcement {
    /// What is about to be sent.
    pub sending: Sending,
    /// To be answered when it is durable.
    pub recorded: oneshot::Sender<()>,
}

/// A decision in the making; handed over when it is dropped and its tally is nobody else's.
pub(crate) struct Record {
    decision: Option<Decision>,
    begun: Instant,
    trail: Sender<Decision>,
    /// Made with the first announcement.
    announced: OnceLock<String>,
    /// Names of secrets, filled by the streams of the request.
    pub tally: Arc<Tally>,
    /// Bytes from the sandbox.
    pub up: Arc<AtomicU64>,
    /// Bytes to the sandbox.
    pub down: Arc<AtomicU64>,
}

impl Record {
    pub fn new(
        trail: Sender<Decision>,
        host: &Host,
        port: u16,
        protocol: Protocol,
        tally: Arc<Tally>,
    ) -> Self {
        let decision = Decision {
            at: OffsetDateTime::now_utc(),
            host: host.to_string(),
            port,
            protocol,
            method: None,
            outcome: Outcome::Refused,
            // Stands when the connection is cut before anything was decided.
            reason: "interrupted".to_owned(),
            secrets: Vec::new(),
            unbound: Vec::new(),
            unbound_why: BTreeMap::new(),
            resealed: Vec::new(),
            status: None,
            latency_ms: None,
            bytes_up: 0,
            bytes_down: 0,
            client_tls: None,
            client_http: None,
            host_tls: None,
            host_http: None,
            announced: None,
            times: 1,
        };
        Self {
            decision: Some(decision),
            begun: Instant::now(),
            trail,
            announced: OnceLock::new(),
            tally,
            up: Arc::default(),
            down: Arc::default(),
        }
    }

    /// Waits, bounded, until the trail can take a record.
    pub async fn room(&self) -> Result<(), Refusal> {
        match timeout(BACKLOG_WAIT, self.trail.reserve()).await {
            Ok(Ok(_permit)) => Ok(()),
            _ => Err(Refusal::AuditBacklog),
        }
    }

    /// The request's method: part of the record only when it is one of the registered ones,
    /// since a made-up method is text of the sandbox's choosing.
    pub fn method(&mut self, method: &http::Method) {
        let known = matches!(
            method.as_str(),
            "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "TRACE" | "CONNECT"
        );
        let text = if known { method.as_str() } else { "other" };
        self.set(|decision| decision.method = Some(text.to_owned()));
    }

    /// What the program speaks.
    pub fn client(&mut self, tls: Option<&'static str>, version: Version) {
        self.set(|decision| {
            decision.client_tls = tls;
            decision.client_http = http_version(version);
        });
    }

    /// What is spoken with the host.
    pub fn host(&mut self, tls: Option<&'static str>, version: Version) {
        self.set(|decision| {
            decision.host_tls = tls;
            decision.host_http = http_version(version);
        });
    }

    /// It was let through by `rule`.
    pub fn passed(&mut self, outcome: Outcome, rule: &str) {
        self.set(|decision| {
            decision.outcome = outcome;
            decision.reason = rule.to_owned();
        });
    }

    /// It was refused.
    pub fn refused(&mut self, refusal: &Refusal) {
        self.set(|decision| {
            decision.outcome = Outcome::Refused;
            decision.reason = refusal.rule().to_owned();
            decision.status = Some(refusal.status().as_u16());
        });
    }

    /// The host answers; the status the sandbox is shown.
    pub fn status(&mut self, status: StatusCode) {
        let latency_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.set(|decision| {
            decision.status = Some(status.as_u16());
            decision.latency_ms = Some(latency_ms);
        });
    }

    /// What the request carries as far as it is known, and `more`.
    pub fn sending<'a>(&self, more: impl Iterator<Item = &'a str>) -> Option<Sending> {
        let decision = self.decision.as_ref()?;
        let request = self.announced.get_or_init(|| Ulid::generate().to_string());
        let mut secrets = self.tally.names().substituted.clone();
        secrets.extend(more.map(str::to_owned));
        Some(Sending {
            at: OffsetDateTime::now_utc(),
            host: decision.host.clone(),
            port: decision.port,
            method: decision.method.clone(),
            secrets: secrets.into_iter().collect(),
            request: request.clone(),
        })
    }

    fn set(&mut self, change: impl FnOnce(&mut Decision)) {
        if let Some(decision) = &mut self.decision {
            change(decision);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(mut decision) = self.decision.take() {
            decision.announced = self.announced.take();
            self.tally.decided(Unfinished {
                decision,
                trail: self.trail.clone(),
                up: std::mem::take(&mut self.up),
                down: std::mem::take(&mut self.down),
            });
        }
    }
}

/// A decision that lacks what its tally and its counters say at the end.
pub(crate) struct Unfinished {
    decision: Decision,
    trail: Sender<Decision>,
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
}

impl Unfinished {
    /// Completes it and hands it over.
    pub fn hand_over(self, tally: &Tally) {
        let Self {
            mut decision,
            trail,
            up,
            down,
        } = self;
        decision.bytes_up = up.load(Ordering::Relaxed);
        decision.bytes_down = down.load(Ordering::Relaxed);
        let names = tally.names();
        let substituted = names.substituted.iter().cloned();
        decision.unbound_why = names.unbound_why.clone();
        if tally.has_left() {
            decision.secrets = substituted.collect();
            decision.unbound = names.unbound.iter().cloned().collect();
        } else {
            let why = substituted.clone().map(|name| (name, NOT_SENT));
            decision.unbound_why.extend(why);
            let mut unbound = names.unbound.clone();
            unbound.extend(substituted);
            decision.unbound = unbound.into_iter().collect();
        }
        decision.resealed = names.resealed.iter().cloned().collect();
        drop(names);
        if let Some(refusal) = tally.refusal() {
            // A stream that was broken off for a rule, after the request had been let through.
            decision.outcome = Outcome::Refused;
            decision.reason = refusal.rule().to_owned();
        }
        match trail.try_send(decision) {
            Ok(()) => {}
            Err(TrySendError::Full(decision)) => wait_for_room(trail, decision),
            Err(TrySendError::Closed(decision)) => lost(&decision),
        }
    }
}

/// The number of these tasks is bounded by the connections of the sandbox: a new request waits
/// for room before it starts.
fn wait_for_room(trail: Sender<Decision>, decision: Decision) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return lost(&decision);
    };
    runtime.spawn(async move {
        match timeout(BACKLOG_WAIT, trail.reserve()).await {
            Ok(Ok(permit)) => permit.send(decision),
            _ => lost(&decision),
        }
    });
}

fn lost(decision: &Decision) {
    tracing::error!(?decision, "the audit trail did not take a decision");
}

#[cfg(test)]
mod tests;
