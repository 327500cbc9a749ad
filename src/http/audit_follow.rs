//! The audit trail as server-sent events.
//!
//! ```text
//! retry: 2000
//!
//! id: 17
//! data: {"position":17,"type":"project.created.v1",…}
//!
//! :
//! id: 23
//! ```
//!
//! `id` is the event's position, so that a client that comes back with `Last-Event-ID` goes on
//! behind what it has had: no gap, no double. One without data, after a silence, says how far the
//! feed has looked in vain, so that this needs no second look. A feed holds its place in the log and one page of
//! events; it is read only as fast as its client takes it, so a slow client delays nobody but
//! itself. Feeds end when the server is told to stop; a client comes back by itself.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{CACHE_CONTROL, HeaderName};
use actix_web::web::{self, Bytes};
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::error::{ApiError, ApiResult};
use super::feeds::{Feeds, Place};
use crate::actors::trail::{self, Filter, Follow};
use crate::actors::{Caller, History};
use crate::events::{EventLog, Recorded};

/// Where a client that comes back says what it has had.
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Longest silence: edge proxies cut connections that are idle for longer, and a client that went
/// away shows when it is written to.
const HEARTBEAT: Duration = match cfg!(test) {
    true => Duration::from_millis(50),
    false => Duration::from_secs(15),
};
/// What a feed of it is refused with.
const TRAIL: &str = "the audit trail";
/// What a client waits before it comes back, milliseconds.
const RETRY_MS: u32 = 2_000;

/// What the audit routes share.
pub struct Audit {
    pub(super) history: History,
    feeds: Feeds,
    stopping: CancellationToken,
}

impl Audit {
    /// For the routes on `log`; feeds end when `stopping` is cancelled.
    pub fn new(log: EventLog, stopping: CancellationToken) -> Self {
        Self {
            history: History::new(log),
            feeds: Feeds::default(),
            stopping,
        }
    }
}

/// A feed on its way to a client.
struct Feed {
    follow: Follow,
    /// Whether its reader may still read.
    admitted: Box<dyn Fn() -> bool>,
    stopping: CancellationToken,
    _place: Place,
}

impl Feed {
    /// What is sent next; `None` ends the feed.
    async fn next(&mut self) -> Option<Bytes> {
        let next = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return None,
            next = tokio::time::timeout(HEARTBEAT, self.follow.next()) => next,
        };
        if !(self.admitted)() {
            return None;
        }
        match next {
            Err(_) => Some(heartbeat(self.follow.looked_at())),
            Ok(Ok(event)) => Some(message(&event)),
            Ok(Err(error)) => {
                tracing::info!(%error, "a feed of the audit trail ends");
                None
            }
        }
    }
}

/// Clients note an id without data and show nothing.
fn heartbeat(looked_at: u64) -> Bytes {
    Bytes::from(format!(":\nid: {looked_at}\n\n"))
}

fn message(event: &Recorded) -> Bytes {
    // JSON text has no line break in it.
    let (position, data) = (event.position, trail::render(event));
    Bytes::from(format!("id: {position}\ndata: {data}\n\n"))
}

/// The events behind `after` (`None`: from now on) that `filter` takes, as they come.
pub(super) fn follow(
    api: &web::Data<Api>,
    caller: Caller,
    filter: Filter,
    after: Option<u64>,
) -> ApiResult {
    let Some(org) = filter.org else {
        return Err(ApiError::internal("a feed without an organization"));
    };
    let feed = Feed {
        _place: api.audit.feeds.place(org, TRAIL)?,
        stopping: api.audit.stopping.clone(),
        follow: Follow::new(api.platform.log(), filter, after),
        admitted: Box::new({
            let api = api.clone();
            move || api.still_valid(&caller)
        }),
    };
    let greeting = Bytes::from(format!("retry: {RETRY_MS}\n\n"));
    let body = stream::unfold((Some(greeting), feed), |(greeting, mut feed)| async move {
        let chunk = match greeting {
            Some(greeting) => greeting,
            None => feed.next().await?,
        };
        Some((Ok::<_, ApiError>(chunk), (None, feed)))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((HeaderName::from_static("x-accel-buffering"), "no"))
        .streaming(body))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use ulid::Ulid;

    use super::*;
    use crate::events::{Actor, Append, NewEvent, StreamId};
    use crate::ids::OrgId;

    /// Goal: a feed that had nothing to show says how far it has looked, so that its client goes on
    /// from there; what it shows afterwards comes as ever.
    #[tokio::test]
    async fn a_heartbeat_says_how_far_the_feed_has_looked() {
        let log = EventLog::in_memory();
        let (own, other) = (OrgId::generate(), OrgId::generate());
        let note = async |org: OrgId| {
            let append = Append {
                command: Ulid::generate(),
                expected: Vec::new(),
                events: vec![NewEvent {
                    id: Ulid::generate(),
                    stream: StreamId::of("project", org),
                    kind: "project.created.v1".into(),
                    data: json!({}),
                }],
                actor: Actor::api(org, None),
                correlation: None,
                causation: None,
            };
            log.append(append).await.expect("appended");
        };
        let audit = Audit::new(log.clone(), CancellationToken::new());
        let mut feed = Feed {
            _place: audit.feeds.place(own, TRAIL).expect("a place"),
            stopping: CancellationToken::new(),
            follow: Follow::new(&log, Filter::of(Some(own)), Some(0)),
            admitted: Box::new(|| true),
        };
        for _ in 0..3 {
            note(other).await;
        }
        assert_eq!(feed.next().await.as_deref(), Some(&b":\nid: 3\n\n"[..]));
        note(own).await;
        let shown = feed.next().await.expect("an event");
        assert!(shown.starts_with(b"id: 4\ndata: {"), "{shown:?}");
    }
}
