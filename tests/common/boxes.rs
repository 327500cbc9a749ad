//! A real sandbox for a test, where this machine can have one.

use serde_json::{Value, json};

use super::{Api, Reply};

/// A sandbox that runs.
pub struct Sandbox {
    /// Its owner's API.
    pub api: Api,
    /// Its id.
    pub id: String,
    /// As it was answered when it was made.
    pub object: Value,
}

impl Sandbox {
    /// Makes one, or says why this machine has none.
    pub async fn make(api: &Api, body: &Value) -> Option<Self> {
        let reply = api.post("/api/sandboxes", body).await;
        if reply.status == 500 && !rustix::process::geteuid().is_root() {
            println!("skipped: no sandboxes without root here: {}", reply.text);
            return None;
        }
        let object = reply.ok(201).json();
        Some(Self {
            api: api.clone(),
            id: object["sandboxID"].as_str().expect("an id").to_owned(),
            object,
        })
    }

    /// The path of one of its routes, `""` for its own.
    pub fn path(&self, below: &str) -> String {
        format!("/api/sandboxes/{}{below}", self.id)
    }

    /// The path of a file's route, with the file in its query.
    pub fn file(&self, path: &str) -> String {
        self.path(&format!("/files?path={}", escaped(path)))
    }

    /// What a shell script did: `exitCode`, `stdout`, `stderr`.
    pub async fn outcome(&self, script: &str) -> Value {
        let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 50 });
        let reply = self.api.post(&self.path("/exec/run"), &body).await;
        reply.ok(200).json()
    }

    /// What a shell script that must succeed printed, without blanks at its end.
    pub async fn run(&self, script: &str) -> String {
        let outcome = self.outcome(script).await;
        assert_eq!(outcome["exitCode"], 0, "{script}: {outcome}");
        let printed = outcome["stdout"].as_str().expect("output");
        printed.trim_end().to_owned()
    }

    /// Writes a file.
    pub async fn write(&self, path: &str, content: impl Into<Vec<u8>>) -> Reply {
        let content = Some(content.into());
        self.api.call("PUT", &self.file(path), content).await
    }

    /// Reads a file.
    pub async fn read(&self, path: &str) -> Reply {
        self.api.get(&self.file(path)).await
    }

    /// Lists a folder.
    pub async fn list(&self, path: &str) -> Reply {
        let path = format!("/files/list?path={}", escaped(path));
        self.api.get(&self.path(&path)).await
    }
}

/// A text as it stands in a query.
pub fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
