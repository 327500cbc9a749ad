//! Checkpoints, forks and patches (contract sections 11 and 12), and where a sandbox comes from.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::auth::WithKey;
use super::body::Json;
use super::error::{ApiError, ApiResult, to_the_end};
use super::idempotency::{Create, created};
use super::projects::timestamp;
use super::sandboxes::render;
use crate::actors::{Checkpoint, CheckpointPhase, ForkSandbox, NewCheckpoint, Retention, Sandbox};
use crate::events::families::{CheckpointKind, LayerKind, PatchAdded};
use crate::ids::{CheckpointId, SandboxId};

/// Routes of an organization.
pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/sandboxes/from-checkpoint/{checkpoint}").route(web::post().to(fork)),
        )
        .service(
            web::resource("/sandboxes/checkpoints/{checkpoint}/diff/{other}")
                .route(web::get().to(diff)),
        )
        .service(
            web::resource("/sandboxes/checkpoints/{checkpoint}/publish")
                .route(web::post().to(publish)),
        )
        .service(
            web::resource("/sandboxes/checkpoints/{checkpoint}/unpublish")
                .route(web::post().to(unpublish)),
        )
        .service(
            web::resource("/sandboxes/checkpoints/{checkpoint}/patches")
                .route(web::post().to(add_patch))
                .route(web::get().to(list_patches)),
        )
        .service(
            web::resource("/sandboxes/checkpoints/{checkpoint}/patches/{patch}")
                .route(web::delete().to(delete_patch)),
        );
}

/// Routes below one sandbox.
pub(super) fn sandbox_routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/checkpoints")
                .route(web::post().to(create))
                .route(web::get().to(list)),
        )
        .service(web::resource("/checkpoints/{checkpoint}").route(web::delete().to(delete)))
        .service(web::resource("/checkpoints/{checkpoint}/restore").route(web::post().to(restore)))
        .service(web::resource("/lineage").route(web::get().to(lineage)));
}

/// A text that is no id names no sandbox.
fn sandbox_id(text: &str) -> ApiResult<SandboxId> {
    text.parse().map_err(|_| ApiError::not_found("sandbox"))
}

fn checkpoint_id(text: &str) -> ApiResult<CheckpointId> {
    text.parse()
        .map_err(|_| ApiError::bad_request("invalid checkpoint ID"))
}

/// The checkpoint object (contract 11.1).
fn object(checkpoint: &Checkpoint) -> ApiResult<Value> {
    let details = checkpoint.details.as_ref();
    let details = details.ok_or_else(|| ApiError::not_found("checkpoint"))?;
    let config = &details.config;
    let layer = |kind| {
        let mut layers = config.layers.iter().rev();
        layers
            .find(|layer| layer.kind == kind)
            .map(|layer| &layer.name)
    };
    let mut settings = json!({
        "template": config.template,
        "cpuCount": config.cpu_count,
        "memoryMB": config.memory_mb,
        "diskMB": config.disk_mb,
        "timeout": config.timeout_sec,
        "metadata": config.metadata,
    });
    for (field, name) in [
        ("secretStore", layer(LayerKind::Store)),
        ("project", layer(LayerKind::Project)),
    ] {
        if let Some(name) = name {
            settings[field] = json!(name);
        }
    }
    let mut object = json!({
        "id": details.checkpoint_id,
        "sandboxId": config.sandbox_id,
        "orgId": details.org_id,
        "name": details.name,
        "kind": details.kind,
        "status": checkpoint.status(),
        "sandboxConfig": settings,
        "sizeBytes": checkpoint.size_bytes,
        "pausedMs": checkpoint.paused_us as f64 / 1000.0,
        "isPublic": checkpoint.public,
        "createdAt": timestamp(Some(details.at)),
    });
    if let CheckpointPhase::Failed(reason) = &checkpoint.phase {
        object["errorMsg"] = json!(reason);
        object["failedAt"] = json!(timestamp(checkpoint.failed_at));
    }
    Ok(object)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RetentionBody {
    mode: Option<String>,
    max_count: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateBody {
    name: Option<String>,
    kind: Option<String>,
    promote_to_full: Option<bool>,
    retention_policy: Option<RetentionBody>,
}

impl CreateBody {
    fn into_request(self) -> ApiResult<NewCheckpoint> {
        let kind = match self.kind.as_deref() {
            None | Some("" | "full") => CheckpointKind::Full,
            Some("disk_only") => CheckpointKind::DiskOnly,
            Some(_) => return Err(ApiError::bad_request("kind must be full or disk_only")),
        };
        // A disk-only checkpoint is as good as a full one here: there is nothing to add to it later.
        if kind == CheckpointKind::Full && self.promote_to_full == Some(true) {
            let text = "promoteToFull is for disk_only checkpoints";
            return Err(ApiError::bad_request(text));
        }
        let retention = match self.retention_policy {
            None => Retention::None,
            Some(policy) => match policy.mode.as_deref() {
                None | Some("none") => Retention::None,
                Some("delete_oldest") => Retention::DeleteOldest(policy.max_count),
                Some(_) => {
                    let text = "retentionPolicy.mode must be none or delete_oldest";
                    return Err(ApiError::bad_request(text));
                }
            },
        };
        Ok(NewCheckpoint {
            name: self.name.unwrap_or_default(),
            kind,
            retention,
        })
    }
}

async fn create(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
    Json(body): Json<CreateBody>,
) -> ApiResult {
    let id = sandbox_id(&id)?;
    let new = body.into_request()?;
    let platform = api.platform.clone();
    let made =
        to_the_end(async move { platform.create_checkpoint(&caller, &id, new).await }).await?;
    Ok(HttpResponse::Created().json(object(&made)?))
}

async fn list(api: web::Data<Api>, WithKey(caller): WithKey, id: web::Path<String>) -> ApiResult {
    let id = sandbox_id(&id)?;
    // Also those of a sandbox that is gone.
    api.platform.get_sandbox(&caller, &id).await?;
    let rows = api.platform.catalog().checkpoints_of(&caller.org, &id);
    let rows: Vec<_> = rows.iter().map(object).collect::<ApiResult<_>>()?;
    Ok(HttpResponse::Ok().json(rows))
}

async fn delete(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let (id, checkpoint) = (sandbox_id(&path.0)?, checkpoint_id(&path.1)?);
    let platform = api.platform.clone();
    let delete = async move { platform.delete_checkpoint(&caller, &id, &checkpoint).await };
    to_the_end(delete).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn restore(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let (id, checkpoint) = (sandbox_id(&path.0)?, checkpoint_id(&path.1)?);
    let (platform, own) = (api.platform.clone(), id.clone());
    let restore = async move {
        platform
            .restore_checkpoint(&caller, &own, &checkpoint)
            .await
    };
    to_the_end(restore).await?;
    Ok(HttpResponse::Ok().json(json!({
        "sandboxId": id,
        "checkpointId": checkpoint,
        "status": "restoring",
    })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ForkBody {
    timeout: Option<i64>,
    envs: Option<BTreeMap<String, String>>,
    secret_store: Option<String>,
    project: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<i64>,
    cpu_count: Option<i64>,
    alias: Option<String>,
}

async fn fork(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<String>,
    Create { body, keyed }: Create<ForkBody>,
) -> ApiResult {
    let id = checkpoint_id(&path)?;
    let request = ForkSandbox {
        timeout: body.timeout,
        envs: body.envs.unwrap_or_default(),
        secret_store: body.secret_store,
        project: body.project,
        metadata: body.metadata.unwrap_or_default(),
        memory_mb: body.memory_mb,
        cpu_count: body.cpu_count,
        alias: body.alias,
    };
    let platform = api.platform.clone();
    let make = async move {
        let keyed = keyed.as_ref();
        platform.fork_checkpoint(&caller, &id, request, keyed).await
    };
    let made = to_the_end(make).await?;
    Ok(created(&render(&api, &made.state, &caller)?, made.replayed))
}

/// What differs between the disks of two checkpoints, a line of JSON each; the last one, `summary`,
/// says that it is the last.
async fn diff(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let (from, to) = (checkpoint_id(&path.0)?, checkpoint_id(&path.1)?);
    let compare = api.platform.compare_checkpoints(&caller, &from, &to);
    let lines = compare.await?;
    let body = stream::unfold(lines, |mut lines| async move {
        match lines.next().await {
            Ok(piece) => Some((Ok(piece?), lines)),
            // The reply breaks off, so that nobody takes it for a whole one.
            Err(error) => Some((Err(error), lines)),
        }
    });
    Ok(HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .streaming(body))
}

async fn publish(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<String>,
) -> ApiResult {
    let id = checkpoint_id(&path)?;
    let state = api.platform.publish_checkpoint(&caller, &id, true).await?;
    Ok(HttpResponse::Ok().json(object(&state)?))
}

async fn unpublish(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<String>,
) -> ApiResult {
    let id = checkpoint_id(&path)?;
    let state = api.platform.publish_checkpoint(&caller, &id, false).await?;
    Ok(HttpResponse::Ok().json(object(&state)?))
}

#[derive(Deserialize)]
pub(super) struct PatchBody {
    pub(super) script: Option<String>,
    pub(super) description: Option<String>,
}

/// The patch object (contract section 12).
pub(super) fn patch_object(checkpoint: &CheckpointId, patch: &PatchAdded) -> Value {
    json!({
        "id": patch.patch_id,
        "checkpointId": checkpoint,
        "sequence": patch.sequence,
        "script": patch.script,
        "description": patch.description,
        "strategy": "on_wake",
        "createdAt": timestamp(Some(patch.at)),
    })
}

async fn add_patch(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<String>,
    Json(body): Json<PatchBody>,
) -> ApiResult {
    let id = checkpoint_id(&path)?;
    let (script, description) = (body.script.unwrap_or_default(), body.description);
    let added = api
        .platform
        .add_patch(&caller, &id, script, description.unwrap_or_default())
        .await?;
    Ok(HttpResponse::Created().json(json!({ "patch": patch_object(&id, &added) })))
}

async fn list_patches(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<String>,
) -> ApiResult {
    let id = checkpoint_id(&path)?;
    let state = api.platform.get_checkpoint(&caller, &id).await?;
    let patches = state.patches.iter();
    let rows: Vec<_> = patches.map(|patch| patch_object(&id, patch)).collect();
    Ok(HttpResponse::Ok().json(rows))
}

async fn delete_patch(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let id = checkpoint_id(&path.0)?;
    let patch = path.1.parse().map_err(|_| ApiError::not_found("patch"))?;
    api.platform.delete_patch(&caller, &id, &patch).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Most sandboxes in a lineage that are told of.
const LINEAGE_MAX: usize = 256;

/// Where a sandbox comes from, nearest first, and what was made from it.
async fn lineage(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
) -> ApiResult {
    let id = sandbox_id(&id)?;
    let catalog = api.platform.catalog();
    let own = api.platform.get_sandbox(&caller, &id).await?;
    let origin = |row: &Sandbox| {
        row.details
            .as_ref()
            .and_then(|details| details.origin.clone())
    };
    let mut ancestors = Vec::new();
    let mut next = origin(&own);
    while let Some(from) = next.take().filter(|_| ancestors.len() < LINEAGE_MAX) {
        let parent = catalog.sandbox(&from.sandbox_id);
        let details = parent.as_ref().and_then(|row| row.details.as_ref());
        if let Some(image) = details.and_then(|details| details.builds) {
            // What it was built in is nobody's sandbox.
            ancestors.push(json!({ "imageId": image, "checkpointId": from.checkpoint_id }));
            break;
        }
        // Another organization's public checkpoint ends what can be told.
        let parent = parent.filter(|row| row.visible_to(&caller.org).is_ok());
        ancestors.push(json!({
            "sandboxId": from.sandbox_id,
            "checkpointId": from.checkpoint_id,
            "status": parent.as_ref().and_then(|row| row.phase.status()),
        }));
        next = parent.as_ref().and_then(origin);
    }
    let forks = catalog.forks_of(&caller.org, &id).into_iter();
    let forks: Vec<_> = forks
        .take(LINEAGE_MAX)
        .filter_map(|row| {
            let details = row.details.as_ref()?;
            Some(json!({
                "sandboxId": details.sandbox_id,
                "checkpointId": details.origin.as_ref()?.checkpoint_id,
                "status": row.phase.status(),
            }))
        })
        .collect();
    let checkpoints = catalog.checkpoints_of(&caller.org, &id);
    let checkpoints: Vec<_> = checkpoints.iter().map(object).collect::<ApiResult<_>>()?;
    Ok(HttpResponse::Ok().json(json!({
        "sandboxId": id,
        "ancestors": ancestors,
        "checkpoints": checkpoints,
        "forks": forks,
    })))
}
