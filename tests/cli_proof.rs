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

/// What a start says that gets a master key from the environment.
fn with_key(server: &Server, key: &str) -> String {
    server.refusal(|command| {
        command.env("OC_MASTER_KEY", key);
    })
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

/// Goal: a server ends in order, its log first, although the folder of checkpoints has stopped to
/// answer; it says so, and the next one writes what is missing.
#[actix_rt::test]
async fn a_folder_of_checkpoints_that_hangs_does_not_keep_the_server() {
    let mut server = Server::start();
    let notes = server.root().join("notes");
    let settings = format!("[checkpoints]\ndir = {:?}\n", text(&notes));
    fs::write(server.data().join("oc.toml"), settings).expect("written");
    assert!(server.stop().success());
    server.restart();
    project(&server.api(), "first").await;
    // Whoever opens it to write waits for a reader, who never comes.
    let hangs = notes.join("latest.note.new");
    let _ = fs::remove_file(notes.join("latest.note"));
    let made = Command::new("mkfifo").arg(&hangs).status();
    assert!(made.expect("mkfifo runs").success());
    assert!(server.stop().success());
    let said = server.log();
    assert!(
        said.contains("the last checkpoint was not written in time"),
        "{said}"
    );
    fs::remove_file(&hangs).expect("removable");
    server.restart();
    assert!(server.stop().success());
    assert!(notes.join("latest.note").exists(), "{}", server.log());
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
    let said = with_key(&server, &key);
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
        let said = with_key(&server, &given);
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
    let said = with_key(&server, &key);
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

/// Goal: the whole drill: a backup is made while the server takes writes, restored elsewhere, and a
/// server there answers with the same objects, whose secrets open; a wrong key restores nothing.
#[actix_rt::test]
async fn a_backup_of_a_busy_server_is_restored_and_serves() {
    let mut server = Server::start();
    let first = project(&server.api(), "first").await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (api, stopped) = (server.api(), stop.clone());
    let writing = actix_rt::spawn(async move {
        let mut count = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            project(&api, &format!("p-{count}")).await;
            count += 1;
        }
        count
    });
    let backup = server.root().join("backup");
    let words = [
        "--json",
        "backup",
        text(&backup),
        "--data-dir",
        text(server.data()),
    ]
    .map(str::to_owned);
    let (home, url) = (server.root().join("home"), server.url().to_owned());
    let run = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
        command
            .args(words)
            .env_clear()
            .env("HOME", home)
            .env("OPENCOMPUTER_API_URL", url);
        command.output().expect("`oc` runs")
    };
    actix_rt::time::sleep(std::time::Duration::from_millis(200)).await;
    let output = actix_rt::task::spawn_blocking(run).await.expect("runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let made: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writing.await.expect("no write failed") > 0);
    let known = format!(
        "{}:{}",
        made["commits"],
        made["chain"].as_str().expect("a hash")
    );
    oc(&server, &["audit", "verify", "--known", &known]).ok();
    assert_eq!(
        (&made["withMasterKey"], &made["keysChecked"]),
        (&json!(false), &json!(true))
    );
    assert!(!backup.join("master.key").exists());

    let restored = server.root().join("restored");
    let restore = ["restore", text(&backup), "--data-dir", text(&restored)];
    oc(&server, &restore).refused(1, &["has no master key", "--master-key-file"]);
    let wrong = ("OC_MASTER_KEY", "ab".repeat(32));
    let refused = oc_with(&server, KEY, &[(wrong.0, &wrong.1)], &restore);
    refused.refused(1, &["does not open with this master key"]);
    assert!(!restored.exists());
    let key = server.data().join("master.key");
    let said = oc(
        &server,
        &[&restore[..], &["--master-key-file", text(&key)]].concat(),
    )
    .ok();
    assert!(said.contains("everything verifies"), "{said}");
    oc(
        &server,
        &[&restore[..], &["--master-key-file", text(&key)]].concat(),
    )
    .refused(1, &["new or empty"]);

    server.kill();
    let root = tempfile::Builder::new()
        .prefix("oc-test-")
        .tempdir()
        .expect("a folder");
    let mut other = Server::prepare_in(root, restored.clone());
    other.restart();
    let listed = other.api().get("/api/projects").await.ok(200).json();
    let listed: Vec<_> = listed.as_array().expect("a list").iter().collect();
    let id = first.trim_start_matches("project-");
    assert!(
        listed
            .iter()
            .any(|row| row["id"] == id && row["name"] == "first")
    );
    assert!(other.stop().success());
    let opened = std::thread::scope(|scope| {
        let opened = scope.spawn(|| secrets_that_open(&restored));
        opened.join().expect("every secret opens")
    });
    assert!(opened > 0 && opened <= listed.len());
}

/// Goal: a key that is named decides alone, whatever the environment and the backup's configuration
/// say; the restored folder keeps it only where its server will look for it, and else says where.
#[actix_rt::test]
async fn a_restore_uses_the_key_it_is_told_and_keeps_it_where_it_is_looked_for() {
    let mut server = Server::start();
    project(&server.api(), "p").await;
    assert!(server.stop().success());
    let (data, root) = (server.data().to_owned(), server.root().to_owned());
    let outside = root.join("outside.key");
    fs::copy(data.join("master.key"), &outside).expect("copied");
    let junk = ("OC_MASTER_KEY", "ab".repeat(32));
    let run = |name: &str, config: &str, kept: bool| {
        fs::write(data.join("oc.toml"), config).expect("written");
        let (backup, restored) = (root.join(format!("{name}-backup")), root.join(name));
        let key = ["--master-key-file", text(&outside)];
        let made = ["backup", text(&backup), "--data-dir", text(&data)];
        oc(&server, &made).ok();
        let words = ["restore", text(&backup), "--data-dir", text(&restored)];
        let words = [&words[..], &key].concat();
        let said = oc_with(&server, KEY, &[(junk.0, &junk.1)], &words).ok();
        assert_eq!(restored.join("master.key").exists(), kept, "{said}");
        (restored, said)
    };
    let (_, said) = run("plain", "", true);
    assert!(!said.contains("take its master key"), "{said}");
    let config = format!("master_key_command = [\"cat\", {:?}]\n", text(&outside));
    let (restored, said) = run("command", &config, false);
    assert!(
        said.contains("take its master key from the output of `cat`"),
        "{said}"
    );
    let config = format!("master_key_file = {:?}\n", text(&outside));
    let (_, said) = run("file", &config, false);
    assert!(said.contains(text(&outside)), "{said}");

    let home = tempfile::tempdir().expect("a folder");
    let mut other = Server::prepare_in(home, restored);
    other.restart();
    let listed = other.api().get("/api/projects").await.ok(200).json();
    assert_eq!(listed[0]["name"], "p");
}

/// Number of secrets in the log of a stopped server, each of which opens to [`VALUE`]. On a thread
/// of its own, for it has its own runtime.
fn secrets_that_open(data: &Path) -> usize {
    let offline = common::offline::Offline::open(data);
    let mut opened = 0;
    for event in offline.events() {
        let data: Value = serde_json::from_str(event.data.get()).expect("JSON");
        if event.kind == "project.secret_set.v1" {
            let sealed = serde_json::from_value(data["sealed"].clone()).expect("sealed");
            assert_eq!(offline.unseal(&event, "A", &sealed), VALUE.as_bytes());
            opened += 1;
        }
    }
    opened
}

/// Goal: a server that refuses its damaged log names the way out, and the way out works: what is
/// kept is served again, what is dropped is told, the damaged log is still there.
#[actix_rt::test]
async fn a_damaged_log_is_repaired_by_the_command_its_refusal_names() {
    let mut server = Server::start();
    project(&server.api(), "kept-whole").await;
    project(&server.api(), "lost-later").await;
    let data = text(server.data()).to_owned();
    let repair = ["log", "repair", "--data-dir", &data];
    oc(&server, &repair).refused(1, &["is in use by another server"]);
    assert!(server.stop().success());
    let file = server.data().join("log/log.db");
    let mut bytes = fs::read(&file).expect("readable");
    let needle = b"lost-later";
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .expect("there");
    bytes[at] ^= 0x20;
    fs::write(&file, bytes).expect("written");

    let said = server.refusal(|_| {});
    assert!(
        said.contains(&format!("oc log repair --data-dir {data}")),
        "{said}"
    );
    let said = oc(&server, &[&repair[..], &["--dry-run"]].concat()).ok();
    assert!(
        said.contains("Would keep: ") && said.contains("Dropped: "),
        "{said}"
    );
    assert!(
        server.refusal(|_| {}).contains("is damaged"),
        "looking repaired it"
    );
    let said = oc(&server, &repair).ok();
    assert!(
        said.contains("Kept: ") && said.contains("log.damaged-"),
        "{said}"
    );
    server.restart();
    let listed = server.api().get("/api/projects").await.ok(200).json();
    assert_eq!(
        (&listed[0]["name"], &listed[1]),
        (&json!("kept-whole"), &Value::Null)
    );
    project(&server.api(), "lost-later").await;
    server.api().verified_positions().await;
    assert!(server.stop().success());
    let said = oc(&server, &repair).ok();
    assert!(said.contains("The log is whole"), "{said}");
}

/// Goal: `kill -9` at random moments of rotations, one after the other, never locks the server out
/// of its keys.
#[actix_rt::test]
async fn rotations_killed_at_random_lose_no_key() {
    let mut server = Server::start();
    for index in 0..20 {
        project(&server.api(), &format!("p-{index}")).await;
    }
    assert!(server.stop().success());
    let rotation = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
        command
            .args(["keys", "rotate", "--data-dir", text(server.data())])
            .env_clear()
            .env("HOME", server.root().join("home"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().expect("`oc` runs")
    };
    let started = std::time::Instant::now();
    assert!(rotation().wait().expect("reaped").success());
    let whole = started.elapsed();
    let (mut killed, mut ended) = (0, 0);
    for round in 1..=40 {
        let mut child = rotation();
        // Over all of a rotation and a little more.
        std::thread::sleep(whole * round / 36);
        child.kill().expect("killed");
        match child.wait().expect("reaped").code() {
            None => killed += 1,
            Some(code) => {
                assert_eq!(code, 0, "round {round}");
                ended += 1;
            }
        }
        // What every start does; it must find a key that opens.
        let (master, keys) = (
            server.data().join("master.key"),
            server.data().join("keys.db"),
        );
        if let Err(error) = opencomputer::events::open_keyring(&master, &keys, true) {
            panic!("round {round}: {error}");
        }
    }
    println!("{killed} rotations were killed, {ended} ended");
    assert!(killed > 0, "no rotation was cut off");
    server.restart();
    let id = server.api().get("/api/projects").await.ok(200).json()[0]["id"].clone();
    let path = format!("/api/projects/{}/secrets/B", id.as_str().expect("an id"));
    server
        .api()
        .put(&path, &json!({ "value": VALUE }))
        .await
        .ok(200);
}
