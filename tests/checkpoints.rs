//! Checkpoints, forks and patches on a real server with real sandboxes; where this machine can't have
//! any, the tests say so and stop.

mod common;

use std::time::{Duration, Instant};

use common::Server;
use common::checkpoints::{checkpoint, fork, fsck, id_of, path_of, run, sandbox};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Goal: a fork has the files as they were and goes its own way; a restore takes the sandbox back;
/// both keep working when the source and the checkpoint are gone.
#[actix_rt::test]
async fn forks_and_restores_begin_where_the_checkpoint_is() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let body = json!({ "envs": { "A": "a", "B": "b" }, "metadata": { "m": "1", "n": "1" },
                       "memoryMB": 512, "egressAllowlist": ["allowed.test"] });
    let Some(path) = sandbox(&api, &body).await else {
        return;
    };
    let write = "echo one > ~/file; ln -s file ~/link; mkdir ~/d; touch ~/d/gone; \
                 sudo sh -c 'echo root > /etc/own; rm /usr/share/doc -rf'; sleep 600 &";
    run(&api, &path, write).await;
    let first = checkpoint(&api, &path, "first").await;
    for (field, wanted) in [
        ("sandboxId", json!(path.rsplit('/').next())),
        ("name", json!("first")),
        ("kind", json!("full")),
        ("isPublic", json!(false)),
    ] {
        assert_eq!(first[field], wanted, "{field} of {first}");
    }
    assert!(first["sizeBytes"].as_u64() > Some(0) && first["pausedMs"].is_number());
    assert_eq!(first["sandboxConfig"]["memoryMB"], 512);
    assert!(!first.to_string().contains("envs"), "{first}");
    run(&api, &path, "echo two > ~/file; rm -r ~/d").await;

    let body = json!({ "envs": { "B": "fork" }, "metadata": { "n": "2" }, "timeout": 77 });
    let forked = fork(&api, &first, &body).await;
    let fork_path = path_of(&forked);
    for (field, wanted) in [
        ("status", json!("running")),
        ("memoryMB", json!(512)),
        ("timeout", json!(77)),
        ("metadata", json!({ "m": "1", "n": "2" })),
        ("fromCheckpointId", first["id"].clone()),
    ] {
        assert_eq!(forked[field], wanted, "{field} of {forked}");
    }
    let look = "cat ~/link /etc/own; ls ~/d; ls -d /usr/share/doc 2>&1 | wc -l; echo $A $B; \
                pgrep -c sleep; hostname";
    let id = forked["sandboxID"].as_str().expect("an id");
    let seen = run(&api, &fork_path, &format!("{look}; true")).await;
    assert_eq!(seen, format!("one\nroot\ngone\n1\na fork\n0\n{id}"));
    let hosts = api.get(&format!("{fork_path}/allowed-hosts")).await.json();
    assert_eq!(hosts["egressAllowlist"], json!(["allowed.test"]));
    run(&api, &fork_path, "echo fork > ~/file").await;
    assert_eq!(run(&api, &path, "cat ~/file").await, "two");

    // In place: the disk of then, the secrets and variables of now, no process.
    let restore = format!("{path}/checkpoints/{}/restore", id_of(&first));
    let told = api.call("POST", &restore, None).await.ok(200).json();
    let own = path.rsplit('/').next().expect("an id");
    let wanted = json!({ "sandboxId": own, "checkpointId": first["id"], "status": "restoring" });
    assert_eq!(told, wanted);
    assert_eq!(api.get(&path).await.ok(200).json()["status"], "running");
    let seen = run(
        &api,
        &path,
        "cat ~/file; ls ~/d; echo $B; pgrep -c sleep; true",
    )
    .await;
    assert_eq!(seen, "one\ngone\nb\n0");

    // A fork of a fork, the whole line, and deletes.
    let second = checkpoint(&api, &fork_path, "second").await;
    let grandchild = path_of(&fork(&api, &second, &json!({})).await);
    assert_eq!(
        run(&api, &grandchild, "cat ~/file; echo $A $B").await,
        "fork\na fork"
    );
    let line = api
        .get(&format!("{grandchild}/lineage"))
        .await
        .ok(200)
        .json();
    let ancestors = line["ancestors"].as_array().expect("a list");
    let ids: Vec<_> = ancestors.iter().map(|one| &one["sandboxId"]).collect();
    assert_eq!(ids, [&json!(id), &json!(own)]);
    let line = api.get(&format!("{path}/lineage")).await.ok(200).json();
    assert_eq!(line["forks"][0]["sandboxId"], json!(id));
    api.delete(&path).await.ok(204);
    let again = path_of(&fork(&api, &first, &json!({})).await);
    assert_eq!(run(&api, &again, "cat ~/file").await, "one");
    let gone = format!("{path}/checkpoints/{}", id_of(&first));
    api.delete(&gone).await.ok(204);
    api.delete(&gone).await.refused(404, "checkpoint not found");
    assert_eq!(run(&api, &again, "cat ~/file").await, "one");
    let left = server.data().join("sandboxes/.checkpoints");
    let left = std::fs::read_dir(left).expect("the copies").count();
    assert_eq!(left, 1, "the second one's");
}

/// Goal: a fork has new tokens for the present values; what was revoked stays dead in forks and
/// after a restore; the caller's store wins, what is gone is skipped, public checkpoints carry
/// nothing of their owner's.
#[actix_rt::test]
async fn secrets_are_looked_up_anew_for_a_fork() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let base = api
        .store(&json!({ "name": "base", "egressAllowlist": ["base.test"] }))
        .await;
    let over = api
        .store(&json!({ "name": "over", "egressAllowlist": ["over.test"] }))
        .await;
    let set = async |store: &str, name: &str, value: &str, hosts: Value| {
        let path = format!("/api/secret-stores/{store}/secrets/{name}");
        let body = json!({ "value": value, "allowedHosts": hosts });
        api.put(&path, &body).await.ok(200);
    };
    set(
        &base,
        "KEY",
        "a-value-of-the-base-store-1",
        json!(["base.test"]),
    )
    .await;
    set(
        &base,
        "OLD",
        "a-value-that-will-be-revoked",
        json!(["base.test"]),
    )
    .await;
    set(&over, "KEY", "a-value-of-the-other-store-2", json!([])).await;
    let body = json!({ "secretStore": "base", "envs": { "PLAIN": "plain" } });
    let Some(path) = sandbox(&api, &body).await else {
        return;
    };
    let tokens = run(&api, &path, "echo $KEY $OLD > ~/tokens; cat ~/tokens").await;
    let taken = checkpoint(&api, &path, "one").await;
    set(
        &base,
        "LATER",
        "a-value-that-came-later-33",
        json!(["base.test"]),
    )
    .await;
    let revoke = format!("/api/secret-stores/{base}/secrets/OLD/revoke");
    api.call("POST", &revoke, None).await;

    let forked = path_of(&fork(&api, &taken, &json!({ "secretStore": "over" })).await);
    let seen = run(
        &api,
        &forked,
        "echo $KEY; echo $LATER; echo old=$OLD; echo $PLAIN; cat ~/tokens",
    )
    .await;
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines[0].starts_with("osb_sealed_") && lines[1].starts_with("osb_sealed_"));
    assert!(!tokens.contains(lines[0]), "a new token: {seen}");
    assert_eq!(lines[2..], ["old=", "plain", tokens.as_str()]);
    let hosts = api
        .get(&format!("{forked}/allowed-hosts"))
        .await
        .ok(200)
        .json();
    assert_eq!(hosts["secretStore"], "over");
    assert_eq!(hosts["baseSecretStore"], "base");
    assert_eq!(hosts["egressAllowlist"], json!(["base.test", "over.test"]));
    assert_eq!(
        hosts["perSecretAllowedHosts"],
        json!({ "LATER": ["base.test"] }),
        "the winner's hosts"
    );

    let restore = format!("{path}/checkpoints/{}/restore", id_of(&taken));
    api.call("POST", &restore, None).await.ok(200);
    let seen = run(&api, &path, "echo $KEY $OLD").await;
    assert_eq!(seen, tokens, "its own tokens stay, the dead one too");
    let shown = api
        .get(&format!("{path}/allowed-hosts"))
        .await
        .ok(200)
        .json();
    assert!(
        shown["perSecretAllowedHosts"].get("OLD").is_none(),
        "{shown}"
    );

    api.delete(&format!("/api/secret-stores/{base}"))
        .await
        .ok(204);
    let bare = path_of(&fork(&api, &taken, &json!({})).await);
    assert_eq!(run(&api, &bare, "echo key=$KEY").await, "key=");
    let id = id_of(&taken);
    let from = format!("/api/sandboxes/from-checkpoint/{id}");
    let unknown = json!({ "secretStore": "nope" });
    api.post(&from, &unknown)
        .await
        .refused(400, "secret store not found: nope");

    // Another organization: not before it is public, and then without the owner's.
    let other = server.other();
    other
        .post(&from, &json!({}))
        .await
        .refused(404, "checkpoint not found");
    let publish = format!("/api/sandboxes/checkpoints/{id}/publish");
    other
        .call("POST", &publish, None)
        .await
        .refused(404, "checkpoint not found");
    assert_eq!(
        api.call("POST", &publish, None).await.ok(200).json()["isPublic"],
        true
    );
    let theirs = path_of(&other.post(&from, &json!({})).await.ok(201).json());
    let seen = run(&other, &theirs, "echo plain=$PLAIN key=$KEY; cat ~/tokens").await;
    assert_eq!(seen, format!("plain= key=\n{tokens}"));
    let unpublish = format!("/api/sandboxes/checkpoints/{id}/unpublish");
    assert_eq!(
        api.call("POST", &unpublish, None).await.ok(200).json()["isPublic"],
        false
    );
    other
        .post(&from, &json!({}))
        .await
        .refused(404, "checkpoint not found");
}

/// Goal: patches run as root in every fork, in order, once; the first failure ends the series, is
/// told with its output, and is tried again at the next wake.
#[actix_rt::test]
async fn patches_run_in_order_until_one_fails() {
    let server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({})).await else {
        return;
    };
    let taken = checkpoint(&api, &path, "base").await;
    let patches = format!("/api/sandboxes/checkpoints/{}/patches", id_of(&taken));
    let add = async |script: &str| {
        let body = json!({ "script": script, "description": "d" });
        api.post(&patches, &body).await.ok(201).json()["patch"].clone()
    };
    let first = add("echo 1 >> /root-file; id -u >> /root-file; pwd >> /root-file").await;
    assert_eq!(
        (&first["sequence"], &first["strategy"]),
        (&json!(1), &json!("on_wake"))
    );
    let failing =
        add("echo 2 >> /root-file; test -e /home/sandbox/ok || { echo why; exit 3; }").await;
    add("echo 3 >> /root-file").await;
    let forked = fork(&api, &taken, &json!({})).await;
    let error = forked["patchError"].as_str().expect("an error");
    assert!(
        error.contains("patch 2") && error.contains("exit code 3") && error.contains("why"),
        "{error}"
    );
    let fork_path = path_of(&forked);
    assert_eq!(
        run(&api, &fork_path, "cat /root-file").await,
        "1\n0\n/home/sandbox\n2"
    );
    run(&api, &fork_path, "touch ~/ok").await;
    api.call("POST", &format!("{fork_path}/hibernate"), None)
        .await
        .ok(200);
    let woken = api
        .call("POST", &format!("{fork_path}/wake"), None)
        .await
        .ok(200)
        .json();
    assert!(woken.get("patchError").is_none(), "{woken}");
    assert_eq!(
        run(&api, &fork_path, "cat /root-file").await,
        "1\n0\n/home/sandbox\n2\n2\n3"
    );
    let listed = api.get(&patches).await.ok(200).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(3));
    let gone = format!("{patches}/{}", failing["id"].as_str().expect("an id"));
    api.delete(&gone).await.ok(204);
    api.delete(&gone).await.refused(404, "patch not found");
    let clean = fork(&api, &taken, &json!({})).await;
    assert!(clean.get("patchError").is_none(), "{clean}");
    assert_eq!(add("true").await["sequence"], 4);
    api.post(&patches, &json!({}))
        .await
        .refused(400, "script is required");
}

/// Goal: names, kinds, limits and retention as the contract has them.
#[actix_rt::test]
async fn checkpoints_are_named_limited_and_make_room() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({})).await else {
        return;
    };
    let all = format!("{path}/checkpoints");
    assert_eq!(api.get(&all).await.ok(200).text, "[]");
    server
        .other()
        .get(&all)
        .await
        .refused(404, "sandbox not found");
    for (body, error) in [
        (json!({}), "name is required"),
        (
            json!({ "name": "x", "kind": "odd" }),
            "kind must be full or disk_only",
        ),
        (
            json!({ "name": "x", "promoteToFull": true }),
            "promoteToFull is for disk_only checkpoints",
        ),
        (
            json!({ "name": "x", "retentionPolicy": { "mode": "odd" } }),
            "retentionPolicy.mode must be none or delete_oldest",
        ),
        (
            json!({ "name": "x", "retentionPolicy": { "mode": "delete_oldest", "maxCount": 11 } }),
            "retentionPolicy.maxCount must be between 1 and 10",
        ),
    ] {
        api.post(&all, &body).await.refused(400, error);
    }
    let first = checkpoint(&api, &path, "c0").await;
    let taken = api.post(&all, &json!({ "name": "c0" })).await;
    taken.refused(409, "checkpoint name already exists for this sandbox");
    for number in 1..10 {
        checkpoint(&api, &path, &format!("c{number}")).await;
    }
    let over = api.post(&all, &json!({ "name": "c10" })).await;
    over.refused(400, "maximum 10 full checkpoints per sandbox");
    let disk = json!({ "name": "d", "kind": "disk_only" });
    assert_eq!(
        api.post(&all, &disk).await.ok(201).json()["kind"],
        "disk_only"
    );
    // The oldest is public and stays; the next one goes.
    let publish = format!("/api/sandboxes/checkpoints/{}/publish", id_of(&first));
    api.call("POST", &publish, None).await.ok(200);
    let room = json!({ "name": "c10", "retentionPolicy": { "mode": "delete_oldest" } });
    api.post(&all, &room).await.ok(201);
    let names = |list: &Value| -> Vec<String> {
        let rows = list.as_array().expect("a list").iter();
        let full = rows.filter(|one| one["kind"] == "full");
        full.map(|one| one["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    let listed = names(&api.get(&all).await.ok(200).json());
    assert_eq!(
        listed,
        ["c10", "c9", "c8", "c7", "c6", "c5", "c4", "c3", "c2", "c0"]
    );
    api.call("POST", &format!("{path}/hibernate"), None)
        .await
        .ok(200);
    api.post(&all, &json!({ "name": "asleep" }))
        .await
        .refused(400, "sandbox is not running");
    // A sleeper can be put back; it runs after.
    let restore = format!("{all}/{}/restore", id_of(&first));
    api.call("POST", &restore, None).await.ok(200);
    assert_eq!(run(&api, &path, "echo up").await, "up");
    let other = sandbox(&api, &json!({})).await.expect("a sandbox");
    let foreign = format!("{other}/checkpoints/{}/restore", id_of(&first));
    let refused = api.call("POST", &foreign, None).await;
    refused.refused(400, "checkpoint belongs to another sandbox");
}

/// Goal: kill -9 in the middle of a checkpoint, a restore, a fork, a delete: afterwards each is whole or
/// gone, and nothing is left that no record has: `oc fsck` finds disks and records to agree.
#[actix_rt::test]
async fn a_crash_leaves_whole_checkpoints_or_none() {
    let mut server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "timeout": 0 })).await else {
        return;
    };
    run(
        &api,
        &path,
        "head -c 50000000 /dev/urandom > ~/big; sha256sum ~/big > ~/sum",
    )
    .await;
    let base = checkpoint(&api, &path, "base").await;
    for (round, delay_ms) in [0u64, 5, 15, 40, 90, 200].into_iter().enumerate() {
        let doomed = checkpoint(&server.api(), &path, &format!("d{round}")).await;
        let calls = [
            (
                "POST",
                format!("{path}/checkpoints"),
                json!({ "name": format!("r{round}") }),
            ),
            (
                "POST",
                format!("/api/sandboxes/from-checkpoint/{}", id_of(&base)),
                json!({}),
            ),
            (
                "POST",
                format!("{path}/checkpoints/{}/restore", id_of(&base)),
                json!({}),
            ),
            (
                "DELETE",
                format!("{path}/checkpoints/{}", id_of(&doomed)),
                json!({}),
            ),
        ];
        for (method, call, body) in calls {
            let sent = {
                let api = server.api();
                let body = body.to_string().into_bytes();
                actix_rt::spawn(async move { drop(api.send(method, &call, Some(body)).await) })
            };
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            server.kill();
            sent.await.expect("a call that ended");
            server.restart();
            let api = server.api();
            assert_eq!(
                run(&api, &path, "sha256sum -c ~/sum >/dev/null; echo $?").await,
                "0"
            );
        }
    }
    let api = server.api();
    // The reconciler's next round settles the rest.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = api.get(&format!("{path}/checkpoints")).await.ok(200).json();
        let all = all.as_array().expect("a list").clone();
        let copies = std::fs::read_dir(server.data().join("sandboxes/.checkpoints"));
        let mut copies: Vec<String> = copies
            .expect("the copies")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        copies.sort();
        let ready = all.iter().filter(|one| one["status"] == "ready");
        let mut ready: Vec<String> = ready.map(|one| id_of(one).to_owned()).collect();
        ready.sort();
        let settled = all.iter().all(|one| one["status"] != "processing");
        if settled && copies == ready {
            break;
        }
        assert!(Instant::now() < deadline, "{copies:?} are not {ready:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for one in api
        .get("/api/sandboxes")
        .await
        .ok(200)
        .json()
        .as_array()
        .expect("a list")
    {
        let check = "sha256sum -c ~/sum >/dev/null; echo $?";
        assert_eq!(run(&api, &path_of(one), check).await, "0");
    }
    server.stop();
    let (code, report) = fsck(server.data(), &[]);
    assert_eq!((code, &report["clean"]), (0, &json!(true)), "{report}");
}
