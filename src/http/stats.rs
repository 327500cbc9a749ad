//! What a sandbox uses of the machine (ours; `SPECIFICATION.md` describes the object).

use actix_web::{HttpResponse, web};
use serde_json::{Value, json};

use super::Api;
use super::auth::WithSandbox;
use super::error::ApiResult;
use super::projects::timestamp;
use crate::actors::SandboxStats;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(web::resource("/stats").route(web::get().to(stats)));
}

async fn stats(api: web::Data<Api>, who: WithSandbox) -> ApiResult {
    let stats = api.platform.sandbox_stats(&who.caller, &who.id).await?;
    Ok(HttpResponse::Ok().json(render(&stats)))
}

/// Every field is always there; null is "this machine can't say".
fn render(stats: &SandboxStats) -> Value {
    let (usage, limits) = (&stats.usage, &stats.limits);
    json!({
        "sandboxID": stats.id,
        "at": timestamp(Some(stats.at)),
        "cpu": {
            "usedMicros": usage.cpu_us,
            "count": stats.cpu_count,
            "enforced": limits.cpu,
        },
        "memory": {
            "usedBytes": usage.memory_bytes,
            "cacheBytes": usage.memory_cache_bytes,
            "peakBytes": usage.memory_peak_bytes,
            "limitBytes": usage.memory_limit_bytes,
            "oomKills": usage.oom_kills,
            "enforced": limits.memory,
        },
        "processes": {
            "count": usage.tasks,
            "max": usage.tasks_max,
            "enforced": limits.pids,
        },
        "disk": {
            "usedBytes": usage.disk_bytes,
            "limitBytes": usage.disk_limit_bytes,
            "enforced": limits.disk,
        },
        "network": {
            "sentBytes": stats.bytes_out,
            "receivedBytes": stats.bytes_in,
        },
    })
}
