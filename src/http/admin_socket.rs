//! The socket of the server's own machine, in the data folder: organizations, and the keys of each,
//! for whoever may read that folder. It asks for no key.
//!
//! ```text
//! GET|POST  /admin/orgs
//! GET|POST  /admin/orgs/{org}/keys          DELETE  /admin/orgs/{org}/keys/{key}
//! ```

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::{fs, io};

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpResponse, HttpServer, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::body::{JSON_BYTES_MAX, Json};
use super::error::{ApiError, ApiResult, no_route, to_the_end};
use super::keys::{KeyBody, end, keys, make, name};
use super::methods::with_methods;
use super::projects::timestamp;
use super::request_id::with_request_id;
use crate::actors::Org;
use crate::config::ADMIN_SOCKET;
use crate::ids::OrgId;

/// The routes of the socket.
fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/admin/orgs")
                .route(web::get().to(list_orgs))
                .route(web::post().to(create_org)),
        )
        .service(
            web::resource("/admin/orgs/{org}/keys")
                .route(web::get().to(list_of))
                .route(web::post().to(create_of)),
        )
        .service(web::resource("/admin/orgs/{org}/keys/{key}").route(web::delete().to(revoke_of)));
    config.default_service(web::to(no_route));
}

/// Serves the socket in `data_dir`; nobody but the folder's owner reaches it.
pub(super) fn serve(data_dir: &Path, api: web::Data<Api>) -> io::Result<ServerHandle> {
    let path = data_dir.join(ADMIN_SOCKET);
    let socket: OwnedFd = crate::sandbox::listen_stream(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let server = HttpServer::new(move || {
        App::new()
            .wrap(from_fn(with_methods))
            .wrap(from_fn(with_request_id))
            .app_data(api.clone())
            .app_data(web::PayloadConfig::new(JSON_BYTES_MAX))
            .configure(routes)
    })
    .workers(1)
    .disable_signals()
    .listen_uds(UnixListener::from(socket))?
    .run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(handle)
}

#[derive(Deserialize)]
struct OrgBody {
    name: Option<String>,
}

fn render_org(org: &Org) -> Option<Value> {
    let details = org.details.as_ref()?;
    let valid = org.keys.iter().filter(|key| key.revoked_at.is_none());
    Some(json!({
        "id": details.org_id,
        "name": details.name,
        "keys": valid.count(),
        "createdAt": timestamp(Some(details.at)),
    }))
}

async fn list_orgs(api: web::Data<Api>) -> HttpResponse {
    let orgs = api.platform.catalog().orgs();
    HttpResponse::Ok().json(orgs.iter().filter_map(render_org).collect::<Vec<_>>())
}

async fn create_org(api: web::Data<Api>, Json(body): Json<OrgBody>) -> ApiResult {
    let name = name(body.name)?;
    let platform = api.platform.clone();
    let created = to_the_end(async move { platform.create_org(&name).await }).await?;
    let org = Org {
        details: Some(created),
        ..Org::default()
    };
    Ok(HttpResponse::Created().json(render_org(&org)))
}

/// The organization of a path, by id.
fn org_of(api: &Api, id: &str) -> ApiResult<OrgId> {
    let missing = || ApiError::not_found("organization");
    let id = id.parse().map_err(|_| missing())?;
    match api.platform.catalog().org(&id).is_some() {
        true => Ok(id),
        false => Err(missing()),
    }
}

async fn list_of(api: web::Data<Api>, org: web::Path<String>) -> ApiResult {
    keys(&api, &org_of(&api, &org)?)
}

async fn create_of(
    api: web::Data<Api>,
    org: web::Path<String>,
    Json(body): Json<KeyBody>,
) -> ApiResult {
    let org = org_of(&api, &org)?;
    make(api, org, body, None).await
}

async fn revoke_of(api: web::Data<Api>, path: web::Path<(String, String)>) -> ApiResult {
    let (org, key) = path.into_inner();
    let org = org_of(&api, &org)?;
    end(&api, org, &key, None).await
}
