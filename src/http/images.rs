//! Snapshots and images (contract section 14): named and cached root file systems, and their patches.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Api;
use super::auth::WithKey;
use super::body::Json;
use super::build_stream::{stream_build, wants_events};
use super::checkpoints::{PatchBody, patch_object};
use super::error::{ApiError, ApiResult, to_the_end};
use super::projects::timestamp;
use crate::actors::{Caller, ImagePhase, ImageWithManifest, Manifest, ManifestBody};
use crate::ids::{CheckpointId, ImageId};

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/snapshots")
                .route(web::get().to(list))
                .route(web::post().to(create)),
        )
        .service(
            web::resource("/snapshots/{name}")
                .route(web::get().to(get))
                .route(web::delete().to(delete)),
        )
        .service(web::resource("/snapshots/{name}/publish").route(web::post().to(publish)))
        .service(web::resource("/snapshots/{name}/unpublish").route(web::post().to(publish)))
        .service(web::resource("/images").route(web::get().to(list_images)))
        .service(
            web::resource("/images/{name}")
                .route(web::get().to(get_image))
                .route(web::delete().to(delete_image)),
        )
        .service(
            web::resource("/snapshots/{name}/patches")
                .route(web::post().to(add_patch))
                .route(web::get().to(list_patches)),
        )
        .service(
            web::resource("/snapshots/{name}/patches/{patch}")
                .route(web::delete().to(delete_patch)),
        )
        .service(
            web::resource("/images/{name}/patches")
                .route(web::post().to(add_patch))
                .route(web::get().to(list_patches)),
        )
        .service(
            web::resource("/images/{name}/patches/{patch}").route(web::delete().to(delete_patch)),
        );
}

/// The snapshot object.
pub(super) fn object(one: &ImageWithManifest) -> ApiResult<Value> {
    let details = one.image.details.as_ref();
    let details = details.ok_or_else(|| ApiError::not_found("snapshot"))?;
    let manifest: &RawValue = serde_json::from_str(&one.manifest).map_err(ApiError::internal)?;
    let mut object = json!({
        "id": details.image_id,
        "orgId": details.org_id,
        "name": details.name.as_deref().unwrap_or_default(),
        "contentHash": details.content_hash,
        "manifest": manifest,
        "status": one.image.status(),
        "createdAt": timestamp(Some(details.at)),
        "lastUsedAt": timestamp(one.image.last_used()),
    });
    // What the published clients call it, so that theirs can be told.
    let body: Result<ManifestBody, _> = serde_json::from_str(&one.manifest);
    if let Ok(manifest) = body
        .map_err(drop)
        .and_then(|body| Manifest::check(body).map_err(drop))
    {
        object["cacheKeys"] = json!(manifest.client_cache_keys());
    }
    match &one.image.phase {
        ImagePhase::Ready => object["checkpointId"] = json!(details.checkpoint_id),
        ImagePhase::Failed(reason) => object["errorMsg"] = json!(reason),
        _ => {}
    }
    Ok(object)
}

#[derive(Deserialize)]
struct CreateBody {
    name: Option<String>,
    image: Option<ManifestBody>,
}

#[derive(Deserialize)]
struct CreateQuery {
    #[serde(rename = "async")]
    later: Option<String>,
}

async fn create(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    request: HttpRequest,
    query: web::Query<CreateQuery>,
    Json(body): Json<CreateBody>,
) -> ApiResult {
    let name = body.name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::bad_request("name is required"))?;
    let image = body.image;
    let image = image.ok_or_else(|| ApiError::bad_request("image is required"))?;
    let platform = api.platform.clone();
    let asked = async move { platform.create_snapshot(&caller, name, image).await };
    let build = to_the_end(asked).await?;
    if wants_events(&request) {
        let finished = build.clone();
        return Ok(stream_build(&api, build, move |api| async move {
            object(&api.platform.built(&caller, &finished).await?)
        }));
    }
    if matches!(query.later.as_deref(), Some("1" | "true")) {
        let row = api.platform.get_image(&caller, &build.image).await?;
        return Ok(HttpResponse::Accepted().json(object(&row)?));
    }
    let made = api.platform.built(&caller, &build).await?;
    Ok(HttpResponse::Created().json(object(&made)?))
}

async fn all(api: &Api, caller: &Caller, named: bool) -> ApiResult {
    let rows = api.platform.list_images(caller, named).await?;
    let rows: Vec<_> = rows.iter().map(object).collect::<ApiResult<_>>()?;
    Ok(HttpResponse::Ok().json(rows))
}

async fn list(api: web::Data<Api>, WithKey(caller): WithKey) -> ApiResult {
    all(&api, &caller, true).await
}

async fn list_images(api: web::Data<Api>, WithKey(caller): WithKey) -> ApiResult {
    all(&api, &caller, false).await
}

async fn get(api: web::Data<Api>, WithKey(caller): WithKey, name: web::Path<String>) -> ApiResult {
    let id = api.platform.find_snapshot(&caller, &name)?;
    let row = api.platform.get_image(&caller, &id).await?;
    Ok(HttpResponse::Ok().json(object(&row)?))
}

async fn get_image(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    name: web::Path<String>,
) -> ApiResult {
    let id = api.platform.find_image(&caller, &name)?;
    let row = api.platform.get_image(&caller, &id).await?;
    Ok(HttpResponse::Ok().json(object(&row)?))
}

async fn remove(api: web::Data<Api>, caller: Caller, id: ImageId) -> ApiResult {
    let platform = api.platform.clone();
    to_the_end(async move { platform.delete_image(&caller, &id).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn delete(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    name: web::Path<String>,
) -> ApiResult {
    let id = api.platform.find_snapshot(&caller, &name)?;
    remove(api, caller, id).await
}

async fn delete_image(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    name: web::Path<String>,
) -> ApiResult {
    let id = api.platform.find_image(&caller, &name)?;
    remove(api, caller, id).await
}

/// Only the organization that runs the platform may, and a server of one's own has none.
async fn publish(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    name: web::Path<String>,
) -> ApiResult {
    api.platform.find_snapshot(&caller, &name)?;
    let text = "only the platform's own organization may publish snapshots";
    Err(ApiError::new(StatusCode::FORBIDDEN, text))
}

/// The checkpoint whose patches an image has.
async fn patched(
    api: &Api,
    caller: &Caller,
    request: &HttpRequest,
    name: &str,
) -> ApiResult<CheckpointId> {
    let id = match request.path().contains("/images/") {
        true => api.platform.find_image(caller, name)?,
        false => api.platform.find_snapshot(caller, name)?,
    };
    Ok(api.platform.checkpoint_of_image(caller, &id).await?)
}

async fn add_patch(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    request: HttpRequest,
    name: web::Path<String>,
    Json(body): Json<PatchBody>,
) -> ApiResult {
    let id = patched(&api, &caller, &request, &name).await?;
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
    request: HttpRequest,
    name: web::Path<String>,
) -> ApiResult {
    let id = patched(&api, &caller, &request, &name).await?;
    let state = api.platform.get_checkpoint(&caller, &id).await?;
    let patches = state.patches.iter();
    let rows: Vec<_> = patches.map(|patch| patch_object(&id, patch)).collect();
    Ok(HttpResponse::Ok().json(rows))
}

async fn delete_patch(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    request: HttpRequest,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let id = patched(&api, &caller, &request, &path.0).await?;
    let patch = path.1.parse().map_err(|_| ApiError::not_found("patch"))?;
    api.platform.delete_patch(&caller, &id, &patch).await?;
    Ok(HttpResponse::NoContent().finish())
}
