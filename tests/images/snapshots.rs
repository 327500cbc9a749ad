//! Named snapshots.

use serde_json::json;

use crate::common::{Sandbox, Server};
use crate::kit::{copies, create, eventually, has_sandboxes, image, run, step, stream};

/// Goal: snapshots are made with events, as one object, or later; listed, read, deleted; names belong
/// to those that did not fail; each has its own patches.
#[actix_rt::test]
async fn snapshots_are_named_listed_and_deleted() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    assert_eq!(api.get("/api/snapshots").await.ok(200).text, "[]");
    let tools = image(&[run("echo tools > ~/tools")]);
    let told = stream(
        &api,
        "/api/snapshots",
        &json!({ "name": "tools", "image": tools }),
    )
    .await;
    assert!(
        told.said("run").contains("step 1 (run): echo tools"),
        "{:?}",
        told.log
    );
    let made = told.result();
    for (field, wanted) in [
        ("name", json!("tools")),
        ("status", json!("ready")),
        ("manifest", tools.clone()),
        ("lastUsedAt", made["createdAt"].clone()),
    ] {
        assert_eq!(made[field], wanted, "{field} of {made}");
    }
    assert!(made["checkpointId"].is_string() && made["orgId"].is_string());
    assert_eq!(made["contentHash"].as_str().map(str::len), Some(64));
    assert_eq!(api.get("/api/snapshots/tools").await.ok(200).json(), made);
    let again = json!({ "name": "tools", "image": tools });
    api.post("/api/snapshots", &again)
        .await
        .refused(409, "snapshot name already exists");

    // The same content under another name, as one object: quick, and a row of its own.
    let body = json!({ "name": "more", "image": tools });
    let more = api.post("/api/snapshots", &body).await.ok(201).json();
    assert_ne!(
        (&more["id"], &more["checkpointId"]),
        (&made["id"], &made["checkpointId"])
    );
    assert_eq!(more["contentHash"], made["contentHash"]);
    // What it starts from is the image's: it is not to be published or deleted by itself.
    let inner = made["checkpointId"].as_str().expect("an id");
    api.post(
        &format!("/api/sandboxes/checkpoints/{inner}/publish"),
        &json!({}),
    )
    .await
    .refused(404, "checkpoint not found");
    // Later: the row is there at once.
    let slow = json!({ "name": "slow", "image": image(&[run("sleep 20; echo x > ~/x")]) });
    let row = api
        .post("/api/snapshots?async=1", &slow)
        .await
        .ok(202)
        .json();
    assert_eq!(
        (&row["status"], row.get("checkpointId")),
        (&json!("building"), None)
    );
    let body = json!({ "snapshot": "slow" });
    api.post("/api/sandboxes", &body)
        .await
        .refused(400, "snapshot \"slow\" not ready");
    api.post("/api/snapshots/slow/patches", &json!({ "script": "true" }))
        .await
        .refused(400, "snapshot not ready");
    let list = api.get("/api/snapshots").await.ok(200).json();
    let names: Vec<_> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names, ["slow", "more", "tools"], "newest first");

    // Patches of one are not those of the other, though both are the same on the disk.
    let patch = json!({ "script": "echo patched > /etc/patched" });
    let added = api
        .post("/api/snapshots/tools/patches", &patch)
        .await
        .ok(201)
        .json();
    assert_eq!(added["patch"]["checkpointId"], made["checkpointId"]);
    let id = made["id"].as_str().expect("an id");
    let listed = api
        .get(&format!("/api/images/{id}/patches"))
        .await
        .ok(200)
        .json();
    assert_eq!(listed[0]["id"], added["patch"]["id"]);
    let (patched, told) = create(&api, &json!({ "snapshot": "tools" })).await;
    assert!(told.said("resolve").contains("tools"), "{:?}", told.log);
    assert_eq!(patched.object["fromCheckpointId"], made["checkpointId"]);
    assert_eq!(
        patched.run("cat ~/tools /etc/patched").await,
        "tools\npatched"
    );
    let bare = Sandbox::make(&api, &json!({ "snapshot": "more" }))
        .await
        .expect("a sandbox");
    assert_eq!(
        bare.run("cat ~/tools; ls /etc/patched 2>&1 | wc -l; test -e /etc/patched || echo none")
            .await,
        "tools\n1\nnone"
    );
    let used = api.get("/api/snapshots/tools").await.ok(200).json();
    assert_ne!(used["lastUsedAt"], made["lastUsedAt"]);

    // Another organization sees nothing of it.
    let other = server.other();
    assert_eq!(other.get("/api/snapshots").await.ok(200).text, "[]");
    other
        .get("/api/snapshots/tools")
        .await
        .refused(404, "snapshot not found");
    other
        .delete("/api/snapshots/tools")
        .await
        .refused(404, "snapshot not found");
    other
        .get(&format!("/api/images/{id}"))
        .await
        .refused(404, "snapshot not found");
    other
        .post("/api/sandboxes", &json!({ "snapshot": "tools" }))
        .await
        .refused(400, "snapshot \"tools\" not found");
    api.call("POST", "/api/snapshots/tools/publish", None)
        .await
        .ok(403);

    // Gone, with their disks; what is being built stops.
    for name in ["tools", "more", "slow"] {
        let path = format!("/api/snapshots/{name}");
        api.delete(&path).await.ok(204);
        api.delete(&path).await.refused(404, "snapshot not found");
    }
    eventually("nothing of them is left", || copies(&server) == 0).await;
    assert_eq!(patched.run("cat ~/tools").await, "tools");
    api.post("/api/sandboxes", &json!({ "snapshot": "tools" }))
        .await
        .refused(400, "snapshot \"tools\" not found");
}

/// Goal: names and bodies are checked; a failed snapshot is told, and its name is free.
#[actix_rt::test]
async fn a_failed_snapshot_is_replaced() {
    let server = Server::start();
    let api = server.api();
    let fine = image(&[run("true")]);
    for (body, error) in [
        (json!({ "image": fine }), "name is required"),
        (json!({ "name": "x" }), "image is required"),
        (
            json!({ "name": "a/b", "image": fine }),
            "name must be 1 to 128 characters of A-Z a-z 0-9 . _ -",
        ),
        (
            json!({ "name": "x", "image": image(&[step("workdir", json!({ "path": "x" }))]) }),
            "image step 1: path must be absolute, without NUL or `..`",
        ),
    ] {
        api.post("/api/snapshots", &body).await.refused(400, error);
    }
    if !has_sandboxes(&api).await {
        return;
    }
    let body = json!({ "name": "x", "image": image(&[run("echo no; exit 1")]) });
    let reply = api.post("/api/snapshots", &body).await.ok(500).json();
    assert!(
        reply["error"]
            .as_str()
            .is_some_and(|text| text.contains("exit code 1: no"))
    );
    let failed = api.get("/api/snapshots/x").await.ok(200).json();
    assert_eq!(failed["status"], "failed");
    assert!(
        failed["errorMsg"]
            .as_str()
            .is_some_and(|text| text.contains("no"))
    );
    api.post("/api/sandboxes", &json!({ "snapshot": "x" }))
        .await
        .refused(400, "snapshot \"x\" not ready");
    let body = json!({ "name": "x", "image": fine });
    let made = api.post("/api/snapshots", &body).await.ok(201).json();
    assert_eq!(made["status"], "ready");
    let list = api.get("/api/snapshots").await.ok(200).json();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
}

/// Goal: a snapshot built without any store gives each sandbox the store it is made with, and no
/// token or value of one is in another.
#[actix_rt::test]
async fn each_sandbox_of_a_snapshot_has_its_own_secrets() {
    let server = Server::start();
    let api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    for worker in ["worker-1", "worker-2"] {
        let store = api
            .store(&json!({ "name": worker, "egressAllowlist": [format!("{worker}.test")] }))
            .await;
        let path = format!("/api/secret-stores/{store}/secrets/WORKER_KEY");
        let body = json!({ "value": format!("the-real-value-of-{worker}") });
        api.put(&path, &body).await.ok(200);
    }
    // A variable of the image is below every secret of the same name.
    let steps = [
        step(
            "env",
            json!({ "vars": { "WORKER_KEY": "none", "PLAIN": "p" } }),
        ),
        run("echo $WORKER_KEY"),
    ];
    let body = json!({ "name": "pipeline", "image": image(&steps) });
    let told = stream(&api, "/api/snapshots", &body).await;
    assert!(told.said("run").contains("\nnone"), "{:?}", told.log);
    let mut tokens = Vec::new();
    for worker in ["worker-1", "worker-2"] {
        let body = json!({ "snapshot": "pipeline", "secretStore": worker });
        let (sandbox, _) = create(&api, &body).await;
        let seen = sandbox.run("echo $WORKER_KEY $PLAIN").await;
        assert!(
            seen.starts_with("osb_sealed_") && seen.ends_with(" p"),
            "{seen}"
        );
        let hosts = api
            .get(&sandbox.path("/allowed-hosts"))
            .await
            .ok(200)
            .json();
        assert_eq!(hosts["egressAllowlist"], json!([format!("{worker}.test")]));
        tokens.push(seen);
    }
    assert_ne!(tokens[0], tokens[1]);
    let (bare, _) = create(&api, &json!({ "snapshot": "pipeline" })).await;
    assert_eq!(bare.run("echo $WORKER_KEY").await, "none");
}

/// Goal: what is in a manifest is in no file of the log in clear, and comes back whole, also when it is
/// longer than one piece. Method: a canary in a file of 200 KiB, looked for in every file beside the
/// disks.
#[actix_rt::test]
async fn manifests_are_sealed_in_the_log() {
    let server = Server::start();
    let api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    let canary = "canary-in-a-manifest ".repeat(10_000);
    let file = step(
        "add_file",
        json!({ "path": "/srv/file", "content": canary }),
    );
    let sealed = image(&[
        file,
        step("env", json!({ "vars": { "A": "canary-in-a-variable" } })),
    ]);
    let body = json!({ "name": "sealed", "image": sealed });
    let made = api.post("/api/snapshots", &body).await.ok(201).json();
    assert_eq!(made["manifest"], sealed);
    let (sandbox, _) = create(&api, &json!({ "snapshot": "sealed" })).await;
    assert_eq!(
        sandbox.run("wc -c < /srv/file; echo $A").await,
        "210000\ncanary-in-a-variable"
    );
    // Nor is what a step that fails says of a variable.
    let leaky = image(&[
        step("env", json!({ "vars": { "A": "canary-in-a-failure" } })),
        run("echo it is $A >&2; exit 3"),
    ]);
    let leaky = json!({ "name": "leaky", "image": leaky });
    let reply = api.post("/api/snapshots", &leaky).await;
    assert_ne!(reply.status, 201, "{}", reply.text);
    let row = api.get("/api/snapshots/leaky").await.ok(200).json();
    let told = row["errorMsg"].as_str().expect("a reason");
    assert!(told.contains("it is (value of A)"), "{told}");
    let mut open = vec![server.data().to_owned()];
    let mut looked = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("sandboxes") {
                open.push(path);
            } else if path.is_file() {
                // The server replaces some of them meanwhile.
                let Ok(bytes) = std::fs::read(&path) else {
                    continue;
                };
                let found = bytes.windows(10).any(|part| part == b"canary-in-");
                assert!(!found, "{}", path.display());
                looked += 1;
            }
        }
    }
    assert!(looked > 3, "{looked} files");
}
