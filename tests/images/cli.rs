//! `oc snapshot` and `oc create` from images, as a user runs them.

use std::process::{Command, Output};

use crate::common::{KEY, Server};
use crate::kit::has_sandboxes;

fn oc(server: &Server, words: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_oc"))
        .args(words)
        .env_clear()
        .env("HOME", server.root().join("home"))
        .env("OPENCOMPUTER_API_URL", server.url())
        .env("OPENCOMPUTER_API_KEY", KEY)
        .output()
        .expect("oc runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// Goal: a user builds a snapshot from a file, sees the log with its steps, finds it in the list,
/// starts from it, and deletes it; exit codes and words are those of the other commands.
#[actix_rt::test]
async fn a_user_builds_lists_uses_and_deletes_a_snapshot() {
    let server = Server::start();
    let api = server.api();
    assert_eq!(
        oc(&server, &["snapshot", "list"]).1,
        "No snapshots found.\n"
    );
    if !has_sandboxes(&api).await {
        return;
    }
    let file = server.root().join("image.json");
    let path = file.to_str().expect("UTF-8");
    let steps = r#"{"base":"base","steps":[{"type":"run","args":{"commands":["echo hello"]}},
                    {"type":"env","args":{"vars":{"COLOUR":"blue"}}}]}"#;
    std::fs::write(&file, steps).expect("written");
    let (code, out, err) = oc(&server, &["snapshot", "create", "tools", "--image", path]);
    assert_eq!(
        (code, out.as_str()),
        (0, "Snapshot tools created (status: ready)\n"),
        "{err}"
    );
    assert!(
        err.contains("[1/2 run] hello\n") && err.contains("[2/2 env] step 2 (env): COLOUR\n"),
        "{err}"
    );
    assert!(!err.contains('\x1b'), "no terminal, no colours: {err:?}");
    let again = oc(&server, &["snapshot", "create", "tools", "--image", path]);
    assert_eq!(
        (again.0, again.2.as_str()),
        (4, "error: snapshot name already exists\n")
    );
    let (_, list, _) = oc(&server, &["snapshot", "ls"]);
    assert!(
        list.starts_with("NAME   STATUS  CHECKPOINT") && list.contains("tools  ready"),
        "{list}"
    );
    let (_, one, _) = oc(&server, &["snapshots", "get", "tools"]);
    assert!(
        one.starts_with("Name:       tools\nStatus:     ready\nID:"),
        "{one}"
    );
    let (code, made, err) = oc(&server, &["create", "--snapshot", "tools"]);
    assert_eq!(code, 0, "{err}");
    let id = made.split(' ').nth(2).expect("an id");
    let (code, colour, err) = oc(
        &server,
        &["exec", id, "--wait", "--", "sh", "-c", "echo $COLOUR"],
    );
    assert_eq!((code, colour.as_str()), (0, "blue\n"), "{err}");
    // From an image: its log is shown, and what is there is not made again.
    let (code, made, err) = oc(&server, &["create", "--image", path]);
    assert!(
        code == 0 && made.starts_with("Created sandbox sb-"),
        "{err}"
    );
    assert!(
        err.contains("[1/2 cache_hit] step 1 (run): echo hello is cached"),
        "{err}"
    );
    std::fs::write(&file, steps.replace("echo hello", "echo oh; exit 3")).expect("written");
    let (code, out, err) = oc(&server, &["--json", "create", "--image", path]);
    assert_eq!((code, out.as_str()), (5, ""));
    let error: serde_json::Value = serde_json::from_str(&err).expect("JSON alone");
    assert_eq!(
        error["error"],
        "build failed: step 1 (run) failed with exit code 3: oh"
    );
    for _ in 0..2 {
        let (code, out, _) = oc(&server, &["snapshot", "delete", "tools"]);
        assert_eq!((code, out.as_str()), (0, "Snapshot tools deleted.\n"));
    }
    let (code, _, err) = oc(&server, &["snapshot", "get", "tools"]);
    assert_eq!((code, err.as_str()), (3, "error: snapshot not found\n"));
}
