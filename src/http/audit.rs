//! The audit trail: the organization's own events, newest first, and the proof of the whole log.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::auth::WithKey;
use super::error::{ApiError, ApiResult};
use super::projects::timestamp;
use crate::actors::Caller;
use crate::events::Recorded;

const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 500;
/// Events read from the log at a time.
const PAGE_EVENTS: usize = 500;
/// Most events looked at for one reply; the cursor goes on from there.
const SCAN_MAX: usize = 50_000;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/audit/events").route(web::get().to(events)))
        .service(web::resource("/audit/verify").route(web::post().to(verify)));
}

#[derive(Deserialize)]
struct EventsQuery {
    limit: Option<usize>,
    before: Option<u64>,
    entity: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl EventsQuery {
    /// The organization's own events, of the asked entity and type. `entity` is a stream or the id
    /// at its end; `type` is a type with or without its version, or a prefix that ends in a dot.
    fn takes(&self, event: &Recorded, caller: &Caller) -> bool {
        let stream = event.stream.as_str();
        let entity = self.entity.as_deref().is_none_or(|entity| {
            stream == entity || event.stream.parts().is_some_and(|(_, id)| id == entity)
        });
        let kind = self.kind.as_deref().is_none_or(|kind| {
            let rest = event.kind.strip_prefix(kind);
            rest.is_some_and(|rest| {
                rest.is_empty() || kind.ends_with('.') || rest.starts_with(".v")
            })
        });
        event.actor.org == Some(caller.org) && entity && kind
    }
}

async fn events(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    query: web::Query<EventsQuery>,
) -> ApiResult {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!(
            "limit must be between 1 and {LIMIT_MAX}"
        )));
    }
    let (mut before, mut found, mut scanned) = (query.before, Vec::new(), 0);
    let next = loop {
        let log = api.platform.log();
        let page = log
            .read_all_backwards(before, PAGE_EVENTS)
            .await
            .map_err(ApiError::internal)?;
        let Some(last) = page.last() else { break None };
        scanned += page.len();
        before = Some(last.position);
        let takes = |event: &&Arc<Recorded>| query.takes(event, &caller);
        found.extend(
            page.iter()
                .filter(takes)
                .take(limit - found.len())
                .map(|event| render(event)),
        );
        if found.len() == limit {
            break found
                .last()
                .and_then(|event: &Value| event["position"].as_u64());
        }
        if scanned >= SCAN_MAX {
            break before;
        }
    };
    Ok(HttpResponse::Ok().json(json!({ "events": found, "nextBefore": next })))
}

fn render(event: &Recorded) -> Value {
    json!({
        "position": event.position,
        "commit": event.commit,
        "id": event.id,
        "stream": event.stream,
        "revision": event.revision,
        "type": event.kind,
        "recordedAt": timestamp(Some(event.recorded_at)),
        "actor": { "kind": event.actor.kind, "org": event.actor.org, "key": event.actor.key },
        "data": serde_json::from_str(event.data.get()).map(without_ciphertexts).ok(),
    })
}

/// The trail tells that a value was sealed, not its ciphertext: nobody can use that here, and it
/// would hide what matters. Exports for verification have every byte.
fn without_ciphertexts(data: Value) -> Value {
    match data {
        Value::Object(fields) if fields.contains_key("ciphertext") => json!("(sealed)"),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, without_ciphertexts(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_ciphertexts).collect(),
        other => other,
    }
}

async fn verify(api: web::Data<Api>, WithKey(_): WithKey) -> ApiResult {
    Ok(match api.platform.log().verify().await {
        Ok(report) => HttpResponse::Ok().json(json!({
            "ok": true,
            "commits": report.commits,
            "positions": report.events,
            "chain": hex::encode(report.head.chain),
        })),
        Err(error) => HttpResponse::Ok().json(json!({ "ok": false, "error": error.to_string() })),
    })
}
