//! API keys over HTTP, by the command line and by the socket of the server's machine: what each kind
//! may do, and that none of it outlives a revocation. Where this machine can't have sandboxes, the
//! tests that need one say so and stop.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Api, KEY, Sandbox, Server};
use serde_json::{Value, json};

/// No wait takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a key; a caller with it, and its record.
async fn make(api: &Api, body: &Value) -> (Api, Value) {
    let made = api.post("/api/keys", body).await.ok(201).json();
    let text = made["key"].as_str().expect("the key's text");
    assert!(text.starts_with("osb_") && text.len() == 68, "a key's form");
    (api.with_key(text), made)
}

fn path_of(key: &Value) -> String {
    format!("/api/keys/{}", key["id"].as_str().expect("an id"))
}

/// Goal: a read key looks and changes nothing, a write key does all but keys, an admin key also keys;
/// refusals name the reason. Method: the same requests with each.
#[actix_rt::test]
async fn scopes_are_what_they_say() {
    let server = Server::start();
    let first = server.api();
    let project = first.project(&json!({ "name": "p" })).await;
    let path = format!("/api/projects/{project}");
    let scoped = async |scope: &str| {
        make(&first, &json!({ "name": scope, "scope": scope }))
            .await
            .0
    };
    let (read, write, admin) = (
        scoped("read").await,
        scoped("write").await,
        scoped("admin").await,
    );
    for key in [&read, &write, &admin] {
        key.get(&path).await.ok(200);
        let head = key.request("HEAD", &path).send().await.expect("a reply");
        assert_eq!(head.status(), 200);
        key.get("/api/whoami").await.ok(200);
    }
    let body = json!({ "timeoutSec": 60 });
    read.put(&path, &body)
        .await
        .refused(403, "this API key may only read");
    read.post("/api/projects", &json!({ "name": "q" }))
        .await
        .refused(403, "this API key may only read");
    read.delete(&path)
        .await
        .refused(403, "this API key may only read");
    assert_eq!(first.get(&path).await.json()["timeoutSec"], 300);
    write.put(&path, &body).await.ok(200);
    for key in [&read, &write] {
        key.get("/api/keys")
            .await
            .refused(403, "this API key may not manage keys");
    }
    write
        .post("/api/keys", &json!({ "name": "more", "scope": "admin" }))
        .await
        .refused(403, "this API key may not manage keys");
    make(&admin, &json!({ "name": "by admin" })).await;
    let names = |listed: Value| -> Vec<String> {
        let keys = listed.as_array().expect("keys").clone();
        let name = |key: &Value| key["name"].as_str().expect("a name").to_owned();
        keys.iter().map(name).collect()
    };
    let listed = first.get("/api/keys").await.ok(200);
    assert!(!listed.text.contains("sha256"), "no hash is shown");
    assert_eq!(
        names(listed.json()),
        ["first", "read", "write", "admin", "by admin"]
    );
}

/// Goal: what a key is asked to be is checked before anything is made.
#[actix_rt::test]
async fn bad_keys_are_not_made() {
    let server = Server::start();
    let api = server.api();
    let project = api.project(&json!({ "name": "p" })).await;
    let rows = [
        (json!({}), 400, "name is required"),
        (
            json!({ "name": "a\nb" }),
            400,
            "name must not have control characters",
        ),
        (
            json!({ "name": "n".repeat(129) }),
            400,
            "name must not exceed 128 bytes",
        ),
        (
            json!({ "name": "n", "scope": "all" }),
            400,
            "scope must be read, write or admin",
        ),
        (
            json!({ "name": "n", "expiresIn": 0 }),
            400,
            "expiresIn must be 1 to 2147483647 seconds",
        ),
        (
            json!({ "name": "n", "requestsPerSec": 0 }),
            400,
            "requestsPerSec must be a positive 32-bit number",
        ),
        (
            json!({ "name": "n", "sandboxId": "sb-none" }),
            404,
            "sandbox not found",
        ),
        (
            json!({ "name": "n", "project": "other" }),
            404,
            "project not found",
        ),
        // A restriction that was misspelt would make a key without it.
        (
            json!({ "name": "n", "sandboxID": "sb-none" }),
            400,
            "invalid request: `sandboxID` has an unknown field",
        ),
        (
            json!({ "name": "n", "project": project, "sandboxId": "sb-none" }),
            400,
            "sandboxId and project can't both be given",
        ),
        (
            json!({ "name": "n", "project": project, "scope": "admin" }),
            400,
            "a key for one sandbox or project can't manage keys",
        ),
    ];
    for (body, status, error) in rows {
        api.post("/api/keys", &body).await.refused(status, error);
    }
    assert_eq!(
        api.get("/api/keys").await.json().as_array().map(Vec::len),
        Some(1)
    );
    api.delete("/api/keys/none")
        .await
        .refused(404, "key not found");
}

/// Goal: a key ends by revocation at once and for good, by expiry in its time, and its rate is its
/// own; the last use is told.
#[actix_rt::test]
async fn keys_end_and_are_counted() {
    let mut server = Server::start();
    let api = server.api();
    let (gone, record) = make(&api, &json!({ "name": "gone" })).await;
    gone.get("/api/projects").await.ok(200);
    let shown = |listed: Value, id: &Value| -> Value {
        let keys = listed.as_array().expect("keys").clone();
        keys.into_iter()
            .find(|key| key["id"] == *id)
            .expect("the key")
    };
    let used = shown(api.get("/api/keys").await.json(), &record["id"]);
    assert!(used["lastUsedAt"].is_string(), "{used}");
    api.delete(&path_of(&record)).await.ok(204);
    api.delete(&path_of(&record)).await.ok(204);
    gone.get("/api/projects")
        .await
        .refused(401, "invalid API key");
    let (slow, _) = make(&api, &json!({ "name": "slow", "requestsPerSec": 1 })).await;
    let limited = async {
        loop {
            let reply = slow.get("/api/projects").await;
            if reply.status != 200 {
                return reply;
            }
        }
    };
    let limited = tokio::time::timeout(PATIENCE, limited)
        .await
        .expect("a limit");
    assert_eq!(limited.header("retry-after"), "1");
    limited.refused(429, "this API key is good for 1 requests a second");
    let (short, _) = make(&api, &json!({ "name": "short", "expiresIn": 1 })).await;
    let expired = async {
        loop {
            let reply = short.get("/api/projects").await;
            if reply.status != 200 {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let expired = tokio::time::timeout(PATIENCE, expired)
        .await
        .expect("an end");
    expired.refused(401, "API key expired");
    // Revocations, and times of use after an orderly end, survive a restart.
    assert!(server.stop().success());
    server.restart();
    let (api, key) = (
        server.api(),
        shown(server.api().get("/api/keys").await.json(), &record["id"]),
    );
    assert!(
        key["revokedAt"].is_string() && key["lastUsedAt"].is_string(),
        "{key}"
    );
    api.with_key(record["key"].as_str().expect("the text"))
        .get("/api/projects")
        .await
        .refused(401, "invalid API key");
}

/// Goal: a key for one sandbox or project is good for those data planes alone, a read key opens no
/// socket, and a sandbox's token is worth what the key is that it was given to, and as long.
#[actix_rt::test]
async fn keys_of_a_sandbox_reach_nothing_else() {
    let server = Server::start();
    let api = server.api();
    let project = api.project(&json!({ "name": "p" })).await;
    let body = json!({ "memoryMB": 256, "project": "p" });
    let Some(inside) = Sandbox::make(&api, &body).await else {
        return;
    };
    let outside = Sandbox::make(&api, &json!({ "memoryMB": 256 }))
        .await
        .expect("another");
    let run = json!({ "cmd": "true" });
    let (one, _) = make(&api, &json!({ "name": "one", "sandboxId": outside.id })).await;
    let (all, _) = make(&api, &json!({ "name": "all", "project": project })).await;
    for (key, own, other, why) in [
        (
            &one,
            &outside,
            &inside,
            "this API key is good for one sandbox alone",
        ),
        (
            &all,
            &inside,
            &outside,
            "this API key is good for the sandboxes of one project alone",
        ),
    ] {
        key.post(&own.path("/exec/run"), &run).await.ok(200);
        key.post(&other.path("/exec/run"), &run)
            .await
            .refused(404, "sandbox not found");
        key.get("/api/sandboxes").await.refused(403, why);
        key.get("/api/keys").await.refused(403, why);
    }
    // A fork in another project is that project's, with its secrets.
    let checkpoint = api
        .post(&inside.path("/checkpoints"), &json!({ "name": "c" }))
        .await;
    let checkpoint = checkpoint.ok(201).id();
    api.project(&json!({ "name": "q" })).await;
    let from = format!("/api/sandboxes/from-checkpoint/{checkpoint}");
    let forked = api.post(&from, &json!({ "project": "q" })).await;
    let forked = forked.ok(201).json()["sandboxID"].clone();
    let path = format!(
        "/api/sandboxes/{}/exec/run",
        forked.as_str().expect("an id")
    );
    let reply = all.post(&path, &run).await;
    reply.refused(404, "sandbox not found");
    // What a key signs ends with it.
    let (short, record) = make(&api, &json!({ "name": "s", "expiresIn": 3600 })).await;
    let body = json!({ "path": "/tmp/x", "expiresIn": 80_000 });
    let signed = short.post(&inside.path("/files/download-url"), &body).await;
    let signed = signed.ok(200).json();
    let minute = |at: &Value| at.as_str().expect("a time")[..16].to_owned();
    assert_eq!(minute(&signed["expiresAt"]), minute(&record["expiresAt"]));
    let (read, record) = make(&api, &json!({ "name": "r", "scope": "read" })).await;
    read.post(&inside.path("/exec/run"), &run)
        .await
        .refused(403, "this API key may only read");
    let socket = read
        .request("GET", &inside.path("/exec/none"))
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .send()
        .await
        .expect("a reply");
    assert_eq!(socket.status(), 403);
    let token = read.get(&inside.path("")).await.ok(200).json()["token"].clone();
    let token = api.with_key(token.as_str().expect("a token"));
    token.get(&inside.path("/files/list?path=/")).await.ok(200);
    token
        .post(&inside.path("/exec/run"), &run)
        .await
        .refused(403, "this API key may only read");
    let feed = read
        .request("GET", "/api/audit/events?follow=true")
        .send()
        .await
        .expect("a feed");
    assert_eq!(feed.status(), 200);
    api.delete(&path_of(&record)).await.ok(204);
    let ended = tokio::time::timeout(PATIENCE, feed.text()).await;
    assert!(ended.is_ok(), "a feed goes on without its key");
    token
        .get(&inside.path("/files/list?path=/"))
        .await
        .refused(401, "invalid API key");
}

/// `oc admin …` with a home of its own; its output.
fn oc(server: &Server, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
    command
        .args(["admin"])
        .args(words)
        .env_clear()
        .env("HOME", server.root())
        .env("OC_DATA_DIR", server.data())
        .env("OPENCOMPUTER_API_URL", server.url());
    let output = command.output().expect("oc runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Goal: on the server's machine an organization and its keys are made without a key, tenants see
/// nothing of one another, and nobody else may use the socket.
#[actix_rt::test]
async fn organizations_are_made_on_the_servers_machine() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start();
    let socket = std::fs::metadata(server.data().join("admin.sock")).expect("the socket");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let (ok, made) = oc(&server, &["org", "create", "Team", "--json"]);
    assert!(ok, "{made}");
    let org: Value = serde_json::from_str(&made).expect("JSON");
    let id = org["id"].as_str().expect("an id");
    let (ok, made) = oc(
        &server,
        &[
            "key",
            "create",
            "ci",
            "--org",
            id,
            "--scope",
            "admin",
            "--expires-in",
            "30d",
            "--json",
        ],
    );
    assert!(ok, "{made}");
    let key: Value = serde_json::from_str(&made).expect("JSON");
    assert!(key["expiresAt"].is_string(), "{key}");
    let text = key["key"].as_str().expect("the text");
    let team = server.api().with_key(text);
    let who = team.get("/api/whoami").await.ok(200).json();
    assert_eq!(
        (&who["org_id"], &who["org_name"]),
        (&org["id"], &json!("Team"))
    );
    server.api().project(&json!({ "name": "theirs" })).await;
    assert_eq!(team.get("/api/projects").await.json(), json!([]));
    let (ok, listed) = oc(&server, &["key", "list", "--org", id]);
    assert!(
        ok && listed.contains("ci") && listed.contains("admin"),
        "{listed}"
    );
    assert!(!listed.contains(text), "a key is shown once");
    let (ok, listed) = oc(&server, &["org", "list"]);
    assert!(
        ok && listed.contains("Team") && listed.contains("default"),
        "{listed}"
    );
    let key_id = key["id"].as_str().expect("an id");
    let (ok, told) = oc(&server, &["key", "revoke", key_id, "--org", id]);
    assert!(ok, "{told}");
    team.get("/api/whoami")
        .await
        .refused(401, "invalid API key");
    // Of another organization there is no such key, and of none at all nothing.
    let (ok, told) = oc(&server, &["key", "revoke", key_id, "--org", "none"]);
    assert!(!ok && told.contains("organization not found"), "{told}");
    let (ok, told) = oc(&server, &["org", "list", "--data-dir", "/nonexistent"]);
    assert!(!ok && told.contains("is the server running?"), "{told}");
    // Over HTTP with a key: the caller's own organization.
    let mut own = Command::new(env!("CARGO_BIN_EXE_oc"));
    own.args(["admin", "key", "ls"])
        .env_clear()
        .env("HOME", server.root())
        .env("OPENCOMPUTER_API_KEY", KEY)
        .env("OPENCOMPUTER_API_URL", server.url());
    let own = own.output().expect("oc runs");
    assert!(String::from_utf8_lossy(&own.stdout).contains("first"));
}

/// Goal: a key is kept once the server has taken it and forgotten with its end, by files and standard
/// input alone; a wrong one is not kept, and the key of the machine's own server is none of it.
#[actix_rt::test]
async fn logging_in_keeps_a_key_and_out_revokes_it() {
    let server = Server::start();
    let home = tempfile::tempdir().expect("a folder");
    let run = |words: &[&str], input: &str| {
        use std::io::Write;
        let mut child = Command::new(env!("CARGO_BIN_EXE_oc"))
            .args(words)
            .env_clear()
            .env("HOME", home.path())
            .env("OPENCOMPUTER_API_URL", server.url())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("oc runs");
        let mut stdin = child.stdin.take().expect("its input");
        // One that needs no input may have ended by now.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("oc ends");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let (key, record) = make(&server.api(), &json!({ "name": "mine" })).await;
    let text = record["key"].as_str().expect("the text");
    let file = home.path().join(".oc/config.json");
    assert_eq!(run(&["login"], "osb_wrong\n").0, Some(3));
    assert_eq!(run(&["login"], "").0, Some(1));
    assert!(!file.exists(), "a wrong key is not kept");
    let (code, told) = run(&["login"], &format!("{text}\n"));
    assert!(
        code == Some(0) && told.contains("organization default"),
        "{told}"
    );
    assert!(!told.contains(text), "a key is not shown");
    assert!(std::fs::read_to_string(&file).expect("kept").contains(text));
    assert_eq!(run(&["login"], text).0, Some(1), "one is kept already");
    assert_eq!(run(&["whoami"], "").0, Some(0));
    assert_eq!(run(&["logout", "--local"], "").0, Some(0));
    key.get("/api/whoami").await.ok(200);
    assert_eq!(run(&["login"], text).0, Some(0));
    let (code, told) = run(&["logout"], "");
    assert_eq!((code, told.trim()), (Some(0), "Logged out."));
    key.get("/api/whoami").await.refused(401, "invalid API key");
    assert!(
        !std::fs::read_to_string(&file)
            .expect("the rest")
            .contains(text)
    );
    assert_eq!(run(&["logout"], "").1.trim(), "Not logged in.");
}
