//! What sandboxes use, by the API, the command line and the operator's metrics. Real sandboxes on
//! this machine; where it can't have any, the tests say so and stop.

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::{KEY, Reply, Server};
use serde_json::{Value, json};

/// Makes a sandbox, or says why this machine has none.
fn made(reply: Reply) -> Option<String> {
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    let made = reply.ok(201).json();
    Some(made["sandboxID"].as_str().expect("an id").to_owned())
}

/// Where the server said that it serves metrics.
fn admin_url(server: &Server) -> String {
    let log = server.log();
    let at = log.split("address=").nth(1).expect("an address in the log");
    let address: String = at
        .chars()
        .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
        .collect();
    format!("http://{address}/metrics")
}

/// The lines of a page, by name and labels.
fn figures(page: &str) -> BTreeMap<String, u64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').expect("a name and a number"));
    pairs
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

/// Goal: every field of the object is there, its figures move, it is told of a sandbox of one's own
/// that runs and of no other; the operator's page tells the same, and no name of a secret.
#[actix_rt::test]
async fn figures_are_told_to_the_owner_and_the_operator() {
    let mut server = Server::prepare().args(&["--admin-listen", "127.0.0.1:0"]);
    server.restart();
    let api = server.api();
    let store = json!({ "name": "keys" });
    let store = api.post("/api/secret-stores", &store).await.ok(201).id();
    let secret = json!({ "value": "canary-value-7c1f", "allowedHosts": ["a.test"] });
    api.put(
        &format!("/api/secret-stores/{store}/secrets/CANARY_NAME"),
        &secret,
    )
    .await;
    let body = json!({ "memoryMB": 256, "secretStore": "keys" });
    let Some(id) = made(api.post("/api/sandboxes", &body).await) else {
        return;
    };
    let path = format!("/api/sandboxes/{id}/stats");
    let work = json!({ "cmd": "curl", "args": ["-s", "-m", "5", "http://nowhere.test/"] });
    api.post(&format!("/api/sandboxes/{id}/exec/run"), &work)
        .await
        .ok(200);
    let stats = api.get(&path).await.ok(200).json();
    assert_eq!(stats["sandboxID"], json!(id));
    for (part, fields) in [
        ("cpu", &["usedMicros", "count", "enforced"][..]),
        (
            "memory",
            &[
                "usedBytes",
                "cacheBytes",
                "peakBytes",
                "limitBytes",
                "oomKills",
                "enforced",
            ],
        ),
        ("processes", &["count", "max", "enforced"]),
        ("disk", &["usedBytes", "limitBytes", "enforced"]),
        ("network", &["sentBytes", "receivedBytes"]),
    ] {
        let mut wanted: Vec<_> = fields.to_vec();
        wanted.sort_unstable();
        let object = stats[part].as_object().expect("an object");
        let mut there: Vec<_> = object.keys().map(String::as_str).collect();
        there.sort_unstable();
        assert_eq!(there, wanted, "{part}");
    }
    let sent = stats["network"]["sentBytes"].as_u64().expect("a number");
    assert!(
        sent > 0 && stats["network"]["receivedBytes"] != json!(0),
        "{stats}"
    );
    let stranger = api.get("/api/sandboxes/sb-01m806v6r12w1bmtyq39z8xdwq/stats");
    stranger.await.refused(404, "sandbox not found");

    let page = reqwest::get(admin_url(&server)).await.expect("a page");
    let kind = page.headers()["content-type"].to_str().expect("text");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let page = page.text().await.expect("text");
    for never in ["CANARY_NAME", "canary-value", "keys", "nowhere", "osb_"] {
        assert!(!page.contains(never), "{never} in {page}");
    }
    let told = figures(&page);
    let of = |name: &str| told.get(name).copied();
    let line = format!("oc_sandbox_sent_bytes_total{{sandbox=\"{id}\"}}");
    assert_eq!(of(&line), Some(sent), "{page}");
    assert_eq!(of("oc_sandboxes_held"), Some(1));
    assert_eq!(of("oc_sandboxes{status=\"running\"}"), Some(1));
    let route = "oc_http_requests_total{route=\"/api/sandboxes/{id}/stats\",status=";
    assert_eq!(of(&format!("{route}\"200\"}}")), Some(1), "{page}");
    assert_eq!(of(&format!("{route}\"404\"}}")), Some(1), "{page}");
    assert!(of("oc_log_commits_total").is_some_and(|commits| commits > 3));
    // It is the operator's alone: the clients' listener has no such page.
    api.get("/metrics").await.ok(404);

    let oc = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_oc"))
            .args(args)
            .env("OPENCOMPUTER_API_URL", server.url())
            .env("OPENCOMPUTER_API_KEY", KEY)
            .env("HOME", server.root())
            .output()
            .expect("oc runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let table = oc(&["sandbox", "stats", &id]);
    assert!(
        table.starts_with("WHAT") && table.contains("Memory"),
        "{table}"
    );
    let reply: Value =
        serde_json::from_str(&oc(&["sandbox", "stats", &id, "--json"])).expect("JSON");
    assert_eq!(reply["sandboxID"], json!(id));

    api.delete(&format!("/api/sandboxes/{id}")).await.ok(204);
    assert_eq!(api.get(&path).await.status, 410);
}

/// Goal: whoever ran a program that needed too much memory is told why it is gone: in the result of
/// the command, in the sandbox's figures and in the trail. The sandbox lives on, its first process
/// least of all is taken, and another sandbox notices nothing.
#[actix_rt::test]
async fn a_kill_for_memory_is_told() {
    let server = Server::start();
    let api = server.api();
    let body = json!({ "memoryMB": 128 });
    let Some(id) = made(api.post("/api/sandboxes", &body).await) else {
        return;
    };
    let modest = made(api.post("/api/sandboxes", &body).await).expect("a second one");
    let run = async |id: &str, script: &str| {
        let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 60 });
        let path = format!("/api/sandboxes/{id}/exec/run");
        api.post(&path, &body).await.ok(200).json()
    };
    let stats = async |id: &str| {
        let path = format!("/api/sandboxes/{id}/stats");
        api.get(&path).await.ok(200).json()
    };
    if stats(&id).await["memory"]["enforced"] != "sandbox" {
        println!("skipped: memory is not limited for the whole sandbox here");
        return;
    }
    let eat = "exec python3 -c 'x = bytearray(1 << 30)'";
    let killed = run(&id, eat).await;
    assert_eq!(killed["exitCode"], 137, "{killed}");
    let note = "Process killed: out of memory (limit 128 MiB)";
    assert!(
        killed["stderr"].as_str().expect("text").ends_with(note),
        "{killed}"
    );
    // Memory that belongs to no process, held by many small ones.
    let held = "import os, time\n\
                for _ in range(40):\n\
                    if os.fork() == 0:\n\
                        fd = os.memfd_create(\"x\"); os.posix_fallocate(fd, 0, 8 << 20); time.sleep(9)";
    run(
        &id,
        &format!("timeout 5 python3 -c '{held}'; pkill -9 python3"),
    )
    .await;
    assert_eq!(run(&id, "echo alive").await["stdout"], "alive\n");
    // A kill that memory has nothing to do with is called nothing of the kind.
    let other = run(&id, "kill -9 $$").await;
    assert_eq!(
        (&other["exitCode"], &other["stderr"]),
        (&json!(137), &json!(""))
    );
    let kills = stats(&id).await["memory"]["oomKills"].clone();
    assert!(kills.as_u64().expect("a number") >= 1, "{kills}");
    assert_eq!(stats(&modest).await["memory"]["oomKills"], 0);
    let trail = format!("/api/audit/events?entity={id}&type=resource.oom_killed");
    let mut told = Value::Null;
    for _ in 0..100 {
        told = api.get(&trail).await.ok(200).json();
        if told["events"].as_array().is_some_and(|all| !all.is_empty()) {
            break;
        }
        actix_rt::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let data = &told["events"][0]["data"];
    assert_eq!(data["limitBytes"], 128 << 20, "{told}");
    assert!(data["total"].as_u64().expect("a number") >= 1, "{told}");
    assert_eq!(run(&modest, "echo alive").await["stdout"], "alive\n");
}
