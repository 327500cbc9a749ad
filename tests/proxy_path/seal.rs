//! Values go in, tokens come out.

use std::io::{Read, Write};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use opencomputer::proxy::{Outcome, Protocol};

use crate::wire::{get, post};
use crate::world::{OTHER_VALUE, Setup, VALUE, World, echo, ok};

/// Header, Basic credentials and query reach the host as values; the echo of all of them comes
/// back as the token, in header and body; the record names the secret and nothing else.
#[tokio::test]
async fn values_reach_the_host_and_tokens_come_back() {
    let mut world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let token = world.token.to_string();
    let basic = STANDARD.encode(format!("user:{token}"));
    let fields = format!("authorization: Basic {basic}\r\nx-key: Bearer {token}\r\n");
    let reply = world
        .ask(
            "api.test",
            host.port,
            get("api.test", &format!("/p?k={token}"), &fields),
        )
        .await;

    let sent = host.last();
    assert_eq!(sent.field("x-key"), Some(&*format!("Bearer {VALUE}")));
    let expected = format!("Basic {}", STANDARD.encode(format!("user:{VALUE}")));
    assert_eq!(sent.field("authorization"), Some(&*expected));
    assert!(
        sent.head
            .starts_with("GET /p?k=CANARY-v4lue%2Fwith%2Bodd%3Dchars%260001 HTTP/1.1\r\n")
    );
    assert_eq!(
        sent.field("host"),
        Some(&*format!("api.test:{}", host.port))
    );

    assert_eq!(reply.status(), 200);
    for text in [reply.head.clone(), reply.text()] {
        assert!(
            !text.contains("CANARY") && text.contains(&format!("Bearer {token}")),
            "{text}"
        );
        assert!(text.contains(&format!("/p?k={token}")), "{text}");
        assert!(!text.contains(&STANDARD.encode(VALUE)[..40]), "{text}");
    }
    let decision = world.decision().await;
    assert_eq!(
        (decision.protocol, decision.outcome),
        (Protocol::Https, Outcome::Allowed)
    );
    assert_eq!(
        (decision.host.as_str(), decision.port),
        ("api.test", host.port)
    );
    assert_eq!(decision.secrets, ["API_KEY"]);
    assert_eq!(decision.resealed, ["API_KEY"]);
    assert_eq!(
        (decision.method.as_deref(), decision.status),
        (Some("GET"), Some(200))
    );
    assert_eq!(decision.bytes_down, reply.body.len() as u64);
    world.finish();
}

/// A value is escaped for the body it goes into, and the length is right.
#[tokio::test]
async fn bodies_are_substituted_in_their_own_escaping() {
    let value = "CANARY \"q\" & \\ 100%";
    let world = World::new(&Setup {
        value,
        ..Setup::default()
    });
    let host = world.host(Arc::new(|_| ok(b"done"))).await;
    let token = world.token;
    for (kind, body, expected) in [
        (
            "application/json",
            format!("{{\"k\":\"{token}\"}}"),
            r#"{"k":"CANARY \"q\" & \\ 100%"}"#,
        ),
        (
            "application/x-www-form-urlencoded",
            format!("a={token}&b=1"),
            "a=CANARY%20%22q%22%20%26%20%5C%20100%25&b=1",
        ),
        (
            "text/plain; charset=utf-8",
            format!("<{token}>"),
            "<CANARY \"q\" & \\ 100%>",
        ),
    ] {
        world
            .ask("api.test", host.port, post("api.test", kind, &body))
            .await;
        let sent = host.last();
        assert_eq!(sent.text(), expected, "{kind}");
        assert_eq!(
            sent.field("content-length"),
            Some(&*expected.len().to_string())
        );
    }
    world.finish();
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

/// Gzip is looked into on both ways; what can't be looked into is refused.
#[tokio::test]
async fn compressed_bodies_are_sealed_or_refused() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message| {
            let coding = message.field("x-answer").unwrap_or("gzip");
            let coding = coding.replace('|', "\r\n");
            let said = match message.body.is_empty() {
                true => String::new(),
                false => gunzip(&message.body),
            };
            let body = gzip(format!("you said {said}, key {VALUE}").as_bytes());
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: {length}\r\n\r\n"
            );
            [head.as_bytes(), &body].concat()
        }))
        .await;
    let token = world.token;
    let body = gzip(format!("<{token}>").as_bytes());
    let request = |request_coding: &str, answer: &str| {
        let head = format!(
            "POST / HTTP/1.1\r\nhost: api.test\r\ncontent-encoding: {request_coding}\r\n\
             accept-encoding: br, gzip, zstd\r\nx-answer: {answer}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), &body].concat()
    };
    let reply = world
        .ask("api.test", host.port, request("gzip", "gzip"))
        .await;
    assert_eq!(gunzip(&host.last().body), format!("<{VALUE}>"));
    assert_eq!(host.last().field("accept-encoding"), Some("br, gzip, zstd"));
    assert_eq!(reply.field("content-encoding"), Some("gzip"));
    assert_eq!(
        gunzip(&reply.body),
        format!("you said <{token}>, key {token}")
    );
    // A field that `Connection` names is lost on the way, but the body is still what it says.
    let mut hidden = world.secure("api.test", host.port).await;
    let end = "POST / HTTP/1.1\r\nhost: api.test\r\nx-answer: gzip|connection: content-encoding";
    crate::wire::send(&mut hidden, format!("{end}\r\ncontent-length: 0\r\n\r\n")).await;
    let reply = crate::wire::receive(&mut hidden).await;
    assert_eq!(gunzip(&reply.body), format!("you said , key {token}"));
    for coding in ["compress", "gzip, br, gzip", "br;q=1"] {
        let reply = world
            .ask("api.test", host.port, request("gzip", coding))
            .await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (502, "response_encoding")
        );
        let before = host.count();
        let reply = world
            .ask("api.test", host.port, request(coding, "gzip"))
            .await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (415, "request_encoding")
        );
        assert_eq!(host.count(), before);
    }
    world.finish();
}

/// A value cut over chunks at every place never comes through.
#[tokio::test]
async fn a_chunked_echo_is_resealed_at_every_cut() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message| {
            let cut: usize = message.field("x-cut").unwrap().parse().unwrap();
            let (one, two) = VALUE.split_at(cut);
            let mut reply = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for part in ["<", one, two, ">"].iter().filter(|part| !part.is_empty()) {
                reply.extend(format!("{:x}\r\n{part}\r\n", part.len()).bytes());
            }
            // A trailer is another place for an echo.
            reply.extend(format!("0\r\nx-trailer: {VALUE}\r\n\r\n").bytes());
            reply
        }))
        .await;
    let mut stream = world.secure("api.test", host.port).await;
    for cut in 0..=VALUE.len() {
        let request = get(
            "api.test",
            "/",
            &format!("x-cut: {cut}\r\nte: trailers\r\n"),
        );
        let reply = crate::wire::ask(&mut stream, request).await;
        assert_eq!(reply.text(), format!("<{}>", world.token), "{cut}");
    }
    world.finish();
}

/// Pieces of a page would each look harmless: ranges are not asked for.
#[tokio::test]
async fn range_requests_are_not_forwarded_to_hosts_with_secrets() {
    let world = World::new(&Setup {
        inspect_all: true,
        ..Setup::default()
    });
    let host = world.host(Arc::new(|_| ok(b"whole"))).await;
    let fields = "range: bytes=3-4\r\nif-range: \"x\"\r\n";
    world
        .ask("api.test", host.port, get("api.test", "/", fields))
        .await;
    assert_eq!(
        (host.last().field("range"), host.last().field("if-range")),
        (None, None)
    );
    world
        .ask("plain.test", host.port, get("plain.test", "/", fields))
        .await;
    assert_eq!(host.last().field("range"), Some("bytes=3-4"));
    world.finish();
}

/// A host that answers with ranges nobody asked for could cut a value in two: refused.
#[tokio::test]
async fn parts_that_were_not_asked_for_are_refused() {
    let world = World::new(&Setup::default());
    let part = b"HTTP/1.1 206 Partial Content\r\ncontent-length: 2\r\n\r\nab";
    let host = world.host(Arc::new(|_| part.to_vec())).await;
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert!(reply.head.starts_with("HTTP/1.1 502"), "{}", reply.head);
    let body = String::from_utf8_lossy(&reply.body);
    assert!(body.contains("response_part"), "{body}");
    world.finish();
}

/// Each secret goes to its own hosts; elsewhere its token is inert text, recorded, or refused
/// when the operator wants that.
#[tokio::test]
async fn a_secret_goes_to_its_own_hosts_only() {
    let mut world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let (token, other) = (world.token, world.other_token);
    let both = format!("x-a: {token}\r\nx-b: {other}\r\n");
    for (name, a, b, secret, unbound) in [
        (
            "api.test",
            VALUE.to_owned(),
            other.to_string(),
            "API_KEY",
            "OTHER_KEY",
        ),
        (
            "other.test",
            token.to_string(),
            OTHER_VALUE.to_owned(),
            "OTHER_KEY",
            "API_KEY",
        ),
    ] {
        world.ask(name, host.port, get(name, "/", &both)).await;
        assert_eq!(host.last().field("x-a"), Some(a.as_str()));
        assert_eq!(host.last().field("x-b"), Some(b.as_str()));
        let decision = world.decision().await;
        assert_eq!(
            (decision.secrets, decision.unbound),
            (vec![secret.into()], vec![unbound.into()])
        );
    }
    world.finish();

    let mut strict = World::new(&Setup {
        strict: true,
        ..Setup::default()
    });
    let host = strict.host(echo()).await;
    let fields = format!("x-b: {}\r\n", strict.other_token);
    let reply = strict
        .ask("api.test", host.port, get("api.test", "/", &fields))
        .await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (403, "secret_not_bound_to_host")
    );
    assert_eq!(strict.decision().await.outcome, Outcome::Refused);
    let body = post("api.test", "text/plain", &strict.other_token.to_string());
    assert_eq!(
        strict.ask("api.test", host.port, body).await.rule(),
        "secret_not_bound_to_host"
    );
    assert_eq!(host.count(), 0);
    strict.finish();
}

/// A rotated value is used by the next request of an open connection; the old one is no longer
/// sent.
#[tokio::test]
async fn a_new_policy_holds_for_the_next_request() {
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let mut stream = world.secure("api.test", host.port).await;
    let request = get("api.test", "/", &format!("x-key: {}\r\n", world.token));
    crate::wire::ask(&mut stream, &request).await;
    assert_eq!(host.last().field("x-key"), Some(VALUE));
    world.set_policy(&Setup {
        value: "CANARY-rotated-0003",
        ..Setup::default()
    });
    let reply = crate::wire::ask(&mut stream, &request).await;
    assert_eq!(host.last().field("x-key"), Some("CANARY-rotated-0003"));
    assert!(!reply.text().contains("CANARY"));
    world.set_policy(&Setup {
        allowlist: vec!["else.test"],
        ..Setup::default()
    });
    let reply = crate::wire::ask(&mut stream, &request).await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (403, "egress_allowlist")
    );
    assert_eq!(host.count(), 2);
    world.finish();
}

/// Plain HTTP is forwarded and never carries a value, not even to the secret's own host; a value
/// that host tells on it is sealed all the same.
#[tokio::test]
async fn plain_http_carries_no_secret() {
    let mut world = World::new(&Setup::default());
    let host = crate::world::upstream(
        None,
        Arc::new(|message| ok(format!("{} {VALUE}", message.field("x-key").unwrap()).as_bytes())),
    )
    .await;
    let mut stream: crate::wire::Io = Box::new(world.connect("api.test", host.port).await);
    let fields = format!("x-key: {}\r\n", world.token);
    let reply = crate::wire::ask(&mut stream, get("api.test", "/", &fields)).await;
    assert_eq!(host.last().field("x-key"), Some(&*world.token.to_string()));
    assert_eq!(reply.text(), format!("{0} {0}", world.token));
    drop(stream);
    let decision = world.decision().await;
    assert_eq!(
        (decision.protocol, decision.outcome),
        (Protocol::Http, Outcome::Allowed)
    );
    assert_eq!(
        (decision.secrets.len(), decision.unbound),
        (0, vec!["API_KEY".to_owned()])
    );
    world.finish();
}

/// Redirects go to the program, which asks anew; the proxy follows nothing.
#[tokio::test]
async fn redirects_are_not_followed() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|_| {
            format!("HTTP/1.1 307 X\r\nlocation: https://other.test/?k={VALUE}\r\ncontent-length: 0\r\n\r\n")
                .into_bytes()
        }))
        .await;
    let fields = format!("authorization: Bearer {}\r\n", world.token);
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", &fields))
        .await;
    assert_eq!(reply.status(), 307);
    let expected = format!("https://other.test/?k={}", world.token);
    assert_eq!(reply.field("location"), Some(&*expected));
    assert_eq!(host.count(), 1);
    world.finish();
}
