use std::collections::VecDeque;

use http::HeaderValue;
use http_body_util::BodyExt;

use super::*;
use crate::proxy::escape::Place;
use crate::proxy::policy::testing::{Fixture, fixture};
use crate::proxy::substitute::Substituter;

/// Frames as a peer sent them.
struct Sent(VecDeque<Frame<Bytes>>);

impl Body for Sent {
    type Data = Bytes;
    type Error = StreamError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn sent(pieces: &[Bytes], trailers: &[(&'static str, &str)]) -> Sent {
    let mut frames: VecDeque<_> = pieces.iter().cloned().map(Frame::data).collect();
    let mut map = HeaderMap::new();
    for (name, value) in trailers {
        map.append(*name, HeaderValue::try_from(*value).unwrap());
    }
    if !map.is_empty() {
        frames.push_back(Frame::trailers(map));
    }
    Sent(frames)
}

fn body(fixture: &Fixture, inner: Sent) -> TransformedBody<Sent> {
    let tally = Arc::<Tally>::default();
    let transform = Substituter::new(fixture.rules.clone(), Place::Raw, tally.clone());
    let transform = Box::new(transform);
    TransformedBody::new(inner, Work { transform, tally }, false)
}

/// Goal: bytes that no rule has anything to do with are handed on, not copied.
#[tokio::test]
async fn untouched_bytes_are_passed_on_without_a_copy() {
    let fixture = fixture("api.example", "real-value-0001");
    let plain = Bytes::from("lorem ipsum. ".repeat(20_000));
    let with_token = format!("{}{}{}", "x".repeat(9000), fixture.token, "y".repeat(9000));
    let mixed = Bytes::from(with_token);
    let mut body = body(&fixture, sent(&[plain.clone(), mixed.clone()], &[]));
    let (mut out, mut same) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        let is_in = |whole: &Bytes| whole.as_ptr_range().contains(&data.as_ptr());
        same += if is_in(&plain) || is_in(&mixed) {
            data.len()
        } else {
            0
        };
        out.extend_from_slice(&data);
    }
    let expected = [plain.as_ref(), mixed.as_ref()].concat();
    let expected = String::from_utf8(expected).unwrap();
    let expected = expected.replace(&fixture.token.to_string(), "real-value-0001");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    assert!(same >= plain.len() + 9000, "{same}");
}

/// However much the transform has to hold back, what is passed on keeps its place.
#[tokio::test]
async fn passing_on_does_not_change_what_comes_out() {
    let fixture = fixture("api.example", "real-value-0001");
    let token = fixture.token.to_string();
    let text = format!(
        "osb_se{token}{}o{token}osb_{}{token}o",
        "z".repeat(5000),
        "sealed".repeat(900)
    );
    let expected = text.replace(&token, "real-value-0001");
    for size in [1, 2, 10, 11, 43, 44, 4095, 4096, 5043, 9000] {
        let pieces: Vec<Bytes> = text
            .as_bytes()
            .chunks(size)
            .map(Bytes::copy_from_slice)
            .collect();
        let whole = body(&fixture, sent(&pieces, &[])).collect().await.unwrap();
        assert_eq!(whole.to_bytes(), expected.as_bytes(), "{size}");
    }
}

/// Trailers pass through the change that is given for them, after all data, and else not at all.
#[tokio::test]
async fn trailers_pass_through_their_change_only() {
    let fixture = fixture("api.example", "real-value-0001");
    let data = [Bytes::from_static(b"text osb_")];
    let trailers = [("grpc-status", "0"), ("x-sum", "1")];
    let dropped = body(&fixture, sent(&data, &trailers))
        .collect()
        .await
        .unwrap();
    assert!(dropped.trailers().is_none());

    let change: TrailerChange = Box::new(|trailers| {
        trailers.remove("x-sum");
        trailers.insert("x-seen", HeaderValue::from_static("1"));
        Ok(())
    });
    let mut body = body(&fixture, sent(&data, &trailers)).with_trailers(change);
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        assert!(!body.is_end_stream() || all.len() == 2);
        all.push(frame.unwrap());
    }
    assert_eq!(all[0].data_ref().unwrap(), "text ");
    assert_eq!(all[1].data_ref().unwrap(), "osb_");
    let kept = all[2].trailers_ref().unwrap();
    assert_eq!(
        (kept.len(), &kept["grpc-status"], &kept["x-seen"]),
        (2, &"0".parse().unwrap(), &"1".parse().unwrap())
    );

    let refuse: TrailerChange = Box::new(|_| Err(Refusal::MultipartValue.into()));
    let tally = Arc::<Tally>::default();
    let transform = Box::new(Substituter::new(
        fixture.rules.clone(),
        Place::Raw,
        tally.clone(),
    ));
    let work = Work {
        transform,
        tally: tally.clone(),
    };
    let body = TransformedBody::new(sent(&data, &trailers), work, false).with_trailers(refuse);
    assert!(body.collect().await.is_err());
    assert_eq!(tally.refusal(), Some(&Refusal::MultipartValue));
}

/// A body that is only counted keeps its trailers.
#[tokio::test]
async fn a_counted_body_keeps_its_trailers() {
    let bytes = Arc::new(AtomicU64::new(0));
    let data = [Bytes::from_static(b"ab"), Bytes::from_static(b"c")];
    let body = CountedBody::new(sent(&data, &[("x-sum", "1")]), bytes.clone(), ());
    let whole = body.collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap().len(), 1);
    assert_eq!(whole.to_bytes(), "abc");
    assert_eq!(bytes.load(Ordering::Relaxed), 3);
}
