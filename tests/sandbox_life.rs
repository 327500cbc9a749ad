//! Sandboxes that sleep, wake, start anew and change their size, on a real server with real
//! sandboxes; where this machine can't have any, the tests say so and stop.

mod common;

use std::time::{Duration, Instant};

use common::{Api, KEY, Server, world};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

/// Longest anything may take here; generous, because builds may run beside it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a sandbox and gives its path, or says why this machine has none.
async fn sandbox(api: &Api, body: &Value) -> Option<String> {
    let reply = api.post("/api/sandboxes", body).await;
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    let id = reply.ok(201).json()["sandboxID"].as_str()?.to_owned();
    Some(format!("/api/sandboxes/{id}"))
}

async fn status(api: &Api, path: &str) -> String {
    let object = api.get(path).await.ok(200).json();
    object["status"].as_str().expect("a status").to_owned()
}

async fn run(api: &Api, path: &str, script: &str) -> String {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 30 });
    let reply = api.post(&format!("{path}/exec/run"), &body).await.ok(200);
    let reply = reply.json();
    assert_eq!(reply["exitCode"], 0, "{reply}");
    let stdout = reply["stdout"].as_str().expect("output");
    stdout.trim_end().to_owned()
}

/// Waits until `what` has `wanted`.
async fn until(api: &Api, path: &str, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    while status(api, path).await != wanted {
        assert!(Instant::now() < deadline, "{path} is never {wanted}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A process that counts in memory alone, and tells how far it is when asked.
const COUNTER: &str = "trap 'echo $n > /tmp/said' USR1; n=0; echo $$ > /tmp/pid; \
                       while :; do n=$((n+1)); sleep 0.02; done";

async fn start_counter(api: &Api, path: &str) {
    let body = json!({ "cmd": "sh", "args": ["-c", COUNTER] });
    api.post(&format!("{path}/exec"), &body).await.ok(201);
    run(api, path, "until [ -s /tmp/pid ]; do sleep 0.02; done").await;
}

/// How far the counter is. It is a child of the same user, so a signal reaches it.
async fn count(api: &Api, path: &str) -> u64 {
    let ask = "rm -f /tmp/said; kill -USR1 $(cat /tmp/pid); \
               until [ -s /tmp/said ]; do sleep 0.02; done; cat /tmp/said";
    run(api, path, ask).await.parse().expect("a number")
}

/// Whether this machine can stop processes in place.
async fn keeps_memory(api: &Api, path: &str) -> bool {
    let slept = api.call("POST", &format!("{path}/hibernate"), None).await;
    let kept = slept.ok(200).json()["kept"] == "memory";
    if !kept {
        println!("skipped: no freezer here, sleepers keep their disk only");
    }
    kept
}

/// Goal: a sleeping sandbox does nothing, wakes on the next call with its processes where they
/// were, its files, its tokens and its sessions; sleeping twice is fine.
#[actix_rt::test]
async fn a_sleeper_wakes_where_it_was() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let body = json!({ "name": "keys" });
    let store = api.store(&body).await;
    let secret = json!({ "value": "a-real-value-of-some-length-42" });
    let secrets = format!("/api/secret-stores/{store}/secrets/KEY");
    api.put(&secrets, &secret).await.ok(200);
    let body = json!({ "secretStore": "keys", "envs": { "PLAIN": "x" } });
    let Some(path) = sandbox(&api, &body).await else {
        return;
    };
    let id = path.rsplit('/').next().expect("an id").to_owned();
    let before = run(&api, &path, "echo $KEY $PLAIN; echo kept > ~/file").await;
    start_counter(&api, &path).await;
    let hibernate = format!("{path}/hibernate");
    let asleep = api.call("POST", &hibernate, None).await.ok(200).json();
    for (field, wanted) in [
        ("sandboxID", json!(id)),
        ("sandboxId", json!(id)),
        ("status", json!("hibernated")),
        ("template", json!("base")),
    ] {
        assert_eq!(asleep[field], wanted, "{field} of {asleep}");
    }
    assert!(asleep["hibernationKey"].is_string() && asleep["sizeBytes"].is_u64());
    let again = api.call("POST", &hibernate, None).await.ok(200).json();
    assert_eq!(again, asleep, "asleep already");
    assert_eq!(status(&api, &path).await, "hibernated");
    let listed = api.get("/api/sandboxes?status=hibernated").await.json();
    assert_eq!(listed[0]["sandboxID"], json!(id));
    // What only looks does not wake.
    for look in ["/allowed-hosts", "/tags", "/autoscale", "/scaling-lock"] {
        api.get(&format!("{path}{look}")).await.ok(200);
    }
    assert_eq!(status(&api, &path).await, "hibernated");
    let other = server.other();
    let theirs = other.call("POST", &format!("{path}/wake"), None).await;
    theirs.refused(404, "sandbox not found");

    let after = run(&api, &path, "echo $KEY $PLAIN").await;
    assert_eq!(after, before, "the same token, the same variables");
    assert_eq!(run(&api, &path, "cat ~/file").await, "kept");
    assert_eq!(status(&api, &path).await, "running");
    if asleep["kept"] == "memory" {
        let first = count(&api, &path).await;
        assert!(keeps_memory(&api, &path).await);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let woken = api.call("POST", &format!("{path}/wake"), None).await;
        assert_eq!(woken.ok(200).json()["status"], "running");
        let second = count(&api, &path).await;
        assert!(second >= first, "it began anew: {first}, {second}");
        // Two seconds of sleep are a hundred steps that were not done.
        assert!(second < first + 80, "it counted asleep: {first}, {second}");
        let sessions = api.get(&format!("{path}/exec")).await.ok(200).json();
        assert_eq!(sessions[0]["running"], json!(true));
    }
    // The counter ran on; a sleeper can be deleted as well.
    api.call("POST", &hibernate, None).await.ok(200);
    api.delete(&path).await.ok(204);
    let left = world::traces(server.data(), &[id].into());
    assert_eq!(left, world::Traces::default());
    api.call("POST", &format!("{path}/wake"), None)
        .await
        .refused(400, "sandbox is stopped");
    api.call("POST", &hibernate, None)
        .await
        .refused(400, "sandbox is not running");
}

/// Goal: however many calls find a sandbox asleep, it is woken once and all are answered; one that
/// asks not to wait is told so and finds it awake later.
#[actix_rt::test]
async fn one_wake_serves_all_who_ask() {
    let server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({})).await else {
        return;
    };
    let hibernate = format!("{path}/hibernate");
    api.call("POST", &hibernate, None).await.ok(200);
    let calls = (0..20).map(|n| {
        let (api, path) = (api.clone(), path.clone());
        async move { run(&api, &path, &format!("echo {n}")).await }
    });
    let said = futures_util::future::join_all(calls).await;
    let wanted: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(said, wanted);
    let id = path.rsplit('/').next().expect("an id");
    let query = format!("/api/audit/events?entity={id}&type=sandbox.start_requested.v1");
    let events = api.get(&query).await.ok(200).json();
    let wakes = events["events"].as_array().expect("a page");
    let wakes = wakes.iter().filter(|one| one["data"]["cause"] == "wake");
    assert_eq!(wakes.count(), 1, "{events}");

    api.call("POST", &hibernate, None).await.ok(200);
    let url = format!("{}{path}/files/list?path=/", server.url());
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let ask = async || {
        let request = client.get(&url).header("X-API-Key", KEY);
        request.header("X-OSB-Async-Wake", "1").send().await
    };
    let refused = ask().await.expect("an answer");
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    let said: Value = refused.json().await.expect("JSON");
    assert_eq!(
        said,
        json!({ "error": "sandbox is waking", "waking": true })
    );
    let deadline = Instant::now() + PATIENCE;
    while ask().await.expect("an answer").status() != 200 {
        assert!(Instant::now() < deadline, "it never woke");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: the idle timeout counts from the last use and not while somebody is attached or waits for
/// a command; looking is no use; 0 switches it off.
#[actix_rt::test]
async fn an_idle_sandbox_falls_asleep_and_a_used_one_does_not() {
    let server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "timeout": 2 })).await else {
        return;
    };
    let never = sandbox(&api, &json!({ "timeout": 0 })).await.expect("one");
    // A command that takes longer than the timeout.
    assert_eq!(run(&api, &path, "sleep 4; echo done").await, "done");
    assert_eq!(status(&api, &path).await, "running");
    // An attached client, who says nothing.
    let body = json!({ "cmd": "sleep", "args": ["60"] });
    let session = api
        .post(&format!("{path}/exec"), &body)
        .await
        .ok(201)
        .json();
    let session = session["sessionID"].as_str().expect("an id").to_owned();
    let mut socket = attach(&server, &path, &session).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(status(&api, &path).await, "running");
    socket.close(None).await.expect("closed");
    drop(socket);
    // Looking does not keep it awake.
    let began = Instant::now();
    until(&api, &path, "hibernated").await;
    let idle = began.elapsed();
    assert!(idle >= Duration::from_millis(1800), "too soon: {idle:?}");
    // Use restarts the clock, and so does setting it.
    run(&api, &path, "true").await;
    let timeout = format!("{path}/timeout");
    api.post(&timeout, &json!({ "timeout": 0 })).await.ok(204);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(status(&api, &path).await, "running");
    // A wake may set it too; absent keeps it.
    let wake = format!("{path}/wake");
    let object = api.post(&wake, &json!({ "timeout": 1 })).await.ok(200);
    assert_eq!(object.json()["timeout"], 1);
    until(&api, &path, "hibernated").await;
    let object = api.call("POST", &wake, None).await.ok(200).json();
    assert_eq!(
        (&object["timeout"], &object["status"]),
        (&json!(1), &json!("running"))
    );
    until(&api, &path, "hibernated").await;
    api.post(&wake, &json!({ "timeout": -1 }))
        .await
        .refused(400, "timeout must not be negative");
    assert_eq!(status(&api, &never).await, "running");
}

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn attach(server: &Server, path: &str, session: &str) -> Socket {
    let url = format!("{}{path}/exec/{session}?api_key={KEY}", server.url());
    let url = url.replacen("http", "ws", 1);
    let request = url.into_client_request().expect("a request");
    let (socket, _) = tokio_tungstenite::connect_async(request)
        .await
        .expect("attached");
    socket
}

/// Goal: whoever is attached when a sandbox is put to sleep sees the stream end without an exit,
/// and finds the session with all it said after the wake.
#[actix_rt::test]
async fn attached_clients_are_let_go_and_come_back() {
    let server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({})).await else {
        return;
    };
    let body = json!({ "cmd": "sh", "args": ["-c", "echo early; read line; echo got $line"] });
    let session = api
        .post(&format!("{path}/exec"), &body)
        .await
        .ok(201)
        .json();
    let session = session["sessionID"].as_str().expect("an id").to_owned();
    let mut socket = attach(&server, &path, &session).await;
    // A command that waits must not be left waiting either.
    let waiting = {
        let (api, path) = (api.clone(), path.clone());
        actix_rt::spawn(async move {
            let body = json!({ "cmd": "sleep", "args": ["50"], "timeout": 55 });
            api.post(&format!("{path}/exec/run"), &body).await
        })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    if !keeps_memory(&api, &path).await {
        return;
    }
    let mut said = Vec::new();
    let close = loop {
        match socket.next().await.expect("an end").expect("a message") {
            Message::Binary(bytes) => said.push(bytes.to_vec()),
            Message::Close(close) => break close,
            _ => {}
        }
    };
    assert_eq!(close.map(|close| close.code), Some(CloseCode::Away));
    assert!(said.iter().all(|one| one.first() != Some(&3)), "no exit");
    let waited = waiting.await.expect("an answer").ok(200).json();
    assert_eq!(waited["exitCode"], -1, "{waited}");

    let mut socket = attach(&server, &path, &session).await;
    socket
        .send(Message::binary(&b"\x00late\n"[..]))
        .await
        .expect("sent");
    let mut said = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            said.extend_from_slice(&bytes);
        }
    }
    let text = String::from_utf8_lossy(&said);
    assert!(
        text.contains("early") && text.contains("got late"),
        "{text:?}"
    );
    assert!(said.ends_with(&[3, 0, 0, 0, 0]), "{said:?}");
}

/// Goal: what a client sends a session before it closes reaches the process, and the session runs on.
#[actix_rt::test]
async fn input_sent_before_a_close_arrives() {
    let server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({})).await else {
        return;
    };
    let body = json!({ "cmd": "sh", "args": ["-c", "while read line; do seq 2000; echo $line >> /tmp/read; done"] });
    let session = api
        .post(&format!("{path}/exec"), &body)
        .await
        .ok(201)
        .json();
    let session = session["sessionID"].as_str().expect("an id").to_owned();
    for round in 1..=20 {
        let mut socket = attach(&server, &path, &session).await;
        let line = [&[0][..], format!("line {round}\n").as_bytes()].concat();
        socket.send(Message::binary(line)).await.expect("sent");
        socket.close(None).await.expect("closed");
        while let Some(Ok(_)) = socket.next().await {}
        let arrived = format!(
            "for i in $(seq 400); do grep -qx 'line {round}' /tmp/read && break; sleep 0.05; done; \
             wc -l < /tmp/read"
        );
        assert_eq!(run(&api, &path, &arrived).await, round.to_string());
    }
}

/// Goal: a sleeper outlives the server; also when it was killed while putting it to sleep or waking
/// it, the sandbox is one or the other afterwards and works.
#[actix_rt::test]
async fn sleepers_survive_kill_9() {
    let mut server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "timeout": 0 })).await else {
        return;
    };
    start_counter(&api, &path).await;
    let first = count(&api, &path).await;
    let kept = keeps_memory(&api, &path).await;
    server.kill();
    server.restart();
    let api = server.api();
    assert_eq!(status(&api, &path).await, "hibernated");
    if kept {
        assert!(count(&api, &path).await >= first, "its processes are there");
    }
    for delay_ms in [0, 3, 10, 30, 100] {
        for what in ["hibernate", "wake"] {
            let call = {
                let (api, path) = (server.api(), format!("{path}/{what}"));
                actix_rt::spawn(async move { drop(api.send("POST", &path, None).await) })
            };
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            server.kill();
            call.await.expect("a call that ended");
            server.restart();
            let api = server.api();
            let now = status(&api, &path).await;
            assert!(["running", "hibernated"].contains(&&*now), "{now}");
            assert_eq!(run(&api, &path, "echo here").await, "here");
        }
    }
    if kept {
        assert!(count(&server.api(), &path).await >= first);
    }
}

/// Goal: beyond the operator's bound, sleepers keep their disk and wake from it.
#[actix_rt::test]
async fn sleepers_give_their_memory_back_when_it_is_short() {
    let mut server = Server::prepare();
    std::fs::create_dir_all(server.data()).expect("a folder");
    let config = "[limits]\nhibernated_memory_mb_max = 40\n";
    std::fs::write(server.data().join("oc.toml"), config).expect("a configuration");
    server.restart();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "memoryMB": 512 })).await else {
        return;
    };
    run(&api, &path, "echo kept > ~/file").await;
    let hog = "x = bytearray(100 << 20); x[::4096] = b'x' * len(x[::4096]); \
               open('/tmp/full', 'w').write('x'); import time; time.sleep(600)";
    let body = json!({ "cmd": "python3", "args": ["-c", hog] });
    api.post(&format!("{path}/exec"), &body).await.ok(201);
    run(&api, &path, "until [ -s /tmp/full ]; do sleep 0.05; done").await;
    if !keeps_memory(&api, &path).await {
        return;
    }
    let id = path.rsplit('/').next().expect("an id");
    let query = format!("/api/audit/events?entity={id}&type=sandbox.memory_released.v1");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = api.get(&query).await.ok(200).json();
        if events["events"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
        {
            break;
        }
        assert!(Instant::now() < deadline, "it keeps its memory");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(status(&api, &path).await, "hibernated");
    assert_eq!(run(&api, &path, "cat ~/file").await, "kept");
    let sessions = api.get(&format!("{path}/exec")).await.ok(200);
    assert_eq!(sessions.text, "[]", "its processes are gone");
}

/// Goal: a reboot ends every process, asking first; a power-cycle doesn't ask; disk, id, tokens and
/// variables stay.
#[actix_rt::test]
async fn a_reboot_keeps_the_disk_and_nothing_that_runs() {
    let server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "envs": { "A": "b" } })).await else {
        return;
    };
    for (how, asked) in [("reboot", true), ("power-cycle", false)] {
        let script = "trap 'echo asked > ~/asked; exit' TERM; echo up > ~/up; \
                      while :; do sleep 0.05; done";
        run(&api, &path, "rm -f ~/asked ~/up; echo kept > ~/file").await;
        let body = json!({ "cmd": "sh", "args": ["-c", script] });
        api.post(&format!("{path}/exec"), &body).await.ok(201);
        run(&api, &path, "until [ -s ~/up ]; do sleep 0.02; done").await;
        api.call("POST", &format!("{path}/{how}"), None)
            .await
            .ok(204);
        assert_eq!(api.get(&format!("{path}/exec")).await.ok(200).text, "[]");
        assert_eq!(run(&api, &path, "cat ~/file; echo $A").await, "kept\nb");
        let said = run(&api, &path, "cat ~/asked 2>/dev/null || echo no").await;
        assert_eq!(said == "asked", asked, "{how}: {said}");
    }
    api.call("POST", &format!("{path}/hibernate"), None)
        .await
        .ok(200);
    api.call("POST", &format!("{path}/reboot"), None)
        .await
        .refused(400, "sandbox is not running");
}

/// Goal: a new size holds at once, in the world and not only on record, and after a restart.
#[actix_rt::test]
async fn a_new_size_holds_at_once() {
    let mut server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "timeout": 0 })).await else {
        return;
    };
    let limits = format!("{path}/limits");
    // Something that needs 300 MiB.
    let hog = json!({ "cmd": "python3", "args": ["-c",
        "x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096]); print('fits')"] });
    let try_hog = async |api: &Api| {
        let ran = api.post(&format!("{path}/exec/run"), &hog).await.ok(200);
        ran.json()["stdout"] == "fits\n"
    };
    assert!(try_hog(&api).await);
    let small = json!({ "memoryMB": 200, "cpuPercent": 50 });
    let set = api.put(&limits, &small).await.ok(200).json();
    let id = path.rsplit('/').next().expect("an id");
    let wanted = json!({
        "sandboxID": id, "workerID": "local", "memoryMB": 200, "cpuPercent": 50,
        "migrated": false, "ok": true, "autoscaleDisabled": false,
    });
    assert_eq!(set, wanted);
    assert!(!try_hog(&api).await, "the limit holds");
    server.kill();
    server.restart();
    let api = server.api();
    api.call("POST", &format!("{path}/power-cycle"), None)
        .await
        .ok(204);
    assert!(!try_hog(&api).await, "the limit holds after a restart");
    let autoscale = format!("{path}/autoscale");
    let on = json!({ "enabled": true, "minMemoryMB": 1024, "maxMemoryMB": 4096 });
    let shown = api.put(&autoscale, &on).await.ok(200).json();
    assert_eq!(shown["enabled"], true);
    let scale = format!("{path}/scale");
    let scaled = api.post(&scale, &json!({ "memoryMB": 4096 })).await.ok(200);
    let scaled = scaled.json();
    assert_eq!(
        (
            &scaled["memoryMB"],
            &scaled["cpuPercent"],
            &scaled["autoscaleDisabled"]
        ),
        (&json!(4096), &json!(100), &json!(true))
    );
    assert!(try_hog(&api).await);
    assert_eq!(api.get(&path).await.json()["memoryMB"], 4096);
    let off = api.get(&autoscale).await.ok(200).json();
    assert_eq!(
        off,
        json!({ "sandboxID": id, "enabled": false, "minMemoryMB": 0, "maxMemoryMB": 0 })
    );

    // Less than it uses is refused, and nothing changes.
    let holder = "x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096]); \
                  open('/tmp/full', 'w').write('x'); import time; time.sleep(600)";
    let body = json!({ "cmd": "python3", "args": ["-c", holder] });
    api.post(&format!("{path}/exec"), &body).await.ok(201);
    run(&api, &path, "until [ -s /tmp/full ]; do sleep 0.05; done").await;
    let refused = api.put(&limits, &json!({ "memoryMB": 128 })).await.ok(409);
    let refused = refused.json();
    assert_eq!(refused["code"], "oom_floor");
    assert!(
        refused["details"]["usedMB"].as_u64() >= Some(300),
        "{refused}"
    );
    assert_eq!(api.get(&path).await.json()["memoryMB"], 4096);

    let lock = format!("{path}/scaling-lock");
    api.put(&lock, &json!({ "locked": true })).await.ok(200);
    for (call, body) in [
        ("POST scale", json!({ "memoryMB": 8192 })),
        ("PUT limits", json!({ "memoryMB": 2048 })),
        ("PUT autoscale", on),
    ] {
        let (method, what) = call.split_once(' ').expect("two words");
        let body = body.to_string().into_bytes();
        let reply = api
            .call(method, &format!("{path}/{what}"), Some(body))
            .await;
        assert_eq!(reply.ok(403).json()["code"], "scaling_locked", "{call}");
    }
    assert_eq!(
        api.get(&lock).await.ok(200).json(),
        json!({ "sandboxID": id, "locked": true })
    );
    api.put(&lock, &json!({ "locked": false })).await.ok(200);
    for (what, body, error) in [
        ("scale", json!({}), "memoryMB is required"),
        (
            "scale",
            json!({ "memoryMB": 2048 }),
            "memoryMB must be one of 1024, 4096, 8192, 16384",
        ),
    ] {
        api.post(&format!("{path}/{what}"), &body)
            .await
            .refused(400, error);
    }
    for (what, body, error) in [
        (
            "limits",
            json!({ "memoryMB": 0 }),
            "memoryMB must be between 128 and 16384",
        ),
        (
            "limits",
            json!({ "cpuPercent": 401 }),
            "cpuPercent must be between 5 and 400",
        ),
        ("autoscale", json!({}), "enabled is required"),
        (
            "autoscale",
            json!({ "enabled": true }),
            "minMemoryMB and maxMemoryMB are required to enable autoscale",
        ),
        (
            "autoscale",
            json!({ "enabled": true, "minMemoryMB": 4096, "maxMemoryMB": 1024 }),
            "minMemoryMB must not exceed maxMemoryMB",
        ),
        ("scaling-lock", json!({}), "locked is required"),
    ] {
        api.put(&format!("{path}/{what}"), &body)
            .await
            .refused(400, error);
    }
}

/// Goal: tags are replaced as a whole, counted over the organization, and lists can be asked for
/// them; they need no running sandbox.
#[actix_rt::test]
async fn tags_are_labels_of_any_sandbox() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({})).await else {
        return;
    };
    let tags = format!("{path}/tags");
    assert_eq!(
        api.get(&tags).await.ok(200).json(),
        json!({ "tags": {}, "tagsLastUpdatedAt": null })
    );
    let set = api
        .put(&tags, &json!({ "team": "a", "env": "test" }))
        .await
        .ok(200)
        .json();
    assert_eq!(set["tags"], json!({ "team": "a", "env": "test" }));
    assert!(set["tagsLastUpdatedAt"].is_string());
    api.call("POST", &format!("{path}/hibernate"), None)
        .await
        .ok(200);
    api.put(&tags, &json!({ "team": "b" })).await.ok(200);
    assert_eq!(api.get(&path).await.json()["tags"], json!({ "team": "b" }));
    let keys = api.get("/api/tags").await.ok(200).json();
    assert_eq!(
        keys,
        json!({ "keys": [{ "key": "team", "sandboxCount": 1, "valueCount": 1 }] })
    );
    assert_eq!(
        server.other().get("/api/tags").await.json(),
        json!({ "keys": [] })
    );
    let found = api.get("/api/sandboxes?tag.team=b").await.ok(200).json();
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    assert_eq!(api.get("/api/sandboxes?tag.team=a").await.text, "[]");
    api.put(&tags, &json!({ "oc:x": "y" }))
        .await
        .refused(400, "tags that begin with oc: are reserved");
    api.put(&tags, &json!({ "n": 1 }))
        .await
        .refused(400, "a tag's value must be a string");
    server
        .other()
        .get(&tags)
        .await
        .refused(404, "sandbox not found");
}

/// Goal: from inside, the metadata service tells who the sandbox is and scales it, asks for no
/// credential, honours the lock, and refuses in plain text; with and without proxy variables.
#[actix_rt::test]
async fn a_sandbox_finds_its_metadata_service() {
    let server = Server::start();
    let api = server.api();
    let body = json!({ "egressAllowlist": ["allowed.test"] });
    let Some(path) = sandbox(&api, &body).await else {
        return;
    };
    let id = path.rsplit('/').next().expect("an id");
    let ask = async |what: &str| {
        let script = format!("curl -sS -m 20 -w '\\n%{{http_code}}' {what}");
        let said = run(&api, &path, &script).await;
        let (body, code) = said.rsplit_once('\n').expect("a code");
        (code.to_owned(), body.to_owned())
    };
    let root = "http://169.254.169.254";
    let (code, body) = ask(&format!("{root}/v1/status")).await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((code.as_str(), &body["sandboxId"]), ("200", &json!(id)));
    assert!(body["uptime"].is_u64());
    let (_, body) = ask(root).await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["endpoints"].as_array().map(Vec::len), Some(5));
    let (_, body) = ask(&format!("--noproxy '*' {root}/v1/limits")).await;
    let limits: Value = serde_json::from_str(&body).expect("JSON");
    for field in [
        "cpuPercent",
        "memUsage",
        "memLimit",
        "pids",
        "netInput",
        "netOutput",
    ] {
        assert!(limits[field].is_number(), "{field} in {limits}");
    }
    let (_, body) = ask(&format!("{root}/v1/metadata")).await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body, json!({ "region": "local", "template": "base" }));
    let scale = |memory: u32| format!("-d '{{\"memoryMB\":{memory}}}' {root}/v1/scale");
    let (code, body) = ask(&scale(4096)).await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(code, "200");
    assert_eq!(
        body,
        json!({ "ok": true, "memoryMB": 4096, "cpuPercent": 100 })
    );
    assert_eq!(api.get(&path).await.json()["memoryMB"], 4096);
    let lock = json!({ "locked": true });
    api.put(&format!("{path}/scaling-lock"), &lock)
        .await
        .ok(200);
    for (what, code) in [
        (scale(8192), "403"),
        (scale(5), "400"),
        (format!("{root}/nothing"), "404"),
        (format!("{root}/v1/scale"), "405"),
        (format!("-d x {root}/v1/status"), "405"),
        (format!("-d x {root}/v1/scale"), "400"),
    ] {
        let (found, body) = ask(&what).await;
        assert_eq!(found, code, "{what}: {body}");
        assert!(!body.starts_with('{'), "{what}: {body}");
    }
    assert_eq!(api.get(&path).await.json()["memoryMB"], 4096);
}
