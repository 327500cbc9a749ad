//! One record for everything the proxy decides, and its way to the audit trail.
//!
//! Invariants: a decision holds names, sizes and rules, never a value, a path or a query. Every
//! connection or request that was judged ends in exactly one, handed over when all of it has ended:
//! also the rest of an upload that was answered before its end. When the
//! trail is full, new requests wait for it and are then refused; what is already under way is
//! recorded when there is room again, within a bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::timeout;

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
            && self.unbound_why == next.unbound_why;
        let empty = |one: &Self| {
            one.secrets.is_empty() && one.resealed.is_empty() && one.bytes_up + one.bytes_down == 0
        };
        if same && empty(self) && empty(next) {
            self.times = self.times.saturating_add(next.times);
            return true;
        }
        false
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
            times: 1,
        };
        Self {
            decision: Some(decision),
            begun: Instant::now(),
            trail,
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
        let mut secrets = self.tally.names().substituted.clone();
        secrets.extend(more.map(str::to_owned));
        Some(Sending {
            at: OffsetDateTime::now_utc(),
            host: decision.host.clone(),
            port: decision.port,
            method: decision.method.clone(),
            secrets: secrets.into_iter().collect(),
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
        if let Some(decision) = self.decision.take() {
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
mod tests {
    use super::*;

    /// Goal: only what was handed to the host is told as sent to it.
    #[test]
    fn what_was_refused_before_it_left_was_not_sent() {
        let (trail, mut decisions) = tokio::sync::mpsc::channel(8);
        let mut decide = |leaves: bool| {
            let host = "a.example".parse().unwrap();
            let mut record =
                Record::new(trail.clone(), &host, 443, Protocol::Https, Arc::default());
            record.tally.names().substituted.insert("KEY".to_owned());
            if leaves {
                record.tally.leave();
            }
            record.refused(&Refusal::AuditUnrecorded);
            drop(record);
            decisions.try_recv().unwrap()
        };
        let kept = decide(false);
        assert!(kept.secrets.is_empty());
        assert_eq!(
            (&*kept.unbound[0], kept.unbound_why["KEY"]),
            ("KEY", "not_sent")
        );
        let sent = decide(true);
        assert_eq!((sent.secrets.len(), sent.unbound.len()), (1, 0));
    }

    /// Goal: a decision tells also what is done after its record was dropped, by whoever still has
    /// the tally; closed, it waits for nobody.
    #[test]
    fn a_decision_waits_for_whoever_may_add_to_it() {
        let (trail, mut decisions) = tokio::sync::mpsc::channel(8);
        for closed in [false, true] {
            let host = "a.example".parse().unwrap();
            let record = Record::new(trail.clone(), &host, 443, Protocol::Https, Arc::default());
            let tally = record.tally.clone();
            tally.leave();
            drop(record);
            assert!(decisions.try_recv().is_err());
            tally.names().substituted.insert("KEY".to_owned());
            match closed {
                true => tally.close(),
                false => drop(tally),
            }
            assert_eq!(decisions.try_recv().unwrap().secrets, ["KEY"]);
        }
    }

    /// Goal: the same refusal again and again takes one entry; whatever tells more stays.
    #[test]
    fn only_the_same_refusal_is_absorbed() {
        let (trail, mut decisions) = tokio::sync::mpsc::channel(8);
        let mut decide = |refusal: &Refusal, port, up| {
            let host = "a.example".parse().unwrap();
            let mut record =
                Record::new(trail.clone(), &host, port, Protocol::Https, Arc::default());
            record.refused(refusal);
            record.up.store(up, Ordering::Relaxed);
            drop(record);
            decisions.try_recv().unwrap()
        };
        let mut entry = decide(&Refusal::NotAllowed, 443, 0);
        assert!(entry.absorb(&decide(&Refusal::NotAllowed, 443, 0)));
        assert!(entry.absorb(&decide(&Refusal::NotAllowed, 443, 0)));
        assert_eq!(serde_json::to_value(&entry).unwrap()["times"], 3);
        assert!(!entry.absorb(&decide(&Refusal::NotAllowed, 444, 0)));
        assert!(!entry.absorb(&decide(&Refusal::Upgrade, 443, 0)));
        assert!(!entry.absorb(&decide(&Refusal::NotAllowed, 443, 9)));
    }
}
