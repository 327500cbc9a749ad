//! Threat row 26 against hosts that echo, stream or store, and programs that make them hand out what
//! they choose.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use opencomputer::proxy::{Placement, PlacementText};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::two::{ask2, client2, host2, whole, with_trailers};
use crate::wire::{get, post, read_message, send};
use crate::world::{Answer, Setup, World, ok, soon};

const ACCESS: &str = "CANARY-ya29.access/Token+0003";

fn world() -> World {
    World::new(&Setup {
        placement: Placement::new(&PlacementText {
            seal_tokens: true,
            ..PlacementText::default()
        })
        .unwrap(),
        hosts: vec!["api.test", "sub.api.test"],
        ..Setup::default()
    })
}

fn typed(content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn handing_out(token: &str) -> Vec<u8> {
    typed(
        "application/json",
        &format!("{{\"access_token\":\"{token}\"}}"),
    )
}

/// All that comes back for a request, to the end of the connection.
async fn raw(world: &World, port: u16, request: &str) -> String {
    let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    let mut io = world.secure("api.test", port).await;
    send(&mut io, request).await;
    let mut all = Vec::new();
    // A broken-off answer may end without a farewell.
    let _ = soon(io.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// The first sealed token in a text.
fn token_in(text: &str) -> String {
    let at = text.find("osb_sealed_").expect("a sealed token");
    let word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    text[at..].chars().take_while(word).collect()
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

/// Goal: what a host stored of a grant stays sealed, whatever is handed out after it. Method: the
/// grant is stored by the host, which then hands out junk, more than is remembered, and its store.
#[tokio::test]
async fn nothing_pushes_a_grant_out() {
    let world = world();
    let (stored, count) = (Mutex::new(String::new()), AtomicUsize::new(0));
    let answer: Answer = Arc::new(move |message| {
        let head = &message.head;
        if head.starts_with("POST /token ") {
            return handing_out(ACCESS);
        } else if head.starts_with("POST /junk ") {
            let n = count.fetch_add(1, Ordering::SeqCst);
            return handing_out(&format!("jUnk-{n:04}-qWertyuiop"));
        } else if head.starts_with("GET /store ") {
            *stored.lock().unwrap() = head.clone();
        }
        ok(stored.lock().unwrap().as_bytes())
    });
    let host = world.host(answer).await;
    let ask = async |path: &str| {
        let request = post("api.test", "application/json", "{}");
        raw(&world, host.port, &request.replacen("POST /", path, 1)).await
    };
    let sealed = token_in(&ask("POST /token").await);
    let echo = raw(
        &world,
        host.port,
        &get("api.test", "/store", &bearer(&sealed)),
    )
    .await;
    assert!(host.last().head.contains(ACCESS), "{}", host.last().head);
    assert!(echo.contains(&sealed) && !echo.contains("CANARY"), "{echo}");
    let mut refused = 0;
    for _ in 0..80 {
        refused += usize::from(!ask("POST /junk").await.contains("osb_sealed_"));
    }
    assert!(refused > 0, "not everything can be remembered");
    let echo = raw(&world, host.port, &get("api.test", "/read", "")).await;
    assert!(echo.contains(&sealed) && !echo.contains("CANARY"), "{echo}");
    world.finish();
}

/// Goal: an answer that began before something was handed out does not bring it. Method: a stream of
/// events that tells with which token another request came.
#[tokio::test]
async fn an_answer_that_began_before_is_swept() {
    let world = world();
    let tls = world.authority.acceptor(&["api.test"]);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::new((Mutex::new(String::new()), Notify::new()));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, came) = (tls.clone(), came.clone());
            tokio::spawn(async move {
                let mut io: crate::wire::Io = Box::new(tls.accept(stream).await.unwrap());
                let message = read_message(&mut io, &mut Vec::new(), false).await.unwrap();
                if message.head.starts_with("POST") {
                    return send(&mut io, handing_out(ACCESS)).await;
                } else if !message.head.starts_with("GET /events ") {
                    *came.0.lock().unwrap() = message.head;
                    came.1.notify_one();
                    return send(&mut io, ok(b"")).await;
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                let event = |text: &str| format!("{:x}\r\n{text}\n\n\r\n", text.len() + 2);
                send(&mut io, format!("{head}{}", event("data: hello"))).await;
                came.1.notified().await;
                let head = came.0.lock().unwrap().clone();
                send(&mut io, format!("{}0\r\n\r\n", event(&head))).await;
            });
        }
    });
    let mut events = world.secure("api.test", port).await;
    send(
        &mut events,
        get("api.test", "/events", "connection: close\r\n"),
    )
    .await;
    let mut told = Vec::new();
    while !told.ends_with(b"hello\n\n\r\n") {
        assert!(soon(events.read_buf(&mut told)).await.unwrap() > 0);
    }
    let sealed = raw(&world, port, &post("api.test", "application/json", "{}")).await;
    let sealed = token_in(&sealed);
    raw(&world, port, &get("api.test", "/", &bearer(&sealed))).await;
    let _ = soon(events.read_to_end(&mut told)).await;
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains(&sealed) && !told.contains("CANARY"), "{told}");
    world.finish();
}

/// Goal: what an answer hands out is nowhere else in its body, before or behind.
#[tokio::test]
async fn an_answer_holds_nothing_of_what_it_hands_out() {
    let world = world();
    let body = format!(
        "{{\"token\":\"{ACCESS}\",\"first\":\"<{ACCESS}>\",\"access_token\":\"{ACCESS}\",\"again\":[\"{ACCESS}\"]}}"
    );
    let host = world
        .host(Arc::new(move |_| typed("application/json", &body)))
        .await;
    let reply = raw(&world, host.port, &get("api.test", "/", "")).await;
    assert!(!reply.contains("CANARY"), "{reply}");
    assert_eq!(reply.matches(&token_in(&reply)).count(), 4, "{reply}");
    world.finish();
}

/// Goal: answers that hand something out where it can't be sealed are broken off before it.
#[tokio::test]
async fn what_cant_be_sealed_ends_the_answer() {
    let json = format!("{{\"access_token\":\"{ACCESS}\"}}");
    let long = format!("{{\"fill\":\"{}\",{}", "x".repeat(140_000), &json[1..]);
    let nested = serde_json::json!({ "body": json }).to_string();
    let xml = format!("<r><accessToken>{ACCESS}</accessToken></r>");
    for (content_type, body) in [
        ("text/xml", &xml),
        ("text/plain", &json),
        ("application/x-ndjson", &json),
        ("text/html", &format!("<a href='/#access_token={ACCESS}'>")),
        ("application/json", &nested),
        ("application/json", &long),
        (
            "application/json",
            &"{\"refresh_token\":\"CANARY\"}".to_owned(),
        ),
    ] {
        let mut world = world();
        let body = body.clone();
        let host = world
            .host(Arc::new(move |_| typed(content_type, &body)))
            .await;
        let reply = raw(&world, host.port, &get("api.test", "/", "")).await;
        assert!(!reply.contains("CANARY"), "{content_type}: {reply}");
        assert_eq!(world.decision().await.reason, "response_token");
        world.finish();
    }
}

/// Goal: a grant is put into fields, forms and JSON alone; elsewhere its token stays.
#[tokio::test]
async fn grants_go_into_fields_forms_and_json_alone() {
    let world = world();
    let host = world
        .host(Arc::new(|message| {
            match message.head.starts_with("POST /hand ") {
                true => handing_out(ACCESS),
                false => ok(b""),
            }
        }))
        .await;
    let hand = post("api.test", "application/json", "{}").replacen("POST /", "POST /hand", 1);
    let sealed = token_in(&raw(&world, host.port, &hand).await);
    for (content_type, goes) in [
        ("application/json", true),
        ("application/x-www-form-urlencoded", true),
        ("text/plain", false),
        ("multipart/form-data; boundary=b", false),
    ] {
        let body = match content_type.starts_with("multipart") {
            true => format!(
                "--b\r\ncontent-disposition: form-data; name=\"t\"\r\n\r\n{sealed}\r\n--b--\r\n"
            ),
            false => format!("t={sealed}"),
        };
        raw(&world, host.port, &post("api.test", content_type, &body)).await;
        let came = host.last().text();
        assert_eq!(came.contains("CANARY"), goes, "{content_type}: {came}");
        assert_eq!(came.contains(&sealed), !goes, "{content_type}: {came}");
    }
    let path = format!("/{sealed}?access_token={sealed}");
    raw(&world, host.port, &get("api.test", &path, "")).await;
    assert!(host.last().head.contains(&path));
    world.finish();
}

/// Goal: a host whose tokens are sealed is not spoken to where they could not be taken out.
#[tokio::test]
async fn sealed_tokens_know_no_grpc_and_no_websocket() {
    let world = world();
    let host = world.host(Arc::new(|_| ok(b""))).await;
    let socket = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                  sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for request in [
        get("api.test", "/", socket),
        post("api.test", "application/grpc", ""),
        post("api.test", "application/grpc-web+proto", ""),
    ] {
        let reply = world.ask("api.test", host.port, &request).await;
        assert_eq!((reply.status(), &*reply.rule()), (403, "token_protocol"));
    }
    assert_eq!(host.count(), 0);
    world.finish();
}

/// Goal: fields tell nothing of a grant by name or behind a body.
#[tokio::test]
async fn no_field_holds_what_was_handed_out() {
    let world = world();
    const PLAIN: &str = "CANARY-plain-token-0005";
    let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
    let host = host2(tls, |seen| {
        let Some(token) = seen.headers.get("authorization") else {
            return http::Response::builder()
                .header("content-type", "application/json")
                .body(whole(format!("{{\"access_token\":\"{PLAIN}\"}}")))
                .unwrap();
        };
        let token = token.to_str().unwrap().replace("Bearer ", "");
        http::Response::builder()
            .header("content-type", "text/plain")
            .header(format!("x-{}", token.to_ascii_lowercase()), "1")
            .body(with_trailers("done", &[("x-sum", token)]))
            .unwrap()
    })
    .await;
    let mut client = client2(&world, "api.test", host.port).await;
    let get = |token: Option<&str>| {
        let request = http::Request::get("https://api.test/");
        let request = match token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        request.body(whole("")).unwrap()
    };
    let sealed = ask2(&mut client, get(None)).await.unwrap();
    let sealed = token_in(&sealed.text());
    let reply = ask2(&mut client, get(Some(&sealed))).await.unwrap();
    assert_eq!(
        host.last().headers["authorization"],
        format!("Bearer {PLAIN}")
    );
    assert_eq!(reply.trailers.as_ref().unwrap()["x-sum"], *sealed);
    assert!(
        !format!("{:?}", reply.headers)
            .to_lowercase()
            .contains("canary")
    );
    world.finish();
}
