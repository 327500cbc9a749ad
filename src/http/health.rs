//! Health, without a credential.

use actix_web::{HttpResponse, web};
use serde_json::json;

use super::Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    for (path, status) in [("/health", "ok"), ("/healthz", "alive")] {
        let reply = move || async move { HttpResponse::Ok().json(json!({ "status": status })) };
        config.service(web::resource(path).route(web::get().to(reply)));
    }
    config.service(web::resource("/readyz").route(web::get().to(ready)));
}

/// Ready when the read models have the whole log.
async fn ready(api: web::Data<Api>) -> HttpResponse {
    let (seen, head) = (
        api.platform.catalog().position(),
        api.platform.log().head().position,
    );
    match seen >= head {
        true => HttpResponse::Ok().json(json!({ "status": "ready", "position": seen })),
        false => HttpResponse::ServiceUnavailable().json(json!({
            "status": "not ready",
            "reason": format!("the read models are at {seen} of {head}"),
        })),
    }
}
