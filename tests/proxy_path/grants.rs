//! Threat row 26: tokens that a host hands out for a secret reach the sandbox sealed. And row 27: a
//! host that others share is reached in the owner's part alone.

use std::sync::Arc;

use opencomputer::proxy::{Placement, PlacementText};

use crate::two::{ask2, client2, get2, host2, whole};
use crate::wire::{get, post};
use crate::world::{Answer, Setup, VALUE, World, echo, ok};

const ACCESS: &str = "CANARY-ya29.access/Token+0003";
const REFRESH: &str = "CANARY-1//refresh-Token_0004";

fn sealing() -> Placement {
    Placement::new(&PlacementText {
        seal_tokens: true,
        ..PlacementText::default()
    })
    .unwrap()
}

fn token_host(content_type: &'static str, body: String) -> Answer {
    Arc::new(move |message| {
        if !message.head.starts_with("POST") {
            return echo()(message);
        }
        let length = body.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body.as_bytes()].concat()
    })
}

fn answer() -> String {
    format!(
        "{{\"access_token\":\"{}\",\"token_type\":\"Bearer\",\"expires_in\":3600,\
         \"refresh_token\":\"{REFRESH}\"}}",
        ACCESS.replace('/', "\\/")
    )
}

/// Goal: a program that exchanges its secret for tokens gets sealed ones, can use them at the hosts of
/// the secret and nowhere else, sees no value in an echo, and has nothing left when the secret is
/// revoked.
#[tokio::test]
async fn tokens_that_are_handed_out_arrive_sealed() {
    let setup = |revoked| Setup {
        placement: sealing(),
        hosts: vec!["api.test", "sub.api.test"],
        revoked,
        ..Setup::default()
    };
    let world = World::new(&setup(false));
    let host = world.host(token_host("application/json", answer())).await;
    let form = format!(
        "grant_type=client_credentials&client_secret={}",
        world.token
    );
    let request = post("api.test", "application/x-www-form-urlencoded", &form);
    let ask = || world.ask("api.test", host.port, &request);
    let reply = ask().await;
    assert!(host.last().text().contains("client_secret=CANARY"));
    let told: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    let sealed = |name: &str| told[name].as_str().unwrap().to_owned();
    let (access, refresh) = (sealed("access_token"), sealed("refresh_token"));
    for token in [&access, &refresh] {
        assert!(token.starts_with("osb_sealed_") && *token != world.token.to_string());
    }
    assert_eq!(told["expires_in"], 3600);
    assert_eq!(ask().await.text(), reply.text(), "the same tokens again");
    // At the secret's other host, in a field and a form, and back again sealed.
    let bearer = format!("authorization: Bearer {access}\r\n");
    let form = format!("t={refresh}");
    let used = post("sub.api.test", "application/x-www-form-urlencoded", &form);
    let used = used.replacen("\r\n", &format!("\r\n{bearer}"), 1);
    let reply = world.ask("sub.api.test", host.port, used).await;
    let head = host.last().head;
    assert!(
        head.contains(&format!("authorization: Bearer {ACCESS}")),
        "{head}"
    );
    assert!(host.last().text().starts_with("t=CANARY-1%2F%2Frefresh"));
    let echoed = format!("{}{}", reply.head, reply.text());
    assert!(
        echoed.contains(&access) && echoed.contains(&refresh),
        "{echoed}"
    );
    assert!(!echoed.contains("CANARY"), "{echoed}");
    // Elsewhere they are the text they are.
    let elsewhere = get("other.test", "/", &bearer);
    world.ask("other.test", host.port, elsewhere).await;
    assert!(host.last().head.contains(&access));
    // They go with their secret.
    world.set_policy(&setup(true));
    world
        .ask("api.test", host.port, get("api.test", "/", &bearer))
        .await;
    assert!(host.last().head.contains(&access));
    world.finish();
}

/// Goal: the same over HTTP/2 and for answers in forms; and without the setting nothing changes.
#[tokio::test]
async fn tokens_are_sealed_in_every_version_and_when_asked_for() {
    let request = || post("api.test", "application/json", "{}");
    let world = World::new(&Setup {
        placement: sealing(),
        ..Setup::default()
    });
    let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
    let host = host2(tls, |_| {
        http::Response::builder()
            .header("content-type", "application/json; charset=utf-8")
            .body(whole(answer()))
            .unwrap()
    })
    .await;
    let mut client = client2(&world, "api.test", host.port).await;
    let reply = ask2(&mut client, get2("https://api.test/token"))
        .await
        .unwrap();
    assert!(reply.text().contains("osb_sealed_") && !reply.text().contains("CANARY"));
    let form = format!("access_token={ACCESS}&scope=repo");
    let form = world
        .host(token_host("application/x-www-form-urlencoded", form))
        .await;
    let reply = world.ask("api.test", form.port, request()).await;
    assert!(
        reply.text().starts_with("access_token=osb_sealed_"),
        "{}",
        reply.text()
    );
    assert!(reply.text().ends_with("&scope=repo"));
    world.finish();

    let world = World::new(&Setup::default());
    let body = "{\"access_token\":\"not-a-canary\"}".to_owned();
    let host = world
        .host(token_host("application/json", body.clone()))
        .await;
    let reply = world.ask("api.test", host.port, request()).await;
    assert_eq!(reply.text(), body);
    world.finish();
}

/// Goal: at a host that others share (a bucket beside others'), what is outside of the owner's part is
/// refused before anything is sent, with or without a token, by its own credential or a signed URL.
#[tokio::test]
async fn a_confined_host_is_reached_in_its_owners_part_alone() {
    let placement = Placement::new(&PlacementText {
        path_prefix: Some("/my-bucket/"),
        confine: true,
        exclusive: true,
        ..PlacementText::default()
    })
    .unwrap();
    let mut world = World::new(&Setup {
        placement,
        ..Setup::default()
    });
    let host = world.host(Arc::new(|_| ok(b"stored"))).await;
    let key = format!("authorization: Bearer {}\r\n", world.token);
    let signed = "?X-Amz-Credential=theirs&X-Amz-Signature=00ff";
    for (path, fields, rule) in [
        ("/their-bucket/loot", key.as_str(), "secret_confined"),
        ("/their-bucket/loot", "", "secret_confined"),
        (
            &*format!("/their-bucket/loot{signed}"),
            "",
            "secret_confined",
        ),
        ("/my-bucket/../their-bucket/x", &key, "secret_confined"),
        ("/my-bucket/%2e%2e/their-bucket/x", &key, "secret_confined"),
        ("/my-bucket//x", &key, "secret_confined"),
        ("/my-bucketeer/x", &key, "secret_confined"),
        ("/", &key, "secret_confined"),
        (
            "/my-bucket/x",
            &*format!("x-original-url: /their-bucket/\r\n{key}"),
            "secret_confined",
        ),
        (&*format!("/my-bucket/x{signed}"), "", "foreign_credential"),
        (
            "/my-bucket/x",
            "authorization: Bearer theirs\r\n",
            "foreign_credential",
        ),
    ] {
        let reply = world
            .ask("api.test", host.port, get("api.test", path, fields))
            .await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (403, rule),
            "{path}"
        );
        assert_eq!(world.decision().await.reason, rule);
    }
    assert_eq!(host.count(), 0);
    let request = get("api.test", "/my-bucket/x", &key);
    assert_eq!(
        world.ask("api.test", host.port, request).await.text(),
        "stored"
    );
    assert!(host.last().head.contains(VALUE));
    world.finish();
}
