//! `Idempotency-Key`: a creating request that is sent again makes no second object, whatever happens
//! in between, and gets the first answer. Sandboxes are real; where this machine can't have any,
//! the tests say so and stop.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{Api, Reply, Server};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const OTHER_REQUEST: &str = "this Idempotency-Key was used before for another request";
const IN_PROGRESS: &str = "a request with this Idempotency-Key is still in progress, try again";
const BAD_KEY: &str = "Idempotency-Key must be 1 to 255 printable ASCII characters";

trait WithKey {
    fn once(&self, key: &str) -> Self;
}

impl WithKey for Api {
    /// The same with an idempotency key.
    fn once(&self, key: &str) -> Self {
        self.with_header("idempotency-key", key)
    }
}

/// Whether the reply repeats an earlier one.
fn is_repeat(reply: &Reply) -> bool {
    match reply.header("idempotent-replayed") {
        "" => false,
        "true" => true,
        other => panic!("idempotent-replayed: {other}"),
    }
}

async fn count(api: &Api, path: &str) -> usize {
    let rows = api.get(path).await.ok(200).json();
    rows.as_array().expect("a list").len()
}

fn path_of(sandbox: &Value) -> String {
    let id = sandbox["sandboxID"].as_str().expect("an id");
    format!("/api/sandboxes/{id}")
}

/// What a repeat must give again of a sandbox: all but the token, which is issued anew, and the
/// addresses, which follow the server's.
fn without_addresses(sandbox: &Value) -> Value {
    let mut sandbox = sandbox.clone();
    let fields = sandbox.as_object_mut().expect("an object");
    for field in ["token", "connectURL"] {
        fields.remove(field).expect(field);
    }
    sandbox
}

/// Makes a sandbox, or says why this machine has none.
async fn sandbox(api: &Api, body: &Value) -> Option<Value> {
    let reply = api.post("/api/sandboxes", body).await;
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    Some(reply.ok(201).json())
}

/// Goal: the same key and request make one object and get the first answer, also when that object
/// was changed or deleted since, and across `kill -9`; another request with the key is refused and
/// changes nothing; organizations don't share keys.
#[actix_rt::test]
async fn a_repeated_create_makes_nothing_and_gets_the_first_answer() {
    let mut server = Server::start_with_two_orgs();
    for (path, key) in [("/api/projects", "key 1"), ("/api/secret-stores", "key-2")] {
        let api = server.api().once(key);
        let body = json!({ "name": "one", "egressAllowlist": ["a.test", "b.test"] });
        let first = api.post(path, &body).await.ok(201);
        assert!(!is_repeat(&first));
        let before = api.verified_positions().await;
        let spelt = b"{ \"egressAllowlist\": [\"a.test\",\"b.test\"],\n\"name\": \"\\u006fne\" }";
        for again in [
            api.post(path, &body).await,
            api.call("POST", path, Some(spelt.to_vec())).await,
        ] {
            assert!(is_repeat(&again), "{again:?}");
            assert_eq!(again.ok(201).json(), first.json());
        }
        for other in [
            json!({ "name": "two", "egressAllowlist": ["a.test", "b.test"] }),
            json!({ "name": "one", "egressAllowlist": ["b.test", "a.test"] }),
            json!({ "name": "one" }),
        ] {
            api.post(path, &other).await.refused(409, OTHER_REQUEST);
        }
        // The same body elsewhere is another request.
        let elsewhere = match path {
            "/api/projects" => "/api/secret-stores",
            _ => "/api/projects",
        };
        api.post(elsewhere, &body).await.refused(409, OTHER_REQUEST);
        assert_eq!(api.verified_positions().await, before, "nothing changed");
        assert_eq!(count(&api, path).await, 1);

        let theirs = server.other().once(key).post(path, &body).await.ok(201);
        assert!(!is_repeat(&theirs));
        assert_ne!(theirs.id(), first.id());

        let object = format!("{path}/{}", first.id());
        let renamed = json!({ "name": "renamed" });
        api.put(&object, &renamed).await.ok(200);
        assert_eq!(api.post(path, &body).await.ok(201).json(), first.json());
        server.kill();
        server.restart();
        let api = server.api().once(key);
        let again = api.post(path, &body).await.ok(201);
        assert!(is_repeat(&again));
        assert_eq!(again.json(), first.json());
        api.delete(&object).await.ok(204);
        assert_eq!(api.post(path, &body).await.ok(201).json(), first.json());
        assert_eq!(count(&api, path).await, 0, "a repeat brings nothing back");
    }
    server.api().verified_positions().await;
}

/// Goal: of many requests with one key at once one makes the object and all get its answer.
#[actix_rt::test]
async fn a_race_of_one_key_makes_one_object() {
    let server = Server::start();
    for path in ["/api/projects", "/api/secret-stores"] {
        let api = server.api().once(path);
        let body = json!({ "name": "one" });
        let replies = join_all((0..32).map(|_| api.post(path, &body))).await;
        let firsts = replies.iter().filter(|reply| !is_repeat(reply)).count();
        assert_eq!(firsts, 1);
        let bodies: BTreeSet<_> = replies
            .into_iter()
            .map(|reply| reply.ok(201).text)
            .collect();
        assert_eq!(bodies.len(), 1, "{bodies:?}");
        assert_eq!(count(&api, path).await, 1);

        // With different bodies one wins, and its repeats with it.
        let api = server.api().once(&format!("mixed {path}"));
        let post = |number: usize| {
            let (api, body) = (api.clone(), json!({ "name": format!("n{}", number % 4) }));
            async move { (number % 4, api.post(path, &body).await) }
        };
        let replies = join_all((0..32).map(post)).await;
        let (won, lost): (Vec<_>, Vec<_>) = replies
            .into_iter()
            .partition(|(_, reply)| reply.status == 201);
        assert_eq!((won.len(), lost.len()), (8, 24));
        assert!(won.iter().all(|(number, _)| *number == won[0].0));
        lost.iter()
            .for_each(|(_, reply)| reply.refused(409, OTHER_REQUEST));
        assert_eq!(count(&api, path).await, 2);
    }
    server.api().verified_positions().await;
}

/// Goal: a key that is no key is refused, before and without anything else.
#[actix_rt::test]
async fn a_key_that_is_none_is_refused() {
    let server = Server::start();
    let api = server.api();
    let before = api.verified_positions().await;
    let body = json!({ "name": "one" });
    for key in ["", " ", &"k".repeat(256), "schlüssel", "a\tb"] {
        let api = api.once(key);
        for path in ["/api/projects", "/api/secret-stores", "/api/sandboxes"] {
            api.post(path, &body).await.refused(400, BAD_KEY);
        }
    }
    // A credential is asked for first.
    let nobody = api.without_key().once("");
    let refused = nobody.post("/api/projects", &body).await;
    refused.refused(401, "missing API key");
    assert_eq!(api.verified_positions().await, before);
    let longest = api.once(&"k".repeat(255));
    longest.post("/api/projects", &body).await.ok(201);
}

/// Goal: a request that was refused leaves its key as it was, for the same request and any other.
#[actix_rt::test]
async fn a_refused_create_leaves_its_key_free() {
    let server = Server::start();
    let api = server.api().once("key");
    let taken = server.api().project(&json!({ "name": "taken" })).await;
    let body = json!({ "name": "taken" });
    api.post("/api/projects", &json!({})).await.ok(400);
    api.call("POST", "/api/projects", Some(b"{".to_vec()))
        .await
        .ok(400);
    let text = "project name already exists";
    api.post("/api/projects", &body).await.refused(409, text);
    server
        .api()
        .delete(&format!("/api/projects/{taken}"))
        .await
        .ok(204);
    let made = api.post("/api/projects", &body).await.ok(201);
    assert!(!is_repeat(&made));
}

/// Goal: a sandbox is made once for its key, by one caller or many at once, and the answer is as it
/// was, also after `kill -9`, a changed timeout and a delete.
#[actix_rt::test]
async fn a_sandbox_is_made_once_for_its_key() {
    let mut server = Server::start();
    let api = server.api().once("box");
    let body = json!({ "memoryMB": 128, "timeout": 77, "envs": { "A": "1" }, "alias": "mine" });
    let Some(first) = sandbox(&api, &body).await else {
        return;
    };
    let again = api.post("/api/sandboxes", &body).await.ok(201);
    assert!(is_repeat(&again));
    let again = again.json();
    assert_eq!(without_addresses(&again), without_addresses(&first));
    assert_eq!(again["connectURL"], first["connectURL"]);
    let path = path_of(&first);
    let by_token = api
        .without_key()
        .with_key(again["token"].as_str().expect("a token"));
    by_token.get(&path).await.ok(200);
    let other = json!({ "memoryMB": 128, "timeout": 77, "envs": { "A": "2" }, "alias": "mine" });
    let refused = api.post("/api/sandboxes", &other).await;
    refused.refused(409, OTHER_REQUEST);

    let timeout = json!({ "timeout": 5 });
    api.post(&format!("{path}/timeout"), &timeout).await.ok(204);
    server.kill();
    server.restart();
    let api = server.api().once("box");
    let after = api.post("/api/sandboxes", &body).await.ok(201);
    assert!(is_repeat(&after));
    assert_eq!(without_addresses(&after.json()), without_addresses(&first));
    assert_eq!(count(&api, "/api/sandboxes?status=all").await, 1);
    api.delete(&path).await.ok(204);
    let gone = api.post("/api/sandboxes", &body).await.ok(201).json();
    assert_eq!(without_addresses(&gone), without_addresses(&first));
    assert_eq!(count(&api, "/api/sandboxes").await, 0);

    let api = server.api().once("many");
    let replies = join_all((0..8).map(|_| api.post("/api/sandboxes", &body))).await;
    let firsts = replies.iter().filter(|reply| !is_repeat(reply)).count();
    let objects: BTreeSet<_> = replies
        .into_iter()
        .map(|reply| without_addresses(&reply.ok(201).json()).to_string())
        .collect();
    assert_eq!((firsts, objects.len()), (1, 1));
    assert_eq!(count(&api, "/api/sandboxes").await, 1);
}

/// Neither the events of so many failed starts nor the objects' states name a path of the server's.
async fn nothing_of_the_host_is_told(server: &Server, failures: usize) {
    let path = "/api/audit/events?type=sandbox.start_failed";
    let failed = server.api().get(path).await.ok(200).json();
    let events = failed["events"].as_array().expect("a list");
    assert_eq!(events.len(), failures, "{failed}");
    let mut said = failed.to_string();
    for event in events {
        let path = format!("/api/audit/state?at={}", event["position"]);
        said += &server.api().get(&path).await.ok(200).json().to_string();
    }
    let root = server.root().to_str().expect("UTF-8");
    assert!(!said.contains(root), "{said}");
    assert!(said.contains("the server's log has the reason"), "{said}");
}

/// Goal: a key whose sandbox could not be started makes one as soon as one can be; until the failed
/// attempt is cleared away, the key is told to be in use, never that it made something.
#[actix_rt::test]
async fn a_failed_start_can_be_tried_again_with_its_key() {
    let server = Server::start();
    let api = server.api().once("box");
    let body = json!({ "memoryMB": 128 });
    let Some(probe) = sandbox(&server.api(), &body).await else {
        return;
    };
    server.api().delete(&path_of(&probe)).await.ok(204);
    let templates = server.data().join("sandboxes/.base");
    let away = server.data().join("away");
    fs::rename(&templates, &away).expect("the templates move away");
    let failed = api.post("/api/sandboxes", &body).await.ok(500);
    let error = failed.json()["error"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let request = failed.header("x-request-id");
    assert_eq!(
        error,
        format!("internal error: the server's log has the reason, for request {request}")
    );
    let log = server.log();
    let reason = log
        .lines()
        .find(|line| line.contains("request failed") && line.contains(request));
    assert!(reason.is_some(), "the reason is in the log:\n{log}");
    nothing_of_the_host_is_told(&server, 1).await;
    api.post("/api/sandboxes", &body).await.ok(500);
    // Empty disks may have been made there meanwhile.
    let _ = fs::remove_dir_all(&templates);
    fs::rename(&away, &templates).expect("the templates come back");
    let all = "/api/sandboxes?status=all";
    assert_eq!(count(&api, all).await, 1, "the probe");
    let made = api.post("/api/sandboxes", &body).await.ok(201);
    assert!(!is_repeat(&made));
    assert!(is_repeat(&api.post("/api/sandboxes", &body).await.ok(201)));
    assert_eq!(count(&api, all).await, 2);
    server.api().delete(&path_of(&made.json())).await.ok(204);

    // What can't even be cleared away keeps the key until it is.
    let api = server.api().once("stuck");
    let folder = server.data().join("sandboxes");
    fs::rename(&folder, &away).expect("everything moves away");
    fs::write(&folder, "").expect("a file in its place");
    api.post("/api/sandboxes", &body).await.ok(500);
    let stuck = api.post("/api/sandboxes", &body).await;
    fs::remove_file(&folder).expect("removable");
    fs::rename(&away, &folder).expect("everything comes back");
    stuck.refused(409, IN_PROGRESS);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let made = loop {
        let reply = api.post("/api/sandboxes", &body).await;
        match reply.status {
            409 => reply.refused(409, IN_PROGRESS),
            _ => break reply.ok(201),
        }
        assert!(std::time::Instant::now() < deadline, "it never came free");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(!is_repeat(&made));
    nothing_of_the_host_is_told(&server, 3).await;
}

/// Goal: `kill -9` at any moment of a create leaves its key such that sending it again gives one
/// sandbox, and one only.
#[actix_rt::test]
async fn a_create_cut_short_by_kill_9_is_finished_by_its_repeat() {
    let mut server = Server::start();
    let body = json!({ "memoryMB": 128 });
    let Some(probe) = sandbox(&server.api(), &body).await else {
        return;
    };
    server.api().delete(&path_of(&probe)).await.ok(204);
    for (round, pause_ms) in (1..=9).map(|n| n * 10).enumerate() {
        let key = format!("round {round}");
        let api = server.api().once(&key);
        let sent = body.to_string().into_bytes();
        let first = async { api.send("POST", "/api/sandboxes", Some(sent)).await };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            server.kill();
        };
        let (first, ()) = futures_util::join!(first, kill);
        server.restart();
        let api = server.api().once(&key);
        let made = api.post("/api/sandboxes", &body).await.ok(201);
        let told = first.ok().filter(|reply| reply.status == 201);
        println!(
            "{pause_ms} ms: told {}, repeat {}",
            told.is_some(),
            is_repeat(&made)
        );
        if let Some(told) = told {
            assert!(is_repeat(&made));
            assert_eq!(
                without_addresses(&told.json()),
                without_addresses(&made.json())
            );
        }
        let listed = api.get("/api/sandboxes").await.ok(200).json();
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
        assert_eq!(listed[0]["sandboxID"], made.json()["sandboxID"]);
        api.delete(&path_of(&made.json())).await.ok(204);
    }
    let undone = "/api/audit/events?type=sandbox.start_failed";
    let undone = server.api().get(undone).await.ok(200).json();
    let undone = undone["events"].as_array().map_or(0, Vec::len);
    println!("{undone} creates were cut off between their two commits, and undone");
}

/// Goal: a session is started once for its key, also when many ask at once and after `kill -9`;
/// one that the sandbox refused leaves its key free.
#[actix_rt::test]
async fn a_session_is_started_once_for_its_key() {
    let mut server = Server::start();
    let Some(made) = sandbox(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let path = format!("{}/exec", path_of(&made));
    let script = "echo ran >> /home/sandbox/ran; sleep 600";
    let body = json!({ "cmd": "sh", "args": ["-c", script] });
    let api = server.api().once("session");
    let replies = join_all((0..8).map(|_| api.post(&path, &body))).await;
    let firsts = replies.iter().filter(|reply| !is_repeat(reply)).count();
    let ids: BTreeSet<_> = replies
        .into_iter()
        .map(|reply| reply.ok(201).json()["sessionID"].to_string())
        .collect();
    assert_eq!((firsts, ids.len()), (1, 1), "{ids:?}");
    let other = json!({ "cmd": "sh", "args": ["-c", script], "cwd": "/" });
    api.post(&path, &other).await.refused(409, OTHER_REQUEST);

    server.kill();
    server.restart();
    let api = server.api().once("session");
    // By the path without `/api`, which is the same resource.
    let bare = path.strip_prefix("/api").expect("below /api");
    let again = api.post(bare, &body).await.ok(201);
    assert!(is_repeat(&again));
    assert!(ids.contains(&again.json()["sessionID"].to_string()));
    let cat = json!({ "cmd": "cat", "args": ["/home/sandbox/ran"] });
    let ran = server
        .api()
        .post(&format!("{path}/run"), &cat)
        .await
        .ok(200)
        .json();
    assert_eq!(ran["stdout"], "ran\n", "it ran once");

    // Within a sandbox its own keys count, for its token as for the organization's.
    let mine = made["token"].as_str().expect("a token");
    let by_token = api.without_key().with_key(mine).once("session");
    assert!(is_repeat(&by_token.post(&path, &body).await.ok(201)));
    let outside = server.api().once("session");
    let project = outside.post("/api/projects", &json!({ "name": "p" })).await;
    assert!(!is_repeat(&project.ok(201)));

    let api = server.api().once("refused");
    let body = json!({ "cmd": "/home/sandbox/later", "args": [] });
    api.post(&path, &body).await.ok(400);
    let script = "printf '#!/bin/sh\\nsleep 600' > later && chmod +x later";
    let write = json!({ "cmd": "sh", "args": ["-c", script] });
    let wrote = server
        .api()
        .post(&format!("{path}/run"), &write)
        .await
        .ok(200);
    assert_eq!(wrote.json()["exitCode"], 0);
    let started = api.post(&path, &body).await.ok(201);
    assert!(!is_repeat(&started));
    assert!(is_repeat(&api.post(&path, &body).await.ok(201)));
}

/// Goal: a command runs once for its key and every repeat gets its output, while it runs and after;
/// once the result is gone with the server that had it, the key says so instead of running again.
#[actix_rt::test]
async fn a_command_runs_once_for_its_key() {
    let mut server = Server::start();
    let Some(made) = sandbox(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let path = format!("{}/exec", path_of(&made));
    let body = json!({ "cmd": "sh", "args": ["-c", "sleep 1; echo ran >> ran; cat ran"] });
    let (run, api) = (format!("{path}/run"), server.api().once("run"));
    let replies = join_all((0..8).map(|_| api.post(&run, &body))).await;
    let firsts = replies.iter().filter(|reply| !is_repeat(reply)).count();
    assert_eq!(firsts, 1);
    for reply in replies {
        assert_eq!(reply.ok(200).json()["stdout"], "ran\n");
    }
    let again = api.post(&run, &body).await.ok(200);
    assert!(is_repeat(&again));
    assert_eq!(again.json()["stdout"], "ran\n");
    let refused = api.post(&run, &json!({ "cmd": "id" })).await;
    refused.refused(409, OTHER_REQUEST);

    let (run_async, later) = (format!("{path}/run-async"), server.api().once("async"));
    let first = later.post(&run_async, &body).await.ok(202);
    let second = later.post(&run_async, &body).await.ok(202);
    assert!(!is_repeat(&first) && is_repeat(&second));
    assert_eq!(first.json(), second.json());
    let id = first.json()["execId"].as_str().expect("an id").to_owned();
    loop {
        let result = later.get(&format!("{path}/{id}/result")).await.ok(200);
        if result.json()["running"] == false {
            assert_eq!(result.json()["stdout"], "ran\nran\n");
            break;
        }
    }
    // A failing command is a result like any other.
    let missing = json!({ "cmd": "no-such-program" });
    let failing = server.api().once("failing");
    let first = failing.post(&run, &missing).await.ok(200);
    let second = failing.post(&run, &missing).await.ok(200);
    assert_eq!(first.json()["exitCode"], 127, "{first:?}");
    assert!(is_repeat(&second));
    assert_eq!(first.json(), second.json());

    server.kill();
    server.restart();
    let gone = "what this Idempotency-Key started is no longer known, \
                use another key to start it again";
    let api = server.api().once("run");
    api.post(&run, &body).await.refused(409, gone);
    let cat = json!({ "cmd": "cat ran" });
    let ran = server.api().post(&run, &cat).await.ok(200).json();
    assert_eq!(ran["stdout"], "ran\nran\n", "once for each key");
}

/// Goal: neither the key nor the body, nor a hash that anybody could make of them, is in any file of
/// the server or in its log.
#[actix_rt::test]
async fn neither_key_nor_body_is_written_down() {
    let mut server = Server::start();
    let (key, value) = ("canary-key-5521", "canary-value-8872");
    let api = server.api().once(key);
    let body = json!({ "memoryMB": 128, "envs": { "A": value } });
    let Some(made) = sandbox(&api, &body).await else {
        return;
    };
    api.post("/api/sandboxes", &body).await.ok(201);
    api.post("/api/sandboxes", &json!({ "alias": value }))
        .await
        .refused(409, OTHER_REQUEST);
    let session = json!({ "cmd": "true", "envs": { "B": value } });
    let sessions = format!("{}/exec", path_of(&made));
    let api = server.api().once(&format!("{key}-2"));
    api.post(&sessions, &session).await.ok(201);
    let trail = api.get("/api/audit/events?type=idempotency.recorded").await;
    let trail = trail.ok(200).json();
    let told = trail["events"].as_array().expect("events");
    assert_eq!(told.len(), 2, "the trail shows that keys were used");
    api.delete(&path_of(&made)).await.ok(204);
    server.stop();
    let hash = |text: &str| hex::encode(Sha256::digest(text.as_bytes()));
    let mut forbidden = vec![key.to_owned(), value.to_owned(), hash(key), hash(value)];
    forbidden.push(hash(&body.to_string()));
    let mut read = 0;
    search(server.root(), &mut |path, bytes| {
        read += 1;
        for text in &forbidden {
            let found = memchr::memmem::find(bytes, text.as_bytes());
            assert!(found.is_none(), "{text} is in {}", path.display());
        }
    });
    assert!(read > 3, "files were read");
}

/// Shows every file below `folder`.
fn search(folder: &Path, see: &mut impl FnMut(&Path, &[u8])) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        // The sandboxes' template is the host's own programs.
        if kind.is_dir() && !path.ends_with(".base") {
            search(&path, see);
        } else if kind.is_file() {
            see(&path, &fs::read(&path).expect("readable"));
        }
    }
}
