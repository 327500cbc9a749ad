//! The proof of the log: verify it, export it, sign where it ends.
//!
//! The log's chain spans all organizations, so anybody with a key may have it checked and signed;
//! an export shows the organization's own events and of the others' only their content hashes.

use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Api;
use super::auth::WithKey;
use super::body::Json;
use super::error::{ApiError, ApiResult};
use crate::events::{Audience, Known, StreamId, VerifyError};

/// Chain hashes noted elsewhere that one request may ask about.
const KNOWN_MAX: usize = 64;
/// A verification reads all of the log: they take turns.
static VERIFYING: Semaphore = Semaphore::const_new(1);

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/audit/verify").route(web::post().to(verify)))
        .service(web::resource("/audit/export").route(web::get().to(export)))
        .service(web::resource("/audit/checkpoint").route(web::get().to(checkpoint)));
}

#[derive(Deserialize)]
struct Verify {
    stream: Option<String>,
    known: Option<Vec<KnownChain>>,
}

/// A chain hash that the caller noted earlier.
#[derive(Deserialize)]
struct KnownChain {
    commit: u64,
    chain: String,
}

impl KnownChain {
    fn read(&self) -> ApiResult<Known> {
        format!("{}:{}", self.commit, self.chain)
            .parse()
            .map_err(ApiError::bad_request)
    }
}

async fn verify(
    api: web::Data<Api>,
    WithKey(caller): WithKey,
    Json(asked): Json<Verify>,
) -> ApiResult {
    let log = api.platform.log();
    let known = asked.known.unwrap_or_default();
    if known.len() > KNOWN_MAX {
        let text = format!("known must not have more than {KNOWN_MAX} entries");
        return Err(ApiError::bad_request(text));
    }
    let known: Vec<Known> = known
        .iter()
        .map(KnownChain::read)
        .collect::<Result<_, _>>()?;
    let stream = asked.stream.map(StreamId::new).transpose();
    let stream = stream.map_err(|bad| ApiError::bad_request(bad.to_string()))?;
    let stream = match stream {
        None => None,
        Some(stream) => {
            let report = log.stream_report(&stream, caller.org).await;
            let report = report.map_err(ApiError::internal)?;
            Some(report.ok_or_else(|| ApiError::not_found("stream"))?)
        }
    };
    let _turn = VERIFYING.acquire().await.map_err(ApiError::internal)?;
    let report = match log.verify().await {
        Ok(report) => report,
        Err(error) => return Ok(broken(&error)),
    };
    for known in known {
        if let Err(error) = log.holds(known).await {
            return Ok(broken(&error));
        }
    }
    let mut reply = json!({
        "ok": true,
        "log": report.log,
        "commits": report.commits,
        "positions": report.events,
        "chain": hex::encode(report.head.chain),
    });
    if let Some(stream) = stream {
        reply["stream"] = json!({
            "stream": stream.stream,
            "events": stream.events,
            "lastRevision": stream.last_revision,
        });
    }
    Ok(HttpResponse::Ok().json(reply))
}

fn broken(error: &VerifyError) -> HttpResponse {
    let reply: Value = json!({ "ok": false, "error": error.to_string() });
    HttpResponse::Ok().json(reply)
}

/// The export, piece by piece as the client takes it. A failure on the way ends the connection
/// without the last line, so that a part never passes for the whole.
async fn export(api: web::Data<Api>, WithKey(caller): WithKey) -> ApiResult {
    let export = api.platform.log().export(Audience::Org(caller.org));
    let pieces = stream::try_unfold(export, |mut export| async move {
        match export.next_piece().await {
            Ok(piece) => Ok(piece.map(|piece| (web::Bytes::from(piece), export))),
            Err(error) => Err(ApiError::internal(error)),
        }
    });
    Ok(HttpResponse::Ok()
        .content_type("application/jsonl")
        .streaming(Box::pin(pieces)))
}

async fn checkpoint(api: web::Data<Api>, WithKey(_): WithKey) -> HttpResponse {
    let log = api.platform.log();
    let (checkpoint, note) = api.checkpoint_key.sign_head(log);
    let key = api.checkpoint_key.public(log.id());
    HttpResponse::Ok().json(json!({
        "log": checkpoint.log,
        "commit": checkpoint.head.commit,
        "position": checkpoint.head.position,
        "chain": hex::encode(checkpoint.head.chain),
        "note": note,
        "key": key.to_string(),
        "keyPem": key.pem(),
    }))
}
