//! Commands that somebody waits for: how they end, what is kept of them, how they are polled.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Sandbox, Server};

async fn run(sandbox: &Sandbox, body: &Value) -> Value {
    let reply = sandbox.api.post(&sandbox.path("/exec/run"), body).await;
    reply.ok(200).json()
}

/// Goal: every way to end has its code (section 8.1).
#[actix_rt::test]
async fn every_end_has_its_code() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("exit 256", 0),
        ("no-such-program", 127),
        ("/etc/hostname", 126),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
        ("kill -11 $$", 139),
        ("sh -c 'kill -9 $$'; exit 3", 3),
    ] {
        let outcome = sandbox.outcome(script).await;
        assert_eq!(outcome["exitCode"], code, "{script}: {outcome}");
    }
    for (body, code, stderr) in [
        (
            json!({ "cmd": "no-such-program", "args": ["x"] }),
            127,
            "command not found: no-such-program",
        ),
        (
            json!({ "cmd": "/etc/hostname", "args": ["x"] }),
            126,
            "permission denied: /etc/hostname",
        ),
        (
            json!({ "cmd": "true", "cwd": "/nowhere" }),
            -1,
            "working directory does not exist: /nowhere",
        ),
    ] {
        let wanted = json!({ "exitCode": code, "stdout": "", "stderr": stderr });
        assert_eq!(run(&sandbox, &body).await, wanted);
        let session = sandbox.api.post(&sandbox.path("/exec"), &body).await;
        session.refused(400, stderr);
    }
    // What is no text is replaced in JSON, and both streams are apart.
    let outcome = sandbox
        .outcome("printf 'a\\377b'; printf '\\303\\251' >&2")
        .await;
    let wanted = json!({ "exitCode": 0, "stdout": "a\u{fffd}b", "stderr": "é" });
    assert_eq!(outcome, wanted);
}

/// Goal: a time limit ends the whole group, deaf children and double forks in it too, is told with
/// -1 and a last line, and keeps what came before.
#[actix_rt::test]
async fn a_time_limit_ends_the_group_and_is_told() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let deaf = "trap '' TERM HUP INT QUIT; echo begun; printf err >&2
        sleep 8642 & (sleep 8642 & ) ; (trap '' TERM; (sleep 8642 &) ; sleep 8642) & wait; sleep 8642";
    let started = Instant::now();
    let outcome = run(
        &sandbox,
        &json!({ "cmd": "sh", "args": ["-c", deaf], "timeout": 1 }),
    )
    .await;
    let wanted = json!({
        "exitCode": -1, "stdout": "begun\n", "stderr": "err\nProcess timed out",
    });
    assert_eq!(outcome, wanted);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(
        sandbox.outcome("pgrep -f 'sleep 864[2]'").await["stdout"],
        ""
    );
}

/// Goal: a reply that takes long begins in time, with blanks that no JSON parser minds.
#[actix_rt::test]
async fn a_long_run_sends_blanks_first() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let body = json!({ "cmd": "sleep 21; echo done" });
    let request = sandbox
        .api
        .request("POST", &sandbox.path("/exec/run"))
        .json(&body);
    let started = Instant::now();
    let reply = request.send().await.expect("a head");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "the head comes first"
    );
    let text = reply.text().await.expect("a body");
    assert!(text.starts_with(" {"), "{text:?}");
    let outcome: Value = serde_json::from_str(&text).expect("JSON after blanks");
    assert_eq!(
        outcome,
        json!({ "exitCode": 0, "stdout": "done\n", "stderr": "" })
    );
}

/// Goal: output beyond the limit is cut and said to be, in every route, and never stops the command.
#[actix_rt::test]
async fn output_beyond_the_limit_is_cut_and_said_to_be() {
    let mut server = Server::prepare();
    fs::create_dir_all(server.data()).expect("a data folder");
    let settings = "[limits]\nexec_output_bytes_max = 1000\n";
    fs::write(server.data().join("oc.toml"), settings).expect("settings");
    server.restart();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let (cut, note) = ("x".repeat(1000), "\n[output truncated]");
    let loud = "head -c 3000000 /dev/zero | tr '\\0' x; echo e >&2; touch ended";
    let outcome = sandbox.outcome(loud).await;
    assert_eq!(
        (&outcome["exitCode"], &outcome["stdout"]),
        (&json!(0), &json!(cut))
    );
    assert_eq!(outcome["stderr"], format!("e\n{note}"));
    assert_eq!(sandbox.run("ls").await, "ended", "it ran to its end");
    let exactly = sandbox.outcome("head -c 1000 /dev/zero | tr '\\0' x").await;
    assert_eq!(
        exactly,
        json!({ "exitCode": 0, "stdout": cut, "stderr": "" })
    );

    // A cut one always gets a handle, whose result says so.
    let body = json!({ "cmd": loud });
    let reply = sandbox
        .api
        .post(&sandbox.path("/exec/run-async"), &body)
        .await;
    let handle = reply.ok(202).json();
    let outcome = finished(&sandbox, handle["execId"].as_str().expect("an id")).await;
    assert_eq!(outcome["truncated"], true);
    assert_eq!(
        (&outcome["exitCode"], &outcome["stdout"]),
        (&json!(0), &json!(cut))
    );
}

/// Polls a result until the command has ended.
async fn finished(sandbox: &Sandbox, handle: &str) -> Value {
    let path = sandbox.path(&format!("/exec/{handle}/result"));
    for _ in 0..120 {
        let result = sandbox.api.get(&path).await.ok(200).json();
        if result["running"] == false {
            return result;
        }
        assert!(result.get("exitCode").is_none(), "{result}");
    }
    panic!("{handle} does not end");
}

/// Goal: what takes longer than a moment gets a handle, whose polls show what came so far, are held
/// for a moment, and show the end for as long as asked (sections 8.2, routes 46 and 47).
#[actix_rt::test]
async fn a_handle_is_polled_to_its_end() {
    let server = Server::start();
    let api = server.api();
    let Some(sandbox) = Sandbox::make(&api, &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let start = sandbox.path("/exec/run-async");
    let body = json!({ "cmd": "echo one; echo err >&2; sleep 3; echo two; exit 4" });
    let started = Instant::now();
    let handle = api.post(&start, &body).await.ok(202).json();
    assert!(
        started.elapsed() >= Duration::from_millis(400),
        "held for a moment"
    );
    assert_eq!(handle["running"], true);
    assert!(handle["startedAt"].is_string(), "{handle}");
    let id = handle["execId"].as_str().expect("an id");
    let path = sandbox.path(&format!("/exec/{id}/result"));
    let first = api.get(&path).await.ok(200).json();
    let wanted = json!({
        "running": true, "stdout": "one\n", "stderr": "err\n", "truncated": false,
    });
    assert_eq!(first, wanted);
    let wanted = json!({
        "running": false, "exitCode": 4, "stdout": "one\ntwo\n", "stderr": "err\n",
        "truncated": false,
    });
    for _ in 0..2 {
        assert_eq!(finished(&sandbox, id).await, wanted);
    }
    let limited = json!({ "cmd": "sleep 60", "timeout": 1 });
    let handle = api.post(&start, &limited).await.ok(202).json();
    let outcome = finished(&sandbox, handle["execId"].as_str().expect("an id")).await;
    let told = (&outcome["exitCode"], &outcome["stderr"]);
    assert_eq!(told, (&json!(-1), &json!("\nProcess timed out")));

    // A handle belongs to its sandbox.
    let other = Sandbox::make(&api, &json!({ "memoryMB": 128 })).await;
    let other = other.expect("sandboxes work here");
    for nobodys in [
        other.path(&format!("/exec/{id}/result")),
        sandbox.path("/exec/ffffffff/result"),
    ] {
        api.get(&nobodys).await.refused(404, "exec not found");
    }
}

/// Goal: the oldest clients' way: a whole shell line, below the origin itself, with the sandbox's
/// token as Bearer.
#[actix_rt::test]
async fn commands_are_run_without_api_in_the_path() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let token = sandbox.object["token"].as_str().expect("a token");
    let bearer = server
        .api()
        .without_key()
        .with_header("authorization", &format!("Bearer {token}"));
    let path = format!("/sandboxes/{}/commands", sandbox.id);
    let body = json!({
        "cmd": "echo \"$A $(pwd)\" | tr a-z A-Z; exit 5", "timeout": 10,
        "envs": { "A": "one two" }, "cwd": "/tmp",
    });
    let reply = bearer.post(&path, &body).await.ok(200).json();
    assert_eq!(
        reply,
        json!({ "exitCode": 5, "stdout": "ONE TWO /TMP\n", "stderr": "" })
    );
    bearer
        .post(&path, &json!({}))
        .await
        .refused(400, "cmd is required");
    let nobody = server.api().without_key().post(&path, &body).await;
    nobody.refused(401, "missing API key");
}
