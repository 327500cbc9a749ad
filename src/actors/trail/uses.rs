//! Which secret went where: the decisions of the egress trail, read by secret.
//!
//! What was announced (strict audit) and never decided, because the server was killed in between,
//! is told as announced: whether it was sent nobody knows. So is what is still under way.
//!
//! Invariants: one entry for each secret of each decision, and of each announcement without one,
//! with no value, path or query in it; the scope and the bounded work of the trail hold here too.
//! A decision is looked for in the [`LOOK_EVENTS_MAX`] records behind its announcement.

use std::collections::HashSet;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ulid::Ulid;

use super::{Cursor, Filter, page};
use crate::events::{EventLog, ReadError, Recorded};
use crate::ids::{OrgId, SandboxId};

/// Events read at a time; each holds up to 128 decisions.
const EVENTS_AT_ONCE: usize = 64;
/// Most such reads for one page.
const READS_MAX: usize = 32;
/// Records behind an announcement that are searched for its decision.
const LOOK_EVENTS_MAX: usize = 1_000;
/// Records that are so searched for one page, before it ends.
const LOOKED_EVENTS_MAX: usize = 4_000;
/// Records read at first; usually the decision is among them. Then twice as many, up to
/// [`EVENTS_AT_ONCE`].
const FIRST_LOOK_EVENTS: usize = 4;

/// The type of announcements, without its version.
const ANNOUNCED: &str = "egress.announced.";

/// Which uses are asked for; absent fields take all.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only those of this organization. `None` is for whoever holds the log's folder.
    pub org: Option<OrgId>,
    /// The secret's name.
    pub secret: Option<String>,
    /// The sandbox.
    pub sandbox: Option<SandboxId>,
    /// The host, canonical.
    pub host: Option<String>,
    /// Arrived at this time or later.
    pub from: Option<OffsetDateTime>,
    /// Arrived at this time or earlier.
    pub to: Option<OffsetDateTime>,
}

/// Some uses, in the cursor's order.
#[derive(Debug)]
pub struct Uses {
    /// The uses.
    pub uses: Vec<Value>,
    /// Position that the next page's cursor takes; `None` when there was nothing more.
    pub next: Option<u64>,
}

/// At least `limit` uses where there are so many. A record holds several decisions and is not
/// divided between pages, so a page may be longer; it may be shorter as those of the trail.
pub async fn uses(
    log: &EventLog,
    wanted: &Wanted,
    cursor: Cursor,
    limit: usize,
) -> Result<Uses, ReadError> {
    let filter = Filter {
        entity: wanted.sandbox.as_ref().map(|id| format!("egress-{id}")),
        kind: Some("egress.".to_owned()),
        // Both are recorded after the request arrived, so none is missed.
        from: wanted.from,
        ..Filter::of(wanted.org)
    };
    let (mut cursor, mut uses) = (cursor, Vec::new());
    let (mut decided, mut told) = (Decided::default(), 0);
    for _ in 0..READS_MAX {
        // One event at a time near the end of the page, so that it is not much too long.
        let events = EVENTS_AT_ONCE.min(limit.saturating_sub(uses.len()).max(1));
        let read = page(log, &filter, cursor, events).await?;
        for event in &read.events {
            if decided.looked >= LOOKED_EVENTS_MAX {
                // What is before this one is told; it is for the next page.
                return Ok(Uses {
                    uses,
                    next: Some(told),
                });
            }
            let mut found = match event.kind.starts_with(ANNOUNCED) {
                true => announced_in(log, event, wanted, &mut decided).await?,
                false => {
                    decided.note(event);
                    uses_in(event, wanted)
                }
            };
            told = event.position;
            if matches!(cursor, Cursor::Before(_)) {
                found.reverse();
            }
            uses.append(&mut found);
        }
        let Some(next) = read.next else {
            return Ok(Uses { uses, next: None });
        };
        cursor = match cursor {
            Cursor::Before(_) => Cursor::Before(Some(next)),
            Cursor::After(_) => Cursor::After(next),
        };
        // A short page looked at as many events as one may.
        if uses.len() >= limit || read.events.len() < events {
            break;
        }
    }
    let next = match cursor {
        Cursor::Before(next) => next,
        Cursor::After(next) => Some(next),
    };
    Ok(Uses { uses, next })
}

/// Announcements that were decided, as far as this page knows.
#[derive(Default)]
struct Decided {
    requests: HashSet<Ulid>,
    /// Records that were searched for them.
    looked: usize,
}

impl Decided {
    /// Remembers what a record decides.
    fn note(&mut self, event: &Recorded) {
        let requests = entries(event, "decisions").1;
        let requests = requests.iter().filter_map(|one| request(one, "announced"));
        self.requests.extend(requests);
    }

    /// Searches behind `event` until it is known of all `requests` what they came to.
    async fn look(
        &mut self,
        log: &EventLog,
        event: &Recorded,
        requests: &[Ulid],
    ) -> Result<(), ReadError> {
        let (mut next, mut size, mut left) =
            (event.revision + 1, FIRST_LOOK_EVENTS, LOOK_EVENTS_MAX);
        while left > 0 && requests.iter().any(|one| !self.requests.contains(one)) {
            let read = log.read_stream(&event.stream, next, size.min(left)).await?;
            let Some(last) = read.last() else { break };
            next = last.revision + 1;
            read.iter().for_each(|event| self.note(event));
            self.looked += read.len();
            left = left.saturating_sub(read.len());
            size = (size * 2).min(EVENTS_AT_ONCE);
        }
        Ok(())
    }
}

/// The entries of a record, in whole and by themselves.
fn entries(event: &Recorded, list: &str) -> (Value, Vec<Value>) {
    let mut data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
    let entries = match data.get_mut(list).map(Value::take) {
        Some(Value::Array(entries)) => entries,
        _ => Vec::new(),
    };
    (data, entries)
}

/// What an announcement and its decision have in common; older ones say nothing of it.
fn request(entry: &Value, field: &str) -> Option<Ulid> {
    entry[field].as_str()?.parse().ok()
}

impl Wanted {
    /// Whether an entry of a record is asked for, whatever its secrets are.
    fn takes(&self, entry: &Value) -> bool {
        let at = entry["at"].as_str();
        let at = at.and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
        let host = self.host.as_deref();
        self.from.is_none_or(|from| at.is_some_and(|at| at >= from))
            && self.to.is_none_or(|to| at.is_some_and(|at| at <= to))
            && host.is_none_or(|host| entry["host"] == host)
    }
}

/// The uses in a record of announcements that nothing became of, oldest first.
async fn announced_in(
    log: &EventLog,
    event: &Recorded,
    wanted: &Wanted,
    decided: &mut Decided,
) -> Result<Vec<Value>, ReadError> {
    let (data, sending) = entries(event, "sending");
    let mut found = Vec::new();
    for one in sending.iter().filter(|one| wanted.takes(one)) {
        let Some(request) = request(one, "request") else {
            continue;
        };
        for secret in one["secrets"].as_array().into_iter().flatten() {
            if wanted.secret.as_ref().is_none_or(|name| secret == name) {
                found.push((request, one, secret));
            }
        }
    }
    let requests: Vec<_> = found.iter().map(|(request, ..)| *request).collect();
    decided.look(log, event, &requests).await?;
    found.retain(|(request, ..)| !decided.requests.contains(request));
    let uses = found.into_iter().map(|(_, one, secret)| {
        let mut shown = one_use(event, &data, one, secret, false);
        shown["outcome"] = json!("announced");
        shown
    });
    Ok(uses.collect())
}

/// The uses in one record of decisions, oldest first.
fn uses_in(event: &Recorded, wanted: &Wanted) -> Vec<Value> {
    let (data, decisions) = entries(event, "decisions");
    let mut uses = Vec::new();
    for decision in decisions.iter().filter(|one| wanted.takes(one)) {
        for (list, sent) in [("secrets", true), ("unbound", false)] {
            for secret in decision[list].as_array().into_iter().flatten() {
                if wanted.secret.as_ref().is_none_or(|name| secret == name) {
                    uses.push(one_use(event, &data, decision, secret, sent));
                }
            }
        }
    }
    uses
}

fn one_use(event: &Recorded, data: &Value, decision: &Value, secret: &Value, sent: bool) -> Value {
    let mut shown = json!({
        "position": event.position,
        "at": decision["at"],
        "sandboxId": data["sandboxId"],
        "secret": secret,
        "sent": sent,
        "host": decision["host"],
        "port": decision["port"],
        "method": decision["method"],
        "outcome": decision["outcome"],
        "reason": decision["reason"],
        "status": decision["status"],
        "bytesUp": decision["bytes_up"],
        "bytesDown": decision["bytes_down"],
        "latencyMs": decision["latency_ms"],
        "times": decision["times"].as_u64().unwrap_or(1),
    });
    let why = &decision["unbound_why"][secret.as_str().unwrap_or_default()];
    if !sent && why.is_string() {
        shown["why"] = why.clone();
    }
    if let Value::Object(fields) = &mut shown {
        fields.retain(|_, value| !value.is_null());
    }
    shown
}
