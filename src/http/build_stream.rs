//! A build as server-sent events (contract section 5.4).
//!
//! ```text
//! event: build_log
//! data: {"step":1,"type":"run","message":"…"}
//!
//! event: result            (or: event: error, data: {"error":"…"})
//! data: {…}
//!
//! : keepalive
//! ```
//!
//! A client that reads slowly holds up nobody: what it misses is told to be gone. The build goes on
//! without it; what is done with its result is not begun when the client has left.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, HeaderName};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::error::{ApiError, ApiResult};
use crate::actors::{Build, Ended};

/// Longest silence.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Events on their way to a client.
const EVENTS_MAX: usize = 64;

/// Whether the caller asks for events instead of one JSON object.
pub(super) fn wants_events(request: &HttpRequest) -> bool {
    let accept = request.headers().get(ACCEPT);
    let accept = accept
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    accept.split(',').any(|one| {
        one.split(';')
            .next()
            .is_some_and(|kind| kind.trim() == "text/event-stream")
    })
}

/// A client that listens.
struct Listener(mpsc::Sender<Bytes>);

impl Listener {
    /// Sends an event; false when the client has left.
    async fn send(&self, event: &str, data: &Value) -> bool {
        let text = format!("event: {event}\ndata: {data}\n\n");
        self.0.send(Bytes::from(text)).await.is_ok()
    }

    /// Waits for `work` and keeps the connection busy meanwhile; `None` when the client has left.
    async fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            match timeout(KEEPALIVE, &mut work).await {
                Ok(done) => return Some(done),
                Err(_) => {
                    let sent = self.0.send(Bytes::from_static(b": keepalive\n\n")).await;
                    sent.ok()?;
                }
            }
        }
    }
}

/// Answers with what a build says, and at its end with what `result` makes of it.
pub(super) fn stream_build<F, R>(api: &web::Data<Api>, build: Arc<Build>, result: F) -> HttpResponse
where
    F: FnOnce(web::Data<Api>) -> R + 'static,
    R: Future<Output = ApiResult<Value>> + 'static,
{
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let api = api.clone();
    actix_rt::spawn(async move {
        let listener = Listener(sender);
        let mut follower = build.feed.follow();
        let ended = loop {
            let next = tokio::select! {
                next = listener.wait(follower.next()) => next,
                () = api.stopping.cancelled() => None,
            };
            let Some(next) = next else { return };
            match next {
                Ok(line) => {
                    let data = json!({
                        "step": line.step,
                        "type": line.kind,
                        "message": line.message,
                    });
                    if !listener.send("build_log", &data).await {
                        return;
                    }
                }
                Err(ended) => break ended,
            }
        };
        let failed = match ended {
            Ended::Done => None,
            Ended::Failed(reason) => Some(reason),
            Ended::Abandoned => Some("the server is stopping: try again later".to_owned()),
        };
        if let Some(reason) = failed {
            listener.send("error", &json!({ "error": reason })).await;
            return;
        }
        match listener.wait(result(api)).await {
            None => {}
            Some(Ok(object)) => drop(listener.send("result", &object).await),
            Some(Err(error)) => {
                listener.send("error", &error.envelope()).await;
            }
        }
    });
    let body = ReceiverStream::new(receiver).map(Ok::<_, ApiError>);
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((CONNECTION, "keep-alive"))
        .insert_header((HeaderName::from_static("x-accel-buffering"), "no"))
        .streaming(body)
}
