//! Fields behind a body, under the same rules as those before it.
//!
//! Invariant: no field passes here that would change how the message is read: framing, routing
//! and what is about the connection belong before the body (RFC 9110, section 6.5.1).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};

use super::body::{StreamError, TrailerChange};
use super::grants::sweep_fields;
use super::head::{drop_hop_by_hop, reseal_fields, substitute_fields};
use super::policy::HostRules;
use super::tally::Tally;

/// Fields that mean nothing, or harm, behind a body.
const FORBIDDEN: [HeaderName; 11] = [
    header::AUTHORIZATION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::RANGE,
    header::SET_COOKIE,
    header::TRAILER,
];

/// The trailers of a request to a host: values in place of tokens.
pub(crate) fn of_request(rules: &Arc<HostRules>, tally: &Arc<Tally>) -> TrailerChange {
    let (rules, tally) = (rules.clone(), tally.clone());
    Box::new(move |trailers| {
        drop_forbidden(trailers);
        rules
            .check_trailers(trailers)
            .inspect_err(|refusal| tally.refuse(refusal.clone()))?;
        substitute_fields(trailers, &rules, &tally)
            .inspect_err(|refusal| tally.refuse(refusal.clone()))?;
        Ok(())
    })
}

/// The trailers of a host's answer: no value in them, and nothing that was handed out.
pub(crate) fn of_response(rules: &HostRules, tally: &Arc<Tally>) -> TrailerChange {
    let (patterns, tally) = (rules.patterns().cloned(), tally.clone());
    let grants = rules.grants_sealed_here().cloned();
    Box::new(move |trailers| {
        drop_forbidden(trailers);
        if let Some(patterns) = &patterns {
            reseal_fields(trailers, patterns, &tally)
                .inspect_err(|refusal| tally.refuse(refusal.clone()))?;
        }
        if let Some(grants) = &grants {
            sweep_fields(trailers, grants, &tally)
                .inspect_err(|refusal| tally.refuse(refusal.clone()))?;
        }
        Ok(())
    })
}

fn drop_forbidden(trailers: &mut HeaderMap) {
    drop_hop_by_hop(trailers);
    for name in FORBIDDEN {
        trailers.remove(name);
    }
}

/// A body whose data passes as it is and whose trailers are changed.
pub(crate) struct Trailing<B> {
    inner: B,
    change: TrailerChange,
}

impl<B> Trailing<B> {
    pub fn new(inner: B, change: TrailerChange) -> Self {
        Self { inner, change }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Trailing<B>
where
    StreamError: From<B::Error>,
{
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        let mut frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        if let Some(trailers) = frame.trailers_mut()
            && let Err(error) = (this.change)(trailers)
        {
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::SealedToken;
    use crate::proxy::placement::{Placement, PlacementText};
    use crate::proxy::policy::testing::{fixture, secret};
    use crate::proxy::policy::{Binding, Policy};
    use crate::proxy::refusal::Refusal;

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        pairs.collect()
    }

    /// Goal: a token or a value behind the body is treated as one before it, and nothing there
    /// speaks about the message's frame.
    #[test]
    fn trailers_follow_the_rules_of_heads() {
        let fixture = fixture("api.example", "real-value-0001");
        let tally = Arc::<Tally>::default();
        let token = fixture.token.to_string();
        let mut up = fields(&[
            ("x-sum", &token),
            ("content-length", "9"),
            ("host", "x.example"),
        ]);
        of_request(&fixture.rules, &tally)(&mut up).unwrap();
        assert_eq!(up, fields(&[("x-sum", "real-value-0001")]));
        let mut down = fields(&[
            ("grpc-message", "real-value-0001"),
            ("transfer-encoding", "chunked"),
            ("x-real-value-0001", "1"),
        ]);
        of_response(&fixture.rules, &tally)(&mut down).unwrap();
        assert_eq!(down, fields(&[("grpc-message", &token)]));
        let mut strict = fields(&[("x-sum", &fixture.elsewhere.to_string())]);
        assert!(of_request(&fixture.strict, &tally)(&mut strict).is_err());
        assert!(tally.refusal().is_some());
    }

    /// Goal: a credential of somebody else's does not pass for standing behind the body.
    #[test]
    fn an_exclusive_secret_is_alone_behind_the_body_too() {
        let placement = Placement::new(&PlacementText {
            exclusive: true,
            ..PlacementText::default()
        });
        let token = SealedToken::generate();
        let secret = Binding {
            hosts: Vec::new(),
            placement: placement.unwrap(),
            ..secret(token, "real-value-0001", "api.example")
        };
        let policy = Policy::new(Vec::new(), vec![secret], true, true);
        let rules = policy.rules_for(&"api.example".parse().unwrap(), true, false);
        let trailers = |value: &str| {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-api-key", value.parse().unwrap());
            of_request(&rules, &Arc::default())(&mut trailers)
        };
        assert!(trailers(&token.to_string()).is_ok());
        assert!(matches!(
            trailers("sk-theirs"),
            Err(StreamError::Refused(Refusal::ForeignCredential {
                place: "x-api-key"
            }))
        ));
    }
}
