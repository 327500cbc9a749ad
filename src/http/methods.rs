//! What every path answers to: `HEAD` wherever there is `GET`, and `405` with the methods there are.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::ResponseError;
use actix_web::body::{BodySize, BoxBody, EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{ALLOW, HeaderValue, UPGRADE};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Bytes;

use super::error::ApiError;

/// Answers `HEAD` with the head of `GET`, and puts the envelope into the framework's `405`, which
/// knows the methods of its path.
pub(super) async fn with_methods<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<BoxBody, Headless>>, actix_web::Error> {
    // A connection that becomes a WebSocket is no head of anything.
    let head = request.method() == Method::HEAD && !request.headers().contains_key(UPGRADE);
    if head {
        request.head_mut().method = Method::GET;
    }
    let mut reply = next.call(request).await?.map_into_boxed_body();
    if reply.status() == StatusCode::METHOD_NOT_ALLOWED {
        reply = refuse(reply);
    }
    Ok(match head {
        true => reply.map_body(|_, body| EitherBody::right(Headless(body.size()))),
        false => reply.map_into_left_body(),
    })
}

fn refuse(reply: ServiceResponse) -> ServiceResponse {
    let text = reply
        .headers()
        .get(ALLOW)
        .and_then(|list| list.to_str().ok());
    let allow = text.map(|list| match list.split(", ").any(|one| one == "GET") {
        true => format!("{list}, HEAD"),
        false => list.to_owned(),
    });
    let refusal = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    let mut refused = reply.into_response(refusal.error_response());
    if let Some(allow) = allow.and_then(|list| HeaderValue::try_from(list).ok()) {
        refused.headers_mut().insert(ALLOW, allow);
    }
    refused
}

/// The length of a body that is not sent.
pub(super) struct Headless(BodySize);

impl MessageBody for Headless {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        self.0
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        Poll::Ready(None)
    }
}
