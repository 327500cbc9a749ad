//! The API keys of an organization, for who may manage them.
//!
//! A key's text is in the one answer to its making and nowhere else; its hash is never shown.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::Api;
use super::auth::{WithAdmin, WithKey};
use super::body::Json;
use super::error::{ApiError, ApiResult, to_the_end};
use super::projects::timestamp;
use crate::actors::{NewKey, OrgKey, org_key};
use crate::events::families::{KeyTarget, Scope};
use crate::ids::{KeyId, OrgId};

/// Longest life of a key that ends, in seconds (about 68 years).
const LIFE_SEC_MAX: i64 = i32::MAX as i64;
/// Longest name of a key or an organization, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// A new key's text: 256 random bits.
pub(super) fn new_key() -> String {
    format!("osb_{}", hex::encode(rand::random::<[u8; 32]>()))
}

/// Whether this can be the text of a key.
pub(super) fn is_key(text: &str) -> bool {
    let hex = text.strip_prefix("osb_");
    hex.is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/keys")
                .route(web::get().to(list))
                .route(web::post().to(create)),
        )
        .service(web::resource("/keys/{key}").route(web::delete().to(revoke)));
}

/// The route by which a command line that leaves takes its own key away (contract, route 5).
pub(super) fn login_routes(config: &mut web::ServiceConfig) {
    config.service(web::resource("/auth/cli/credential").route(web::delete().to(leave)));
}

async fn leave(api: web::Data<Api>, WithKey(caller): WithKey) -> ApiResult {
    let (platform, key) = (api.platform.clone(), caller.key);
    if let Some(key) = key {
        to_the_end(async move { platform.revoke_key(&caller.org, key, Some(key)).await }).await?;
    }
    Ok(HttpResponse::NoContent().finish())
}

/// What a key is asked to be.
///
/// A field that is not known is refused: a restriction that was misspelt would make a stronger key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KeyBody {
    name: Option<String>,
    scope: Option<String>,
    sandbox_id: Option<String>,
    /// Name or id.
    project: Option<String>,
    /// Seconds.
    expires_in: Option<i64>,
    requests_per_sec: Option<i64>,
}

impl KeyBody {
    fn read(self, api: &Api, org: &OrgId) -> ApiResult<NewKey> {
        let catalog = api.platform.catalog();
        let target = match (self.sandbox_id, self.project) {
            (None, None) => None,
            (Some(id), None) => {
                let missing = || ApiError::not_found("sandbox");
                let id = id.parse().map_err(|_| missing())?;
                let sandbox = catalog.sandbox(&id).ok_or_else(missing)?;
                sandbox.visible_to(org)?;
                Some(KeyTarget::Sandbox(id))
            }
            (None, Some(name)) => {
                let project = catalog.find_project(org, &name);
                let project = project.ok_or_else(|| ApiError::not_found("project"))?;
                Some(KeyTarget::Project(project.project_id))
            }
            (Some(_), Some(_)) => {
                let text = "sandboxId and project can't both be given";
                return Err(ApiError::bad_request(text));
            }
        };
        let scope = match self.scope.as_deref() {
            None | Some("write") => Scope::Write,
            Some("read") => Scope::Read,
            Some("admin") if target.is_none() => Scope::Admin,
            Some("admin") => {
                let text = "a key for one sandbox or project can't manage keys";
                return Err(ApiError::bad_request(text));
            }
            Some(_) => return Err(ApiError::bad_request("scope must be read, write or admin")),
        };
        let expires_at = match self.expires_in {
            None => None,
            Some(life @ 1..=LIFE_SEC_MAX) => {
                Some(OffsetDateTime::now_utc() + Duration::seconds(life))
            }
            Some(_) => {
                let text = format!("expiresIn must be 1 to {LIFE_SEC_MAX} seconds");
                return Err(ApiError::bad_request(text));
            }
        };
        let rate = match self.requests_per_sec {
            None => None,
            Some(rate) => match u32::try_from(rate) {
                Ok(rate @ 1..) => Some(rate),
                _ => {
                    let text = "requestsPerSec must be a positive 32-bit number";
                    return Err(ApiError::bad_request(text));
                }
            },
        };
        Ok(NewKey {
            name: name(self.name)?,
            scope,
            target,
            expires_at,
            rate,
        })
    }
}

pub(super) fn name(given: Option<String>) -> ApiResult<String> {
    match given.filter(|name| !name.is_empty()) {
        None => Err(ApiError::bad_request("name is required")),
        Some(name) if name.len() > NAME_BYTES_MAX => {
            let text = format!("name must not exceed {NAME_BYTES_MAX} bytes");
            Err(ApiError::bad_request(text))
        }
        Some(name) if name.chars().any(char::is_control) => Err(ApiError::bad_request(
            "name must not have control characters",
        )),
        Some(name) => Ok(name),
    }
}

fn render(api: &Api, key: &OrgKey) -> Value {
    let mut shown = org_key(key);
    if let Some(at) = api.admission.last_used(&key.made.key_id) {
        shown["lastUsedAt"] = json!(timestamp(Some(at)));
    }
    shown
}

pub(super) fn keys(api: &Api, org: &OrgId) -> ApiResult {
    let org = api.platform.catalog().org(org);
    let org = org.ok_or_else(|| ApiError::not_found("organization"))?;
    let keys: Vec<_> = org.keys.iter().map(|key| render(api, key)).collect();
    Ok(HttpResponse::Ok().json(keys))
}

pub(super) async fn make(
    api: web::Data<Api>,
    org: OrgId,
    body: KeyBody,
    by: Option<KeyId>,
) -> ApiResult {
    let new = body.read(&api, &org)?;
    let text = Zeroizing::new(new_key());
    let (platform, recorded) = (api.platform.clone(), text.clone());
    let made = async move { platform.add_key(&org, new, &recorded, by).await };
    let made = to_the_end(made).await?;
    let key = OrgKey {
        made,
        revoked_at: None,
    };
    let mut reply = render(&api, &key);
    reply["key"] = json!(*text);
    Ok(HttpResponse::Created().json(reply))
}

pub(super) async fn end(api: &Api, org: OrgId, key: &str, by: Option<KeyId>) -> ApiResult {
    let id = key.parse().map_err(|_| ApiError::not_found("key"))?;
    let platform = api.platform.clone();
    to_the_end(async move { platform.revoke_key(&org, id, by).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn list(api: web::Data<Api>, WithAdmin(caller): WithAdmin) -> ApiResult {
    keys(&api, &caller.org)
}

async fn create(
    api: web::Data<Api>,
    WithAdmin(caller): WithAdmin,
    Json(body): Json<KeyBody>,
) -> ApiResult {
    make(api, caller.org, body, caller.key).await
}

async fn revoke(
    api: web::Data<Api>,
    WithAdmin(caller): WithAdmin,
    key: web::Path<String>,
) -> ApiResult {
    end(&api, caller.org, &key, caller.key).await
}
