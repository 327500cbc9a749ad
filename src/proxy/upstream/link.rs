//! One connection to a host, and the requests sent on it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::driver::Driver;
use super::failure::Failure;
use crate::proxy::body::OutBody;
use crate::proxy::connection::HEAD_BYTES_MAX;
use crate::proxy::dial::Dialled;
use crate::proxy::io::{Duplex, Listened};
use crate::proxy::refusal::Refusal;
use crate::proxy::streams::{End, Streams, drive};

/// Longest request that is sent on the task of its request. It is read by then, and whoever sent it
/// reads the answer.
const SENT_HERE_BYTES_MAX: u64 = 64 * 1024;
/// Requests at once on one HTTP/2 connection; what the host permits may be less.
const STREAMS_MAX: usize = 100;
/// What a host may send ahead on one stream: enough for 100 ms of distance at 10 MiB/s.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// What a host may send ahead on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// What one stream holds of a body that the host does not take.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// How long a host may leave a PING unanswered before its connection counts as dead.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a connection with requests on it is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// How long the first flight of HTTP/2 may take.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a host, ready for a request.
pub(crate) enum Link {
    /// HTTP/1.1: nobody else's while it is held.
    One(One),
    /// HTTP/2: shared with other requests of the same sandbox.
    Many(Share),
}

/// A connection for one request at a time. Dropped, it is cut.
pub(crate) struct One {
    sender: http1::SendRequest<OutBody>,
    tls: Option<&'static str>,
    driver: Driver,
    /// A request was sent on it before.
    used: bool,
    /// A byte came since the last request was sent.
    heard: Arc<AtomicBool>,
}

/// A connection for many requests. Cut when nobody holds it any more.
pub(crate) struct Many {
    sender: http2::SendRequest<OutBody>,
    tls: Option<&'static str>,
    active: AtomicUsize,
    /// A request was answered on it.
    used: AtomicBool,
    /// The host does not take every request on it any more.
    retired: AtomicBool,
    _driver: AbortOnDropHandle<()>,
}

/// One request's share of a connection.
pub(crate) struct Share(Arc<Many>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    /// The version requests on it are sent in.
    pub fn version(&self) -> Version {
        match self {
            Self::One(_) => Version::HTTP_11,
            Self::Many(_) => Version::HTTP_2,
        }
    }

    /// The version of TLS it is over.
    pub fn tls(&self) -> Option<&'static str> {
        match self {
            Self::One(one) => one.tls,
            Self::Many(share) => share.0.tls,
        }
    }

    /// Whether a request that gets no answer on it may have to be sent again, be that for a host
    /// that refused it or, when it is `safe`, for a connection that ended.
    pub fn may_fail(&self, safe: bool) -> bool {
        match self {
            Self::One(one) => safe && one.used,
            Self::Many(_) => true,
        }
    }

    /// Sends a request. One of which nothing was written comes back with the failure.
    pub async fn send(&mut self, request: Request<OutBody>) -> Result<Response<Incoming>, Failure> {
        match self {
            Self::One(one) => one.send(request).await,
            Self::Many(share) => share.0.send(request).await,
        }
    }
}

impl Link {
    /// Polls the body of an answer that came on this connection.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Incoming,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut body = Pin::new(body);
        match self {
            Self::One(one) => one.driver.poll_with(cx, |cx| body.as_mut().poll_frame(cx)),
            Self::Many(_) => body.poll_frame(cx),
        }
    }
}

impl One {
    /// Speaks HTTP/1.1 on what was dialled; with `upgrades`, it may turn into another protocol.
    pub async fn open(dialled: Dialled, upgrades: bool) -> Result<Self, Refusal> {
        Self::over(dialled.stream, dialled.tls, upgrades).await
    }

    async fn over(
        stream: impl Duplex + 'static,
        tls: Option<&'static str>,
        upgrades: bool,
    ) -> Result<Self, Refusal> {
        let (stream, heard) = Listened::new(stream);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Refusal::Upstream)?;
        let told = |ended: hyper::Result<()>| {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection to the host ended");
            }
        };
        let driver = match upgrades {
            true => Driver::apart(connection.with_upgrades().map(told)),
            false => Driver::here(connection.map(told)),
        };
        Ok(Self {
            sender,
            tls,
            driver,
            used: false,
            heard,
        })
    }

    async fn send(&mut self, request: Request<OutBody>) -> Result<Response<Incoming>, Failure> {
        let used = std::mem::replace(&mut self.used, true);
        self.heard.store(false, Ordering::Relaxed);
        // A long body may have to move while its answer does not.
        let length = request.body().size_hint().upper();
        if length.is_none_or(|length| length > SENT_HERE_BYTES_MAX) {
            self.driver.part();
        }
        let mut answered = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        let answered = poll_fn(|cx| driver.poll_with(cx, |cx| answered.as_mut().poll(cx))).await;
        let heard = || self.heard.load(Ordering::Relaxed);
        answered.map_err(|failure| Failure::of_one(failure, used, heard()))
    }

    /// Whether the last exchange is over and the next may begin.
    pub fn is_ready(&mut self) -> bool {
        self.driver.settle();
        self.sender.is_ready()
    }

    /// Whether the last exchange is over; if so, the connection is to be kept.
    pub fn rests(&mut self) -> bool {
        let ready = self.sender.is_ready() || self.is_ready();
        if ready {
            self.driver.rest();
        }
        ready
    }

    /// Whether the connection is of no more use.
    pub fn is_closed(&mut self) -> bool {
        self.driver.settle();
        self.sender.is_closed()
    }

    /// Waits until the last exchange is over; `false` when no other can follow it.
    pub async fn becomes_ready(&mut self, limit: Duration) -> bool {
        let Self { sender, driver, .. } = self;
        let ready = poll_fn(|cx| driver.poll_with(cx, |cx| sender.poll_ready(cx)));
        matches!(timeout(limit, ready).await, Ok(Ok(())))
    }
}

impl Many {
    /// Speaks HTTP/2 on what was dialled.
    pub async fn open(dialled: Dialled) -> Result<Arc<Self>, Refusal> {
        Self::over(dialled.stream, dialled.tls).await
    }

    async fn over(
        stream: impl Duplex + 'static,
        tls: Option<&'static str>,
    ) -> Result<Arc<Self>, Refusal> {
        let streams = Streams::default();
        let handshake = http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = match timeout(PREFACE_TIMEOUT, handshake).await {
            Ok(Ok(parts)) => parts,
            _ => return Err(Refusal::Upstream),
        };
        let driver = tokio::spawn(async move {
            if let Err(error) = drive(connection, streams, End::WithStreams).await {
                tracing::debug!(%error, "connection to the host ended");
            }
        });
        Ok(Arc::new(Self {
            sender,
            tls,
            active: AtomicUsize::new(0),
            used: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            _driver: AbortOnDropHandle::new(driver),
        }))
    }

    async fn send(&self, request: Request<OutBody>) -> Result<Response<Incoming>, Failure> {
        let answered = self.sender.clone().try_send_request(request).await;
        if answered.is_ok() {
            self.used.store(true, Ordering::Relaxed);
        }
        answered.map_err(|failure| {
            let failure = Failure::of_many(failure, self.used.load(Ordering::Relaxed));
            if !matches!(failure, Failure::Broken) {
                self.retired.store(true, Ordering::Relaxed);
            }
            failure
        })
    }

    /// A share, when there is room for another request.
    pub fn share(self: &Arc<Self>) -> Option<Share> {
        // Taken under the lock of the shelf: nobody adds at the same time.
        if self.is_closed() || self.active.load(Ordering::Relaxed) >= STREAMS_MAX {
            return None;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        Some(Share(self.clone()))
    }

    /// Whether the connection takes no more requests. Those on it may go on.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.retired.load(Ordering::Relaxed)
    }

    /// Whether no request is on it.
    pub fn is_idle(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0
    }
}
