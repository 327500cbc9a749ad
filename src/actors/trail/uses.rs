//! Which secret went where: the decisions of the egress trail, read by secret.
//!
//! Invariants: one entry for each secret of each decision, with no value, path or query in it;
//! the scope and the bounded work of the trail hold here too.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Cursor, Filter, page};
use crate::events::{EventLog, ReadError, Recorded};
use crate::ids::{OrgId, SandboxId};

/// Events read at a time; each holds up to 128 decisions.
const EVENTS_AT_ONCE: usize = 64;
/// Most such reads for one page.
const READS_MAX: usize = 32;

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
        kind: Some("egress.decided".to_owned()),
        // A decision is recorded after its request arrived, so none is missed.
        from: wanted.from,
        ..Filter::of(wanted.org)
    };
    let (mut cursor, mut uses) = (cursor, Vec::new());
    for _ in 0..READS_MAX {
        // One event at a time near the end of the page, so that it is not much too long.
        let events = EVENTS_AT_ONCE.min(limit.saturating_sub(uses.len()).max(1));
        let read = page(log, &filter, cursor, events).await?;
        for event in &read.events {
            let mut found = uses_in(event, wanted);
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

/// The uses in one record, oldest first.
fn uses_in(event: &Recorded, wanted: &Wanted) -> Vec<Value> {
    let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
    let decisions = data["decisions"].as_array().cloned().unwrap_or_default();
    let mut uses = Vec::new();
    for decision in &decisions {
        let at = decision["at"].as_str();
        let at = at.and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
        let in_time = wanted
            .from
            .is_none_or(|from| at.is_some_and(|at| at >= from))
            && wanted.to.is_none_or(|to| at.is_some_and(|at| at <= to));
        let host = wanted.host.as_deref();
        if !in_time || host.is_some_and(|host| decision["host"] != host) {
            continue;
        }
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
