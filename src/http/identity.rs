//! Who the caller is.

use actix_web::{HttpResponse, web};
use serde_json::json;

use super::Api;
use super::auth::WithKey;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(web::resource("/whoami").route(web::get().to(whoami)));
}

async fn whoami(api: web::Data<Api>, WithKey(caller): WithKey) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "org_id": caller.org,
        "org_name": api.platform.catalog().org_name(&caller.org),
        "user_id": null,
        "email": null,
    }))
}
