//! One request to a host and its answer, with the seal applied both ways.
//!
//! Order matters: the host is judged, connected and verified before a value is put into
//! anything. Every failure becomes a readable answer and a record; none lets the request through.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::again::Spare;
use super::answer::{Answer, Asked, incoming};
use super::body::{CountedBody, OutBody, StreamError};
use super::decision::{Outcome, Protocol, Record};
use super::delivery::{HoldingBody, Place, hold_head};
use super::framing::Seat;
use super::gate::SandboxProxy;
use super::head::{check_request, rewrite_request, write_framing};
use super::origin::Origin;
use super::policy::{HostRules, Policy};
use super::refusal::Refusal;
use super::standing::{CutBody, Rest, Standing};
use super::upgrade::Opened;
use super::upload::{self, Upload};
use super::upstream::{Failure, Lease};
use super::websocket::Handshake;

/// How long a host may take for the head of its answer while nothing of the request moves either.
/// Models think for minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Connections tried for one request: a kept one that turns out to be closed, then new ones.
const ATTEMPTS_MAX: usize = 3;

/// Requests of one connection of a sandbox to one host.
pub(crate) struct Exchange {
    proxy: Arc<SandboxProxy>,
    origin: Arc<Origin>,
    /// The version of TLS with the program.
    tls: Option<&'static str>,
    /// The rules of the policy they were made from.
    rules: Mutex<Option<(Arc<Policy>, Arc<HostRules>)>>,
    /// What the connection turns into after the request that asked for it.
    opened: Mutex<Option<Opened>>,
}

impl Exchange {
    pub fn new(proxy: Arc<SandboxProxy>, origin: Origin) -> Self {
        Self {
            proxy,
            origin: Arc::new(origin),
            tls: None,
            rules: Mutex::new(None),
            opened: Mutex::new(None),
        }
    }

    /// The same over `tls` with the program.
    pub fn over(mut self, tls: Option<&'static str>) -> Self {
        self.tls = tls;
        self
    }

    /// Answers one request, which sits there in its connection.
    pub async fn answer(&self, request: Request<Incoming>, seat: Seat) -> Response<OutBody> {
        let origin = &*self.origin;
        let protocol = if origin.tls {
            Protocol::Https
        } else {
            Protocol::Http
        };
        let mut record = self.proxy.record(&origin.host, origin.port, protocol);
        record.method(request.method());
        let version = request.version();
        record.client(self.tls, version);
        let mut standing = self.standing(&record);
        // What its answer holds until it is written.
        let mut place = None;
        let forwarded = tokio::select! {
            biased;
            refusal = standing.ends() => Err(refusal),
            forwarded = self.forward(request, seat, &mut record, &mut place) => forwarded,
        };
        match forwarded {
            Ok(mut response) => {
                record.status(response.status());
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    if let Some(opened) = &mut *self.opened() {
                        opened.record = Some(record);
                    }
                    return response.map(BodyExt::boxed_unsync);
                }
                let bytes = record.down.clone();
                if let Some(place) = &place {
                    hold_head(response.headers_mut(), place);
                }
                response.map(|body| match body.is_whole() {
                    // There is nothing left to cut.
                    true => holding(CountedBody::new(body, bytes, record), place),
                    false => {
                        let body = CutBody::new(body, standing);
                        holding(CountedBody::new(body, bytes, record), place)
                    }
                })
            }
            Err(refusal) => {
                tracing::debug!(host = %origin.host, rule = refusal.rule(), "request refused");
                record.refused(&refusal);
                refusal.response(&origin.host, version)
            }
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        seat: Seat,
        record: &mut Record,
        place: &mut Option<Place>,
    ) -> Result<Response<Answer>, Refusal> {
        let near = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let upload = Upload::new(body, &parts, record.up.clone());
        record.room().await?;
        seat.check()?;
        let (policy, rule) = self.proxy.judge(&self.origin.host)?;
        check_request(&parts, &self.origin)?;
        let handshake = Handshake::of(&parts)?;
        let rules = self.rules(&policy).for_request(&parts)?;
        rules.prepare().await?;
        if let Some(handshake) = handshake {
            record.passed(Outcome::Allowed, rule);
            return self.upgrade((handshake, parts, near), &rules, record).await;
        }

        let (asked, version) = (Asked::of(&parts), parts.version);
        let lease = self.lease(version, false).await?;
        record.host(lease.tls(), lease.version());
        let (gathering, upstreams) = (self.proxy.gathering(), self.proxy.upstreams());
        let spools = upstreams.spools_for(&self.origin);
        let outgoing =
            upload::outgoing(&parts, upload, &rules, &record.tally, gathering, spools).await?;
        rewrite_request(&mut parts, &rules, &record.tally)?;
        self.proxy
            .announce(&rules, record, outgoing.more_to_come)
            .await?;
        // The policy may have changed while a connection was waited for or the upload gathered.
        self.proxy.judge(&self.origin.host)?;
        record.passed(Outcome::Allowed, rule);
        let (body, rest) = match outgoing.body.is_end_stream() {
            true => (outgoing.body, None),
            false => {
                let (body, rest) = Rest::of(outgoing.body, self.standing(record));
                (body.boxed_unsync(), Some(rest))
            }
        };
        let request = Request::from_parts(parts, body);
        let (response, mut lease) = self.send(request, version, lease, record).await?;
        // Another connection than at first, perhaps.
        record.host(lease.tls(), lease.version());
        lease.follow(rest);
        if version == Version::HTTP_2 {
            *place = lease.place();
        }
        if outgoing.lost_length && response.status() == StatusCode::LENGTH_REQUIRED {
            upstreams.wants_length(&self.origin);
        }
        incoming(response, &asked, &rules, lease, record).await
    }

    pub(super) fn proxy(&self) -> &Arc<SandboxProxy> {
        &self.proxy
    }

    pub(super) fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Whether a request that begins now may go on.
    pub(super) fn standing(&self, record: &Record) -> Standing {
        let policy = self.proxy.watch_policy();
        Standing::new(policy, self.origin.clone(), record.tally.clone())
    }

    pub(super) fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rules(&self, policy: &Arc<Policy>) -> Arc<HostRules> {
        let mut kept = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((of, rules)) if Arc::ptr_eq(of, policy) => rules.clone(),
            _ => {
                let strict = self.proxy.settings().strict_tokens;
                let rules = policy.rules_for(&self.origin.host, self.origin.tls, strict);
                *kept = Some((policy.clone(), rules.clone()));
                rules
            }
        }
    }

    async fn lease(&self, version: Version, anew: bool) -> Result<Lease, Refusal> {
        let upstreams = self.proxy.upstreams();
        upstreams
            .lease(self.proxy.dialer(), &self.origin, version, anew)
            .await
    }

    /// Sends a request; again, on another connection, when nothing of it was written, when the host
    /// did nothing about it, or when the kept connection ended before a byte of an answer and the
    /// method changes nothing at the host (RFC 9110, section 9.2.2), so that no request is carried
    /// out twice.
    async fn send(
        &self,
        mut request: Request<OutBody>,
        version: Version,
        mut lease: Lease,
        record: &Record,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        for attempt in 1..=ATTEMPTS_MAX {
            let (mut parts, body) = request.into_parts();
            parts.version = lease.version();
            self.origin
                .address(&mut parts.uri, &mut parts.headers, parts.version);
            write_framing(&mut parts, &body);
            let safe = parts.method.is_safe();
            let mut addressed = Request::from_parts(parts, body);
            let mut spare = None;
            if lease.may_fail(safe) && attempt < ATTEMPTS_MAX {
                let (request, kept) = Spare::of(addressed);
                addressed = request;
                spare = Some(kept);
            }
            let failure = match self.sent(addressed, &mut lease, record).await? {
                Ok(response) => {
                    if let Some(spare) = spare {
                        spare.answered();
                    }
                    return Ok((response, lease));
                }
                Err(failure) => failure,
            };
            let again = match failure {
                Failure::Unsent(request) => Some(*request),
                Failure::Refused => spare.and_then(Spare::again),
                Failure::Lost if safe => spare.and_then(Spare::again),
                Failure::Lost | Failure::Broken => None,
            };
            let Some(again) = again.filter(|_| attempt < ATTEMPTS_MAX) else {
                break;
            };
            request = again;
            drop(lease);
            lease = self.lease(version, true).await?;
        }
        Err(record.tally.refusal().cloned().unwrap_or(Refusal::Upstream))
    }

    /// Sends a request and waits, within bounds, for the head of its answer.
    pub(super) async fn sent(
        &self,
        request: Request<OutBody>,
        lease: &mut Lease,
        record: &Record,
    ) -> Result<Result<Response<Incoming>, Failure>, Refusal> {
        record.tally.leave();
        patiently(lease.send(request), &record.up, ANSWER_TIMEOUT).await
    }
}

/// A body that holds `place`, where there is one, until it is written.
fn holding<B>(body: B, place: Option<Place>) -> OutBody
where
    B: Body<Data = Bytes, Error = StreamError> + Send + Unpin + 'static,
{
    match place {
        Some(place) => HoldingBody::new(body, place).boxed_unsync(),
        None => body.boxed_unsync(),
    }
}

/// Waits for the head of an answer; `limit` counts from when the upload moved last.
async fn patiently<F: Future>(
    exchange: F,
    uploaded: &AtomicU64,
    limit: Duration,
) -> Result<F::Output, Refusal> {
    let mut exchange = pin!(exchange);
    loop {
        let before = uploaded.load(Ordering::Relaxed);
        match timeout(limit, exchange.as_mut()).await {
            Ok(answered) => return Ok(answered),
            Err(_) if uploaded.load(Ordering::Relaxed) == before => {
                return Err(Refusal::ResponseTimeout);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a host that is silent is given up, one that still takes the upload is not.
    #[tokio::test]
    async fn patience_ends_when_nothing_moves() {
        let limit = Duration::from_millis(40);
        let uploaded = AtomicU64::new(0);
        let silent = patiently(std::future::pending::<()>(), &uploaded, limit).await;
        assert_eq!(silent, Err(Refusal::ResponseTimeout));
        let uploading = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                uploaded.fetch_add(1, Ordering::Relaxed);
            }
        };
        assert_eq!(patiently(uploading, &uploaded, limit).await, Ok(()));
    }
}
