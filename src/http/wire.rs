//! A socket's bytes to the last one that arrived.
//!
//! The web server drops a connection as soon as a write to it fails, which happens before it has read
//! what a client sent last when that client was gone without a word. The bytes are in the kernel then:
//! they are read here, from a second descriptor of the same socket. What can't be read without a gap
//! is not read: when so much came that the web server held some of it back itself, those are lost.

use std::any::Any;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::Poll;

use actix_web::dev::{self, Extensions};
use actix_web::web::{Bytes, BytesMut};
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::stream::{StreamExt, poll_fn};
use rustix::net::RecvFlags;

/// So much of a body the web server hands on before it waits for its reader, in bytes.
const HANDED_ON_BYTES_MAX: usize = 32 * 1024;
/// Bytes read at a time.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// The descriptor of a request's connection, which is open for as long as the request is handled.
#[derive(Clone, Copy)]
struct Wire(RawFd);

/// Has the requests of a connection know its descriptor.
pub(super) fn remember(connection: &dyn Any, data: &mut Extensions) {
    if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>() {
        data.insert(Wire(stream.as_raw_fd()));
    }
}

/// The request's body, which ends after the last byte that arrived, however its connection ends. Must
/// be called by the request's handler.
pub(super) async fn to_the_last_byte(
    request: &HttpRequest,
    payload: web::Payload,
) -> actix_web::Result<web::Payload> {
    let mut socket = request.conn_data::<Wire>().and_then(second);
    let mut inner = Some(payload.into_inner());
    // What was handed on without a pause.
    let mut burst = 0;
    let stream = poll_fn(move |context| {
        if let Some(payload) = &mut inner {
            match payload.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(bytes))) => {
                    burst += bytes.len();
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Pending => {
                    burst = 0;
                    return Poll::Pending;
                }
                Poll::Ready(Some(Err(_))) if burst < HANDED_ON_BYTES_MAX => {}
                Poll::Ready(Some(Err(_)) | None) => socket = None,
            }
            inner = None;
        }
        Poll::Ready(socket.as_ref().and_then(rest).map(Ok))
    });
    let mut payload = dev::Payload::Stream {
        payload: stream.boxed_local(),
    };
    web::Payload::from_request(request, &mut payload).await
}

/// A descriptor of our own for the same socket; without one only its last bytes can be missing.
fn second(Wire(descriptor): &Wire) -> Option<OwnedFd> {
    // SAFETY: the connection's own task runs the handler that calls this, so it is open.
    let descriptor = unsafe { BorrowedFd::borrow_raw(*descriptor) };
    descriptor.try_clone_to_owned().ok()
}

/// What is left in a socket that is broken; `None` at its end.
fn rest(socket: &OwnedFd) -> Option<Bytes> {
    let mut piece = BytesMut::zeroed(PIECE_BYTES_MAX);
    let (_, length) = rustix::net::recv(socket, &mut piece[..], RecvFlags::DONTWAIT).ok()?;
    piece.truncate(length);
    (!piece.is_empty()).then(|| piece.freeze())
}
