//! The proof from outside: exports, checkpoints and keys through the commands of `oc`, against the
//! real server and its folder.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{KEY, OTHER_KEY, Server};
use serde_json::{Value, json};

const VALUE: &str = "canary-3f9d1c77-of-the-proof-test";

/// What a run of `oc` left.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    #[track_caller]
    fn refused(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        }
    }
}

/// Runs `oc` with the server's address, a key, and further variables.
fn oc_with(server: &Server, key: &str, variables: &[(&str, &str)], words: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_oc"))
        .args(words)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", server.root().join("home"))
        .env("OPENCOMPUTER_API_URL", server.url())
        .env("OPENCOMPUTER_API_KEY", key)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("`oc` runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = Ran {
        code: output.status.code().expect("an exit code"),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    };
    assert!(!format!("{ran:?}").contains(VALUE), "the value was printed");
    ran
}

fn oc(server: &Server, words: &[&str]) -> Ran {
    oc_with(server, KEY, &[], words)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A project with a secret; returns its stream.
async fn project(api: &common::Api, name: &str) -> String {
    let id = api.project(&json!({ "name": name })).await;
    let path = format!("/api/projects/{id}/secrets/A");
    api.put(&path, &json!({ "value": VALUE })).await.ok(200);
    format!("project-{id}")
}

/// Goal: what the server exports, signs and says of a stream is verified without it; tampering is
/// named; an organization's export tells nothing of the other; the stopped folder gives all.
#[actix_rt::test]
async fn an_export_and_a_checkpoint_verify_without_the_server() {
    let mut server = Server::start_with_two_orgs();
    let mine = project(&server.api(), "mine-alone").await;
    let theirs = project(&server.other(), "theirs-alone").await;
    let root = server.root().to_owned();
    let path = |name: &str| root.join(name);
    let (export, note, public) = (path("e.jsonl"), path("note"), path("key"));
    let (export, note, public) = (text(&export), text(&note), text(&public));
    let said = oc(&server, &["audit", "export", "--output", export]).ok();
    assert!(said.starts_with("Exported "), "{said}");
    fs::write(note, oc(&server, &["audit", "checkpoint"]).ok()).expect("written");
    fs::write(public, oc(&server, &["audit", "key"]).ok()).expect("written");

    let exported = fs::read_to_string(export).expect("an export");
    assert!(exported.contains("mine-alone") && !exported.contains("theirs-alone"));
    assert!(!exported.contains(&theirs) && !exported.contains(VALUE));
    let other = oc_with(&server, OTHER_KEY, &[], &["audit", "export"]).ok();
    assert!(other.contains("theirs-alone") && !other.contains("mine-alone"));

    let proof = ["--checkpoint", note, "--key", public];
    let verify = |more: &[&str]| oc(&server, &[&["audit", "verify"], more].concat());
    let offline = |more: &[&str]| verify(&[&["--file", export], more].concat());
    let said = offline(&[&["--stream", &mine], &proof[..]].concat()).ok();
    assert!(said.contains("by their hash alone"), "{said}");
    let stream = format!("Stream {mine}: 2 events, last revision 1");
    assert!(said.contains(&stream), "{said}");
    let said = verify(&[&["--stream", &mine], &proof[..]].concat()).ok();
    assert!(
        said.contains("The log is whole") && said.contains(&stream),
        "{said}"
    );
    verify(&["--stream", &theirs]).refused(3, &["stream not found"]);
    offline(&["--stream", &theirs]).refused(1, &["no event of stream"]);
    let zeros = format!("2:{}", "0".repeat(64));
    verify(&["--known", &zeros]).refused(1, &["commit 2", "history up to here was rewritten"]);
    offline(&["--known", &zeros]).refused(1, &["history was rewritten: at commit 2"]);
    let beyond = format!("999:{}", "0".repeat(64));
    verify(&["--known", &beyond]).refused(1, &["the end was cut off"]);
    verify(&["--checkpoint", note]).refused(1, &["--key"]);

    let altered = exported.replace("mine-alone", "mine-again");
    fs::write(path("altered"), altered).expect("written");
    let said = oc(
        &server,
        &["audit", "verify", "--file", text(&path("altered"))],
    );
    said.refused(1, &["was altered: its content does not match its hash"]);
    let forged = fs::read_to_string(note)
        .expect("a note")
        .replace("\nposition ", "\nposition 1");
    fs::write(path("forged"), forged).expect("written");
    let forged = path("forged");
    offline(&["--checkpoint", text(&forged), "--key", public])
        .refused(1, &["the text was altered"]);

    assert!(server.stop().success());
    let data = text(server.data());
    let said = oc(
        &server,
        &[
            &["audit", "verify", "--data-dir", data, "--stream", &theirs],
            &proof[..],
        ]
        .concat(),
    );
    assert!(said.ok().contains(&format!("Stream {theirs}: 2 events")));
    let all = oc(&server, &["audit", "export", "--data-dir", data]).ok();
    assert!(all.contains("theirs-alone") && all.contains("mine-alone"));
    let key = oc(&server, &["audit", "key", "--data-dir", data]).ok();
    assert_eq!(key, fs::read_to_string(public).expect("a key"));
    // An older checkpoint of a log whose later end was cut off and made anew is worth its paper.
    let cut: Vec<&str> = exported.lines().take(3).collect();
    fs::write(path("cut"), cut.join("\n") + "\n").expect("written");
    let said = oc(&server, &["audit", "verify", "--file", text(&path("cut"))]);
    said.refused(1, &["was cut off behind commit 2"]);
}

/// Goal: a server writes checkpoints where the operator says, and does not start on a log that was
/// put back to an older state, witness and all.
#[actix_rt::test]
async fn a_log_that_was_rolled_back_is_refused_by_its_checkpoints() {
    let mut server = Server::start();
    let notes = server.root().join("notes");
    let settings = format!("[checkpoints]\ndir = {:?}\n", text(&notes));
    fs::write(server.data().join("oc.toml"), settings).expect("written");
    project(&server.api(), "first").await;
    assert!(server.stop().success());
    let (log, kept) = (server.data().join("log"), server.root().join("kept"));
    copy(&log, &kept);
    server.restart();
    project(&server.api(), "second").await;
    assert!(server.stop().success());
    let latest = notes.join("latest.note");
    let key = oc(
        &server,
        &["audit", "key", "--data-dir", text(server.data())],
    )
    .ok();
    let verify = [
        "audit",
        "verify",
        "--data-dir",
        text(server.data()),
        "--checkpoint",
        text(&latest),
        "--key",
        key.trim(),
    ];
    oc(&server, &verify).ok();

    let newer = server.root().join("newer");
    copy(&log, &newer);
    copy(&kept, &log);
    let said = server.refusal(|_| {});
    assert!(
        said.contains("cut off or rewritten") && said.contains("latest.note"),
        "{said}"
    );
    oc(&server, &verify).refused(1, &["the end was cut off"]);
    copy(&newer, &log);
    server.restart();
    server.api().verified_positions().await;
}

/// Goal: the master key may come from a command or the environment; each doubt is refused; a
/// rotation asks for a file then, and the server starts with the new key and not with the old one.
#[actix_rt::test]
async fn a_master_key_from_elsewhere_is_used_and_rotated() {
    let mut server = Server::prepare();
    let (outside, new) = (
        server.root().join("outside.key"),
        server.root().join("new.key"),
    );
    fs::create_dir_all(server.data()).expect("a folder");
    fs::write(&outside, "5e".repeat(32)).expect("written");
    let settings = format!("master_key_command = [\"cat\", {:?}]\n", text(&outside));
    let config = server.data().join("oc.toml");
    fs::write(&config, settings).expect("written");
    server.restart();
    project(&server.api(), "p").await;
    assert!(
        !server.data().join("master.key").exists(),
        "a key nobody asked for"
    );
    let data = server.data().to_owned();
    let rotate = ["keys", "rotate", "--data-dir", text(&data)];
    oc(&server, &rotate).refused(1, &["is in use by another server"]);
    assert!(server.stop().success());

    let key = "5e".repeat(32);
    let said = server.refusal(|command| drop(command.env("OC_MASTER_KEY", &key)));
    assert!(
        said.contains("`master_key_command` and by OC_MASTER_KEY"),
        "{said}"
    );
    oc(&server, &rotate).refused(1, &["--new-key-file", "the output of `cat`"]);
    fs::write(&config, "").expect("written");
    let said = server.refusal(|_| {});
    assert!(said.contains("master.key is missing"), "{said}");
    for (given, wanted) in [
        ("ab".repeat(32), "does not open"),
        ("5e5e5e".to_owned(), "64 hexadecimal"),
    ] {
        let said = server.refusal(|command| drop(command.env("OC_MASTER_KEY", &given)));
        assert!(said.contains(wanted) && !said.contains(&given), "{said}");
    }
    let more = ["--new-key-file", text(&new)];
    let rotated = oc_with(
        &server,
        KEY,
        &[("OC_MASTER_KEY", &key)],
        &[&rotate[..], &more].concat(),
    );
    let said = rotated.ok();
    assert!(
        said.contains("Put the content of") && !said.contains(&key),
        "{said}"
    );
    let said = server.refusal(|command| drop(command.env("OC_MASTER_KEY", &key)));
    assert!(
        said.contains("does not open with this master key"),
        "{said}"
    );
    let settings = format!("master_key_command = [\"cat\", {:?}]\n", text(&new));
    fs::write(&config, settings).expect("written");
    server.restart();
    let listed: Value = server.api().get("/api/projects").await.ok(200).json();
    assert_eq!(listed[0]["name"], "p");
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}
