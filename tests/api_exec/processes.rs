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
