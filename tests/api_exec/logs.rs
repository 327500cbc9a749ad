//! The log of a sandbox: what is in it, how it is asked for and followed, and that it is bounded.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{KEY, Sandbox, Server};
use crate::socket::{Socket, listed, script, start};

/// What is there, by query; waits until there are `count` entries.
async fn logged(sandbox: &Sandbox, query: &str, count: usize) -> Vec<Value> {
    let path = sandbox.path(&format!("/logs?tail=false{query}"));
    let mut last = Vec::new();
    for _ in 0..100 {
        let reply = sandbox.api.get(&path).await.ok(200);
        assert_eq!(reply.header("content-type"), "text/event-stream");
        assert_eq!(reply.header("x-accel-buffering"), "no");
        last = entries(&reply.text);
        if last.len() >= count {
            break;
        }
        actix_rt::time::sleep(Duration::from_millis(100)).await;
    }
    let newest = &last[last.len().saturating_sub(20)..];
    assert_eq!(last.len(), count, "{query}: … {newest:?}");
    last
}

/// The entries in a piece of a feed, in which nothing else may be.
fn entries(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| !line.is_empty());
    let data = lines.filter(|line| *line != ": keepalive").map(|line| {
        let data = line.strip_prefix("data: ");
        data.unwrap_or_else(|| panic!("not a line of a feed: {line}"))
    });
    data.map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

fn shown(entries: &[Value]) -> Vec<(String, String)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let row = |entry| (text(entry, "source"), text(entry, "line"));
    entries.iter().map(row).collect()
}

/// Goal: every way to run something is logged line by line, with what it was and how it ended,
/// whether somebody watches or not; an observer changes nothing for the session.
#[actix_rt::test]
async fn commands_and_sessions_are_logged() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let Some(sandbox) = Sandbox::make(&api, &json!({ "memoryMB": 256 })).await else {
        return;
    };
    logged(&sandbox, "", 0).await;
    sandbox
        .outcome("echo one; echo two >&2; printf three; exit 4")
        .await;
    let rows = logged(&sandbox, "", 4).await;
    let mut texts = shown(&rows);
    texts[..3].sort();
    let row = |source: &str, line: &str| (source.to_owned(), line.to_owned());
    let wanted = [
        row("exec_stderr", "two"),
        row("exec_stdout", "one"),
        row("exec_stdout", "three"),
        row("exec_stdout", ""),
    ];
    assert_eq!(texts, wanted);
    let last = rows[3].clone();
    let wanted = json!({
        "_time": last["_time"], "source": "exec_stdout", "line": "", "exit_code": 4,
        "sandbox_id": sandbox.id, "exec_id": last["exec_id"], "command": "sh",
        "argv": ["-c", "echo one; echo two >&2; printf three; exit 4"],
    });
    assert_eq!(last, wanted);
    assert!(rows.iter().all(|row| row["exec_id"] == last["exec_id"]));
    assert!(rows[..3].iter().all(|row| row.get("exit_code").is_none()));

    let body = json!({ "cmd": "echo asynchronous; sleep 1" });
    let handle = api
        .post(&sandbox.path("/exec/run-async"), &body)
        .await
        .ok(202)
        .json();
    let rows = logged(&sandbox, "&q=asynchronous", 1).await;
    assert_eq!(rows[0]["exec_id"], handle["execId"]);
    // A session that nobody is attached to, and of which nobody was a client.
    let body = json!({ "cmd": "sh", "args": ["-c", "echo alone; sleep 3; echo later"],
        "maxRunAfterDisconnect": 1 });
    let session = start(&sandbox, &body).await;
    let rows = logged(&sandbox, "&q=alone", 1).await;
    assert_eq!(rows[0]["exec_id"], session);
    assert_eq!(
        listed(&sandbox, &session).await.expect("listed")["attachedClients"],
        0
    );
    logged(&sandbox, "&q=later", 1).await;
    // A client of a loud session gets every byte, whatever becomes of the log.
    let session = script(
        &sandbox,
        "sleep 0.5; head -c 9000000 /dev/zero | tr '\\0' y; exit 5",
    )
    .await;
    let ended = Socket::attach(&server, &sandbox, &session)
        .await
        .until_end()
        .await;
    assert_eq!((ended.stdout.len(), ended.exit), (9_000_000, Some(5)));

    for (query, error) in [
        ("limit=0", "limit must be between 1 and 10000"),
        (
            "source=x",
            "source must be of var_log, exec_stdout, exec_stderr, agent",
        ),
        ("since=now", "since must be an RFC 3339 time"),
        ("q=%07", "q must not hold control characters"),
        ("tail=x", "tail must be true or false"),
    ] {
        let path = sandbox.path(&format!("/logs?{query}"));
        api.get(&path).await.refused(400, error);
    }
    let logs = sandbox.path("/logs?tail=false");
    server
        .other()
        .get(&logs)
        .await
        .refused(404, "sandbox not found");
    let token = sandbox.object["token"].as_str().expect("a token");
    api.without_key().with_key(token).get(&logs).await.ok(200);
    api.delete(&sandbox.path("")).await.ok(204);
    api.get(&logs).await.refused(410, "sandbox is stopped");
}

/// Goal: queries take what they say, newest last, and the newest when there are too many; what was
/// logged is there after a restart, and goes on.
#[actix_rt::test]
async fn a_log_is_asked_for_by_time_text_and_source() {
    let mut server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    sandbox.run("seq 1 500").await;
    let rows = logged(&sandbox, "", 501).await;
    let numbers: Vec<_> = shown(&rows).into_iter().map(|(_, line)| line).collect();
    let wanted: Vec<_> = (1..=500)
        .map(|n| n.to_string())
        .chain([String::new()])
        .collect();
    assert_eq!(numbers, wanted, "in order");
    let newest = logged(&sandbox, "&limit=3", 3).await;
    assert_eq!(newest, rows[498..]);
    let between = rows[500]["_time"].as_str().expect("a time").to_owned();
    actix_rt::time::sleep(Duration::from_millis(50)).await;
    sandbox.run("echo late; echo err >&2").await;
    logged(&sandbox, "", 504).await;
    let since = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    use time::format_description::well_known::Rfc3339;
    let since = since.format(&Rfc3339).expect("a time");
    for (query, count) in [
        (format!("&until={between}"), 501),
        (format!("&since={since}"), 0),
        ("&q=late".to_owned(), 1),
        ("&source=exec_stderr".to_owned(), 1),
        ("&source=exec_stderr,exec_stdout&q=e".to_owned(), 2),
        ("&source=agent,var_log".to_owned(), 0),
        (
            "&q=1&limit=10000".to_owned(),
            (1..=500)
                .filter(|n: &u32| n.to_string().contains('1'))
                .count(),
        ),
    ] {
        logged(&sandbox, &query, count).await;
    }
    server.kill();
    server.restart();
    let sandbox = Sandbox {
        api: server.api(),
        ..sandbox
    };
    logged(&sandbox, "", 504).await;
    sandbox.run("echo again").await;
    logged(&sandbox, "&q=again", 1).await;

    // A session that outlives the server is logged on, and nothing of it twice.
    script(&sandbox, "echo early; sleep 6; echo survived; sleep 8649").await;
    logged(&sandbox, "&q=early&source=exec_stdout", 1).await;
    server.kill();
    server.restart();
    let sandbox = Sandbox {
        api: server.api(),
        ..sandbox
    };
    logged(&sandbox, "&q=survived&source=exec_stdout", 1).await;
    logged(&sandbox, "&q=early&source=exec_stdout", 1).await;

    // The same by the command line, in its own words.
    let oc = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
        let command = command.args(["logs", &sandbox.id, "--no-tail"]).args(words);
        let command = command.env("OPENCOMPUTER_API_URL", server.url());
        let command = command
            .env("OPENCOMPUTER_API_KEY", KEY)
            .env("HOME", server.root());
        let output = command.output().expect("oc runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            said,
        )
    };
    let (code, text, said) = oc(&["--grep", "late"]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(
        (words.len(), words[1], words[2]),
        (3, "exec_stdout", "late"),
        "{text}"
    );
    assert!(words[0].len() == 12 && !text.contains('\x1b'), "{text:?}");
    let (_, text, _) = oc(&["--json", "--source", "exec_stderr", "--since", "1h"]);
    assert_eq!(
        serde_json::from_str::<Value>(&text).expect("JSON")["line"],
        "err"
    );
    sandbox.run("echo last").await;
    let (_, mut text, _) = oc(&["--limit", "1"]);
    for _ in 0..50 {
        if text.contains("exited") {
            break;
        }
        actix_rt::time::sleep(Duration::from_millis(100)).await;
        text = oc(&["--limit", "1"]).1;
    }
    assert!(
        text.ends_with("exec_stdout  [exited with code 0]\n"),
        "{text}"
    );
    assert_eq!(oc(&["--limit", "0"]).0, Some(3));
}

/// Goal: a follower gets what was there, then what comes, within about a second, signs of life
/// between, and an end when the sandbox is gone; files below /var/log are followed too.
#[actix_rt::test]
async fn a_log_is_followed() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    sandbox.run("echo before").await;
    logged(&sandbox, "&q=before", 1).await;
    let request = sandbox.api.request("GET", &sandbox.path("/logs"));
    let request = request.timeout(Duration::from_secs(120));
    let mut feed = request.send().await.expect("a head");
    let mut heard = String::new();
    let mut until = async |wanted: &str, seconds: u64| {
        let started = Instant::now();
        while !heard.contains(wanted) {
            let left = Duration::from_secs(seconds).saturating_sub(started.elapsed());
            let chunk = tokio::time::timeout(left, feed.chunk()).await;
            let chunk = chunk.unwrap_or_else(|_| panic!("{wanted:?} is not in {heard}"));
            let chunk = chunk.expect("the feed").expect("not its end");
            heard.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
    };
    until("\"line\":\"before\"", 10).await;
    sandbox.run("echo live").await;
    until("\"line\":\"live\"", 10).await;
    let write = "sudo sh -c 'mkdir -p /var/log/app; echo first > /var/log/app/a.log'; sleep 1.5
        sudo sh -c 'echo second >> /var/log/app/a.log'";
    let written = sandbox.outcome(write).await;
    if written["exitCode"] == 0 {
        until("\"line\":\"second\"", 20).await;
    } else {
        println!("skipped: files of /var/log can't be written here: {written}");
    }
    until(": keepalive\n\n", 40).await;
    let rows = entries(&heard);
    let lines = shown(&rows);
    if written["exitCode"] == 0 {
        let of_file = |line: &str| {
            let at = lines
                .iter()
                .position(|row| row.1 == line && row.0 == "var_log");
            let at = at.unwrap_or_else(|| panic!("{line} is not in {lines:?}"));
            assert_eq!(rows[at]["path"], "/var/log/app/a.log");
            at
        };
        assert!(of_file("first") < of_file("second"));
    }
    let once = |line: &str| lines.iter().filter(|row| row.1 == line).count();
    assert_eq!((once("before"), once("live")), (1, 1));
    sandbox.api.delete(&sandbox.path("")).await.ok(204);
    while let Some(chunk) = feed.chunk().await.expect("an end in order") {
        drop(chunk);
    }
}

/// Goal: however much is printed, the log stays within its bound on disk, nobody waits for it, and
/// what is printed later is there.
#[actix_rt::test]
async fn a_flood_of_output_stays_within_bounds() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let flood = "yes flood flood flood | head -c 100000000";
    assert_eq!(sandbox.outcome(flood).await["exitCode"], 0);
    // What comes while there is too much is counted, not kept: said again until that is over.
    let path = sandbox.path("/logs?tail=false&q=afterwards");
    let mut kept = false;
    for _ in 0..60 {
        sandbox.run("echo afterwards").await;
        actix_rt::time::sleep(Duration::from_millis(500)).await;
        kept = !entries(&sandbox.api.get(&path).await.ok(200).text).is_empty();
        if kept {
            break;
        }
    }
    assert!(kept, "nothing is kept after a flood");
    let folder = server
        .data()
        .join("sandboxes")
        .join(&sandbox.id)
        .join("printed");
    let files = std::fs::read_dir(&folder)
        .expect("the log's folder")
        .flatten();
    let sizes: Vec<_> = files
        .map(|file| file.metadata().expect("a file").len())
        .collect();
    assert!(
        sizes.len() <= 2 && sizes.iter().sum::<u64>() <= 16 * 1024 * 1024,
        "{sizes:?}"
    );
    sandbox.api.delete(&sandbox.path("")).await.ok(204);
    assert!(!folder.exists(), "the log goes with its sandbox");
}

/// Goal: to watch a log is no use of its sandbox: it falls asleep and stays so, while the feed stays
/// open; what runs goes on being logged after a wake, and nothing of it twice.
/// Method: a command that nobody waits for counts, across two sleeps.
#[actix_rt::test]
async fn a_watched_sandbox_sleeps_and_its_feed_stays() {
    let server = Server::start();
    let body = json!({ "memoryMB": 256, "timeout": 2 });
    let Some(sandbox) = Sandbox::make(&server.api(), &body).await else {
        return;
    };
    let (api, path) = (&sandbox.api, sandbox.path(""));
    let request = api.request("GET", &sandbox.path("/logs"));
    let request = request.timeout(Duration::from_secs(120));
    let mut feed = request.send().await.expect("a head");
    let count = "n=0; while :; do n=$((n + 1)); echo count-$n; sleep 0.1; done";
    let counter = json!({ "cmd": count });
    let run_async = sandbox.path("/exec/run-async");
    api.post(&run_async, &counter).await.ok(202);
    for _ in 0..2 {
        let mut now = Value::Null;
        for _ in 0..150 {
            now = api.get(&path).await.ok(200).json()["status"].clone();
            if now == "hibernated" {
                break;
            }
            actix_rt::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(now, "hibernated");
        let asked = sandbox.path("/logs?tail=false&limit=1");
        assert_eq!(entries(&api.get(&asked).await.ok(200).text).len(), 1);
        actix_rt::time::sleep(Duration::from_millis(1500)).await;
        let now = api.get(&path).await.ok(200).json();
        assert_eq!(now["status"], "hibernated", "nobody woke it");
        sandbox.run("sleep 1; echo awake").await;
    }
    let (mut heard, started) = (String::new(), Instant::now());
    let awake = |heard: &str| heard.matches("\"line\":\"awake\"").count();
    while awake(&heard) < 2 {
        let left = Duration::from_secs(20).saturating_sub(started.elapsed());
        let chunk = tokio::time::timeout(left, feed.chunk()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("no sign of the wake in {heard}"));
        let chunk = chunk.expect("the feed").expect("not its end");
        heard.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    let rows = shown(&entries(&heard));
    let of = |row: &(String, String)| -> Option<u64> {
        row.1
            .strip_prefix("count-")
            .map(|text| text.parse().expect("a number"))
    };
    let counted: Vec<u64> = rows.iter().filter_map(of).collect();
    let whole: Vec<u64> = (1..=counted.len() as u64).collect();
    assert_eq!(counted, whole, "all of it, once");
    let position = |wanted| rows.iter().position(wanted);
    let first = position(|row: &(String, String)| row.1 == "awake").expect("awake");
    assert!(rows[first..].iter().filter_map(of).count() > 0, "{rows:?}");
}

/// Goal: a sleep takes no line of what a session prints, nor of a file, up to the moment it falls
/// asleep and from the moment it wakes; nor the end of a session that comes right then.
#[actix_rt::test]
async fn a_sleep_takes_no_line() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let count =
        |to: &str| format!("n=0; while [ $n -lt 600 ]; do n=$((n+1)); {to}; sleep 0.01; done");
    sandbox
        .run("sudo touch /var/log/own && sudo chmod 666 /var/log/own")
        .await;
    let loud = script(&sandbox, &count("echo said-$n; echo err-$n >&2")).await;
    let quiet = script(&sandbox, &count("echo file-$n >> /var/log/own")).await;
    for _ in 0..3 {
        actix_rt::time::sleep(Duration::from_millis(700)).await;
        let slept = sandbox
            .api
            .post(&sandbox.path("/hibernate"), &json!({}))
            .await;
        if slept.ok(200).json()["kept"] != "memory" {
            println!("skipped: no freezer here, sleepers keep their disk only");
            return;
        }
        sandbox
            .api
            .post(&sandbox.path("/wake"), &json!({}))
            .await
            .ok(200);
    }
    for session in [loud, quiet] {
        while listed(&sandbox, &session).await.expect("listed")["running"] == true {
            actix_rt::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for name in ["said-", "err-", "file-"] {
        let rows = logged(&sandbox, &format!("&q={name}&limit=10000"), 600).await;
        let lines: Vec<_> = shown(&rows).into_iter().map(|(_, line)| line).collect();
        let wanted: Vec<_> = (1..=600).map(|n| format!("{name}{n}")).collect();
        assert_eq!(lines, wanted);
    }
    let rows = logged(&sandbox, "&source=exec_stdout&limit=10000", 602 + 1).await;
    let ends = rows.iter().filter(|row| row["exit_code"] == 0).count();
    assert_eq!(ends, 3, "the two sessions and the command");
}

/// Goal: a sandbox whose session says nothing can sleep as often as it likes: of no sleep anything is
/// left, be it at the server or inside.
#[actix_rt::test]
async fn sleeps_leave_nothing_behind() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    script(&sandbox, "exec sleep 8655").await;
    let open = || {
        let folder = format!("/proc/{}/fd", server.pid());
        std::fs::read_dir(folder).expect("the server runs").count()
    };
    let mut before = 0;
    // More often than the guest takes connections.
    for round in 0..80 {
        let slept = sandbox
            .api
            .post(&sandbox.path("/hibernate"), &json!({}))
            .await;
        if slept.ok(200).json()["kept"] != "memory" {
            println!("skipped: no freezer here, sleepers keep their disk only");
            return;
        }
        sandbox
            .api
            .post(&sandbox.path("/wake"), &json!({}))
            .await
            .ok(200);
        assert_eq!(sandbox.run("echo awake").await, "awake");
        if round == 10 {
            before = open();
        }
    }
    for _ in 0..100 {
        if open() <= before + 5 {
            return;
        }
        actix_rt::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} descriptors, and {before} before", open());
}
