//! The upgrade drill: a server with twenty busy sandboxes is killed and replaced; none of them
//! notices but by its egress, which is closed meanwhile.

mod common;

use std::time::{Duration, Instant};

use common::{Api, Server};
use futures_util::future::join_all;
use serde_json::{Value, json};

const SANDBOXES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts into a file and its own output, one number a line.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n >> ~/count; echo $n; sleep 0.02; done";
/// Tells again and again whether the proxy answers: a refusal in words is an answer.
const KNOCKER: &str = "while :; do code=$(curl -s -m 2 --noproxy '*' -o /dev/null -w '%{http_code}' \
                       https://blocked.test/); echo $code >> ~/codes; sleep 0.1; done";

async fn create(api: &Api) -> Option<String> {
    let body = json!({ "timeout": 0, "memoryMB": 128, "egressAllowlist": ["allowed.test"] });
    let reply = api.post("/api/sandboxes", &body).await;
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    let id = reply.ok(201).json()["sandboxID"].as_str()?.to_owned();
    Some(format!("/api/sandboxes/{id}"))
}

async fn start(api: &Api, path: &str, script: &str) -> String {
    let body = json!({ "cmd": "sh", "args": ["-c", script] });
    let session = api.post(&format!("{path}/exec"), &body).await.ok(201);
    let session = session.json();
    session["sessionID"].as_str().expect("an id").to_owned()
}

async fn run(api: &Api, path: &str, script: &str) -> String {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 30 });
    let reply = api.post(&format!("{path}/exec/run"), &body).await.ok(200);
    reply.json()["stdout"].as_str().expect("output").to_owned()
}

/// The numbers of a counter's file, which must be 1, 2, 3 … without a gap.
async fn counted(api: &Api, path: &str) -> usize {
    let lines = run(api, path, "cat ~/count").await;
    let mut last = 0;
    for line in lines.lines() {
        assert_eq!(line.parse(), Ok(last + 1), "{path} missed a count");
        last += 1;
    }
    last
}

/// Waits until the newest answer to the knocker is `wanted`.
async fn until_code(api: &Api, path: &str, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = run(api, path, "tail -n 1 ~/codes").await;
        if last.trim() == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{path} hears {last:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: nobody in twenty sandboxes misses a count while the server is killed and started anew;
/// their sessions and scrollback go on, egress is closed while it is away and open after.
#[actix_rt::test]
async fn twenty_sandboxes_do_not_miss_a_count() {
    let mut server = Server::start();
    let api = server.api();
    let Some(first) = create(&api).await else {
        return;
    };
    let others = join_all((1..SANDBOXES).map(|_| create(&api))).await;
    let paths: Vec<String> = [first]
        .into_iter()
        .chain(others.into_iter().map(|path| path.expect("a sandbox")))
        .collect();
    let sessions = join_all(paths.iter().map(|path| start(&api, path, COUNTER))).await;
    let knocked = &paths[..3];
    for path in knocked {
        start(&api, path, KNOCKER).await;
        until_code(&api, path, "403").await;
    }
    let before = join_all(paths.iter().map(|path| counted(&api, path))).await;

    server.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.restart();
    let api = server.api();

    let after = join_all(paths.iter().map(|path| counted(&api, path))).await;
    for ((path, before), after) in paths.iter().zip(before).zip(after) {
        // Two seconds are a hundred counts; a busy machine gets a tenth of that.
        assert!(after >= before + 10, "{path}: {before}, then {after}");
    }
    for (path, session) in paths.iter().zip(&sessions) {
        let all = api.get(&format!("{path}/exec")).await.ok(200).json();
        let all = all.as_array().expect("sessions");
        let ours: Vec<&Value> = all
            .iter()
            .filter(|one| one["sessionID"] == json!(session))
            .collect();
        assert_eq!(ours.len(), 1, "{all:?}");
        assert_eq!(ours[0]["running"], true);
    }
    for path in knocked {
        let codes = run(&api, path, "sort -u ~/codes").await;
        assert!(codes.contains("000"), "it was never closed: {codes:?}");
        until_code(&api, path, "403").await;
    }
    join_all(paths.iter().map(|path| api.delete(path))).await;
}
