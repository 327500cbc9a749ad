//! Sandboxes as clients see them: the object, who may reach it with what, and what it inherits.
//! Real sandboxes on this machine; where it can't have any, the tests say so and stop.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::{Api, KEY, Server, world};
use serde_json::{Value, json};

/// Makes a sandbox, or says why this machine has none.
async fn sandbox(api: &Api, body: &Value) -> Option<Value> {
    let reply = api.post("/api/sandboxes", body).await;
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    Some(reply.ok(201).json())
}

fn path_of(sandbox: &Value) -> String {
    format!(
        "/api/sandboxes/{}",
        sandbox["sandboxID"].as_str().expect("an id")
    )
}

async fn run(api: &Api, sandbox: &Value, script: &str) -> String {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 30 });
    let reply = api
        .post(&format!("{}/exec/run", path_of(sandbox)), &body)
        .await
        .ok(200)
        .json();
    assert_eq!(reply["exitCode"], 0, "{reply}");
    reply["stdout"]
        .as_str()
        .expect("output")
        .trim_end()
        .to_owned()
}

/// Goal: the object has every field of section 5.3 from its birth to its end, and a delete leaves
/// a readable record and nothing else.
#[actix_rt::test]
async fn a_sandbox_has_its_whole_life_in_the_api() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    assert_eq!(api.get("/api/sandboxes").await.ok(200).text, "[]");
    let body =
        json!({ "metadata": { "team": "x" }, "alias": "mine", "memoryMB": -1, "unknown": 1 });
    let Some(made) = sandbox(&api, &body).await else {
        return;
    };
    let id = made["sandboxID"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("sb-") && id.len() == 29, "{id}");
    for (field, wanted) in [
        ("status", json!("running")),
        ("templateID", json!("base")),
        ("template", json!("base")),
        ("cpuCount", json!(1)),
        ("memoryMB", json!(1024)),
        ("diskMB", json!(20480)),
        ("timeout", json!(300)),
        ("metadata", json!({ "team": "x" })),
        ("alias", json!("mine")),
        ("connectURL", json!(format!("{}/api", server.url()))),
    ] {
        assert_eq!(made[field], wanted, "{field}");
    }
    for field in [
        "token",
        "region",
        "workerID",
        "sandboxDomain",
        "domain",
        "startedAt",
    ] {
        assert!(
            made[field].as_str().is_some_and(|text| !text.is_empty()),
            "{field} in {made}"
        );
    }
    assert!(made.get("envs").is_none());

    let path = path_of(&made);
    let same = |mut other: Value| {
        other["token"] = made["token"].clone();
        assert_eq!(other, made);
    };
    same(api.get(&path).await.ok(200).json());
    same(api.get("/api/sandboxes").await.ok(200).json()[0].clone());
    same(
        api.get("/api/sandboxes?metadata.team=x&status=running")
            .await
            .json()[0]
            .clone(),
    );
    for none in ["metadata.team=y", "status=stopped,error", "offset=1"] {
        assert_eq!(
            api.get(&format!("/api/sandboxes?{none}"))
                .await
                .ok(200)
                .text,
            "[]",
            "{none}"
        );
    }
    // Another organization learns nothing.
    server
        .other()
        .get(&path)
        .await
        .refused(404, "sandbox not found");
    server
        .other()
        .delete(&path)
        .await
        .refused(404, "sandbox not found");
    let run = server
        .other()
        .post(&format!("{path}/exec/run"), &json!({ "cmd": "id" }))
        .await;
    run.refused(404, "sandbox not found");
    assert_eq!(
        server.other().get("/api/sandboxes?status=all").await.text,
        "[]"
    );

    let timeout = format!("{path}/timeout");
    api.post(&timeout, &json!({ "timeout": 0 })).await.ok(204);
    assert_eq!(api.get(&path).await.json()["timeout"], 0);
    api.post(&timeout, &json!({}))
        .await
        .refused(400, "timeout is required");
    api.post(&timeout, &json!({ "timeout": -1 }))
        .await
        .refused(400, "timeout must not be negative");

    for _ in 0..2 {
        api.delete(&path).await.ok(204);
    }
    assert_eq!(api.get("/api/sandboxes").await.text, "[]");
    assert_eq!(api.get(&path).await.ok(200).json()["status"], "stopped");
    assert_eq!(
        api.get("/api/sandboxes?status=all").await.json()[0]["status"],
        "stopped"
    );
    let run = api
        .post(&format!("{path}/exec/run"), &json!({ "cmd": "id" }))
        .await;
    run.refused(410, "sandbox is stopped");
    api.post(&timeout, &json!({ "timeout": 1 }))
        .await
        .refused(400, "sandbox is not running");
    let left = world::traces(server.data(), &BTreeSet::from([id]));
    assert_eq!(left, world::Traces::default());
}

/// Goal: a sandbox's token opens its own data plane in each slot, and nothing else (section 2).
#[actix_rt::test]
async fn a_token_is_for_one_sandbox_and_its_data_plane() {
    let server = Server::start();
    let api = server.api();
    let small = json!({ "memoryMB": 128 });
    let Some(own) = sandbox(&api, &small).await else {
        return;
    };
    let Some(other) = sandbox(&api, &small).await else {
        return;
    };
    let token = own["token"].as_str().expect("a token");
    let nobody = api.without_key();
    let bearer = nobody.with_header("authorization", &format!("Bearer {token}"));
    let (path, id) = (path_of(&own), own["sandboxID"].as_str().expect("an id"));
    let slots = [
        bearer.get(&path).await,
        nobody.with_key(token).get(&path).await,
        nobody.get(&format!("{path}?token={token}")).await,
        nobody.get(&format!("{path}?api_key={token}")).await,
        // Without `/api`, as Python's older clients ask.
        bearer.get(&format!("/sandboxes/{id}")).await,
    ];
    for reply in slots {
        assert_eq!(reply.ok(200).json()["sandboxID"], id);
    }
    assert_eq!(run(&bearer, &own, "echo hello").await, "hello");
    let fresh = bearer
        .call("POST", &format!("{path}/token/refresh"), None)
        .await
        .ok(200)
        .json();
    let fresh = nobody.with_key(fresh["token"].as_str().expect("a token"));
    fresh.get(&path).await.ok(200);
    bearer
        .post(&format!("{path}/timeout"), &json!({ "timeout": 60 }))
        .await
        .ok(204);

    let elsewhere = path_of(&other);
    for (method, path) in [
        ("GET", elsewhere.clone()),
        ("POST", format!("{elsewhere}/exec/run")),
        ("GET", format!("{elsewhere}/files?path=/etc/hosts")),
        ("POST", format!("{elsewhere}/token/refresh")),
        ("GET", "/api/sandboxes/x".to_owned()),
    ] {
        let reply = bearer.call(method, &path, None).await;
        reply.refused(403, "token not valid for this sandbox");
    }
    for (method, path) in [
        ("GET", "/api/projects".to_owned()),
        ("POST", "/api/sandboxes".to_owned()),
        ("GET", "/api/sandboxes".to_owned()),
        ("GET", "/api/whoami".to_owned()),
        ("POST", "/api/audit/verify".to_owned()),
        ("GET", "/api/audit/export".to_owned()),
        ("GET", "/api/audit/checkpoint".to_owned()),
        ("DELETE", path.clone()),
        ("GET", format!("{path}/allowed-hosts")),
    ] {
        let reply = bearer.call(method, &path, None).await;
        reply.refused(403, "token not valid for this route");
    }
    let middle = token.len() / 2;
    let flipped = if token.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    let forged = [&token[..middle], flipped, &token[middle + 1..]].concat();
    nobody
        .with_key(&forged)
        .get(&path)
        .await
        .refused(401, "invalid API key");
    // The first slot that is present decides, whatever comes after it.
    bearer
        .with_key(KEY)
        .get("/api/projects")
        .await
        .refused(403, "token not valid for this route");
}

/// Goal: request over project over default, setting by setting; layers of secrets and lists in
/// their order (sections 23.3 to 23.5).
#[actix_rt::test]
async fn a_sandbox_inherits_from_its_project_and_store() {
    let server = Server::start();
    let api = server.api();
    let project = api
        .project(&json!({
            "name": "p", "cpuCount": 2, "memoryMB": 256, "timeoutSec": 60,
            "egressAllowlist": ["a.test", "b.test"],
        }))
        .await;
    let store = api
        .store(&json!({ "name": "s", "egressAllowlist": ["c.test", "a.test"] }))
        .await;
    for (path, name, hosts) in [
        (
            format!("/api/projects/{project}"),
            "ONLY_P",
            json!(["p.test"]),
        ),
        (
            format!("/api/projects/{project}"),
            "BOTH",
            json!(["p.test"]),
        ),
        (format!("/api/projects/{project}"), "PLAIN", json!([])),
        (format!("/api/secret-stores/{store}"), "BOTH", json!([])),
    ] {
        let body = json!({ "value": "real-9d2f", "allowedHosts": hosts });
        api.put(&format!("{path}/secrets/{name}"), &body)
            .await
            .ok(200);
    }
    let inheriting = json!({
        "templateID": "base", "project": "p", "secretStore": "s", "cpuCount": 0, "memoryMB": 0,
        "timeout": 0, "egressAllowlist": ["d.test", "b.test"], "envs": { "PLAIN": "seen" },
    });
    let Some(made) = sandbox(&api, &inheriting).await else {
        return;
    };
    let sizes = |of: &Value| {
        ["cpuCount", "memoryMB", "timeout"].map(|field| of[field].as_u64().expect("a number"))
    };
    assert_eq!(sizes(&made), [2, 256, 60]);
    let hosts = api
        .get(&format!("{}/allowed-hosts", path_of(&made)))
        .await
        .ok(200)
        .json();
    let wanted = json!({
        "sandboxID": made["sandboxID"], "project": "p", "secretStore": "s",
        "egressAllowlist": ["a.test", "b.test", "c.test", "d.test"],
        "perSecretAllowedHosts": { "ONLY_P": ["p.test"] },
    });
    assert_eq!(
        hosts, wanted,
        "a later layer wins with its hosts, also when it has none"
    );
    let seen = run(&api, &made, "echo $PLAIN $ONLY_P $BOTH; env").await;
    let mut words = seen.lines().next().unwrap_or_default().split(' ');
    assert_eq!(words.next(), Some("seen"));
    for token in words {
        assert!(
            token.starts_with("osb_sealed_") && token.len() == 43,
            "{token}"
        );
    }
    assert!(
        !seen.contains("real-9d2f"),
        "a real value is in the sandbox"
    );

    let by_id = json!({ "project": project, "cpuCount": 1, "memoryMB": 128, "timeout": 5 });
    let explicit = sandbox(&api, &by_id).await.expect("sandboxes work here");
    assert_eq!(sizes(&explicit), [1, 128, 5], "what is given wins");
    let never = sandbox(&api, &json!({ "memoryMB": 128, "timeout": 0 })).await;
    assert_eq!(
        sizes(&never.expect("sandboxes work here")),
        [1, 128, 0],
        "0 means never"
    );

    // Later changes and deletes of layers leave what runs alone.
    api.put(
        &format!("/api/projects/{project}"),
        &json!({ "cpuCount": 4 }),
    )
    .await
    .ok(200);
    api.delete(&format!("/api/projects/{project}"))
        .await
        .ok(204);
    api.delete(&format!("/api/secret-stores/{store}"))
        .await
        .ok(204);
    let after = api.get(&path_of(&made)).await.ok(200).json();
    assert_eq!(sizes(&after), [2, 256, 60]);
    assert_eq!(run(&api, &made, "echo $BOTH").await.len(), 43);

    // With the flag, the store goes with its sandbox.
    api.store(&json!({ "name": "own" })).await;
    let body = json!({ "memoryMB": 128, "secretStore": "own" });
    let owner = sandbox(&api, &body).await.expect("sandboxes work here");
    api.delete(&format!("{}?deleteSecretStore=YES", path_of(&owner)))
        .await
        .ok(204);
    assert_eq!(api.get("/api/secret-stores").await.text, "[]");
}

/// Goal: commands and files answer as section 8 and 9 say, with wrong ones refused.
#[actix_rt::test]
async fn commands_and_files_answer_as_the_contract_says() {
    let server = Server::start();
    let api = server.api();
    let Some(made) = sandbox(&api, &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let path = path_of(&made);
    let exec = format!("{path}/exec/run");
    let body = json!({ "cmd": "sh", "args": ["-c", "echo out; echo err >&2; exit 3"] });
    let wanted = json!({ "exitCode": 3, "stdout": "out\n", "stderr": "err\n" });
    assert_eq!(api.post(&exec, &body).await.ok(200).json(), wanted);
    let shell_line = json!({ "cmd": "echo $((6*7)) | cat" });
    let reply = api
        .post(&format!("{path}/commands"), &shell_line)
        .await
        .ok(200)
        .json();
    assert_eq!(reply["stdout"], "42\n");
    let reply = api
        .post(&format!("{path}/exec/run-async"), &json!({ "cmd": "true" }))
        .await;
    assert_eq!(
        reply.ok(200).json(),
        json!({ "exitCode": 0, "stdout": "", "stderr": "" })
    );
    for (what, body, error) in [
        ("no command", json!({}), "cmd is required"),
        (
            "NUL",
            json!({ "cmd": "a\0b" }),
            "cmd, args and cwd must not hold NUL",
        ),
        (
            "bad args",
            json!({ "cmd": "a", "args": "b" }),
            "invalid request: `args` has the wrong type",
        ),
        (
            "bad envs",
            json!({ "cmd": "a", "envs": { "=": "" } }),
            "envs: names must not be empty or hold `=` or NUL",
        ),
        (
            "bad timeout",
            json!({ "cmd": "a", "timeout": -1 }),
            "timeout must be between 0 and 604800",
        ),
    ] {
        let reply = api.post(&exec, &body).await;
        assert_eq!(
            (reply.status, reply.json()),
            (400, json!({ "error": error })),
            "{what}"
        );
    }
    let unknown = api.get(&format!("{path}/exec/00000000/result")).await;
    unknown.refused(404, "exec not found");
    api.get(&format!("{path}/exec/00000000")).await.ok(404);
    let kill = format!("{path}/exec/00000000/kill");
    api.post(&kill, &json!({ "signal": 65 }))
        .await
        .refused(400, "signal must be between 1 and 64");
    api.post(&kill, &json!({})).await.ok(404);
    assert_eq!(api.get(&format!("{path}/exec")).await.ok(200).text, "[]");

    let file = format!("{path}/files?path=/workspace/a%20b.bin");
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    api.call("PUT", &file, Some(bytes.clone())).await.ok(204);
    let sum = run(
        &api,
        &made,
        "sha256sum '/workspace/a b.bin' | cut -d' ' -f1",
    )
    .await;
    use sha2::{Digest, Sha256};
    assert_eq!(sum, hex::encode(Sha256::digest(&bytes)));
    let listed = api
        .get(&format!("{path}/files/list?path=/workspace"))
        .await
        .ok(200)
        .json();
    let wanted = json!([{
        "name": "a b.bin", "isDir": false, "size": 100_000, "path": "/workspace/a b.bin",
    }]);
    assert_eq!(listed, wanted);
    let head = api.call("HEAD", &file, None).await.ok(200);
    let length = head.header("content-length");
    assert_eq!((length, head.text.as_str()), ("100000", ""));
    api.delete(&file).await.ok(204);
    api.get(&file).await.ok(404);
    let missing = "path query parameter is required";
    api.get(&format!("{path}/files"))
        .await
        .refused(400, missing);
    api.get(&format!("{path}/files?path="))
        .await
        .refused(400, missing);
    api.get(&format!("{path}/files?path=a%00b"))
        .await
        .refused(400, "path must not hold NUL");
    let long = format!("{path}/files?path=/{}", "a".repeat(4096));
    api.get(&long)
        .await
        .refused(400, "path must not exceed 4096 bytes");
}

/// Goal: the quota counts what runs, says so in the reply, and is free again after a delete.
#[actix_rt::test]
async fn the_quota_is_told_and_given_back() {
    let mut server = Server::prepare();
    fs::create_dir_all(server.data()).expect("a data folder");
    let settings = "[limits]\nconcurrent_sandboxes_max = 1\nmemory_mb_max = 512\n";
    fs::write(server.data().join("oc.toml"), settings).expect("settings");
    server.restart();
    let api = server.api();
    let small = json!({ "memoryMB": 128 });
    let Some(first) = sandbox(&api, &small).await else {
        return;
    };
    let refused = api.post("/api/sandboxes", &small).await.ok(429).json();
    assert_eq!(
        (&refused["active"], &refused["limit"]),
        (&json!(1), &json!(1)),
        "{refused}"
    );
    let text = refused["error"].as_str().unwrap_or_default();
    assert!(
        text.starts_with("concurrent sandbox limit reached"),
        "{text}"
    );
    api.delete(&path_of(&first)).await.ok(204);
    sandbox(&api, &small).await.expect("there is room again");
    let too_big = api
        .post("/api/sandboxes", &json!({ "memoryMB": 513 }))
        .await;
    too_big.refused(400, "memoryMB must not exceed 512");
    let too_big = api
        .post("/api/projects", &json!({ "name": "p", "memoryMB": 513 }))
        .await;
    too_big.refused(400, "memoryMB must not exceed 512");
}

/// Goal: secrets that are each within their bound and together too many for one sandbox are the
/// caller's mistake, told as such, and nothing of the attempt stays.
#[actix_rt::test]
async fn too_many_large_secrets_are_refused_as_a_whole() {
    let server = Server::start();
    let api = server.api();
    let store = api.store(&json!({ "name": "large" })).await;
    let value = json!({ "value": "v".repeat(64 * 1024) });
    for number in 0..13 {
        let path = format!("/api/secret-stores/{store}/secrets/S{number}");
        api.put(&path, &value).await.ok(200);
    }
    let before = api.verified_positions().await;
    let body = json!({ "secretStore": "large" });
    let refused = api.post("/api/sandboxes", &body).await;
    refused.refused(
        400,
        "secrets and envs of one sandbox must not exceed 1048576 bytes together, as sealed",
    );
    assert_eq!(api.verified_positions().await, before);
    assert_eq!(
        world::traces(server.data(), &BTreeSet::new()),
        world::Traces::default()
    );
}

/// Goal: the history has every sandbox there ever was, newest first, with its settings, its end and
/// no value of anything (section 5.5, route 11).
#[actix_rt::test]
async fn the_history_has_what_is_gone() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    assert_eq!(api.get("/api/sessions").await.ok(200).text, "[]");
    let store = api.store(&json!({ "name": "s" })).await;
    let secret = format!("/api/secret-stores/{store}/secrets/KEY");
    let value = json!({ "value": "value-5f1c9a7e" });
    api.put(&secret, &value).await.ok(200);
    let body = json!({
        "memoryMB": 128, "secretStore": "s", "alias": "mine", "metadata": { "team": "x" },
        "envs": { "PLAIN": "value-plain-77" }, "timeout": 60, "egressAllowlist": ["a.test"],
    });
    let Some(made) = sandbox(&api, &body).await else {
        return;
    };
    let other = sandbox(&api, &json!({ "memoryMB": 128 })).await;
    let other = other.expect("sandboxes work here");
    let rows = api.get("/api/sessions").await.ok(200).json();
    let row = rows[1].clone();
    let wanted = json!({
        "id": made["sandboxID"], "sandboxId": made["sandboxID"], "orgId": row["orgId"],
        "template": "base", "region": made["region"], "workerId": made["workerID"],
        "status": "running", "metadata": { "team": "x" }, "startedAt": made["startedAt"],
        "lastPatchSequence": 0, "secretStoreId": store,
        "config": {
            "templateID": "base", "cpuCount": 1, "memoryMB": 128, "diskMB": 20480, "timeout": 60,
            "port": row["config"]["port"], "networkEnabled": true, "alias": "mine",
            "egressAllowlist": ["a.test"], "layers": ["s"],
        },
    });
    assert_eq!(row, wanted);
    assert_eq!(rows[0]["id"], other["sandboxID"], "newest first");
    api.delete(&path_of(&made)).await.ok(204);
    let text = api.get("/api/sessions").await.ok(200).text;
    let rows: Value = serde_json::from_str(&text).expect("JSON");
    let (mut gone, ended) = (rows[1].clone(), rows[1]["stoppedAt"].clone());
    assert!(ended.as_str() > wanted["startedAt"].as_str(), "{gone}");
    assert_eq!(gone["status"], "stopped");
    gone["status"] = json!("running");
    gone.as_object_mut().expect("an object").remove("stoppedAt");
    assert_eq!(gone, wanted, "the rest stays");
    assert!(!text.contains("value-"), "no value is in it");
    for (query, count) in [
        ("?status=stopped", 1),
        ("?status=running,error", 1),
        ("?status=all", 2),
        ("?status=hibernated", 0),
    ] {
        let rows = api.get(&format!("/api/sessions{query}")).await.ok(200);
        assert_eq!(rows.json().as_array().map(Vec::len), Some(count), "{query}");
    }
    let wrong = api.get("/api/sessions?status=gone").await;
    wrong.refused(
        400,
        "status must be of running, hibernated, stopped, error, all",
    );
    assert_eq!(server.other().get("/api/sessions").await.text, "[]");
    // What the log says, and not what a process remembers.
    let mut server = server;
    server.stop();
    server.restart();
    assert_eq!(server.api().get("/api/sessions").await.ok(200).text, text);
}
