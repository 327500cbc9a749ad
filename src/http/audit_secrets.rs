//! Which secret went where, when, from which sandbox and how often.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::Api;
use super::audit::{LIMIT_DEFAULT, LIMIT_MAX, time_of};
use super::auth::WithKey;
use super::error::{ApiError, ApiResult};
use crate::actors::Caller;
use crate::actors::trail::{self, Cursor, Wanted};

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(web::resource("/audit/secrets").route(web::get().to(secrets)));
}

/// A misspelt filter would show more than was asked for, so unknown parameters are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretsQuery {
    limit: Option<usize>,
    before: Option<u64>,
    after: Option<u64>,
    secret: Option<String>,
    sandbox: Option<String>,
    host: Option<String>,
    from: Option<String>,
    to: Option<String>,
    // A credential may stand in the query of any route.
    #[serde(rename = "api_key")]
    _api_key: Option<IgnoredAny>,
    #[serde(rename = "token")]
    _token: Option<IgnoredAny>,
}

impl SecretsQuery {
    fn wanted(&self, caller: &Caller) -> ApiResult<Wanted> {
        let sandbox = self.sandbox.as_deref().map(str::parse).transpose();
        let host = self.host.as_deref();
        Ok(Wanted {
            org: Some(caller.org),
            secret: self.secret.clone(),
            sandbox: sandbox.map_err(|_| ApiError::bad_request("invalid sandbox ID"))?,
            host: host.map(|host| host.trim_end_matches('.').to_ascii_lowercase()),
            from: time_of("from", self.from.as_deref())?,
            to: time_of("to", self.to.as_deref())?,
        })
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
}

async fn secrets(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    query: web::Query<SecretsQuery>,
) -> ApiResult {
    let (wanted, cursor) = (query.wanted(&caller)?, query.cursor()?);
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!(
            "limit must be between 1 and {LIMIT_MAX}"
        )));
    }
    let found = trail::uses(api.platform.log(), &wanted, cursor, limit).await?;
    Ok(HttpResponse::Ok().json(match cursor {
        Cursor::Before(_) => json!({ "uses": found.uses, "nextBefore": found.next }),
        Cursor::After(_) => json!({ "uses": found.uses, "nextAfter": found.next }),
    }))
}
