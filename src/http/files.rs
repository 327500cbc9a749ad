//! Files in a sandbox (contract section 9). Bytes are streamed both ways; nothing is buffered whole.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::{Stream, StreamExt, future, stream};
use serde::Deserialize;
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::auth::WithSandbox;
use super::error::{ApiError, ApiResult};
use crate::actors::InUse;

/// Longest path (Linux's `PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;
/// Pieces of an upload on their way to the guest's client.
const UPLOAD_CHUNKS_MAX: usize = 8;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/files")
                .route(web::get().to(read))
                .route(web::put().to(write))
                .route(web::delete().to(remove)),
        )
        .service(web::resource("/files/list").route(web::get().to(list)))
        .service(web::resource("/files/mkdir").route(web::post().to(make_dir)));
}

#[derive(Deserialize)]
struct PathQuery {
    path: Option<String>,
}

impl PathQuery {
    fn required(self) -> ApiResult<String> {
        match self.path {
            Some(path) if !path.is_empty() => check(path),
            _ => Err(ApiError::bad_request("path query parameter is required")),
        }
    }
}

/// A path that may be asked for.
pub(super) fn check(path: String) -> ApiResult<String> {
    if path.contains('\0') {
        return Err(ApiError::bad_request("path must not hold NUL"));
    }
    if path.len() > PATH_BYTES_MAX {
        let text = format!("path must not exceed {PATH_BYTES_MAX} bytes");
        return Err(ApiError::bad_request(text));
    }
    Ok(path)
}

async fn read(api: web::Data<Api>, who: WithSandbox, query: web::Query<PathQuery>) -> ApiResult {
    let path = query.into_inner().required()?;
    download(who.live(&api).await?, &path).await
}

/// A file's bytes.
pub(super) async fn download(live: InUse, path: &str) -> ApiResult {
    let (size, bytes) = live.guest.read_file(path).await?;
    Ok(HttpResponse::Ok()
        .content_type("application/octet-stream")
        .no_chunking(size)
        .streaming(bytes.map(move |chunk| {
            // The sandbox is in use until the last byte is read.
            let _in_use = &live;
            chunk.map_err(ApiError::from)
        })))
}

async fn write(
    api: web::Data<Api>,
    who: WithSandbox,
    query: web::Query<PathQuery>,
    payload: web::Payload,
) -> ApiResult {
    let path = query.into_inner().required()?;
    upload(&api, who.live(&api).await?, path, payload).await
}

/// Makes a request's body the content of a file, all of it or nothing.
pub(super) async fn upload(
    api: &Api,
    live: InUse,
    path: String,
    mut payload: web::Payload,
) -> ApiResult {
    let limit = api.platform.limits().upload_bytes_max;
    // The request's body can't leave its thread; the guest's client can't stay on it.
    let (sender, receiver) = tokio::sync::mpsc::channel(UPLOAD_CHUNKS_MAX);
    let whole = Arc::new(AtomicBool::new(false));
    let body = until_whole(ReceiverStream::new(receiver), whole.clone());
    let upload = tokio::spawn(async move { live.guest.write_file(&path, body).await });
    let mut total = 0u64;
    let mut failure = None;
    while let Some(chunk) = payload.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(_) => {
                failure = Some(ApiError::bad_request("the request body ended too early"));
                break;
            }
        };
        total = total.saturating_add(chunk.len() as u64);
        if total > limit {
            let text = format!("the file must not exceed {limit} bytes");
            failure = Some(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
            break;
        }
        if sender.send(Ok(chunk)).await.is_err() {
            break; // the guest refused: its reason is the upload's result
        }
    }
    whole.store(failure.is_none(), Ordering::Release);
    drop(sender);
    let uploaded = upload.await.map_err(ApiError::internal)?;
    match failure {
        Some(failure) => Err(failure),
        None => {
            uploaded?;
            Ok(HttpResponse::NoContent().finish())
        }
    }
}

/// `chunks`, and an error after them unless `whole` is set by then: it makes the guest drop what it
/// has. So half a file is never taken for a whole one, also when the client hangs up and the
/// request's own task is gone.
fn until_whole(
    chunks: impl Stream<Item = io::Result<Bytes>>,
    whole: Arc<AtomicBool>,
) -> impl Stream<Item = io::Result<Bytes>> {
    let end = async move {
        let broken = || Err(io::Error::other("the upload was broken off"));
        (!whole.load(Ordering::Acquire)).then(broken)
    };
    chunks.chain(stream::once(end).filter_map(future::ready))
}

async fn list(api: web::Data<Api>, who: WithSandbox, query: web::Query<PathQuery>) -> ApiResult {
    let path = query.into_inner().path.filter(|path| !path.is_empty());
    let path = check(path.unwrap_or_else(|| "/".to_owned()))?;
    let live = who.live(&api).await?;
    let entries = live.guest.list_dir(&path).await?;
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            json!({
                "name": entry.name,
                "isDir": entry.is_dir,
                "size": entry.size,
                "path": entry.path,
            })
        })
        .collect();
    Ok(HttpResponse::Ok().json(rows))
}

async fn make_dir(
    api: web::Data<Api>,
    who: WithSandbox,
    query: web::Query<PathQuery>,
) -> ApiResult {
    let path = query.into_inner().required()?;
    let live = who.live(&api).await?;
    live.guest.make_dir(&path).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn remove(api: web::Data<Api>, who: WithSandbox, query: web::Query<PathQuery>) -> ApiResult {
    let path = query.into_inner().required()?;
    let live = who.live(&api).await?;
    live.guest.remove(&path).await?;
    Ok(HttpResponse::NoContent().finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an upload whose request went away ends in an error, a whole one doesn't.
    #[actix_web::test]
    async fn half_a_file_ends_in_an_error() {
        for (whole, pieces) in [(true, 1), (false, 2)] {
            let chunks = stream::iter([Ok(Bytes::from_static(b"a"))]);
            let body = until_whole(chunks, Arc::new(AtomicBool::new(whole)));
            let body: Vec<_> = body.collect().await;
            assert_eq!(body.len(), pieces);
            assert_eq!(body.last().is_some_and(Result::is_ok), whole);
        }
    }
}
