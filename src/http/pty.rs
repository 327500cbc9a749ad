//! Terminals (contract section 10). A terminal's id is no exec session's, nor the other way round.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use super::Api;
use super::auth::WithSandbox;
use super::body::Json;
use super::error::{ApiError, ApiResult, to_the_end};
use super::idempotency::{Create, created};
use super::pty_socket;
use crate::actors::{TerminalRequest, terminal_size};

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/pty").route(web::post().to(open)))
        .service(web::resource("/pty/{session}/resize").route(web::post().to(resize)))
        .service(
            web::resource("/pty/{session}")
                .route(web::get().to(pty_socket::attach))
                .route(web::delete().to(close)),
        );
}

#[derive(Deserialize)]
struct OpenBody {
    cols: Option<i64>,
    rows: Option<i64>,
    shell: Option<String>,
    cwd: Option<String>,
    envs: Option<BTreeMap<String, String>>,
}

impl From<OpenBody> for TerminalRequest {
    fn from(body: OpenBody) -> Self {
        Self {
            cols: body.cols,
            rows: body.rows,
            shell: body.shell,
            cwd: body.cwd,
            envs: body.envs.unwrap_or_default(),
        }
    }
}

async fn open(
    api: web::Data<Api>,
    who: WithSandbox,
    Create { body, keyed }: Create<OpenBody>,
) -> ApiResult {
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    let open = api
        .platform
        .clone()
        .open_terminal(who.caller, live, body.into(), keyed);
    let terminal = to_the_end(open).await?;
    let object = json!({ "sessionID": terminal.id, "sandboxID": who.id });
    Ok(created(&object, terminal.replayed))
}

#[derive(Deserialize)]
struct SizeBody {
    cols: Option<i64>,
    rows: Option<i64>,
}

async fn resize(
    api: web::Data<Api>,
    who: WithSandbox,
    path: web::Path<(String, String)>,
    Json(body): Json<SizeBody>,
) -> ApiResult {
    let (Some(cols), Some(rows)) = (body.cols, body.rows) else {
        return Err(ApiError::bad_request("cols and rows are required"));
    };
    let size = terminal_size(cols, rows)?;
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    live.guest.resize_terminal(&path.1, size).await?;
    Ok(HttpResponse::Ok().json(json!({})))
}

async fn close(
    api: web::Data<Api>,
    who: WithSandbox,
    path: web::Path<(String, String)>,
) -> ApiResult {
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    live.guest.hang_up_terminal(&path.1).await?;
    Ok(HttpResponse::NoContent().finish())
}
