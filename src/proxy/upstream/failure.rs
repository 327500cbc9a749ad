//! Requests that got no answer, and what may have become of them.

use std::error::Error;

use h2::Reason;
use http::Request;
use hyper::client::conn::TrySendError;

use crate::proxy::body::OutBody;

/// What is known of a request that got no answer.
pub(crate) enum Failure {
    /// Nothing of it was written. Here it is.
    Unsent(Box<Request<OutBody>>),
    /// The host did nothing about it: it said so (RFC 9113, section 8.7), or it was not told.
    Refused,
    /// The connection, which had been of use before, ended without a byte of an answer: perhaps it
    /// was given up at the moment the request was sent, perhaps not.
    Lost,
    /// Anything else.
    Broken,
}

impl Failure {
    /// Tells what became of a request on HTTP/1.1: whether the connection was `used` before, and
    /// whether a byte came from the host since.
    pub fn of_one(failure: TrySendError<Request<OutBody>>, used: bool, heard: bool) -> Self {
        let mut failure = Told::from(failure);
        match failure.message.take() {
            Some(request) => Self::Unsent(Box::new(request)),
            None if used && !heard && failure.connection_ended() => Self::Lost,
            None => Self::Broken,
        }
    }

    /// The same on HTTP/2.
    pub fn of_many(failure: TrySendError<Request<OutBody>>, used: bool) -> Self {
        let mut failure = Told::from(failure);
        match failure.message.take() {
            Some(request) => Self::Unsent(Box::new(request)),
            None if failure.was_refused() => Self::Refused,
            None if used && failure.connection_ended() => Self::Lost,
            None => Self::Broken,
        }
    }
}

/// A failure as hyper tells it.
struct Told {
    error: hyper::Error,
    message: Option<Request<OutBody>>,
}

impl From<TrySendError<Request<OutBody>>> for Told {
    fn from(mut failure: TrySendError<Request<OutBody>>) -> Self {
        let message = failure.take_message();
        let error = failure.into_error();
        tracing::debug!(%error, "exchange with the host failed");
        Self { error, message }
    }
}

impl Told {
    fn cause<T: Error + 'static>(&self) -> Option<&T> {
        self.error.source()?.downcast_ref()
    }

    /// Whether the host said that it did nothing about the request. Of a `GOAWAY` the h2 crate tells
    /// only those streams which it leaves out, and those not begun.
    fn was_refused(&self) -> bool {
        self.cause::<h2::Error>().is_some_and(|error| {
            let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
            error.is_remote() && (refused || error.is_go_away())
        })
    }

    /// Whether the connection ended, and not for what was sent or came.
    fn connection_ended(&self) -> bool {
        let error = &self.error;
        // What is in a body is not the connection's fault.
        let ours = error.is_user() || error.is_body_write_aborted();
        let lost = error.is_incomplete_message()
            || error.is_canceled()
            || error.is_closed()
            || error.is_timeout()
            || self.cause::<std::io::Error>().is_some();
        lost && !ours
    }
}
