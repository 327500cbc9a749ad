//! Secrets that were revoked while the sandbox runs: dead at once, also for what is under way.
//!
//! Invariants: from the moment [`Revoked::add`] returns, no token of a revoked secret is replaced
//! any more, not even in a body that began under an older policy; and every request in which one
//! was replaced before is cut. A revoked token never comes to life again in its sandbox.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;

use super::body::StreamError;
use super::refusal::Refusal;
use super::tally::Tally;
use super::token::SealedToken;

/// The revoked tokens of one sandbox; shared by all its policies, old ones included.
#[derive(Default)]
pub(crate) struct Revoked {
    names: RwLock<HashMap<SealedToken, String>>,
    /// So that sandboxes without any pay nothing.
    any: AtomicBool,
    changes: watch::Sender<()>,
}

impl Revoked {
    /// Kills tokens; those that are dead already stay so.
    pub fn add(&self, tokens: &[(SealedToken, String)]) {
        if tokens.is_empty() {
            return;
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.extend(tokens.iter().cloned());
        self.any.store(true, Ordering::SeqCst);
        drop(names);
        self.changes.send_replace(());
    }

    /// The name of the secret whose token was revoked.
    pub fn name(&self, token: &SealedToken) -> Option<String> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(token).cloned()
    }

    /// Waits until a secret that was put into the request of `tally` is revoked. Whoever replaces
    /// a token tells the tally first and then asks [`name`](Self::name), so none slips through.
    pub async fn cut(&self, tally: &Tally) -> Refusal {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(refusal) = self.judge(tally) {
                tally.refuse(refusal.clone());
                return refusal;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn judge(&self, tally: &Tally) -> Option<Refusal> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let revoked = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let sent = tally.names();
        let secret = revoked
            .values()
            .find(|name| sent.substituted.contains(*name))?;
        Some(Refusal::Revoked {
            secret: secret.clone(),
        })
    }
}

/// An answer that ends when a secret of its request is revoked.
pub(crate) struct CutBody<B> {
    inner: B,
    cut: Pin<Box<dyn Future<Output = Refusal> + Send>>,
}

impl<B> CutBody<B> {
    pub fn new(inner: B, revoked: Arc<Revoked>, tally: Arc<Tally>) -> Self {
        let cut = Box::pin(async move { revoked.cut(&tally).await });
        Self { inner, cut }
    }
}

impl<B: Body<Data = Bytes, Error = StreamError> + Unpin> Body for CutBody<B> {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Poll::Ready(refusal) = self.cut.as_mut().poll(cx) {
            // Polled once more it would panic; an answer that ended is not asked again.
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
