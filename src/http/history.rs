//! The history of an organization's sandboxes (contract section 5.5, route 11): each one there ever
//! was, with its settings; what is gone included.
//!
//! Invariant: no value given as a secret or variable is in it: settings are what the log has in clear.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::auth::WithKey;
use super::error::{ApiError, ApiResult};
use super::projects::timestamp;
use super::{Api, REGION, WORKER};
use crate::actors::{Phase, Sandbox};
use crate::events::families::{LayerKind, SandboxCreated};
use crate::ids::OrgId;

/// Rows in one reply.
const ROWS_MAX: usize = 100;
const STATUSES: [&str; 4] = ["running", "hibernated", "stopped", "error"];

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(web::resource("/sessions").route(web::get().to(list)));
}

/// The statuses asked for; all of them when none is.
fn statuses(query: &str) -> ApiResult<Vec<String>> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(query)
        .map_err(|_| ApiError::bad_request("invalid query"))?
        .into_inner();
    let status = pairs.into_iter().find(|(name, _)| name == "status");
    let status = status.map(|(_, value)| value).unwrap_or_default();
    if status.is_empty() || status == "all" {
        return Ok(STATUSES.map(str::to_owned).to_vec());
    }
    let asked: Vec<String> = status.split(',').map(str::to_owned).collect();
    match asked.iter().all(|one| STATUSES.contains(&one.as_str())) {
        true => Ok(asked),
        false => {
            let text = format!("status must be of {}, all", STATUSES.join(", "));
            Err(ApiError::bad_request(text))
        }
    }
}

async fn list(api: web::Data<Api>, WithKey(caller): WithKey, request: HttpRequest) -> ApiResult {
    let statuses = statuses(request.query_string())?;
    let takes = |sandbox: &Sandbox| {
        let status = sandbox.phase.status().unwrap_or_default();
        statuses.iter().any(|one| one == status)
    };
    let rows = api
        .platform
        .catalog()
        .sandboxes(&caller.org, takes, 0, ROWS_MAX);
    let rows = rows
        .iter()
        .map(|sandbox| render(&api, sandbox, &caller.org))
        .collect::<ApiResult<Vec<_>>>()?;
    Ok(HttpResponse::Ok().json(rows))
}

fn render(api: &Api, sandbox: &Sandbox, org: &OrgId) -> ApiResult<Value> {
    let details = sandbox.visible_to(org)?;
    let id = &details.sandbox_id;
    let mut row = json!({
        "id": id,
        "sandboxId": id,
        "orgId": details.org_id,
        "template": details.template,
        "region": REGION,
        "workerId": WORKER,
        "status": sandbox.phase.status(),
        "config": config(details),
        "metadata": details.metadata,
        "startedAt": timestamp(sandbox.started_at.or(Some(details.at))),
        "lastPatchSequence": 0,
    });
    if let Some(at) = api.platform.catalog().ended_at(id) {
        row["stoppedAt"] = json!(timestamp(Some(at)));
    }
    if let Phase::Failed(reason) = &sandbox.phase {
        row["errorMsg"] = json!(reason);
    }
    let mut layers = details.layers.iter().rev();
    if let Some(store) = layers.find(|layer| layer.kind == LayerKind::Store) {
        row["secretStoreId"] = json!(store.id);
    }
    Ok(row)
}

/// What the sandbox was asked to be.
fn config(details: &SandboxCreated) -> Value {
    let layers: Vec<_> = details.layers.iter().map(|layer| &layer.name).collect();
    let mut config = json!({
        "templateID": details.template,
        "cpuCount": details.cpu_count,
        "memoryMB": details.memory_mb,
        "diskMB": details.disk_mb,
        "timeout": details.timeout_sec,
        "port": details.port,
        "networkEnabled": details.network_enabled,
        "egressAllowlist": details.egress_allowlist,
        "layers": layers,
    });
    if let Some(alias) = &details.alias {
        config["alias"] = json!(alias);
    }
    config
}
