//! Processes and their ends: signals, orphans, those that left their group.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Sandbox, Server};
use crate::socket::{Socket, listed, script, start};

/// Signals that end no process by themselves: CHLD, CONT, the four that stop, URG, WINCH.
const HARMLESS: [i32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];

/// Goal: each signal from 1 to 64 reaches the group, and is told by the exit code where it kills.
#[actix_rt::test]
async fn every_signal_reaches_the_group() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let kill = async |session: &str, body: Value| {
        let path = sandbox.path(&format!("/exec/{session}/kill"));
        let reply = sandbox.api.post(&path, &body).await.ok(200);
        assert_eq!(reply.text, "{}");
    };
    let mut sessions = BTreeMap::new();
    for signal in 1..=64 {
        let body = json!({ "cmd": "sleep", "args": ["8643"] });
        sessions.insert(signal, start(&sandbox, &body).await);
    }
    for (signal, session) in &sessions {
        kill(session, json!({ "signal": signal })).await;
    }
    for (signal, session) in &sessions {
        if !HARMLESS.contains(signal) {
            let ended = Socket::attach(&server, &sandbox, session)
                .await
                .until_end()
                .await;
            assert_eq!(ended.exit, Some(128 + signal));
            // One that has ended can be killed as often as one likes.
            kill(session, json!({})).await;
        }
    }
    for session in HARMLESS.map(|signal| &sessions[&signal]) {
        let row = listed(&sandbox, session).await.expect("it is listed");
        assert_eq!(row["running"], true, "{row}");
        kill(session, json!({})).await;
        let ended = Socket::attach(&server, &sandbox, session)
            .await
            .until_end()
            .await;
        assert_eq!(ended.exit, Some(137));
    }
    for signal in [0, -1, 65] {
        let path = sandbox.path(&format!("/exec/{}/kill", sessions[&1]));
        let reply = sandbox.api.post(&path, &json!({ "signal": signal })).await;
        reply.refused(400, "signal must be between 1 and 64");
    }
    // The whole group goes, deaf children and double forks included.
    let deaf = "trap '' TERM; sleep 8643 & (sleep 8643 &); echo up; sleep 8643";
    let session = script(&sandbox, deaf).await;
    let mut socket = Socket::attach(&server, &sandbox, &session).await;
    socket.until("up\n").await;
    kill(&session, json!({})).await;
    assert_eq!(socket.until_end().await.exit, Some(137));
    assert_eq!(
        sandbox.outcome("pgrep -f 'sleep 864[3]'").await["stdout"],
        ""
    );
}

/// Goal: what a session leaves running when its command ends runs on, and is killed by the session's
/// name; what runs elsewhere is not.
#[actix_rt::test]
async fn what_a_session_left_is_killed_by_its_name() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let other = start(&sandbox, &json!({ "cmd": "sleep", "args": ["8650"] })).await;
    let left = "sleep 8651 & (sleep 8651 &); exit 5";
    let session = script(&sandbox, left).await;
    let ended = Socket::attach(&server, &sandbox, &session)
        .await
        .until_end()
        .await;
    assert_eq!(ended.exit, Some(5));
    let count = "pgrep -c -f '^sleep 865[1]'; true";
    assert_eq!(sandbox.run(count).await, "2");
    let kill = sandbox.path(&format!("/exec/{session}/kill"));
    sandbox
        .api
        .post(&kill, &json!({ "signal": 15 }))
        .await
        .ok(200);
    for _ in 0..100 {
        if sandbox.run(count).await == "0" {
            break;
        }
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(sandbox.run(count).await, "0");
    sandbox.api.post(&kill, &json!({})).await.ok(200);
    let row = listed(&sandbox, &session).await.expect("it is listed");
    assert_eq!(
        (&row["running"], &row["exitCode"]),
        (&json!(false), &json!(5))
    );
    let row = listed(&sandbox, &other).await.expect("it is listed");
    assert_eq!(row["running"], true, "{row}");
}

/// Goal: a session that was killed for memory says so at its end, to whoever is there, to whoever
/// comes later and in the log; one that was killed on request does not.
#[actix_rt::test]
async fn a_session_killed_for_memory_says_so() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let stats = sandbox
        .api
        .get(&sandbox.path("/stats"))
        .await
        .ok(200)
        .json();
    if stats["memory"]["enforced"] != "sandbox" {
        println!("skipped: memory is not limited for the whole sandbox here");
        return;
    }
    let asked = script(&sandbox, "echo up; exec sleep 8652").await;
    let mut waiting = Socket::attach(&server, &sandbox, &asked).await;
    waiting.until("up\n").await;
    let session = script(
        &sandbox,
        "read go; exec python3 -c 'x = bytearray(1 << 30)'",
    )
    .await;
    let mut first = Socket::attach(&server, &sandbox, &session).await;
    first.send(b"go\n").await;
    let note = "\nProcess killed: out of memory (limit 128 MiB)";
    for socket in [first, Socket::attach(&server, &sandbox, &session).await] {
        let ended = socket.until_end().await;
        assert_eq!(ended.exit, Some(137));
        assert_eq!(String::from_utf8_lossy(&ended.stderr), note);
    }
    let late = Socket::attach(&server, &sandbox, &session).await;
    assert_eq!(late.until_end().await.stderr, note.as_bytes());
    let logs = sandbox.path("/logs?tail=false&q=out%20of%20memory");
    for _ in 0..100 {
        let text = sandbox.api.get(&logs).await.ok(200).text;
        if text.contains(&session) {
            break;
        }
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    let text = sandbox.api.get(&logs).await.ok(200).text;
    assert!(text.contains(&session), "{text}");
    let kill = sandbox.path(&format!("/exec/{asked}/kill"));
    sandbox.api.post(&kill, &json!({})).await.ok(200);
    let ended = waiting.until_end().await;
    assert_eq!((ended.exit, ended.stderr), (Some(137), Vec::new()));
}

/// Goal: a hundred orphans leave no zombie.
#[actix_rt::test]
async fn a_hundred_orphans_are_reaped() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let orphans = "for n in $(seq 100); do (sh -c 'sleep 0.2; exit 7' &); done; sleep 1.5
        grep -l '^State:.*Z' /proc/[0-9]*/status | wc -l";
    assert_eq!(sandbox.outcome(orphans).await["stdout"], "0\n");
}

/// Goal: who left its group and session outlives its command, and nobody outlives the sandbox.
#[actix_rt::test]
async fn who_left_the_group_ends_with_the_sandbox() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    // Nobody else's, whatever runs on this machine.
    let own = format!("8644{:08}", std::process::id());
    let escape =
        format!("trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep {own}' & sleep 0.5; exit 0");
    assert_eq!(sandbox.outcome(&escape).await["exitCode"], 0);
    let on_host = || {
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let lines = processes.filter_map(|one| std::fs::read(one.path().join("cmdline")).ok());
        let mut lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
        lines.any(|line| line.starts_with("sleep\0") && line.contains(&own))
    };
    assert!(on_host(), "it outlives its command");
    sandbox.api.delete(&sandbox.path("")).await.ok(204);
    for _ in 0..100 {
        if !on_host() {
            return;
        }
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it outlives its sandbox");
}
