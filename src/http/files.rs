//! Files in a sandbox (contract section 9). Bytes are streamed both ways; nothing is buffered whole.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::http::header::{CONTENT_LENGTH, HeaderMap};
use actix_web::http::{ConnectionType, StatusCode};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use futures_util::{Stream, StreamExt, future, stream};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::auth::WithSandbox;
use super::error::{ApiError, ApiResult};
use crate::actors::InUse;
use crate::sandbox::DirEntry;

/// Longest path (Linux's `PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;
/// Pieces of an upload on their way to the guest's client.
const UPLOAD_CHUNKS_MAX: usize = 8;
/// What is read of a body after its refusal, in bytes (8 MiB), and for how long.
const DISCARDED_BYTES_MAX: usize = 8 * 1024 * 1024;
const DISCARDING_MAX: Duration = Duration::from_secs(5);

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
    /// Of a request. Bytes that are no text would be replaced, and name another file.
    fn of(request: &HttpRequest) -> ApiResult<Self> {
        let query = request.query_string();
        if percent_decode_str(query).decode_utf8().is_err() {
            return Err(ApiError::bad_request("path must be UTF-8"));
        }
        let query = web::Query::<Self>::from_query(query);
        let query = query.map_err(|_| ApiError::bad_request("invalid query parameter"))?;
        Ok(query.into_inner())
    }

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

async fn read(api: web::Data<Api>, who: WithSandbox, request: HttpRequest) -> ApiResult {
    let path = PathQuery::of(&request)?.required()?;
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
    request: HttpRequest,
    payload: web::Payload,
) -> ApiResult {
    let path = PathQuery::of(&request)?.required()?;
    upload(
        &api,
        who.live(&api).await?,
        path,
        request.headers(),
        payload,
    )
    .await
}

/// Makes a request's body the content of a file, all of it or nothing.
pub(super) async fn upload(
    api: &Api,
    live: InUse,
    path: String,
    headers: &HeaderMap,
    mut payload: web::Payload,
) -> ApiResult {
    let limit = api.platform.limits().upload_bytes_max;
    let too_large = || {
        let text = format!("the file must not exceed {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    // What says that it is too large is not even begun.
    let told = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    if told
        .and_then(|text| text.parse().ok())
        .is_some_and(|length: u64| length > limit)
    {
        return early(too_large(), payload).await;
    }
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
            failure = Some(too_large());
            break;
        }
        if sender.send(Ok(chunk)).await.is_err() {
            break; // the guest refused: its reason is the upload's result
        }
    }
    whole.store(failure.is_none(), Ordering::Release);
    drop(sender);
    let uploaded = upload.await.map_err(ApiError::internal)?;
    match (failure, uploaded) {
        (Some(failure), _) => early(failure, payload).await,
        (None, Err(error)) => early(error.into(), payload).await,
        (None, Ok(_)) => Ok(HttpResponse::NoContent().finish()),
    }
}

/// Refuses a body that may go on. The rest is read for a moment, for clients that look for an answer
/// only behind it; then the connection ends, since nobody reads what else comes on it.
async fn early(refusal: ApiError, mut payload: web::Payload) -> ApiResult {
    let mut left = DISCARDED_BYTES_MAX;
    let rest = async {
        while let Some(Ok(chunk)) = payload.next().await {
            left = left.checked_sub(chunk.len())?;
        }
        Some(())
    };
    match tokio::time::timeout(DISCARDING_MAX, rest).await {
        Ok(Some(())) => Err(refusal),
        _ => {
            let mut reply = refusal.error_response();
            reply.head_mut().set_connection_type(ConnectionType::Close);
            Ok(reply)
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

async fn list(api: web::Data<Api>, who: WithSandbox, request: HttpRequest) -> ApiResult {
    let path = PathQuery::of(&request)?
        .path
        .filter(|path| !path.is_empty());
    let path = check(path.unwrap_or_else(|| "/".to_owned()))?;
    let live = who.live(&api).await?;
    let entries = live.guest.list_dir(&path).await?;
    let rows: Vec<_> = entries.iter().map(Entry::from).collect();
    Ok(HttpResponse::Ok().json(rows))
}

/// An entry of a directory, written as it is: there may be a hundred thousand.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    name: &'a str,
    is_dir: bool,
    size: u64,
    path: &'a str,
}

impl<'a> From<&'a DirEntry> for Entry<'a> {
    fn from(entry: &'a DirEntry) -> Self {
        Self {
            name: &entry.name,
            is_dir: entry.is_dir,
            size: entry.size,
            path: &entry.path,
        }
    }
}

async fn make_dir(api: web::Data<Api>, who: WithSandbox, request: HttpRequest) -> ApiResult {
    let path = PathQuery::of(&request)?.required()?;
    let live = who.live(&api).await?;
    live.guest.make_dir(&path).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn remove(api: web::Data<Api>, who: WithSandbox, request: HttpRequest) -> ApiResult {
    let path = PathQuery::of(&request)?.required()?;
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
