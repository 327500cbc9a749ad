//! Commands and their sessions (contract section 8).

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::auth::WithSandbox;
use super::body::Json;
use super::error::{ApiError, ApiResult, to_the_end};
use super::exec_socket;
use super::idempotency::{Create, created, marked};
use super::projects::timestamp;
use crate::actors::{Asleep, Captured, Command, Failure, Handle, ProcessRequest};
use crate::sandbox::SessionInfo;

/// `exec/run` answers as a whole when the command ends within this time; later it sends the header
/// and a blank now and then, because clients give up after 30 s without a byte.
const WHOLE_REPLY_MAX: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long `exec/run-async` is held for quick commands.
const ASYNC_HOLD: Duration = Duration::from_millis(400);
/// Long poll of a result.
const RESULT_HOLD: Duration = Duration::from_millis(500);
const SIGKILL: i32 = 9;
const SIGNAL_MAX: i32 = 64;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/exec/run").route(web::post().to(run)))
        .service(web::resource("/commands").route(web::post().to(run)))
        .service(web::resource("/exec/run-async").route(web::post().to(run_async)))
        .service(web::resource("/exec/{exec}/result").route(web::get().to(result)))
        .service(
            web::resource("/exec")
                .route(web::post().to(create_session))
                .route(web::get().to(list_sessions)),
        )
        .service(web::resource("/exec/{session}/kill").route(web::post().to(kill)))
        .service(web::resource("/exec/{session}").route(web::get().to(exec_socket::attach)));
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProcessBody {
    cmd: Option<String>,
    args: Option<Vec<String>>,
    envs: Option<BTreeMap<String, String>>,
    cwd: Option<String>,
    timeout: Option<i64>,
    expand_env: Option<bool>,
    max_run_after_disconnect: Option<i64>,
}

impl From<ProcessBody> for ProcessRequest {
    fn from(body: ProcessBody) -> Self {
        Self {
            cmd: body.cmd.unwrap_or_default(),
            args: body.args.unwrap_or_default(),
            envs: body.envs.unwrap_or_default(),
            cwd: body.cwd,
            timeout: body.timeout,
            expand_env: body.expand_env.unwrap_or(false),
            max_run_after_disconnect: body.max_run_after_disconnect,
        }
    }
}

/// The result fields, which are always all there.
fn render(captured: &Captured) -> Value {
    let mut stderr = String::from_utf8_lossy(&captured.stderr).into_owned();
    if captured.truncated {
        stderr.push_str("\n[output truncated]");
    }
    json!({
        "exitCode": captured.exit_code.unwrap_or(-1),
        "stdout": String::from_utf8_lossy(&captured.stdout),
        "stderr": stderr,
    })
}

/// Starts what a request asks for, unless it is a repeat.
async fn start(
    api: &Api,
    who: WithSandbox,
    request: Create<ProcessBody>,
    attended: bool,
) -> ApiResult<Command> {
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    let Create { body, keyed } = request;
    let platform = api.platform.clone();
    to_the_end(platform.start_command(who.caller, live, body.into(), keyed, attended)).await
}

async fn run(api: web::Data<Api>, who: WithSandbox, request: Create<ProcessBody>) -> ApiResult {
    let Command { handle, replayed } = start(&api, who, request, true).await?;
    if handle.finished_within(WHOLE_REPLY_MAX).await {
        let reply = HttpResponse::Ok().json(render(&handle.captured()));
        return Ok(marked(reply, replayed));
    }
    // Blanks before the object are legal JSON; whoever reads a byte knows we are alive.
    let body = stream::unfold(Some(handle), |state| async move {
        let handle = state?;
        Some(match handle.finished_within(KEEPALIVE).await {
            false => (Ok::<_, ApiError>(Bytes::from_static(b" ")), Some(handle)),
            true => {
                let captured = handle.captured();
                let mut reply = render(&captured);
                if let Some(error) = captured.error {
                    reply["error"] = json!(error);
                }
                (Ok(Bytes::from(reply.to_string())), None)
            }
        })
    });
    let reply = HttpResponse::Ok()
        .content_type("application/json")
        .streaming(body);
    Ok(marked(reply, replayed))
}

async fn run_async(
    api: web::Data<Api>,
    who: WithSandbox,
    request: Create<ProcessBody>,
) -> ApiResult {
    let Command { handle, replayed } = start(&api, who, request, false).await?;
    if handle.finished_within(ASYNC_HOLD).await {
        let captured = handle.captured();
        if !captured.truncated {
            let reply = HttpResponse::Ok().json(render(&captured));
            return Ok(marked(reply, replayed));
        }
    }
    api.platform.keep_handle(&handle)?;
    let reply = HttpResponse::Accepted().json(json!({
        "execId": handle.id,
        "running": true,
        "startedAt": timestamp(Some(handle.started_at)),
    }));
    Ok(marked(reply, replayed))
}

async fn result(
    api: web::Data<Api>,
    who: WithSandbox,
    path: web::Path<(String, String)>,
) -> ApiResult {
    // The sandbox's own existence and tenant first: a handle belongs to both.
    api.platform.get_sandbox(&who.caller, &who.id).await?;
    let handle: std::sync::Arc<Handle> = api
        .platform
        .find_handle(&who.id, &path.1)
        .ok_or_else(|| ApiError::not_found("exec"))?;
    // A look is a use, and wakes what sleeps before the command has ended. It never fails for it.
    let unfinished = !handle.finished_within(Duration::ZERO).await;
    let asleep = Asleep::Refuse;
    let in_use = api.platform.live_sandbox_or(&who.caller, &who.id, asleep);
    let in_use = match unfinished {
        true => in_use.await,
        false => {
            api.platform.touch(&who.id);
            Err(Failure::Busy)
        }
    };
    let waking = matches!(in_use, Err(Failure::Waking));
    let finished = handle.finished_within(RESULT_HOLD).await;
    let captured = handle.captured();
    let mut reply = render(&captured);
    reply["running"] = json!(!finished);
    reply["truncated"] = json!(captured.truncated);
    if waking {
        reply["waking"] = json!(true);
    }
    match (finished, &captured.error) {
        (false, _) => {
            reply
                .as_object_mut()
                .map(|fields| fields.remove("exitCode"));
        }
        (true, Some(error)) => reply["error"] = json!(error),
        (true, None) => {}
    }
    Ok(HttpResponse::Ok().json(reply))
}

fn render_session(info: &SessionInfo, sandbox: &crate::ids::SandboxId) -> Value {
    let mut object = json!({
        "sessionID": info.session_id,
        "sandboxID": sandbox,
        "command": info.cmd,
        "args": info.args,
        "running": info.exit_code.is_none(),
        "startedAt": timestamp(Some(info.started.into())),
        "attachedClients": info.attached,
    });
    if let Some(code) = info.exit_code {
        object["exitCode"] = json!(code);
    }
    object
}

async fn create_session(
    api: web::Data<Api>,
    who: WithSandbox,
    Create { body, keyed }: Create<ProcessBody>,
) -> ApiResult {
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    let start = api
        .platform
        .clone()
        .start_session(who.caller, live, body.into(), keyed);
    let session = to_the_end(start).await?;
    let object = render_session(&session.info, &who.id);
    Ok(created(&object, session.replayed))
}

async fn list_sessions(api: web::Data<Api>, who: WithSandbox) -> ApiResult {
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    let sessions = live.guest.sessions().await?;
    let rows: Vec<_> = sessions
        .iter()
        .map(|info| render_session(info, &who.id))
        .collect();
    Ok(HttpResponse::Ok().json(rows))
}

#[derive(Deserialize)]
struct KillBody {
    signal: Option<i32>,
}

async fn kill(
    api: web::Data<Api>,
    who: WithSandbox,
    path: web::Path<(String, String)>,
    Json(body): Json<KillBody>,
) -> ApiResult {
    let signal = body.signal.unwrap_or(SIGKILL);
    if !(1..=SIGNAL_MAX).contains(&signal) {
        return Err(ApiError::bad_request(format!(
            "signal must be between 1 and {SIGNAL_MAX}"
        )));
    }
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    if signal == SIGKILL {
        live.kills.asked(&path.1);
    }
    live.guest.signal(&path.1, signal).await?;
    Ok(HttpResponse::Ok().json(json!({})))
}
