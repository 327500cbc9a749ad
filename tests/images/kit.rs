//! What the tests share: manifests, streams of events, what is on the disk.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Api, Sandbox, Server};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A manifest of these steps.
pub fn image(steps: &[Value]) -> Value {
    json!({ "base": "base", "steps": steps })
}

/// A step as the clients send it.
pub fn step(kind: &str, args: Value) -> Value {
    json!({ "type": kind, "args": args })
}

/// A step of one shell command.
pub fn run(command: &str) -> Value {
    step("run", json!({ "commands": [command] }))
}

/// What a stream of events held.
#[derive(Debug)]
pub struct Told {
    /// Every `build_log`.
    pub log: Vec<Value>,
    /// The last event: `result` or `error`, and its data.
    pub end: (String, Value),
}

impl Told {
    /// Everything the log said of one type, joined.
    pub fn said(&self, kind: &str) -> String {
        let lines = self.log.iter().filter(|line| line["type"] == kind);
        let texts: Vec<_> = lines.filter_map(|line| line["message"].as_str()).collect();
        texts.join("\n")
    }

    /// Steps that were not carried out again.
    pub fn cached(&self) -> Vec<u64> {
        let hits = self.log.iter().filter(|line| line["type"] == "cache_hit");
        hits.filter_map(|line| line["step"].as_u64()).collect()
    }

    /// The result.
    #[track_caller]
    pub fn result(self) -> Value {
        assert_eq!(self.end.0, "result", "{:?}", self.end);
        self.end.1
    }
}

/// Posts and reads the events, each in exactly the bytes that the published clients understand.
pub async fn stream(api: &Api, path: &str, body: &Value) -> Told {
    let api = api.with_header("accept", "text/event-stream");
    let reply = api.post(path, body).await.ok(200);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    let mut events: Vec<(String, Value)> = Vec::new();
    for block in reply.text.split_terminator("\n\n") {
        if block == ": keepalive" {
            continue;
        }
        let (event, data) = block.split_once('\n').expect("two lines");
        let event = event.strip_prefix("event: ").expect("an event");
        let data = data.strip_prefix("data: ").expect("its data, on one line");
        events.push((event.to_owned(), serde_json::from_str(data).expect("JSON")));
    }
    let end = events.pop().expect("an end");
    let log = events.into_iter().map(|(event, data)| {
        assert_eq!(event, "build_log");
        data
    });
    Told {
        log: log.collect(),
        end,
    }
}

/// A sandbox made from an image, with what was told meanwhile.
pub async fn create(api: &Api, body: &Value) -> (Sandbox, Told) {
    let mut told = stream(api, "/api/sandboxes", body).await;
    let (event, object) = std::mem::take(&mut told.end);
    assert_eq!(event, "result", "{object} after {:?}", told.log);
    let sandbox = Sandbox {
        api: api.clone(),
        id: object["sandboxID"].as_str().expect("an id").to_owned(),
        object,
    };
    (sandbox, told)
}

/// Whether this machine has sandboxes; says so when it has not.
pub async fn has_sandboxes(api: &Api) -> bool {
    match Sandbox::make(api, &json!({})).await {
        Some(one) => {
            api.delete(&one.path("")).await.ok(204);
            true
        }
        None => false,
    }
}

/// Copies of disks that there are.
pub fn copies(server: &Server) -> usize {
    entries(&server.data().join("sandboxes/.checkpoints"))
}

/// Folders of sandboxes that there are.
pub fn boxes(server: &Server) -> usize {
    let folder = std::fs::read_dir(server.data().join("sandboxes"));
    let names = folder.into_iter().flatten().flatten();
    names
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("sb-"))
        .count()
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| entries.flatten().count())
}

/// Waits until something is so.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
