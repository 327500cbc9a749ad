//! How a sandbox sleeps, wakes, starts anew and changes its size (contract 5.6 and 5.7), and its tags
//! (5.9).

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::WithKey;
use super::body::Json;
use super::error::{ApiError, ApiResult, to_the_end};
use super::projects::timestamp;
use super::sandboxes::render;
use super::{Api, REGION, WORKER};
use crate::actors::scaling::{Size, bounds};
use crate::actors::{Caller, Resized, Sandbox};
use crate::ids::SandboxId;

/// Routes below one sandbox.
pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/hibernate").route(web::post().to(hibernate)))
        .service(web::resource("/wake").route(web::post().to(wake)))
        .service(web::resource("/reboot").route(web::post().to(reboot)))
        .service(web::resource("/power-cycle").route(web::post().to(power_cycle)))
        .service(web::resource("/scale").route(web::post().to(scale)))
        .service(web::resource("/limits").route(web::put().to(limits)))
        .service(
            web::resource("/autoscale")
                .route(web::put().to(set_autoscale))
                .route(web::get().to(get_autoscale)),
        )
        .service(
            web::resource("/scaling-lock")
                .route(web::put().to(set_lock))
                .route(web::get().to(get_lock)),
        )
        .service(
            web::resource("/tags")
                .route(web::put().to(set_tags))
                .route(web::get().to(get_tags)),
        );
}

/// Routes of an organization.
pub(super) fn org_routes(config: &mut web::ServiceConfig) {
    config.service(web::resource("/tags").route(web::get().to(tag_keys)));
}

type Id = web::Path<String>;

/// A text that is no id names no sandbox.
fn parse(id: &Id) -> ApiResult<SandboxId> {
    id.parse().map_err(|_| ApiError::not_found("sandbox"))
}

async fn hibernate(api: web::Data<Api>, WithKey(caller): WithKey, id: Id) -> ApiResult {
    let id = parse(&id)?;
    let (platform, own) = (api.platform.clone(), id.clone());
    let sandbox =
        to_the_end(async move { platform.hibernate_sandbox(&caller, &own).await }).await?;
    let slept = sandbox.slept.as_ref();
    let slept = slept.ok_or_else(|| ApiError::internal("asleep without a record of it"))?;
    Ok(HttpResponse::Ok().json(json!({
        "sandboxID": id,
        "sandboxId": id,
        "status": "hibernated",
        "hibernationKey": slept.key,
        "sizeBytes": slept.size_bytes,
        "kept": slept.kept,
        "region": REGION,
        "template": sandbox.details.as_ref().map(|details| &details.template),
        "hibernatedAt": timestamp(Some(slept.at)),
    })))
}

#[derive(Deserialize)]
struct WakeBody {
    timeout: Option<i64>,
}

async fn wake(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: Id,
    Json(body): Json<WakeBody>,
) -> ApiResult {
    let id = parse(&id)?;
    let platform = api.platform.clone();
    let woken =
        to_the_end(async move { platform.wake_sandbox(&caller, &id, body.timeout).await }).await?;
    Ok(HttpResponse::Ok().json(render(&api, &woken, &caller)?))
}

async fn reboot(api: web::Data<Api>, WithKey(caller): WithKey, id: Id) -> ApiResult {
    start_anew(&api, caller, parse(&id)?, false).await
}

async fn power_cycle(api: web::Data<Api>, WithKey(caller): WithKey, id: Id) -> ApiResult {
    start_anew(&api, caller, parse(&id)?, true).await
}

async fn start_anew(api: &Api, caller: Caller, id: SandboxId, hard: bool) -> ApiResult {
    let platform = api.platform.clone();
    to_the_end(async move { platform.reboot_sandbox(&caller, &id, hard).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SizeBody {
    #[serde(rename = "memoryMB")]
    memory_mb: Option<i64>,
    cpu_percent: Option<i64>,
}

/// The answer to a change of size; the sandbox never moves to another worker.
fn resized(id: &SandboxId, resized: &Resized) -> HttpResponse {
    let size = resized.state.size();
    HttpResponse::Ok().json(json!({
        "sandboxID": id,
        "workerID": WORKER,
        "memoryMB": size.map(|size| size.memory_mb),
        "cpuPercent": size.map(|size| size.cpu_percent),
        "migrated": false,
        "ok": true,
        "autoscaleDisabled": resized.autoscale_disabled,
    }))
}

async fn scale(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: Id,
    Json(body): Json<SizeBody>,
) -> ApiResult {
    let id = parse(&id)?;
    // Whether it is there comes before what is asked of it.
    api.platform.get_sandbox(&caller, &id).await?;
    let memory_mb = body
        .memory_mb
        .ok_or_else(|| ApiError::bad_request("memoryMB is required"))?;
    let size = Size::tier(memory_mb)?;
    let (platform, own) = (api.platform.clone(), id.clone());
    let done = to_the_end(async move { platform.scale_sandbox(&caller, &own, size).await }).await?;
    Ok(resized(&id, &done))
}

async fn limits(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: Id,
    Json(body): Json<SizeBody>,
) -> ApiResult {
    let id = parse(&id)?;
    let (platform, own) = (api.platform.clone(), id.clone());
    let set = async move {
        platform
            .limit_sandbox(&caller, &own, body.memory_mb, body.cpu_percent)
            .await
    };
    Ok(resized(&id, &to_the_end(set).await?))
}

#[derive(Deserialize)]
struct AutoscaleBody {
    enabled: Option<bool>,
    #[serde(rename = "minMemoryMB")]
    min_memory_mb: Option<i64>,
    #[serde(rename = "maxMemoryMB")]
    max_memory_mb: Option<i64>,
}

fn autoscale(id: &SandboxId, sandbox: &Sandbox) -> HttpResponse {
    let bounds = sandbox.scaling.autoscale;
    HttpResponse::Ok().json(json!({
        "sandboxID": id,
        "enabled": bounds.is_some(),
        "minMemoryMB": bounds.map_or(0, |bounds| bounds.min_memory_mb),
        "maxMemoryMB": bounds.map_or(0, |bounds| bounds.max_memory_mb),
    }))
}

async fn set_autoscale(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: Id,
    Json(body): Json<AutoscaleBody>,
) -> ApiResult {
    let id = parse(&id)?;
    api.platform.get_sandbox(&caller, &id).await?;
    let bounds = match body.enabled {
        None => return Err(ApiError::bad_request("enabled is required")),
        Some(false) => None,
        Some(true) => Some(bounds(body.min_memory_mb, body.max_memory_mb)?),
    };
    let set = api.platform.set_autoscale(&caller, &id, bounds).await?;
    Ok(autoscale(&id, &set))
}

async fn get_autoscale(api: web::Data<Api>, WithKey(caller): WithKey, id: Id) -> ApiResult {
    let id = parse(&id)?;
    let sandbox = api.platform.get_sandbox(&caller, &id).await?;
    Ok(autoscale(&id, &sandbox))
}

#[derive(Deserialize)]
struct LockBody {
    locked: Option<bool>,
}

fn lock(id: &SandboxId, sandbox: &Sandbox) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "sandboxID": id, "locked": sandbox.scaling.locked }))
}

async fn set_lock(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: Id,
    Json(body): Json<LockBody>,
) -> ApiResult {
    let id = parse(&id)?;
    api.platform.get_sandbox(&caller, &id).await?;
    let locked = body
        .locked
        .ok_or_else(|| ApiError::bad_request("locked is required"))?;
    let set = api.platform.lock_scaling(&caller, &id, locked).await?;
    Ok(lock(&id, &set))
}

async fn get_lock(api: web::Data<Api>, WithKey(caller): WithKey, id: Id) -> ApiResult {
    let id = parse(&id)?;
    let sandbox = api.platform.get_sandbox(&caller, &id).await?;
    Ok(lock(&id, &sandbox))
}

fn tags(sandbox: &Sandbox) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "tags": sandbox.tags.all,
        "tagsLastUpdatedAt": timestamp(sandbox.tags.set_at),
    }))
}

async fn set_tags(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: Id,
    Json(body): Json<BTreeMap<String, Value>>,
) -> ApiResult {
    let id = parse(&id)?;
    api.platform.get_sandbox(&caller, &id).await?;
    let texts = body.into_iter().map(|(key, value)| match value {
        Value::String(value) => Ok((key, value)),
        _ => Err(ApiError::bad_request("a tag's value must be a string")),
    });
    let texts: BTreeMap<_, _> = texts.collect::<ApiResult<_>>()?;
    let set = api.platform.set_tags(&caller, &id, texts).await?;
    Ok(tags(&set))
}

async fn get_tags(api: web::Data<Api>, WithKey(caller): WithKey, id: Id) -> ApiResult {
    let sandbox = api.platform.get_sandbox(&caller, &parse(&id)?).await?;
    Ok(tags(&sandbox))
}

async fn tag_keys(api: web::Data<Api>, WithKey(caller): WithKey) -> ApiResult {
    let keys = api.platform.catalog().tags(&caller.org).into_iter();
    let keys: Vec<_> = keys
        .map(|(key, sandboxes, values)| {
            json!({ "key": key, "sandboxCount": sandboxes, "valueCount": values })
        })
        .collect();
    Ok(HttpResponse::Ok().json(json!({ "keys": keys })))
}
