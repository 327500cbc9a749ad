//! The proof of the log: verify it, export it, sign where it ends.
//!
//! The log's chain spans all organizations, so anybody with a key may have it checked and signed;
//! an export shows the organization's own events and of the others' only their content hashes.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::Instrument;

use super::Api;
use super::auth::WithKey;
use super::body::Json;
use super::error::{ApiError, ApiResult};
use crate::events::{Audience, EngineError, Known, StreamId, VerifyError};

/// Chain hashes noted elsewhere that one request may ask about.
const KNOWN_MAX: usize = 64;
/// A verification reads all of the log: they take turns.
static VERIFYING: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(1)));
/// Longest a verification waits for the one before it.
const TURN_WAIT_MAX: Duration = match cfg!(test) {
    true => Duration::from_millis(50),
    false => Duration::from_secs(10),
};

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
    let whole = log.clone();
    let verified = in_turn(&VERIFYING, async move { whole.verify().await }).await?;
    let report = match verified {
        Ok(report) => report,
        Err(error) => return broken(&error).map(refuted),
    };
    for known in known {
        match log.holds(known).await {
            Ok(()) => {}
            // It names what the caller named, and the chain hash that everybody may have.
            Err(error @ VerifyError::Broken { .. }) => return Ok(refuted(error.to_string())),
            Err(error) => return broken(&error).map(refuted),
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

/// Does work that reads all of the log, one after the other. The turn lasts as long as the work,
/// which goes on when whoever asked for it has hung up.
async fn in_turn<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl Future<Output = T> + Send + 'static,
) -> ApiResult<T> {
    let Ok(turn) = timeout(TURN_WAIT_MAX, turns.clone().acquire_owned()).await else {
        let text = "another verification is running; try again";
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
    };
    let turn = turn.map_err(ApiError::internal)?;
    let working = async move {
        let _turn = turn;
        work.await
    };
    let working = tokio::spawn(working.in_current_span());
    working.await.map_err(ApiError::internal)
}

/// What a caller is told of a log that is not whole. The rest is in the server's log, since it may
/// name other organizations' streams. A log that could not be read is not a broken one.
fn broken(error: &VerifyError) -> ApiResult<String> {
    let told = match error {
        VerifyError::Broken { place, .. } => format!("the proof breaks at {place}"),
        VerifyError::Engine(EngineError::Damaged(_)) => "the stored log is damaged".to_owned(),
        VerifyError::Engine(error) => return Err(ApiError::internal(error)),
    };
    tracing::error!(%error, "the event log does not verify");
    Ok(told)
}

fn refuted(error: String) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "ok": false, "error": error }))
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Goal: a verification whose caller hung up holds its turn until it has ended, so that callers
    /// who come and go can't have many of them running; who waits for it is told to come again.
    #[tokio::test]
    async fn a_verification_nobody_waits_for_holds_its_turn() {
        let turns = Arc::new(Semaphore::new(1));
        let (end, ended) = oneshot::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let caller = turns.clone();
        let caller = tokio::spawn(async move {
            let work = async move {
                let _ = begin.send(());
                let _ = ended.await;
            };
            in_turn(&caller, work).await.is_ok()
        });
        begun.await.expect("it runs");
        caller.abort();
        assert!(caller.await.is_err_and(|error| error.is_cancelled()));
        let refused = in_turn(&turns, async {}).await.expect_err("it runs still");
        let refused = refused.to_string();
        assert!(refused.starts_with("429"), "{refused}");
        assert!(refused.contains("another verification is running; try again"));
        end.send(()).expect("it waits still");
        assert!(in_turn(&turns, async {}).await.is_ok());
    }

    /// Goal: a log that can't be read is not called a broken one, and a broken one is named by the
    /// place alone.
    #[test]
    fn what_can_not_be_read_is_not_called_broken() {
        let check = |error: VerifyError| broken(&error).map_err(|error| error.to_string());
        for passing in [
            EngineError::Io("/data/log: EMFILE".into()),
            EngineError::Full,
            EngineError::HeadMoved,
        ] {
            let refused = check(passing.into()).expect_err("no verdict");
            assert!(refused.starts_with("500") && !refused.contains("/data"));
        }
        let told = check(VerifyError::Broken {
            place: "commit 7".into(),
            what: "stream project-of-another".into(),
        });
        assert_eq!(told, Ok("the proof breaks at commit 7".to_owned()));
        let told = check(EngineError::Damaged("page 3 of /data/log".into()).into());
        assert_eq!(told, Ok("the stored log is damaged".to_owned()));
    }
}
