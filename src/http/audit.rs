//! The audit trail: the organization's own events, in pages either way or as they come, each one in
//! full, and its objects as they were at any point.

use actix_web::http::StatusCode;
use actix_web::http::header::ACCEPT;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Api;
use super::audit_follow::{LAST_EVENT_ID, follow};
use super::auth::WithKey;
use super::error::{ApiError, ApiResult};
use crate::actors::trail::{self, BadFilter, Cursor, Filter};
use crate::actors::{Caller, HistoryError, Moment};
use crate::events::ReadError;

pub(super) const LIMIT_DEFAULT: usize = 50;
pub(super) const LIMIT_MAX: usize = 500;
const EVENT_STREAM: &str = "text/event-stream";

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/audit/events").route(web::get().to(events)))
        .service(web::resource("/audit/events/{event}").route(web::get().to(event)))
        .service(web::resource("/audit/state").route(web::get().to(state)));
}

/// A misspelt filter would show more than was asked for, so unknown parameters are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    limit: Option<usize>,
    before: Option<u64>,
    after: Option<u64>,
    entity: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    actor: Option<String>,
    from: Option<String>,
    to: Option<String>,
    follow: Option<bool>,
    // A credential may stand in the query of any route.
    #[serde(rename = "api_key")]
    _api_key: Option<IgnoredAny>,
    #[serde(rename = "token")]
    _token: Option<IgnoredAny>,
}

impl EventsQuery {
    fn filter(&self, caller: &Caller) -> ApiResult<Filter> {
        let filter = Filter {
            org: Some(caller.org),
            entity: self.entity.clone(),
            kind: self.kind.clone(),
            actor: self.actor.clone(),
            from: time_of("from", self.from.as_deref())?,
            to: time_of("to", self.to.as_deref())?,
        };
        filter.check()?;
        Ok(filter)
    }

    fn cursor(&self) -> ApiResult<Cursor> {
        match (self.before, self.after) {
            (Some(_), Some(_)) => Err(ApiError::bad_request(
                "before and after can't be given together",
            )),
            (_, Some(after)) => Ok(Cursor::After(after)),
            (before, None) => Ok(Cursor::Before(before)),
        }
    }

    /// Where a feed begins: behind the last event its client has had, or where it says.
    fn follow_after(&self, request: &HttpRequest) -> ApiResult<Option<u64>> {
        if self.limit.is_some() || self.before.is_some() || self.to.is_some() {
            return Err(ApiError::bad_request(
                "limit, before and to can't be given with follow",
            ));
        }
        let Some(had) = request.headers().get(LAST_EVENT_ID) else {
            return Ok(self.after);
        };
        let position = had.to_str().ok().and_then(|text| text.parse().ok());
        position
            .map(Some)
            .ok_or_else(|| ApiError::bad_request("Last-Event-ID must be a position"))
    }
}

pub(super) fn time_of(field: &str, text: Option<&str>) -> ApiResult<Option<OffsetDateTime>> {
    let Some(text) = text else { return Ok(None) };
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(Some)
        .map_err(|_| ApiError::bad_request(format!("{field} must be an RFC 3339 time")))
}

impl From<BadFilter> for ApiError {
    fn from(bad: BadFilter) -> Self {
        Self::bad_request(bad.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        Self::internal(error)
    }
}

impl From<HistoryError> for ApiError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::NotFound => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            HistoryError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            HistoryError::Read(error) => error.into(),
        }
    }
}

async fn events(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    query: web::Query<EventsQuery>,
    request: HttpRequest,
) -> ApiResult {
    let (filter, cursor) = (query.filter(&caller)?, query.cursor()?);
    if query.follow.unwrap_or_else(|| accepts_events(&request)) {
        let mut after = query.follow_after(&request)?;
        if let (None, Some(from)) = (after, filter.from) {
            let earlier = from - time::Duration::NANOSECOND;
            after = Some(api.platform.log().position_at(earlier).await?);
        }
        return follow(&api, caller, filter, after);
    }
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!(
            "limit must be between 1 and {LIMIT_MAX}"
        )));
    }
    let page = trail::page(api.platform.log(), &filter, cursor, limit).await?;
    let events: Vec<_> = page
        .events
        .iter()
        .map(|event| trail::render(event))
        .collect();
    Ok(HttpResponse::Ok().json(match cursor {
        Cursor::Before(_) => json!({ "events": events, "nextBefore": page.next }),
        Cursor::After(_) => json!({ "events": events, "nextAfter": page.next }),
    }))
}

fn accepts_events(request: &HttpRequest) -> bool {
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|types| {
        types
            .split(',')
            .any(|kind| kind.split(';').next().unwrap_or(kind).trim() == EVENT_STREAM)
    })
}

/// One event in full, by its position or its id.
async fn event(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<String>,
) -> ApiResult {
    let (log, scope) = (api.platform.log(), Filter::of(Some(caller.org)));
    let found = if let Ok(position) = path.parse() {
        trail::at(log, &scope, position).await?
    } else if let Ok(id) = path.parse() {
        trail::find(log, &scope, id).await?
    } else {
        return Err(ApiError::bad_request(
            "an event is named by its position or its id",
        ));
    };
    let event = found.ok_or_else(|| ApiError::not_found("event"))?;
    let link = log.commit_link(event.position).await?;
    let link = link.ok_or_else(|| ApiError::internal("an event's commit is missing"))?;
    Ok(HttpResponse::Ok().json(trail::render_whole(&event, &link)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateQuery {
    at: Option<String>,
    entity: Option<String>,
    // A credential may stand in the query of any route.
    #[serde(rename = "api_key")]
    _api_key: Option<IgnoredAny>,
    #[serde(rename = "token")]
    _token: Option<IgnoredAny>,
}

/// The organization's objects as they were.
async fn state(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    query: web::Query<StateQuery>,
) -> ApiResult {
    let at = query
        .at
        .as_deref()
        .ok_or_else(|| ApiError::bad_request("at is required: a position or an RFC 3339 time"))?;
    let at: Moment = at
        .parse()
        .map_err(|bad| ApiError::bad_request(format!("{bad}")))?;
    let filter = Filter {
        entity: query.entity.clone(),
        ..Filter::of(Some(caller.org))
    };
    filter.check()?;
    let history = &api.audit.history;
    let state = history
        .state(filter.org, at, filter.entity.as_deref())
        .await?;
    Ok(HttpResponse::Ok().json(state))
}
