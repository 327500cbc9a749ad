//! The tasks of one HTTP/2 connection, run by the connection's own task.
//!
//! Invariant: nothing of a connection outlives it. hyper wants an executor for the streams of a
//! connection; tasks of their own would go on with a request after the connection was cut, and
//! cost a trip through the scheduler each.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The streams that a connection has opened and [`drive`] has not taken over yet. Their number is
/// bounded by the connection's limit of concurrent streams.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<Vec<Stream>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let stream: Stream = Box::pin(stream);
        // A list can't be left half-written by a panic.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(stream);
    }
}

impl Streams {
    /// Moves what is new to `running`; whether there was any.
    fn hand_over(&self, running: &mut FuturesUnordered<Stream>) -> bool {
        let mut new = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let any = !new.is_empty();
        // Pushing polls nothing, so the lock is short.
        running.extend(new.drain(..));
        any
    }
}

/// When a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With the connection: its streams have nobody to talk to.
    WithConnection,
    /// With the last stream: the connection ends as soon as it takes no more requests.
    WithStreams,
}

/// Runs a connection and the streams it opens.
pub(crate) async fn drive<C: Future>(connection: C, streams: Streams, end: End) -> C::Output {
    let mut connection = pin!(connection);
    let mut running = FuturesUnordered::new();
    let mut output = None;
    poll_fn(move |cx| {
        if output.is_none()
            && let Poll::Ready(result) = connection.as_mut().poll(cx)
        {
            output = Some(result);
        }
        // Streams open others at most when they are polled themselves.
        while streams.hand_over(&mut running) {
            while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
        }
        while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
        match output.take_if(|_| end == End::WithConnection || running.is_empty()) {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    /// Goal: streams run although nobody spawned them, and are dropped with the connection or
    /// waited for, as asked.
    #[tokio::test]
    async fn streams_live_as_long_as_their_connection() {
        for end in [End::WithConnection, End::WithStreams] {
            let streams = Streams::default();
            let (tell, told) = oneshot::channel::<()>();
            let (go, gone) = oneshot::channel::<()>();
            let opened = streams.clone();
            let connection = async move {
                opened.execute(async move {
                    tokio::task::yield_now().await;
                    drop(go);
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    let _ = tell.send(());
                });
                let _ = gone.await;
            };
            drive(connection, streams, end).await;
            assert_eq!(told.await.is_ok(), end == End::WithStreams);
        }
    }
}
