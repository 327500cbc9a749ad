//! Sandboxes: create, list, read, delete, timeout, allowed hosts (contract section 5).

use std::collections::BTreeMap;

use actix_web::http::{StatusCode, Uri};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::{WithKey, WithSandbox};
use super::body::Json;
use super::build_stream::{stream_build, wants_events};
use super::error::{ApiError, ApiResult, to_the_end};
use super::idempotency::{Create, created};
use super::projects::timestamp;
use super::{Api, REGION, WORKER};
use crate::actors::{Caller, CreateSandbox, ImageSource, Keyed, ManifestBody, Sandbox};
use crate::events::families::LayerKind;
use crate::ids::SandboxId;

/// Most sandboxes in one reply, and how many when the caller doesn't say.
const LIST_MAX: usize = 200;
const LIST_DEFAULT: usize = 100;
const STATUSES: [&str; 4] = ["running", "hibernated", "stopped", "error"];

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/sandboxes")
            .route(web::get().to(list))
            .route(web::post().to(create)),
    );
}

/// Routes below one sandbox.
pub(super) fn data_routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("")
                .route(web::get().to(get))
                .route(web::delete().to(delete)),
        )
        .service(web::resource("/timeout").route(web::post().to(set_timeout)))
        .service(web::resource("/allowed-hosts").route(web::get().to(allowed_hosts)))
        .service(web::resource("/token/refresh").route(web::post().to(refresh_token)));
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateBody {
    #[serde(rename = "templateID")]
    template_id: Option<String>,
    alias: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    timeout: Option<i64>,
    cpu_count: Option<i64>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<i64>,
    #[serde(rename = "diskMB")]
    disk_mb: Option<i64>,
    envs: Option<BTreeMap<String, String>>,
    project: Option<String>,
    secret_store: Option<String>,
    egress_allowlist: Option<Vec<String>>,
    port: Option<i64>,
    network_enabled: Option<bool>,
    image: Option<ManifestBody>,
    snapshot: Option<String>,
    // Not there yet: asking for one of these is refused, never silently ignored.
    preview_auth: Option<Value>,
    webhooks: Option<Vec<Value>>,
}

impl CreateBody {
    fn into_request(self) -> ApiResult<CreateSandbox> {
        for (asked, what) in [
            (self.preview_auth.is_some(), "previewAuth"),
            (
                self.webhooks.as_ref().is_some_and(|list| !list.is_empty()),
                "webhooks",
            ),
        ] {
            if asked {
                let text = format!("{what} is not supported by this server yet");
                return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text));
            }
        }
        Ok(CreateSandbox {
            template: self.template_id,
            alias: self.alias,
            metadata: self.metadata.unwrap_or_default(),
            timeout: self.timeout,
            cpu_count: self.cpu_count,
            memory_mb: self.memory_mb,
            disk_mb: self.disk_mb,
            envs: self.envs.unwrap_or_default(),
            project: self.project,
            secret_store: self.secret_store,
            egress_allowlist: self.egress_allowlist.unwrap_or_default(),
            port: self.port,
            network_enabled: self.network_enabled,
            inherited: None,
            image: None,
            builds: None,
        })
    }
}

/// The sandbox object (contract 5.3).
pub(super) fn render(api: &Api, sandbox: &Sandbox, caller: &Caller) -> ApiResult<Value> {
    let details = sandbox.visible_to(&caller.org)?;
    let id = &details.sandbox_id;
    let domain = sandbox_domain(&api.public_url);
    let mut object = json!({
        "sandboxID": id,
        "status": sandbox.phase.status(),
        "templateID": details.template,
        "template": details.template,
        "token": api.tokens.issue(caller, id)?,
        "connectURL": format!("{}/api", api.public_url),
        "region": REGION,
        "workerID": WORKER,
        "sandboxDomain": domain,
        "domain": format!("{id}-p80.{domain}"),
        "cpuCount": details.cpu_count,
        "memoryMB": details.memory_mb,
        "diskMB": details.disk_mb,
        "startedAt": timestamp(sandbox.started_at.or(Some(details.at))),
        "timeout": details.timeout_sec,
        "metadata": details.metadata,
        "tags": sandbox.tags.all,
        "tagsLastUpdatedAt": timestamp(sandbox.tags.set_at),
    });
    if let Some(alias) = &details.alias {
        object["alias"] = json!(alias);
    }
    if let Some(origin) = &details.origin {
        object["fromCheckpointId"] = json!(origin.checkpoint_id);
    }
    if let Some(error) = &sandbox.patched.error {
        object["patchError"] = json!(error);
    }
    Ok(object)
}

/// The host that sandboxes' own hosts are below.
fn sandbox_domain(public_url: &str) -> String {
    let url = public_url.parse::<Uri>().ok();
    let host = url.as_ref().and_then(Uri::host).unwrap_or("localhost");
    let ip = host.trim_start_matches('[').trim_end_matches(']');
    match ip.parse::<std::net::IpAddr>() {
        // Browsers resolve every name below `localhost` to the machine itself.
        Ok(_) => "localhost".to_owned(),
        Err(_) => host.to_owned(),
    }
}

async fn create(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    http: HttpRequest,
    Create { mut body, keyed }: Create<CreateBody>,
) -> ApiResult {
    let image = body.image.take();
    let snapshot = body.snapshot.take().filter(|name| !name.is_empty());
    let request = body.into_request()?;
    if image.is_some() || snapshot.is_some() {
        return from_image(api, caller, &http, request, (image, snapshot), keyed).await;
    }
    let platform = api.platform.clone();
    let make = async move {
        let keyed = keyed.as_ref();
        platform.create_sandbox(&caller, request, keyed).await
    };
    let made = to_the_end(make).await?;
    Ok(created(&render(&api, &made.state, &caller)?, made.replayed))
}

/// Makes a sandbox from an image that is built first, or from a snapshot; with events, when the caller
/// wants these.
async fn from_image(
    api: web::Data<Api>,
    caller: Caller,
    http: &HttpRequest,
    request: CreateSandbox,
    source: (Option<ManifestBody>, Option<String>),
    keyed: Option<Keyed>,
) -> ApiResult {
    let platform = api.platform.clone();
    platform.check_sandbox(&caller, &request).await?;
    let (build, source) = match source {
        (Some(_), Some(_)) => {
            let text = "image and snapshot can't be given together";
            return Err(ApiError::bad_request(text));
        }
        (Some(image), None) => {
            let asked = async move { platform.ask_image(&caller, image).await };
            let build = to_the_end(asked).await?;
            let source = ImageSource::Image(build.image);
            (build, source)
        }
        (None, snapshot) => {
            let name = snapshot.unwrap_or_default();
            let build = platform.ready_snapshot(&caller, &name).await?;
            (build, ImageSource::Snapshot(name))
        }
    };
    let make = async move |api: web::Data<Api>| -> ApiResult<(Value, bool)> {
        let platform = api.platform.clone();
        let make = async move {
            let keyed = keyed.as_ref();
            platform
                .create_from_image(&caller, request, source, keyed)
                .await
        };
        let made = to_the_end(make).await?;
        Ok((render(&api, &made.state, &caller)?, made.replayed))
    };
    if wants_events(http) {
        return Ok(stream_build(&api, build, move |api| async move {
            Ok(make(api).await?.0)
        }));
    }
    api.platform.built(&caller, &build).await?;
    let (object, replayed) = make(api).await?;
    Ok(created(&object, replayed))
}

/// The filters of a list.
struct Filter {
    statuses: Vec<String>,
    limit: usize,
    offset: usize,
    metadata: Vec<(String, String)>,
    tags: Vec<(String, String)>,
}

impl Filter {
    fn parse(query: &str) -> ApiResult<Self> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(query)
            .map_err(|_| ApiError::bad_request("invalid query"))?
            .into_inner();
        let mut filter = Self {
            statuses: vec!["running".to_owned(), "hibernated".to_owned()],
            limit: LIST_DEFAULT,
            offset: 0,
            metadata: Vec::new(),
            tags: Vec::new(),
        };
        for (name, value) in pairs {
            match name.as_str() {
                "status" if value == "all" => {
                    filter.statuses = STATUSES.map(str::to_owned).to_vec();
                }
                "status" => {
                    filter.statuses = value.split(',').map(str::to_owned).collect();
                    if filter
                        .statuses
                        .iter()
                        .any(|one| !STATUSES.contains(&one.as_str()))
                    {
                        let known = STATUSES.join(", ");
                        return Err(ApiError::bad_request(format!(
                            "status must be of {known}, all"
                        )));
                    }
                }
                "limit" => {
                    filter.limit = value
                        .parse()
                        .ok()
                        .filter(|n| (1..=LIST_MAX).contains(n))
                        .ok_or_else(|| {
                            ApiError::bad_request(format!("limit must be between 1 and {LIST_MAX}"))
                        })?;
                }
                "offset" => {
                    filter.offset = value
                        .parse()
                        .map_err(|_| ApiError::bad_request("offset must be a whole number"))?;
                }
                _ => match name.split_once('.') {
                    Some(("metadata", key)) => filter.metadata.push((key.to_owned(), value)),
                    Some(("tag", key)) => filter.tags.push((key.to_owned(), value)),
                    _ => {}
                },
            }
        }
        Ok(filter)
    }

    fn takes(&self, sandbox: &Sandbox) -> bool {
        let status = sandbox.phase.status().unwrap_or_default();
        let has = |(key, value): &(String, String)| {
            sandbox
                .details
                .as_ref()
                .is_some_and(|details| details.metadata.get(key) == Some(value))
        };
        let tagged = |(key, value): &(String, String)| sandbox.tags.all.get(key) == Some(value);
        self.statuses.iter().any(|one| one == status)
            && self.metadata.iter().all(has)
            && self.tags.iter().all(tagged)
    }
}

async fn list(api: web::Data<Api>, WithKey(caller): WithKey, request: HttpRequest) -> ApiResult {
    let filter = Filter::parse(request.query_string())?;
    let (offset, limit) = (filter.offset, filter.limit);
    let rows = api.platform.catalog().sandboxes(
        &caller.org,
        |sandbox| filter.takes(sandbox),
        offset,
        limit,
    );
    let page = rows
        .iter()
        .map(|sandbox| render(&api, sandbox, &caller))
        .collect::<ApiResult<Vec<_>>>()?;
    Ok(HttpResponse::Ok().json(page))
}

async fn get(api: web::Data<Api>, who: WithSandbox) -> ApiResult {
    let sandbox = api.platform.get_sandbox(&who.caller, &who.id).await?;
    Ok(HttpResponse::Ok().json(render(&api, &sandbox, &who.caller)?))
}

#[derive(Deserialize)]
struct DeleteQuery {
    #[serde(rename = "deleteSecretStore")]
    delete_secret_store: Option<String>,
}

async fn delete(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
    query: web::Query<DeleteQuery>,
) -> ApiResult {
    let id: SandboxId = id.parse().map_err(|_| ApiError::not_found("sandbox"))?;
    let asked = query
        .delete_secret_store
        .as_deref()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let delete_store = ["1", "true", "yes", "y", "on"].contains(&asked.as_str());
    let platform = api.platform.clone();
    to_the_end(async move { platform.delete_sandbox(&caller, &id, delete_store).await }).await?;
    Ok(HttpResponse::NoContent().finish())
}

#[derive(Deserialize)]
struct TimeoutBody {
    timeout: Option<i64>,
}

async fn set_timeout(
    api: web::Data<Api>,
    who: WithSandbox,
    Json(body): Json<TimeoutBody>,
) -> ApiResult {
    let seconds = body
        .timeout
        .ok_or_else(|| ApiError::bad_request("timeout is required"))?;
    api.platform
        .set_timeout(&who.caller, &who.id, seconds)
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn refresh_token(api: web::Data<Api>, who: WithSandbox) -> ApiResult {
    api.platform.get_sandbox(&who.caller, &who.id).await?;
    let token = api.tokens.issue(&who.caller, &who.id)?;
    Ok(HttpResponse::Ok().json(json!({ "token": token })))
}

async fn allowed_hosts(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    id: web::Path<String>,
) -> ApiResult {
    let id: SandboxId = id.parse().map_err(|_| ApiError::not_found("sandbox"))?;
    let sandbox = api.platform.get_sandbox(&caller, &id).await?;
    let details = sandbox.visible_to(&caller.org)?;
    let secrets = sandbox.sealed.iter().flat_map(|sealed| &sealed.secrets);
    let restricted: BTreeMap<_, _> = secrets
        .filter(|entry| !entry.allowed_hosts.is_empty())
        .map(|entry| (&entry.name, &entry.allowed_hosts))
        .collect();
    let mut reply = json!({
        "sandboxID": id,
        "egressAllowlist": details.egress_allowlist,
        "perSecretAllowedHosts": restricted,
    });
    let of = |kind| {
        details
            .layers
            .iter()
            .rev()
            .filter(move |layer| layer.kind == kind)
    };
    let mut stores = of(LayerKind::Store);
    for (field, layer) in [
        ("secretStore", stores.next()),
        ("baseSecretStore", stores.next()),
        ("project", of(LayerKind::Project).next()),
    ] {
        if let Some(layer) = layer {
            reply[field] = json!(layer.name);
        }
    }
    Ok(HttpResponse::Ok().json(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_are_below_the_public_host_and_never_below_an_address() {
        for (url, domain) in [
            ("https://oc.example:8443/base", "oc.example"),
            ("http://127.0.0.1:7600", "localhost"),
            ("http://[::1]:7600", "localhost"),
        ] {
            assert_eq!(sandbox_domain(url), domain, "{url}");
        }
    }
}
