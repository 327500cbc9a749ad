//! Every reply names its request: by the caller's own id, or one that is made. The server's log names
//! it too, so that a reply without a reason leads to the reason.

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use tracing::Instrument;

use super::error::ApiError;

/// The request's id, in both directions.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is echoed, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Echoes the caller's request id, or makes one, on every reply.
pub(super) async fn with_request_id<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let given = request.headers().get(&REQUEST_ID).cloned();
    let id = given
        .filter(|id| id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok())
        .unwrap_or_else(|| {
            let id = ulid::Ulid::generate().to_string();
            HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
        });
    let name = id.to_str().unwrap_or_default();
    // Of the highest level, so that it is there whatever is logged.
    let span = tracing::error_span!("request", id = name);
    let reply = next.call(request).instrument(span).await?;
    let error = reply.response().error();
    let unexplained = error
        .and_then(|error| error.as_error::<ApiError>())
        .and_then(|error| error.unexplained(name));
    let mut reply = match unexplained {
        Some(body) => reply.map_body(|_, _| EitherBody::right(BoxBody::new(body.to_string()))),
        None => reply.map_into_left_body(),
    };
    reply.headers_mut().insert(REQUEST_ID, id);
    Ok(reply)
}
