//! Projects and their secrets (contract section 6).

use actix_web::{HttpResponse, web};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

use super::Api;
use super::auth::WithKey;
use super::body::Json;
use super::error::{ApiError, ApiResult, to_the_end};
use super::idempotency::{Create, created};
use crate::actors::{NewSecret, Project, ProjectSettings};
use crate::events::families::SecretPlacement;
use crate::ids::{OrgId, ProjectId};
use crate::proxy::{
    RESEAL_BITS_MIN, RESEAL_DISTINCT_BYTES_MIN, RESEAL_VALUE_BYTES_MIN, reseal_possible,
};
use crate::secret::SecretValue;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/projects")
                .route(web::get().to(list))
                .route(web::post().to(create)),
        )
        .service(
            web::resource("/projects/{id}")
                .route(web::get().to(get))
                .route(web::put().to(update))
                .route(web::delete().to(delete)),
        )
        .service(web::resource("/projects/{id}/secrets").route(web::get().to(list_secrets)))
        .service(
            web::resource("/projects/{id}/secrets/{name}")
                .route(web::put().to(set_secret))
                .route(web::delete().to(delete_secret)),
        )
        .service(
            web::resource("/projects/{id}/secrets/{name}/revoke")
                .route(web::post().to(revoke_secret)),
        );
}

/// Create and update take the same fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    name: Option<String>,
    template: Option<String>,
    cpu_count: Option<i64>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<i64>,
    timeout_sec: Option<i64>,
    egress_allowlist: Option<Vec<String>>,
}

impl From<Settings> for ProjectSettings {
    fn from(given: Settings) -> Self {
        Self {
            name: given.name,
            template: given.template,
            cpu_count: given.cpu_count,
            memory_mb: given.memory_mb,
            timeout_sec: given.timeout_sec,
            egress_allowlist: given.egress_allowlist,
        }
    }
}

/// A secret's value, the hosts that may receive it, and where in requests to them it may stand.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecretBody {
    pub(super) value: Option<SecretValue>,
    #[serde(default)]
    pub(super) allowed_hosts: Option<Vec<String>>,
    #[serde(default, deserialize_with = "placement")]
    pub(super) placement: Option<SecretPlacement>,
}

/// An object or nothing: serde would read a list as the values of the fields in their order.
fn placement<'de, D: Deserializer<'de>>(given: D) -> Result<Option<SecretPlacement>, D::Error> {
    let fields = Option::<Map<String, Value>>::deserialize(given)?;
    let read = |fields| serde_json::from_value(Value::Object(fields)).map_err(D::Error::custom);
    fields.map(read).transpose()
}

impl SecretBody {
    pub(super) fn named(self, name: String) -> NewSecret {
        NewSecret {
            name,
            value: self.value.unwrap_or_else(|| SecretValue::new(Vec::new())),
            allowed_hosts: self.allowed_hosts.unwrap_or_default(),
            placement: self.placement,
        }
    }

    /// What the owner of a secret should know of its value.
    pub(super) fn warning(&self) -> Option<String> {
        let value = self.value.as_ref()?.expose();
        (!value.is_empty() && !reseal_possible(value)).then(|| {
            format!(
                "this value is too easy to guess to be searched for in answers (fewer than \
                 {RESEAL_VALUE_BYTES_MIN} bytes, {RESEAL_DISTINCT_BYTES_MIN} distinct ones or about \
                 {RESEAL_BITS_MIN} bits): a host that echoes it shows it to the sandbox"
            )
        })
    }
}

/// The answer to a secret that was set; all strings, as clients expect.
pub(super) fn set_reply(name: &str, warning: Option<String>) -> Value {
    let mut reply = json!({ "name": name, "status": "set" });
    if let Some(warning) = warning {
        reply["warning"] = json!(warning);
    }
    reply
}

/// The answer to a secret that was revoked.
pub(super) fn revoked_reply(name: &str, everywhere: bool) -> Value {
    let status = if everywhere { "revoked" } else { "pending" };
    json!({ "name": name, "status": status })
}

/// A time as clients read it; times in the log are always within RFC 3339's range.
pub(super) fn timestamp(at: Option<time::OffsetDateTime>) -> Option<String> {
    at.and_then(|at| at.format(&Rfc3339).ok())
}

fn render(project: &Project, org: &OrgId) -> ApiResult<Value> {
    let details = project.visible_to(org)?;
    Ok(json!({
        "id": details.project_id,
        "orgId": details.org_id,
        "name": details.name,
        "template": details.template,
        "cpuCount": details.cpu_count,
        "memoryMB": details.memory_mb,
        "timeoutSec": details.timeout_sec,
        "egressAllowlist": details.egress_allowlist,
        "createdAt": timestamp(Some(details.at)),
        "updatedAt": timestamp(project.updated_at),
    }))
}

fn parse_id(text: &str) -> ApiResult<ProjectId> {
    text.parse()
        .map_err(|_| ApiError::bad_request("invalid project ID"))
}

async fn list(api: web::Data<Api>, WithKey(caller): WithKey) -> ApiResult {
    let rows = api.platform.catalog().projects(&caller.org);
    let rows: Result<Vec<_>, _> = rows.iter().map(|row| render(row, &caller.org)).collect();
    Ok(HttpResponse::Ok().json(rows?))
}

async fn create(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    Create { body, keyed }: Create<Settings>,
) -> ApiResult {
    let made = api
        .platform
        .create_project(&caller, body.into(), keyed.as_ref())
        .await?;
    Ok(created(&render(&made.state, &caller.org)?, made.replayed))
}

async fn get(api: web::Data<Api>, WithKey(caller): WithKey, id: web::Path<String>) -> ApiResult {
    let project = api.platform.get_project(&caller, &parse_id(&id)?).await?;
    Ok(HttpResponse::Ok().json(render(&project, &caller.org)?))
}

async fn update(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
    Json(settings): Json<Settings>,
) -> ApiResult {
    let id = parse_id(&id)?;
    let project = api
        .platform
        .update_project(&caller, &id, settings.into())
        .await?;
    Ok(HttpResponse::Ok().json(render(&project, &caller.org)?))
}

async fn delete(api: web::Data<Api>, WithKey(caller): WithKey, id: web::Path<String>) -> ApiResult {
    let (platform, id) = (api.platform.clone(), parse_id(&id)?);
    to_the_end(async move { platform.delete_project(&caller, &id).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn list_secrets(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
) -> ApiResult {
    let project = api.platform.get_project(&caller, &parse_id(&id)?).await?;
    let names: Vec<_> = project.secrets.iter().map(|(name, _)| name).collect();
    Ok(HttpResponse::Ok().json(names))
}

async fn set_secret(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
    Json(body): Json<SecretBody>,
) -> ApiResult {
    let (id, name) = path.into_inner();
    let id = parse_id(&id)?;
    let warning = body.warning();
    let (platform, new) = (api.platform.clone(), body.named(name.clone()));
    to_the_end(async move { platform.set_project_secret(&caller, &id, new).await }).await?;
    Ok(HttpResponse::Ok().json(set_reply(&name, warning)))
}

async fn delete_secret(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let (id, name) = path.into_inner();
    api.platform
        .delete_project_secret(&caller, &parse_id(&id)?, name)
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn revoke_secret(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let (id, name) = path.into_inner();
    let (platform, id, own) = (api.platform.clone(), parse_id(&id)?, name.clone());
    let work = async move { platform.revoke_project_secret(&caller, &id, own).await };
    let everywhere = to_the_end(work).await?;
    Ok(HttpResponse::Ok().json(revoked_reply(&name, everywhere)))
}
