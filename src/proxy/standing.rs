//! Whether what is under way may go on when the policy changes.
//!
//! Invariant: a request, its upload and its answer last only as long as the policy lets its host be
//! spoken to and binds the secrets in it to that host. New values alone end nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::body::StreamError;
use super::origin::Origin;
use super::policy::Policy;
use super::refusal::Refusal;
use super::tally::Tally;

/// One request's, from the moment it is made: later policies count, the present one does not.
#[derive(Clone)]
pub(crate) struct Standing {
    policy: watch::Receiver<Option<Arc<Policy>>>,
    origin: Arc<Origin>,
    tally: Arc<Tally>,
}

impl Standing {
    pub fn new(
        policy: watch::Receiver<Option<Arc<Policy>>>,
        origin: Arc<Origin>,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            policy,
            origin,
            tally,
        }
    }

    /// Waits until a policy forbids what is under way. Whoever replaces a token tells the tally first
    /// and then asks whether it still may, so none slips through.
    pub async fn ends(&mut self) -> Refusal {
        while self.policy.changed().await.is_ok() {
            let policy = self.policy.borrow_and_update().clone();
            let refusal = match policy {
                Some(policy) => policy.forbids(&self.origin.host, &self.tally),
                None => Some(Refusal::Closed),
            };
            if let Some(refusal) = refusal {
                self.tally.refuse(refusal.clone());
                return refusal;
            }
        }
        // The proxy is gone, and with it what carries this.
        std::future::pending().await
    }

    /// Takes no more into account, and lets the decision be recorded.
    pub fn close(self) {
        self.tally.close();
    }
}

/// An upload under way, for whoever waits for its end.
#[derive(Clone)]
pub(crate) struct Rest {
    over: CancellationToken,
    standing: Standing,
}

impl Rest {
    /// The upload that `body` is, ended when it no longer stands.
    pub fn of<B>(body: B, standing: Standing) -> (CutBody<B>, Self) {
        let over = CancellationToken::new();
        let rest = Self {
            over: over.clone(),
            standing: standing.clone(),
        };
        let mut body = CutBody::new(body, standing);
        body.over = Some(over.drop_guard());
        (body, rest)
    }

    /// Whether the upload is over.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits until the upload is over, or no longer stands.
    pub async fn ends(&mut self) {
        tokio::select! {
            () = self.over.cancelled() => {}
            _ = self.standing.ends() => {}
        }
    }

    /// Waits until it no longer stands, whether it is over or not.
    pub async fn falls(&mut self) {
        self.standing.ends().await;
    }

    /// Gives up what is left of it.
    pub fn close(self) {
        self.standing.close();
    }
}

/// A body that ends when it no longer stands.
pub(crate) struct CutBody<B> {
    inner: B,
    tally: Arc<Tally>,
    cut: Pin<Box<dyn Future<Output = Refusal> + Send>>,
    over: Option<DropGuard>,
}

impl<B> CutBody<B> {
    pub fn new(inner: B, mut standing: Standing) -> Self {
        Self {
            inner,
            tally: standing.tally.clone(),
            cut: Box::pin(async move { standing.ends().await }),
            over: None,
        }
    }
}

impl<B: Body<Data = Bytes, Error = StreamError> + Unpin> Body for CutBody<B> {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        // Of an answer the rest is still to be given out.
        if self.over.is_some() && self.tally.is_closed() {
            return Poll::Ready(Some(Err(Refusal::Overdue.into())));
        }
        if let Poll::Ready(refusal) = self.cut.as_mut().poll(cx) {
            // Polled once more it would panic; a body that ended is not asked again.
            self.cut = Box::pin(std::future::pending());
            return Poll::Ready(Some(Err(refusal.into())));
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
