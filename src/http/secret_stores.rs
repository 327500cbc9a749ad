//! Secret stores and their entries (contract section 7).

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::auth::WithKey;
use super::body::Json;
use super::error::{ApiError, ApiResult, to_the_end};
use super::idempotency::{Create, created};
use super::projects::{SecretBody, revoked_reply, set_reply, timestamp};
use crate::actors::SecretStore;
use crate::ids::{OrgId, StoreId};

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/secret-stores")
                .route(web::get().to(list))
                .route(web::post().to(create)),
        )
        .service(
            web::resource("/secret-stores/{id}")
                .route(web::get().to(get))
                .route(web::put().to(update))
                .route(web::delete().to(delete)),
        )
        .service(web::resource("/secret-stores/{id}/secrets").route(web::get().to(list_secrets)))
        .service(
            web::resource("/secret-stores/{id}/secrets/{name}")
                .route(web::put().to(set_secret))
                .route(web::delete().to(delete_secret)),
        )
        .service(
            web::resource("/secret-stores/{id}/secrets/{name}/revoke")
                .route(web::post().to(revoke_secret)),
        );
}

/// Create and update take the same fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    name: Option<String>,
    egress_allowlist: Option<Vec<String>>,
}

fn render(store: &SecretStore, org: &OrgId) -> ApiResult<Value> {
    let details = store.visible_to(org)?;
    Ok(json!({
        "id": details.store_id,
        "orgId": details.org_id,
        "name": details.name,
        "egressAllowlist": details.egress_allowlist,
        "createdAt": timestamp(Some(details.at)),
        "updatedAt": timestamp(store.updated_at),
    }))
}

fn parse_id(text: &str) -> ApiResult<StoreId> {
    text.parse()
        .map_err(|_| ApiError::bad_request("invalid store ID"))
}

async fn list(api: web::Data<Api>, WithKey(caller): WithKey) -> ApiResult {
    let rows = api.platform.catalog().stores(&caller.org);
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
        .create_store(&caller, body.name, body.egress_allowlist, keyed.as_ref())
        .await?;
    Ok(created(&render(&made.state, &caller.org)?, made.replayed))
}

async fn get(api: web::Data<Api>, WithKey(caller): WithKey, id: web::Path<String>) -> ApiResult {
    let store = api.platform.get_store(&caller, &parse_id(&id)?).await?;
    Ok(HttpResponse::Ok().json(render(&store, &caller.org)?))
}

async fn update(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
    Json(given): Json<Settings>,
) -> ApiResult {
    let id = parse_id(&id)?;
    let store = api
        .platform
        .update_store(&caller, &id, given.name, given.egress_allowlist)
        .await?;
    Ok(HttpResponse::Ok().json(render(&store, &caller.org)?))
}

async fn delete(api: web::Data<Api>, WithKey(caller): WithKey, id: web::Path<String>) -> ApiResult {
    let (platform, id) = (api.platform.clone(), parse_id(&id)?);
    to_the_end(async move { platform.delete_store(&caller, &id).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn list_secrets(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
) -> ApiResult {
    let id = parse_id(&id)?;
    let store = api.platform.get_store(&caller, &id).await?;
    let entries: Vec<_> = store
        .secrets
        .iter()
        .map(|(name, secret)| {
            let mut entry = json!({
                "id": secret.id,
                "storeId": id,
                "name": name,
                "allowedHosts": secret.allowed_hosts,
                "createdAt": timestamp(Some(secret.created_at)),
                "updatedAt": timestamp(Some(secret.updated_at)),
            });
            if let Some(placement) = &secret.placement {
                entry["placement"] = json!(placement);
            }
            entry
        })
        .collect();
    Ok(HttpResponse::Ok().json(entries))
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
    to_the_end(async move { platform.set_store_secret(&caller, &id, new).await }).await?;
    Ok(HttpResponse::Ok().json(set_reply(&name, warning)))
}

async fn delete_secret(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let (id, name) = path.into_inner();
    api.platform
        .delete_store_secret(&caller, &parse_id(&id)?, name)
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
    let work = async move { platform.revoke_store_secret(&caller, &id, own).await };
    let everywhere = to_the_end(work).await?;
    Ok(HttpResponse::Ok().json(revoked_reply(&name, everywhere)))
}
