//! Building images: every step, caching, sharing, failing.

use serde_json::json;

use crate::common::Server;
use crate::kit::{boxes, copies, create, eventually, has_sandboxes, image, run, step, stream};

/// Goal: every type of step does what the contract says; an equal image is not built again, and one
/// with another last step builds that step alone. Method: the log tells which steps were carried out,
/// and a file with a random number shows that earlier ones were not.
#[actix_rt::test]
async fn steps_are_built_once_and_cached_by_content() {
    let server = Server::start();
    let api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    let mut steps = vec![
        step(
            "env",
            json!({ "vars": { "PLACE": "it's \"here\"", "KEY": "from the image" } }),
        ),
        step("workdir", json!({ "path": "/srv/app" })),
        step(
            "add_file",
            json!({ "path": "/srv/app/bin/tool", "content": "IyEvYmluL3NoCmVjaG8gdG9vbCAkUExBQ0UK", "encoding": "base64" }),
        ),
        step(
            "add_dir",
            json!({ "path": "/etc/oc-files", "files": [
                { "relativePath": "a/b.txt", "content": "Yg==" },
                { "relativePath": "c.txt", "content": "Yw==" }] }),
        ),
        run(
            "chmod +x bin/tool && ./bin/tool && head -c 16 /dev/urandom | sha256sum > ~/random && pwd",
        ),
        // As some spell it: arguments beside the type.
        json!({ "type": "run", "commands": ["sudo touch /etc/by-root", "echo last one"] }),
    ];
    let body = json!({ "image": image(&steps), "envs": { "KEY": "own" }, "timeout": 600 });
    let (first, told) = create(&api, &body).await;
    assert_eq!(told.cached(), [0u64; 0], "{:?}", told.log);
    assert!(
        told.said("run").contains("tool it's \"here\""),
        "{:?}",
        told.log
    );
    assert!(told.said("run").contains("/srv/app") && told.said("run").contains("last one"));
    assert!(first.object["fromCheckpointId"].is_string());
    let look = "pwd; echo $PLACE; echo $KEY; bash -lc 'echo $PLACE'; grep -c PLACE /etc/environment; \
                stat -c '%U %a' bin/tool /etc/oc-files/a/b.txt; cat /etc/oc-files/c.txt; echo; \
                ls /etc/by-root; hostname";
    let seen = first.run(look).await;
    let place = "it's \"here\"";
    let wanted = format!(
        "/srv/app\n{place}\nown\n{place}\n1\nsandbox 755\nsandbox 644\nc\n/etc/by-root\n{}",
        first.id
    );
    assert_eq!(seen, wanted);
    let random = first.run("cat ~/random").await;

    // The same again: nothing runs. Another sandbox goes its own way.
    let (second, told) = create(&api, &body).await;
    assert!(
        told.said("cache_hit").contains("whole image"),
        "{:?}",
        told.log
    );
    second.run("echo x > ~/random").await;
    // Another last step: that one alone.
    steps[5] = run("echo other");
    let body = json!({ "image": image(&steps) });
    let (third, told) = create(&api, &body).await;
    assert_eq!(told.cached(), [1, 2, 3, 4, 5], "{:?}", told.log);
    assert!(told.said("run").contains("other") && !told.said("run").contains("tool"));
    assert_eq!(third.run("cat ~/random").await, random);
    assert_eq!(
        third.run("ls /etc/by-root 2>&1 | grep -c cannot").await,
        "1"
    );

    // Only the three are to be seen, none of those that built; a fork has what the image says too.
    let all = api.get("/api/sandboxes?status=all").await.ok(200).json();
    let alive: Vec<_> = all
        .as_array()
        .expect("a list")
        .iter()
        .filter(|one| one["status"] == "running")
        .collect();
    assert_eq!(alive.len(), 3, "{all}");
    eventually("builders are gone", || boxes(&server) == 3).await;
    let images = api.get("/api/images").await.ok(200).json();
    let rows = images.as_array().expect("a list");
    assert_eq!(rows.len(), 2, "{images}");
    assert!(
        rows.iter()
            .all(|row| row["status"] == "ready" && row["name"] == "")
    );
    let line = api.get(&third.path("/lineage")).await.ok(200).json();
    assert_eq!(line["ancestors"][0]["imageId"], rows[0]["id"], "{line}");

    // Deleted images give the disk back, layers that are shared with the last one.
    eventually("two images and seven results", || copies(&server) == 9).await;
    for (row, left) in [(0, 7), (1, 0)] {
        let id = rows[row]["id"].as_str().expect("an id");
        api.delete(&format!("/api/images/{id}")).await.ok(204);
        api.get(&format!("/api/images/{id}"))
            .await
            .refused(404, "snapshot not found");
        assert_eq!(copies(&server), left, "after image {row}");
    }
    assert_eq!(
        first.run("cat ~/random").await,
        random,
        "sandboxes keep their disks"
    );
    api.verified_positions().await;
}

/// Goal: who asks for what is being built waits for that build, whole or in part, and hears it.
#[actix_rt::test]
async fn identical_builds_share_one() {
    let server = Server::start();
    let api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    let slow =
        run("echo begun; sleep 2; head -c 16 /dev/urandom | sha256sum > ~/random; echo done");
    let same = json!({ "image": image(std::slice::from_ref(&slow)) });
    let longer = json!({ "image": image(&[slow, run("echo more")]) });
    let (one, two, three) = futures_util::join!(
        create(&api, &same),
        create(&api, &same),
        create(&api, &longer)
    );
    let mut seen = Vec::new();
    for (sandbox, told) in [&one, &two, &three] {
        assert!(told.said("run").contains("begun\ndone"), "{:?}", told.log);
        seen.push(sandbox.run("cat ~/random").await);
    }
    assert!(seen.iter().all(|random| *random == seen[0]), "{seen:?}");
    let images = api.get("/api/images").await.ok(200).json();
    assert_eq!(images.as_array().map(Vec::len), Some(2), "{images}");
    eventually("two images and two results", || copies(&server) == 4).await;
}

/// Goal: a step that fails ends the build, tells the end of its output, and leaves the results before
/// it; asked for again, the build goes on from there.
#[actix_rt::test]
async fn a_failing_step_tells_its_output() {
    let server = Server::start();
    let api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    let good = run("echo good > ~/good");
    let bad = run("for n in $(seq 100); do echo line $n; done; echo why >&2; exit 7");
    let body = json!({ "image": image(&[good.clone(), bad]) });
    let told = stream(&api, "/api/sandboxes", &body).await;
    assert_eq!(told.end.0, "error");
    let error = told.end.1["error"].as_str().expect("a reason");
    assert!(
        error.starts_with("step 2 (run) failed with exit code 7: "),
        "{error}"
    );
    assert!(error.contains("why") && error.contains("line 100") && !error.contains("line 20\n"));
    // The same as one JSON object.
    let reply = api.post("/api/sandboxes", &body).await.ok(500).json();
    let text = reply["error"].as_str().expect("a reason");
    assert!(
        text.starts_with("build failed: step 2 (run) failed"),
        "{text}"
    );
    let images = api.get("/api/images").await.ok(200).json();
    assert_eq!(images[0]["status"], "failed", "{images}");
    assert!(
        images[0]["errorMsg"]
            .as_str()
            .is_some_and(|why| why.contains("exit code 7"))
    );
    let body = json!({ "image": image(&[good, run("cat ~/good")]) });
    let (_, told) = create(&api, &body).await;
    assert_eq!(told.cached(), [1]);
    assert!(told.said("run").contains("good"));
    eventually("no builder is left", || boxes(&server) == 1).await;

    // What can't be built is refused before anything happens, as JSON whatever was asked for.
    let events = api.with_header("accept", "text/event-stream");
    for (body, status, error) in [
        (
            json!({ "image": image(&[step("copy", json!({}))]) }),
            400,
            "image step 1: unknown type copy",
        ),
        (
            json!({ "image": { "base": "nope" } }),
            404,
            "template not found: nope",
        ),
        (
            json!({ "image": image(&[]), "snapshot": "x" }),
            400,
            "image and snapshot can't be given together",
        ),
        (
            json!({ "image": image(&[]), "secretStore": "nope" }),
            400,
            "secret store not found: nope",
        ),
        (
            json!({ "snapshot": "nope" }),
            400,
            "snapshot \"nope\" not found",
        ),
        (
            json!({ "image": { "steps": [{ "type": "env", "args": { "vars": { "A": 1 } } }] } }),
            400,
            "invalid request: `image.steps[0].args.vars.A` has the wrong type",
        ),
    ] {
        events
            .post("/api/sandboxes", &body)
            .await
            .refused(status, error);
    }
}
