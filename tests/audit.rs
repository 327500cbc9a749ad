//! The audit trail through its doors: pages, feeds, single events and past states over HTTP, and the
//! commands that show them, with a server and without.

mod common;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Api, KEY, Server};
use rustix::net;
use serde_json::{Value, json};

/// Longest a feed may take to bring what was written.
const PATIENCE: Duration = Duration::from_secs(30);

/// One feed, read event by event.
struct Feed {
    response: reqwest::Response,
    text: String,
    events: VecDeque<(u64, Value)>,
}

impl Feed {
    async fn open(server: &Server, key: &str, query: &str, last: Option<u64>) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client
            .get(format!("{}/api/audit/events{query}", server.url()))
            .header("x-api-key", key);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        // Asked for by either of the two ways.
        if !query.contains("follow") {
            request = request.header("accept", "text/event-stream");
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self {
            response,
            text: String::new(),
            events: VecDeque::new(),
        }
    }

    /// The next event, with the id that stood before it; `None` when the feed has ended.
    async fn next(&mut self) -> Option<(u64, Value)> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            let chunk = chunk
                .expect("the feed goes on")
                .expect("it breaks off in order")?;
            self.text
                .push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
            while let Some((message, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = message.lines().find(|line| line.starts_with(name))?;
                    Some(line[name.len()..].trim().to_owned())
                };
                if let (Some(id), Some(data)) = (field("id:"), field("data:")) {
                    let data: Value = serde_json::from_str(&data).expect("JSON");
                    self.events
                        .push_back((id.parse().expect("a position"), data));
                }
                self.text = rest.to_owned();
            }
        }
    }

    async fn take(&mut self, count: usize) -> Vec<Value> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let (id, event) = self.next().await.expect("an event");
            assert_eq!(event["position"], id);
            taken.push(event);
        }
        taken
    }
}

async fn events(api: &Api, query: &str) -> Value {
    let path = format!("/api/audit/events?limit=500{query}");
    api.get(&path).await.ok(200).json()["events"].clone()
}

async fn state(api: &Api, at: impl std::fmt::Display, entity: &str) -> Value {
    let path = format!("/api/audit/state?at={at}&entity={entity}");
    let path = path.trim_end_matches("&entity=");
    api.get(path).await.ok(200).json()
}

/// Goal: the trail reads the same from either end, and by key, kind and time.
#[actix_rt::test]
async fn the_trail_reads_the_same_either_way() {
    let server = Server::start_with_two_orgs();
    let (api, other) = (server.api(), server.other());
    for number in 0..6 {
        api.project(&json!({ "name": format!("p{number}") })).await;
        other
            .project(&json!({ "name": format!("o{number}") }))
            .await;
    }
    let down = events(&api, "").await;
    let (mut up, mut after) = (Vec::new(), 0);
    loop {
        let path = format!("/api/audit/events?limit=4&after={after}");
        let page = api.get(&path).await.ok(200).json();
        up.extend(page["events"].as_array().unwrap().clone());
        match page["nextAfter"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    up.reverse();
    assert_eq!(json!(up), down);

    let key = down[0]["actor"]["key"].as_str().unwrap();
    let by_key = events(&api, &format!("&actor={key}")).await;
    let by_kind = events(&api, "&actor=api").await;
    assert_eq!(by_key, by_kind);
    // Each project's event and its name's.
    assert_eq!(by_key.as_array().unwrap().len(), 12);
    assert!(
        events(&api, "&actor=system")
            .await
            .to_string()
            .contains("org.created.v1")
    );

    let middle = down[5]["recordedAt"].as_str().unwrap();
    let since = events(&api, &format!("&from={middle}")).await;
    let until = events(&api, &format!("&to={middle}")).await;
    let count = |list: &Value| list.as_array().unwrap().len();
    let at_once = down.as_array().unwrap().iter();
    let at_once = at_once
        .filter(|event| event["recordedAt"] == middle)
        .count();
    assert_eq!(count(&since) + count(&until), count(&down) + at_once);
    assert!(count(&since) >= 6 && count(&until) >= 1);
    // A credential in the query is no unknown parameter.
    let path = format!("/api/audit/events?limit=500&api_key={KEY}");
    let keyed = api.without_key().get(&path).await.ok(200).json();
    assert_eq!(keyed["events"], down);
}

/// Goal: the objects are told as they were at each point, to their own organization, by name only
/// where secrets are concerned.
#[actix_rt::test]
async fn things_are_told_as_they_were() {
    let server = Server::start_with_two_orgs();
    let (api, other) = (server.api(), server.other());
    let id = api.project(&json!({ "name": "first" })).await;
    let path = format!("/api/projects/{id}");
    let secret = json!({ "value": "canary-7f3a" });
    api.put(&format!("{path}/secrets/TOKEN"), &secret)
        .await
        .ok(200);
    api.put(&path, &json!({ "name": "second", "cpuCount": 2 }))
        .await
        .ok(200);
    other.project(&json!({ "name": "theirs" })).await;
    api.delete(&path).await.ok(204);

    let trail = events(&api, &format!("&entity={id}")).await;
    let points: Vec<u64> = trail
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|event| event["position"].as_u64().unwrap())
        .collect();
    let [created, set, updated, deleted] = points[..] else {
        panic!("four events: {trail}");
    };
    let mut told = String::new();
    let mut project = async |at: String| {
        let (whole, alone) = (state(&api, &at, "").await, state(&api, &at, &id).await);
        assert_eq!(whole["projects"], alone["projects"]);
        assert_eq!(alone["organizations"], json!([]));
        told.push_str(&whole.to_string());
        whole["projects"][0].clone()
    };
    assert_eq!(project((created - 1).to_string()).await, Value::Null);
    let first = project(created.to_string()).await;
    assert_eq!(
        (&first["name"], &first["secrets"]),
        (&json!("first"), &json!([]))
    );
    let with_secret = project(set.to_string()).await;
    assert_eq!(with_secret["secrets"][0]["name"], "TOKEN");
    let second = project(updated.to_string()).await;
    assert_eq!(
        (&second["name"], &second["cpuCount"]),
        (&json!("second"), &json!(2))
    );
    assert_eq!(project(deleted.to_string()).await, Value::Null);
    // The API's own object of that moment, field by field.
    let by_time = trail.as_array().unwrap().last().unwrap()["recordedAt"]
        .as_str()
        .unwrap();
    assert_eq!(project(by_time.to_owned()).await["id"], id.as_str());
    assert_eq!(project("9999999".to_owned()).await, Value::Null);

    for text in ["canary-7f3a", "theirs", "ciphertext", "sha256", KEY] {
        assert!(!told.contains(text), "{text} is told");
    }
    assert!(told.contains("\"keys\":[{"), "{told}");
    other
        .get(&format!("/api/audit/state?at=9999999&entity={id}"))
        .await
        .refused(404, "entity not found");
    assert_eq!(
        state(&other, 9999999, "").await["projects"][0]["name"],
        "theirs"
    );
    let nothing = state(&api, 0, "").await;
    assert_eq!(
        (&nothing["position"], &nothing["time"]),
        (&json!(0), &Value::Null)
    );
}

/// Goal: an event is shown in full to its own organization, by position and by id.
#[actix_rt::test]
async fn one_event_is_shown_in_full() {
    let server = Server::start_with_two_orgs();
    let (api, other) = (server.api(), server.other());
    let id = api.project(&json!({ "name": "p" })).await;
    let listed = events(&api, &format!("&entity={id}")).await[0].clone();
    let show = |name: String| format!("/api/audit/events/{name}");
    let by_position = show(listed["position"].to_string());
    let whole = api.get(&by_position).await.ok(200).json();
    for (field, value) in listed.as_object().unwrap() {
        assert_eq!(&whole[field], value, "{field}");
    }
    let hashes = whole["chain"]["events"].as_array().unwrap();
    assert!(
        hashes.contains(&whole["contentHash"]) && hashes.len() == 2,
        "{whole}"
    );
    let by_id = show(listed["id"].as_str().unwrap().to_owned());
    assert_eq!(api.get(&by_id).await.ok(200).json(), whole);
    other
        .get(&by_position)
        .await
        .refused(404, "event not found");
    other.get(&by_id).await.refused(404, "event not found");
}

/// Goal: a feed brings what was there and what comes, each event once and in order, only its own
/// organization's; goes on behind the last one that was had; and ends in order with the server.
#[actix_rt::test]
async fn a_feed_follows_the_trail_and_ends_with_the_server() {
    let mut server = Server::start_with_two_orgs();
    let (api, other) = (server.api(), server.other());
    for number in 0..5 {
        api.project(&json!({ "name": format!("p{number}") })).await;
    }
    let mut feed = Feed::open(&server, KEY, "?follow=true&after=0", None).await;
    let mut live = Feed::open(&server, KEY, "?type=project.", None).await;
    let mut before = events(&api, "").await.as_array().unwrap().clone();
    before.reverse();
    assert_eq!(feed.take(before.len()).await, before);

    for number in 5..25 {
        api.project(&json!({ "name": format!("p{number}") })).await;
        other
            .project(&json!({ "name": format!("o{number}") }))
            .await;
    }
    let all = events(&api, "&after=0").await.as_array().unwrap().clone();
    let new = &all[before.len()..];
    assert_eq!(feed.take(new.len()).await, new);
    let projects: Vec<_> = new
        .iter()
        .filter(|event| event["type"] == "project.created.v1")
        .cloned()
        .collect();
    assert_eq!(live.take(20).await, projects);

    // Cut off and taken up again at every fifth event.
    for (index, event) in all.iter().enumerate().step_by(5) {
        let had = event["position"].as_u64();
        let mut again = Feed::open(&server, KEY, "?after=0", had).await;
        assert_eq!(again.take(all.len() - index - 1).await, all[index + 1..]);
    }
    let from = new[0]["recordedAt"].as_str().unwrap();
    let mut since = Feed::open(&server, KEY, &format!("?from={from}"), None).await;
    let (_, first) = since.next().await.expect("an event");
    assert!(first["recordedAt"] == from && all.contains(&first));

    let stopping = Instant::now();
    assert!(server.stop().success());
    assert!(
        stopping.elapsed() < Duration::from_secs(4),
        "{:?}",
        stopping.elapsed()
    );
    assert_eq!(feed.next().await, None, "the feed ends in order");
    assert_eq!(live.next().await, None);
}

/// Asks for a feed of everything, takes as little of it as the system can, and reads none.
fn unread_feed(server: &Server) -> OwnedFd {
    let address: SocketAddr = server.url()["http://".len()..].parse().expect("an address");
    let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None);
    let socket = socket.expect("a socket");
    net::sockopt::set_socket_recv_buffer_size(&socket, 4096).expect("a small buffer");
    net::connect(&socket, &address).expect("the server listens");
    let request = format!(
        "GET /api/audit/events?follow=true HTTP/1.1\r\nhost: {address}\r\nx-api-key: {KEY}\r\n\r\n"
    );
    rustix::io::write(&socket, request.as_bytes()).expect("asked");
    socket
}

/// Resident memory of the server, in KiB.
fn resident_kib(server: &Server) -> u64 {
    let read = |path: &Path| std::fs::read_to_string(path).expect("the server runs");
    let endpoint = read(&server.data().join("endpoint.json"));
    let endpoint: Value = serde_json::from_str(&endpoint).expect("JSON");
    let status = read(Path::new(&format!("/proc/{}/status", endpoint["pid"])));
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|text| text.parse().ok()).expect("a number")
}

/// Goal: a feed that nobody reads holds up no write, and the server keeps for it no more than a page
/// of events, however much is recorded: less than half of what is written here.
#[actix_rt::test]
async fn a_feed_nobody_reads_costs_a_page_and_delays_nobody() {
    const WRITES: usize = 800;
    const GROWN_KIB_MAX: u64 = 16 * 1024;
    let server = Server::start();
    let api = server.api();
    let id = api.project(&json!({ "name": "busy" })).await;
    // Some 55 KiB an event.
    let write = async |number: usize| {
        let label = "a".repeat(60);
        let host = |n: usize| format!("h{number}-{n}.{label}.{label}.{label}.test");
        let hosts: Vec<_> = (0..256).map(host).collect();
        let body = json!({ "egressAllowlist": hosts });
        let reply = api.put(&format!("/api/projects/{id}"), &body).await.ok(200);
        reply.text.len()
    };
    // What the server keeps of the last events for everybody is there before it is measured.
    for number in 0..WRITES / 3 {
        write(number).await;
    }
    let feed = unread_feed(&server);
    let before = resident_kib(&server);
    let (mut bytes, mut slowest) = (0, Duration::ZERO);
    for number in 0..WRITES {
        let started = Instant::now();
        bytes += write(number).await;
        slowest = slowest.max(started.elapsed());
    }
    let grown = resident_kib(&server).saturating_sub(before);
    println!("{bytes} bytes recorded, {grown} KiB grown, slowest write {slowest:?}");
    assert!(
        bytes > 2 * 1024 * usize::try_from(GROWN_KIB_MAX).unwrap(),
        "{bytes}"
    );
    assert!(
        grown < GROWN_KIB_MAX,
        "{grown} KiB for a feed that nobody reads"
    );
    assert!(
        slowest < PATIENCE,
        "a feed that nobody reads holds up writes"
    );
    // It was a feed, and what there was room for has come.
    let mut start = [0; 12];
    rustix::io::read(&feed, &mut start).expect("read");
    assert_eq!(&start, b"HTTP/1.1 200");
}

/// Goal: an organization has so many feeds and no more, another one has its own, and one that is let
/// go makes room.
#[actix_rt::test]
async fn feeds_are_bounded_in_number() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let mut feeds = Vec::new();
    for _ in 0..64 {
        feeds.push(Feed::open(&server, KEY, "?follow=true&after=0", None).await);
    }
    let full = "at most 64 clients can follow the audit trail at once";
    api.get("/api/audit/events?follow=true")
        .await
        .refused(429, full);
    drop(Feed::open(&server, common::OTHER_KEY, "?follow=true", None).await);
    drop(feeds.pop());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = api.send("GET", "/api/audit/events?limit=1", None).await;
        assert_eq!(reply.expect("answered").status, 200);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/api/audit/events?follow=true", server.url());
        let again = client
            .get(url)
            .header("x-api-key", KEY)
            .send()
            .await
            .unwrap();
        match again.status().as_u16() {
            200 => break,
            status => assert_eq!(status, 429),
        }
        // The server learns that a client went away when it writes to it.
        api.project(&json!({ "name": ulid::Ulid::generate().to_string() }))
            .await;
        assert!(
            Instant::now() < deadline,
            "a feed's place is never free again"
        );
    }
}

/// `oc` for the server, or for no server.
fn oc(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
    command
        .args(args)
        .env_clear()
        .env("HOME", server.root())
        .env("OPENCOMPUTER_API_URL", server.url())
        .env("OPENCOMPUTER_API_KEY", KEY)
        .stdin(Stdio::null());
    command
}

fn run(server: &Server, args: &[&str]) -> Output {
    oc(server, args).output().expect("oc starts")
}

fn said(server: &Server, args: &[&str]) -> String {
    let output = run(server, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn said_json(server: &Server, args: &[&str]) -> Value {
    let text = said(server, &[&["--json"], args].concat());
    serde_json::from_str(&text).expect("JSON")
}

/// Goal: the commands tell the past, and tell the same of a stopped server's folder.
#[actix_rt::test]
async fn the_commands_tell_the_past_with_and_without_a_server() {
    let mut server = Server::start();
    let api = server.api();
    let id = api.project(&json!({ "name": "api" })).await;
    let kept = api.store(&json!({ "name": "keys" })).await;
    let path = format!("/api/projects/{id}");
    let secret = json!({ "value": "canary-91bd" });
    api.put(&format!("{path}/secrets/TOKEN"), &secret)
        .await
        .ok(200);
    api.put(&path, &json!({ "cpuCount": 2 })).await.ok(200);
    let trail = events(&api, &format!("&entity={id}&after=0")).await;
    let first = trail[0]["position"].to_string();
    let event = trail[1]["id"].as_str().unwrap().to_owned();

    let dir = server.data().to_str().unwrap().to_owned();
    let refused = run(&server, &["audit", "log", "--data-dir", &dir]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && why.contains("in use by another server"),
        "{why}"
    );

    let commands: [&[&str]; 6] = [
        &[
            "audit", "log", "--entity", &id, "--since", "1h", "--actor", "api",
        ],
        &["audit", "show", &event],
        &["audit", "show", &first],
        &["audit", "replay", "--at", &first],
        &["audit", "replay", "--at", "0s", "--entity", &kept],
        &["audit", "diff", &first, "0s"],
    ];
    let log = said(&server, commands[0]);
    assert!(
        log.contains("project.secret_set.v1") && log.lines().count() == 4,
        "{log}"
    );
    let show = said(&server, commands[1]);
    assert!(
        show.contains("Type:") && show.contains("(sealed)"),
        "{show}"
    );
    let replay = said(&server, commands[3]);
    assert!(
        replay.starts_with("As of event ") && replay.contains("cpuCount=1"),
        "{replay}"
    );
    assert!(!replay.contains("keys "), "the store came later: {replay}");
    let diff = said(&server, commands[5]);
    assert!(
        diff.contains(&format!("added   secret store keys ({kept})")),
        "{diff}"
    );
    assert!(
        diff.contains("  ~ cpuCount: 1 → 2") && diff.contains("  + secrets.TOKEN: {"),
        "{diff}"
    );
    let same = said(&server, &["audit", "diff", &first, &first]);
    assert!(same.ends_with("Nothing changed.\n"), "{same}");

    let online: Vec<Value> = commands.map(|args| said_json(&server, args)).into();
    for (args, code) in [
        (["audit", "show", "999999"], 3),
        (["audit", "show", "x"], 3),
        (["audit", "replay", "--at=soon"], 1),
        (["audit", "diff", "soon"], 1),
        // It ends now, when no end is given.
        (["audit", "diff", "1"], 0),
    ] {
        assert_eq!(run(&server, &args).status.code(), Some(code), "{args:?}");
    }
    server.stop();
    for (args, expected) in commands.iter().zip(online) {
        let offline = said_json(&server, &[*args, &["--data-dir", &dir]].concat());
        assert_eq!(offline, expected, "{args:?}");
    }
    let nowhere = server.root().join("home").to_str().unwrap().to_owned();
    let refused = run(&server, &["audit", "log", "--data-dir", &nowhere]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        !server.root().join("home/log").exists(),
        "reading makes nothing"
    );
    server.restart();
    server.api().verified_positions().await;
}

/// Goal: `tail` shows the last events and then each new one, once, also across a restart of the
/// server.
#[actix_rt::test]
async fn tail_misses_nothing_across_a_restart() {
    let mut server = Server::start();
    // A fixed port, so that the command finds the server again.
    let port = server.url().rsplit(':').next().unwrap().to_owned();
    let listen = format!("127.0.0.1:{port}");
    server.stop();
    server = server.args(&["--listen", &listen]);
    server.restart();
    let mut names = Vec::new();
    let make = async |server: &Server, names: &mut Vec<String>| {
        let name = format!("p{}", names.len());
        server.api().project(&json!({ "name": name })).await;
        names.push(name);
    };
    for _ in 0..3 {
        make(&server, &mut names).await;
    }
    let args = [
        "--json",
        "audit",
        "tail",
        "--type",
        "project.created",
        "--limit",
        "2",
    ];
    let mut child = oc(&server, &args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("oc starts");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let (sender, receiver) = std::sync::mpsc::sync_channel(64);
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).expect("one object a line");
            let name = event["data"]["name"].as_str().expect("a name").to_owned();
            if sender.send(name).is_err() {
                return;
            }
        }
    });
    let expect = |names: &[String]| {
        for name in names {
            assert_eq!(receiver.recv_timeout(PATIENCE).as_ref(), Ok(name));
        }
    };
    expect(&names[1..]);
    let shown = names.len();
    make(&server, &mut names).await;
    make(&server, &mut names).await;
    expect(&names[shown..]);
    let shown = names.len();
    server.kill();
    server.restart();
    // Connections to the server before it are still in the client's pool.
    while server.api().send("GET", "/health", None).await.is_err() {}
    make(&server, &mut names).await;
    make(&server, &mut names).await;
    expect(&names[shown..]);
    child.kill().expect("killed");
    child.wait().expect("reaped");
    drop(receiver);
    reader.join().expect("every line is an event");
}
