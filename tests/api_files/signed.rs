//! Signed URLs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Api, Sandbox, Server};

/// A signed URL that was just made, as a path of this server.
async fn signed(server: &Server, api: &Api, path: String, body: &Value) -> String {
    let reply = api.post(&path, body).await.ok(200).json();
    let url = reply["url"].as_str().expect("a URL");
    let at = url.strip_prefix(server.url());
    at.unwrap_or_else(|| panic!("{url} begins with {}", server.url()))
        .to_owned()
}

/// Goal: a signed URL opens its own file, one way, for its time, to whoever has it (section 9).
#[actix_rt::test]
async fn a_signed_url_is_for_one_file_one_way_and_a_time() {
    let server = Server::start();
    let api = server.api();
    let Some(sandbox) = Sandbox::make(&api, &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let nobody = api.without_key();
    const ODD: &str = "/workspace/a b&c=d?e#f%20ü\n.bin";
    let url = async |kind: &str, body: Value| {
        signed(
            &server,
            &api,
            sandbox.path(&format!("/files/{kind}-url")),
            &body,
        )
        .await
    };
    let up = url("upload", json!({ "path": ODD })).await;
    let down = url("download", json!({ "path": ODD, "expiresIn": 60 })).await;
    nobody.get(&down).await.ok(404);
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let put = nobody.call("PUT", &up, Some(bytes.clone())).await.ok(204);
    assert_eq!(put.text, "");
    let got = nobody.request("GET", &down).send().await.expect("a reply");
    assert_eq!(got.status(), 200);
    let header = |name| got.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(header("content-length"), "300000");
    assert_eq!(header("content-type"), "application/octet-stream");
    // A page made in a sandbox is never shown as one of this server's.
    assert_eq!(header("x-content-type-options"), "nosniff");
    let name = "attachment; filename*=UTF-8''a%20b%26c%3Dd%3Fe%23f%2520%C3%BC%0A%2Ebin";
    assert_eq!(header("content-disposition"), name);
    assert_eq!(got.bytes().await.expect("the file"), bytes);
    let head = nobody.call("HEAD", &down, None).await.ok(200);
    assert_eq!(head.header("content-length"), "300000");

    // Nothing of it can be exchanged.
    let other = Sandbox::make(&api, &json!({ "memoryMB": 128 })).await;
    let other = other.expect("sandboxes work here");
    for (method, wrong) in [
        (
            "GET",
            down.replace("path=/workspace/a", "path=/workspace/b"),
        ),
        ("GET", down.replace(&sandbox.id, &other.id)),
        ("GET", down.replace(&sandbox.id, "sb-00000000")),
        ("GET", down.replace("expires=", "expires=9")),
        ("GET", down.replace("signature=", "signature=0")),
        ("GET", up.replace("/upload?", "/download?")),
        ("PUT", down.replace("/download?", "/upload?")),
    ] {
        assert!(wrong != down && wrong != up);
        let reply = nobody.call(method, &wrong, Some(b"x".to_vec())).await;
        reply.refused(403, "invalid signature");
    }
    assert_eq!(
        sandbox.read(ODD).await.ok(200).header("content-length"),
        "300000"
    );
    for part in ["path", "expires", "signature"] {
        let without: Vec<_> = down.split(['?', '&']).collect();
        let kept = without[1..].iter().filter(|one| !one.starts_with(part));
        let query = kept.copied().collect::<Vec<_>>().join("&");
        let text = format!("{part} query parameter is required");
        let short = format!("{}?{query}", without[0]);
        nobody.get(&short).await.refused(400, &text);
    }
    let words = down.replace("expires=", "expires=x");
    let text = "expires must be a time in Unix seconds";
    nobody.get(&words).await.refused(400, text);

    // Its time is over, and that is told whatever the signature.
    let brief = url("download", json!({ "path": ODD, "expiresIn": 1 })).await;
    nobody.get(&brief).await.ok(200);
    actix_rt::time::sleep(Duration::from_millis(1_100)).await;
    nobody.get(&brief).await.refused(403, "signed URL expired");
    let past = format!("{}&expires=1&signature=00", down.split('&').next().unwrap());
    nobody.get(&past).await.refused(403, "signed URL expired");

    // It goes on after a restart, and ends with its sandbox.
    let mut server = server;
    server.stop();
    server.restart();
    let nobody = server.api().without_key();
    nobody.get(&down).await.ok(200);
    let api = server.api();
    api.delete(&sandbox.path("")).await.ok(204);
    nobody.get(&down).await.refused(410, "sandbox is stopped");
    let again = sandbox.path("/files/download-url");
    let again = api.post(&again, &json!({ "path": "a" })).await;
    again.refused(410, "sandbox is stopped");
}

/// Goal: who may have a URL made, for what and for how long; and what it begins with.
#[actix_rt::test]
async fn signed_urls_are_made_for_those_who_may_use_the_files() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let Some(sandbox) = Sandbox::make(&api, &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let token = sandbox.object["token"].as_str().expect("a token");
    let bearer = api
        .without_key()
        .with_header("authorization", &format!("Bearer {token}"));
    for kind in ["download", "upload"] {
        let path = sandbox.path(&format!("/files/{kind}-url"));
        let body = json!({ "path": "a.txt" });
        bearer.post(&path, &body).await.ok(200);
        let stranger = server.other().post(&path, &body).await;
        stranger.refused(404, "sandbox not found");
        for (body, error) in [
            (json!({}), "path is required"),
            (json!({ "path": "" }), "path is required"),
            (json!({ "path": "a\0b" }), "path must not hold NUL"),
            (
                json!({ "path": "a".repeat(4097) }),
                "path must not exceed 4096 bytes",
            ),
            (
                json!({ "path": "a", "expiresIn": 86_401 }),
                "expiresIn must not exceed 86400",
            ),
            (
                json!({ "path": "a", "expiresIn": "1" }),
                "invalid request: `expiresIn` has the wrong type",
            ),
        ] {
            api.post(&path, &body).await.refused(400, error);
        }
        for (given, seconds) in [
            (json!(null), 3600),
            (json!(0), 3600),
            (json!(-5), 3600),
            (json!(1), 1),
            (json!(86_400), 86_400),
        ] {
            let body = json!({ "path": "a.txt", "expiresIn": given });
            let reply = api.post(&path, &body).await.ok(200).json();
            use time::format_description::well_known::Rfc3339;
            let at = reply["expiresAt"].as_str().expect("a time");
            let at = time::OffsetDateTime::parse(at, &Rfc3339).expect("RFC 3339");
            let left = (at - time::OffsetDateTime::now_utc()).whole_seconds();
            assert!((seconds - 30..=seconds).contains(&left), "{given}: {left}");
            let url = reply["url"].as_str().expect("a URL");
            let expires = format!("&expires={}&", at.unix_timestamp());
            assert!(url.contains(&expires), "{url}");
            let fields: BTreeSet<_> = reply.as_object().expect("an object").keys().collect();
            assert_eq!(fields.len(), 2, "{reply}");
        }
        let fronted = api
            .with_header("x-forwarded-proto", "https")
            .with_header("x-forwarded-host", "oc.example.test");
        let reply = fronted.post(&path, &body).await.ok(200).json();
        let begin = format!("https://oc.example.test{}", sandbox.path("/files"));
        let url = reply["url"].as_str().expect("a URL");
        assert!(
            url.starts_with(&format!("{begin}/{kind}?path=a.txt&")),
            "{url}"
        );
    }
}
