//! Where a connection stops being HTTP: a WebSocket that both sides agreed to.
//!
//! Invariants: the only protocol switched to is the one asked for and looked into; it has a
//! connection to the host of its own; the record of the request that opened it ends with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::ahead::Ahead;
use super::answer::{Answer, Asked, Content, incoming};
use super::decision::Record;
use super::exchange::Exchange;
use super::head::{rewrite_request, rewrite_response};
use super::placement::drop_cookies;
use super::policy::{HostRules, Policy};
use super::refusal::{Refusal, full};
use super::upstream::Lease;
use super::websocket::{ANSWER_FIELDS, Handshake, Relay, Terms};

/// A WebSocket that both sides agreed to, before its first frame.
pub(crate) struct Opened {
    relay: Relay,
    near: OnUpgrade,
    far: OnUpgrade,
    /// The request as it came, by which later rules are judged too.
    request: request::Parts,
    /// Holds the connection to the host.
    _lease: Lease,
    /// Names of the secrets that were announced.
    announced: BTreeSet<String>,
    /// Absent until the answer is on its way.
    pub record: Option<Record>,
}

impl Exchange {
    /// Shakes hands with the host over a connection of its own; `near` becomes the sandbox's side.
    pub(super) async fn upgrade(
        &self,
        (mut handshake, mut parts, near): (Handshake, request::Parts, OnUpgrade),
        rules: &Arc<HostRules>,
        record: &mut Record,
    ) -> Result<Response<Answer>, Refusal> {
        let (upstreams, dialer) = (self.proxy().upstreams(), self.proxy().dialer());
        let mut lease = upstreams.lease_apart(dialer, self.origin()).await?;
        let asked = Asked::of(&parts);
        let request = parts.clone();
        rewrite_request(&mut parts, rules, &record.tally)?;
        let version = lease.version();
        record.host(lease.tls(), version);
        self.origin()
            .address(&mut parts.uri, &mut parts.headers, version);
        handshake.write_request(&mut parts.headers);
        self.proxy().announce(rules, record, true).await?;
        let sent = Request::from_parts(parts, full(Bytes::new()));
        let sent = self.sent(sent, &mut lease, record).await?;
        let mut response: Response<Incoming> = sent.map_err(|_| Refusal::Upstream)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return incoming(response, &asked, rules, lease, record).await;
        }
        let far = hyper::upgrade::on(&mut response);
        let (answer, _) = response.into_parts();
        let (fields, relay) = handshake.accept(&answer)?;
        let mut headers = answer.headers;
        headers.remove(header::CONTENT_LENGTH);
        for name in ANSWER_FIELDS {
            headers.remove(name);
        }
        rewrite_response(&mut headers, rules.patterns(), &record.tally)?;
        if rules.keeps_cookies() {
            drop_cookies(&mut headers);
        }
        headers.extend(fields);
        *self.opened() = Some(Opened {
            relay,
            near,
            far,
            request,
            _lease: lease,
            announced: rules.secret_names().map(str::to_owned).collect(),
            record: None,
        });
        let mut response = Response::new(Ahead::of(Content::None).await);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Carries the WebSocket that the connection's last request opened, if it did, to its end.
    pub async fn relay(&self) {
        let Some(opened) = self.opened().take() else {
            return;
        };
        let Some(record) = &opened.record else {
            return;
        };
        let (near, far) = match tokio::try_join!(opened.near, opened.far) {
            Ok((near, far)) => (TokioIo::new(near), TokioIo::new(far)),
            Err(error) => return tracing::debug!(%error, "no WebSocket after its handshake"),
        };
        let origin = self.origin();
        let strict = self.proxy().settings().strict_tokens;
        let terms = Terms {
            policy: self.proxy().watch_policy(),
            rules: |policy: &Policy| {
                // What was sent with a secret is not taken back, but nothing more is.
                if let Some(refusal) = policy.forbids(&origin.host, &record.tally) {
                    return Err(refusal);
                }
                policy
                    .rules_for(&origin.host, origin.tls, strict)
                    .for_request(&opened.request)
            },
            announce: Box::new(|rules| {
                Box::pin(async move { self.proxy().announce(&rules, record, true).await })
            }),
            announced: opened.announced,
            tally: record.tally.clone(),
            up: record.up.clone(),
            down: record.down.clone(),
        };
        opened.relay.run(near, far, terms).await;
    }
}
