//! Secrets that may not stand just anywhere, and what is done to get them elsewhere.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opencomputer::proxy::{Announcement, Outcome, Placement, PlacementText};
use tokio::sync::mpsc;

use crate::wire::{ask, get, post};
use crate::world::{OTHER_VALUE, Setup, VALUE, World, echo, ok, soon};

fn narrowed(text: &PlacementText<'_>) -> Setup {
    Setup {
        placement: Placement::new(text).unwrap(),
        ..Setup::default()
    }
}

fn only_in(headers: &[&str]) -> Setup {
    let headers: Vec<_> = headers.iter().map(|&name| name.to_owned()).collect();
    narrowed(&PlacementText {
        headers: Some(&headers),
        ..PlacementText::default()
    })
}

/// Threat 13: a token in a field others can read (a mail's text, a file name, a user agent) of the
/// right host stays a token; in its own field it is replaced, also inside Basic credentials.
#[tokio::test]
async fn a_pinned_secret_stands_in_its_own_field_only() {
    let setup = only_in(&["Authorization"]);
    let mut world = World::new(&setup);
    let host = world.host(echo()).await;
    let token = world.token.to_string();
    let basic = STANDARD.encode(format!("user:{token}"));
    let real = STANDARD.encode(format!("user:{VALUE}"));
    for (sent, arrived) in [
        (format!("Bearer {token}"), format!("Bearer {VALUE}")),
        (format!("Basic {basic}"), format!("Basic {real}")),
    ] {
        let request = get("api.test", "/", &format!("authorization: {sent}\r\n"));
        world.ask("api.test", host.port, request).await;
        assert_eq!(host.last().field("authorization"), Some(&*arrived));
        let decision = world.decision().await;
        assert_eq!((decision.secrets.len(), decision.unbound.len()), (1, 0));
        assert!(decision.latency_ms.is_some());
    }
    let form = "application/x-www-form-urlencoded";
    let multipart =
        format!("--x\r\ncontent-disposition: form-data; name=\"t\"\r\n\r\n{token}\r\n--x--\r\n");
    let wrong = [
        get("api.test", "/", &format!("x-key: {token}\r\n")),
        get("api.test", "/", &format!("user-agent: {token}\r\n")),
        get("api.test", "/", &format!("cookie: a={token}\r\n")),
        get("api.test", &format!("/?q={token}"), ""),
        get("api.test", &format!("/file/{token}.txt"), ""),
        post(
            "api.test",
            "application/json",
            &format!("{{\"text\":\"{token}\"}}"),
        ),
        post("api.test", form, &format!("text={token}")),
        post("api.test", "text/plain", &token),
        post("api.test", "multipart/form-data; boundary=x", &multipart),
        format!(
            "POST / HTTP/1.1\r\nhost: api.test\r\ntransfer-encoding: chunked\r\n\r\n2b\r\n{token}\r\n0\r\n\r\n"
        ),
    ];
    for request in &wrong {
        world.ask("api.test", host.port, request).await;
        let sent = host.last();
        let all = [sent.head.as_bytes(), &sent.body].concat();
        let all = String::from_utf8(all).unwrap();
        assert!(all.contains(&token) && !all.contains("CANARY"), "{all}");
        let decision = world.decision().await;
        assert_eq!(decision.secrets.len(), 0, "{request}");
        assert_eq!(decision.unbound, ["API_KEY"]);
        assert_eq!(decision.unbound_why["API_KEY"], "place");
    }
    world.finish();

    let mut strict = World::new(&Setup {
        strict: true,
        ..setup
    });
    let host = strict.host(echo()).await;
    let request = get("api.test", "/", &format!("x-key: {}\r\n", strict.token));
    let reply = strict.ask("api.test", host.port, request).await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (403, "secret_misplaced")
    );
    assert_eq!(strict.decision().await.outcome, Outcome::Refused);
    assert_eq!(host.count(), 0);
    strict.finish();
}

/// Threat 19: the path that is judged is the one that is forwarded, and no spelling of another
/// path carries a secret; the same for methods and the fields that override them.
#[tokio::test]
async fn a_secret_for_a_path_and_a_method_goes_nowhere_else() {
    let mut world = World::new(&narrowed(&PlacementText {
        methods: Some(&["POST".to_owned()]),
        path_prefix: Some("/v1/mail/"),
        ..PlacementText::default()
    }));
    let host = world.host(echo()).await;
    let field = format!("x-key: {}\r\n", world.token);
    let ask = |method: &str, path: &str, more: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: api.test\r\n{field}{more}content-length: 0\r\n\r\n"
        )
    };
    world
        .ask("api.test", host.port, ask("POST", "/v1/mail/send?x=..", ""))
        .await;
    assert_eq!(host.last().field("x-key"), Some(VALUE));
    assert_eq!(world.decision().await.secrets, ["API_KEY"]);
    for (method, path, more, why) in [
        ("GET", "/v1/mail/send", "", "method"),
        ("PUT", "/v1/mail/send", "", "method"),
        (
            "POST",
            "/v1/mail/send",
            "x-http-method-override: DELETE\r\n",
            "method",
        ),
        (
            "POST",
            "/v1/mail/send",
            "x-original-url: /admin\r\n",
            "path",
        ),
        ("POST", "/v1/admin", "", "path"),
        ("POST", "/v1/mail/../admin", "", "path"),
        ("POST", "/v1/mail/%2e%2e/admin", "", "path"),
        ("POST", "/v1/mail/..%2fadmin", "", "path"),
        ("POST", "/v1/mail/%2e%2e%5cadmin", "", "path"),
        ("POST", "/v1/mail/..;/admin", "", "path"),
        ("POST", "/v1/mail//admin", "", "path"),
        ("POST", "//v1/mail/x", "", "path"),
        ("POST", "/v1/mail/%252e%252e/admin", "", "path"),
    ] {
        let before = host.count();
        let reply = world
            .ask("api.test", host.port, ask(method, path, more))
            .await;
        // A spelling may be refused altogether; what arrives is spelt as it was judged.
        if host.count() > before {
            let sent = host.last();
            assert!(
                sent.head.starts_with(&format!("{method} {path} ")),
                "{}",
                sent.head
            );
            assert_eq!(sent.field("x-key"), Some(&*world.token.to_string()));
            let decision = world.decision().await;
            assert_eq!(decision.unbound_why["API_KEY"], why, "{method} {path}");
        } else {
            assert!(reply.status() >= 400);
            world.decision().await;
        }
    }
    world.finish();
}

/// A token is replaced as often as its owner said, over head and body together.
#[tokio::test]
async fn replacements_are_counted_over_head_and_body() {
    let mut world = World::new(&narrowed(&PlacementText {
        max_per_request: Some(2),
        ..PlacementText::default()
    }));
    let host = world.host(echo()).await;
    let token = world.token.to_string();
    let mut stream = world.secure("api.test", host.port).await;
    for length in [
        format!("content-length: {}", 3 * 43),
        "transfer-encoding: chunked".into(),
    ] {
        let body = match length.starts_with("content") {
            true => format!("{token}{token}{token}"),
            false => format!("81\r\n{token}{token}{token}\r\n0\r\n\r\n"),
        };
        let request = format!(
            "POST / HTTP/1.1\r\nhost: api.test\r\nx-key: {token}\r\n{length}\r\n\r\n{body}"
        );
        ask(&mut stream, request).await;
        let sent = host.last();
        let all = [sent.head.as_bytes(), &sent.body].concat();
        let all = String::from_utf8_lossy(&all);
        assert_eq!(all.matches(VALUE).count(), 2, "{all}");
        assert_eq!(all.matches(&token).count(), 2, "{all}");
    }
    drop(stream);
    for _ in 0..2 {
        let decision = world.decision().await;
        assert_eq!(decision.secrets, ["API_KEY"]);
        assert_eq!(decision.unbound_why["API_KEY"], "count");
    }
    world.finish();
}

/// Threat 14: an attacker's own key at an allowed host, alone or beside the sealed one, does not
/// reach it when the secret is to be the only credential there.
#[tokio::test]
async fn an_exclusive_secret_is_the_only_credential() {
    let mut world = World::new(&narrowed(&PlacementText {
        exclusive: true,
        ..PlacementText::default()
    }));
    let host = world.host(echo()).await;
    let token = world.token;
    let own = format!("authorization: Bearer {token}\r\n");
    let good = get("api.test", "/files?page=1", &own);
    assert_eq!(world.ask("api.test", host.port, good).await.status(), 200);
    assert_eq!(world.decision().await.secrets, ["API_KEY"]);
    let basic = STANDARD.encode(format!("sk-attacker:{token}"));
    for (path, fields) in [
        ("/", "authorization: Bearer sk-attacker\r\n".to_owned()),
        (
            "/",
            format!("authorization: Bearer {}\r\n", world.other_token),
        ),
        ("/", format!("authorization: Basic {basic}\r\n")),
        ("/", format!("{own}authorization: Bearer sk-attacker\r\n")),
        ("/", format!("{own}x-api-key: sk-attacker\r\n")),
        ("/", format!("{own}API-Key: sk-attacker\r\n")),
        ("/", format!("{own}cookie: session=theirs\r\n")),
        ("/?key=sk-attacker", own.clone()),
        ("/?a=1&access%5ftoken=sk-attacker", own.clone()),
        ("/?API_KEY=sk-attacker", String::new()),
    ] {
        let reply = world
            .ask("api.test", host.port, get("api.test", path, &fields))
            .await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (403, "foreign_credential"),
            "{path} {fields}"
        );
        assert!(!reply.text().contains("sk-attacker"));
        assert_eq!(world.decision().await.reason, "foreign_credential");
    }
    assert_eq!(host.count(), 1);
    // Other hosts are none of its business.
    let fields = "x-api-key: sk-attacker\r\n";
    let reply = world
        .ask("other.test", host.port, get("other.test", "/", fields))
        .await;
    assert_eq!(reply.status(), 200);
    world.finish();
}

/// Threat 38: a session that the host made of a secret does not reach the sandbox.
#[tokio::test]
async fn cookies_made_of_a_secret_are_kept_outside() {
    let answer: crate::world::Answer = std::sync::Arc::new(|_| {
        b"HTTP/1.1 200 OK\r\nset-cookie: session=derived\r\nSet-Cookie2: b=2\r\n\
          x-else: 1\r\ncontent-length: 0\r\n\r\n"
            .to_vec()
    });
    for keep in [true, false] {
        let world = World::new(&narrowed(&PlacementText {
            keep_cookies: keep,
            ..PlacementText::default()
        }));
        let host = world.host(answer.clone()).await;
        let fields = format!("x-key: {}\r\n", world.token);
        let reply = world
            .ask("api.test", host.port, get("api.test", "/", &fields))
            .await;
        assert_eq!(reply.field("x-else"), Some("1"));
        assert_eq!(reply.field("set-cookie").is_none(), keep);
        assert_eq!(reply.field("set-cookie2").is_none(), keep);
        world.finish();
    }
}

/// Threat 30: a key of one provider sent to another stays a token, and the record says so.
#[tokio::test]
async fn a_key_on_its_way_to_another_provider_is_flagged() {
    let mut world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let fields = format!("x-key: {}\r\n", world.token);
    world
        .ask("other.test", host.port, get("other.test", "/", &fields))
        .await;
    assert_eq!(host.last().field("x-key"), Some(&*world.token.to_string()));
    let decision = world.decision().await;
    assert_eq!(decision.unbound_why["API_KEY"], "host_of_another_secret");
    world.finish();
}

/// Threat 4: the re-seal can't be asked whether a guess is right: what could be guessed is not
/// searched for, so right and wrong guesses come back alike.
#[tokio::test]
async fn guesses_are_not_answered_by_the_scrubber() {
    for value in ["20261122", "password", "aaaaaaaaaaaaaaaa", "short"] {
        let world = World::new(&Setup {
            value,
            ..Setup::default()
        });
        let host = world.host(echo()).await;
        let mut stream = world.secure("api.test", host.port).await;
        for guess in [value, "20261123", "passwort"] {
            let request = post("api.test", "text/plain", guess);
            let reply = ask(&mut stream, request).await;
            assert!(reply.text().ends_with(guess), "{}", reply.text());
            assert!(!reply.text().contains("osb_sealed_"));
        }
        world.finish();
    }
}

/// Strict audit: a request with a secret reaches the host after its record was acknowledged, and
/// never when it was not; others don't wait.
#[tokio::test]
async fn a_secret_waits_for_its_record_when_audit_is_strict() {
    let mut world = World::new(&Setup {
        strict_audit: true,
        ..Setup::default()
    });
    let host = world.host(std::sync::Arc::new(|_| ok(b"done"))).await;
    let secret = get("api.test", "/p?q=1", &format!("x-key: {}\r\n", world.token));
    let refused = |reply: crate::wire::Message| {
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (503, "audit_unrecorded")
        );
    };
    refused(world.ask("api.test", host.port, &secret).await);
    let (announcements, mut waiting) = mpsc::channel::<Announcement>(4);
    world.proxy.announce_to(announcements);
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!((reply.status(), host.count()), (200, 1));

    let mut stream = world.secure("api.test", host.port).await;
    crate::wire::send(&mut stream, &secret).await;
    let announced = soon(waiting.recv()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(host.count(), 1, "nothing leaves before the record");
    let sending = &announced.sending;
    assert_eq!(
        (sending.host.as_str(), sending.port),
        ("api.test", host.port)
    );
    assert_eq!(sending.secrets, ["API_KEY"]);
    let told = serde_json::to_string(sending).unwrap();
    assert!(!told.contains("CANARY") && !told.contains('?'), "{told}");
    announced.recorded.send(()).unwrap();
    assert_eq!(crate::wire::receive(&mut stream).await.status(), 200);
    assert_eq!(host.last().field("x-key"), Some(VALUE));

    // Not recorded: not sent.
    crate::wire::send(&mut stream, &secret).await;
    drop(soon(waiting.recv()).await.unwrap());
    refused(crate::wire::receive(&mut stream).await);
    // A body of unknown length may bring any secret of the host.
    let chunked =
        "POST / HTTP/1.1\r\nhost: other.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut other = world.secure("other.test", host.port).await;
    crate::wire::send(&mut other, chunked).await;
    let announced = soon(waiting.recv()).await.unwrap();
    assert_eq!(announced.sending.secrets, ["OTHER_KEY"]);
    announced.recorded.send(()).unwrap();
    assert_eq!(crate::wire::receive(&mut other).await.status(), 200);
    assert_eq!(host.count(), 3);
    while world.decisions.try_recv().is_ok() {}
    assert!(!OTHER_VALUE.is_empty());
    world.finish();
}
