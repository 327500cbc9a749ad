//! The door: the HTTP API. It translates and decides nothing: one file a resource, errors in one
//! envelope, credentials checked before anything else is looked at.

mod admin_socket;
mod admission;
mod audit;
mod audit_follow;
mod audit_proof;
mod audit_secrets;
mod auth;
mod body;
mod build_stream;
mod checkpoints;
mod error;
mod exec;
mod exec_socket;
mod feeds;
mod files;
mod health;
mod history;
mod idempotency;
mod identity;
mod images;
mod keys;
mod logs;
mod methods;
mod metrics;
mod projects;
mod pty;
mod pty_socket;
mod relay;
mod request_id;
mod sandbox_life;
mod sandboxes;
mod secret_stores;
mod server;
mod signed_urls;
mod stats;
mod stop;
mod wire;

use std::sync::Arc;

use actix_web::web;

use crate::actors::Platform;
pub(crate) use crate::actors::REGION;
use crate::events::CheckpointKey;
use crate::ids::OrgId;

pub use server::{ServeError, serve};

/// Name of the only worker of a single-machine server.
pub(crate) const WORKER: &str = "local";

/// What every handler has.
pub struct Api {
    pub(crate) platform: Arc<Platform>,
    pub(crate) tokens: auth::Tokens,
    pub(crate) url_signer: signed_urls::UrlSigner,
    /// Origin that clients use, without a trailing slash.
    pub(crate) public_url: String,
    /// The organization that everybody is when the server asks for no key.
    pub(crate) no_auth: Option<OrgId>,
    /// How often keys may be used, and when they last were.
    pub(crate) admission: admission::Admission,
    /// Signs checkpoints of the event log.
    pub(crate) checkpoint_key: Arc<CheckpointKey>,
    pub(crate) audit: audit_follow::Audit,
    /// Cancelled when the server stops.
    pub(crate) stopping: tokio_util::sync::CancellationToken,
    pub(crate) log_feeds: feeds::Feeds,
}

/// Every route. A resource states its methods and nothing else: `HEAD` and the answer to every other
/// method come from [`methods`].
pub fn routes(config: &mut web::ServiceConfig) {
    health::routes(config);
    keys::login_routes(config);
    config.service(
        web::scope("/api")
            .configure(identity::routes)
            .configure(keys::routes)
            .configure(projects::routes)
            .configure(secret_stores::routes)
            .configure(audit::routes)
            .configure(audit_proof::routes)
            .configure(audit_secrets::routes)
            .configure(sandboxes::routes)
            .configure(checkpoints::routes)
            .configure(images::routes)
            .configure(sandbox_life::org_routes)
            .configure(history::routes)
            .service(web::scope("/sandboxes/{id}").configure(data_plane)),
    );
    // Python's older clients join the raw URL with `/sandboxes/…`.
    config.service(web::scope("/sandboxes/{id}").configure(data_plane));
    config.default_service(web::to(error::no_route));
}

/// Routes of one sandbox that its own token may use too, or a signature.
fn data_plane(config: &mut web::ServiceConfig) {
    sandboxes::data_routes(config);
    sandbox_life::routes(config);
    checkpoints::sandbox_routes(config);
    exec::routes(config);
    pty::routes(config);
    files::routes(config);
    signed_urls::routes(config);
    stats::routes(config);
    logs::routes(config);
}
