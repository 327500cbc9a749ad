//! What tests of checkpoints do with them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Api;

const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a sandbox and gives its path, or says why this machine has none.
pub async fn sandbox(api: &Api, body: &Value) -> Option<String> {
    let reply = api.post("/api/sandboxes", body).await;
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    Some(path_of(&reply.ok(201).json()))
}

/// The path of a sandbox's resources.
pub fn path_of(sandbox: &Value) -> String {
    let id = sandbox["sandboxID"].as_str().expect("an id");
    format!("/api/sandboxes/{id}")
}

/// Runs a script that must succeed, and gives its output.
pub async fn run(api: &Api, path: &str, script: &str) -> String {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 30 });
    let reply = api.post(&format!("{path}/exec/run"), &body).await.ok(200);
    let reply = reply.json();
    assert_eq!(reply["exitCode"], 0, "{reply}");
    let stdout = reply["stdout"].as_str().expect("output");
    stdout.trim_end().to_owned()
}

/// Asks for a checkpoint and waits until it is ready.
pub async fn checkpoint(api: &Api, path: &str, name: &str) -> Value {
    let body = json!({ "name": name });
    let made = api
        .post(&format!("{path}/checkpoints"), &body)
        .await
        .ok(201);
    let id = made.id();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = api.get(&format!("{path}/checkpoints")).await.ok(200).json();
        let all = all.as_array().expect("a list");
        let one = all.iter().find(|one| one["id"] == json!(id));
        let one = one.expect("the one that was asked for");
        match one["status"].as_str() {
            Some("ready") => return one.clone(),
            Some("processing") => {}
            _ => panic!("{one}"),
        }
        assert!(Instant::now() < deadline, "never ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The id of a checkpoint.
pub fn id_of(checkpoint: &Value) -> &str {
    checkpoint["id"].as_str().expect("an id")
}

/// Makes a sandbox from a checkpoint.
pub async fn fork(api: &Api, checkpoint: &Value, body: &Value) -> Value {
    let id = id_of(checkpoint);
    let path = format!("/api/sandboxes/from-checkpoint/{id}");
    api.post(&path, body).await.ok(201).json()
}

/// `oc fsck` on a stopped server's folder: its exit code and its report (null with code 1).
pub fn fsck(data: &Path, more: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_oc"))
        .args(["fsck", "--json", "--data-dir"])
        .arg(data)
        .args(more)
        .env_clear()
        .output()
        .expect("oc runs");
    let code = output.status.code().expect("an exit code");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if code == 1 {
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    (code, report)
}
