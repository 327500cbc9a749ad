//! `oc audit replay`: the objects as they were.

use clap::Args;
use serde_json::Value;

use super::source::{Folder, moment};
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::cli::output::table;

/// `oc audit replay`
#[derive(Args)]
pub struct Replay {
    /// When: a position of the log, an RFC 3339 time, or how long ago (90s, 15m, 2h, 3d)
    #[arg(long, value_name = "POSITION|TIME", value_parser = moment)]
    at: String,
    /// Only this project, store, sandbox or organization (its id or stream)
    #[arg(long)]
    entity: Option<String>,
    #[command(flatten)]
    folder: Folder,
}

impl Replay {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let source = self.folder.open(context)?;
        let state = source.state(&self.at, self.entity.as_deref()).await;
        source.close().await;
        let state = state?;
        context.output.reply(&state, || text(&state))
    }
}

/// Lists of a state: their field, and what one of their objects is called.
pub(super) const LISTS: [(&str, &str); 6] = [
    ("organizations", "organization"),
    ("projects", "project"),
    ("secretStores", "secret store"),
    ("sandboxes", "sandbox"),
    ("checkpoints", "checkpoint"),
    ("images", "image"),
];

/// A table of what was there, under the point it was there at.
fn text(state: &Value) -> String {
    let mut rows = Vec::new();
    for (field, kind) in LISTS {
        let objects = state[field].as_array().into_iter().flatten();
        rows.extend(objects.map(|object| {
            [
                kind.to_owned(),
                word(object, "id"),
                word(object, "name"),
                details(object),
            ]
        }));
    }
    let mut text = point(state);
    match rows.is_empty() {
        true => text.push_str("\nNothing was there."),
        false => {
            text.push('\n');
            text.push_str(&table(["KIND", "ID", "NAME", "DETAILS"], rows));
        }
    }
    if let Some(skipped) = state["skipped"].as_u64().filter(|skipped| *skipped > 0) {
        text.push_str(&format!(
            "\n{skipped} events of unknown types are not in it; was the log written by a newer version?"
        ));
    }
    text
}

/// Which point of the log a state is of.
pub(super) fn point(state: &Value) -> String {
    match state["time"].as_str() {
        Some(time) => format!("As of event {}, {time}", state["position"]),
        None => "Before the first event".to_owned(),
    }
}

fn word(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or("-").to_owned()
}

/// What people look for first.
fn details(object: &Value) -> String {
    let mut words = Vec::new();
    for field in ["phase", "template", "cpuCount", "memoryMB"] {
        match &object[field] {
            Value::Null => {}
            Value::String(text) => words.push(format!("{field}={text}")),
            value => words.push(format!("{field}={value}")),
        }
    }
    for (field, name) in [
        ("egressAllowlist", ""),
        ("secrets", "name"),
        ("keys", "name"),
    ] {
        let items = object[field].as_array().into_iter().flatten();
        let items: Vec<&str> = items
            .filter_map(|item| if name.is_empty() { item } else { &item[name] }.as_str())
            .collect();
        if !items.is_empty() {
            words.push(format!("{field}={}", items.join(",")));
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_is_a_table_with_its_point_above() {
        let state = json!({
            "position": 7, "time": "2026-01-01T00:00:00Z", "skipped": 1,
            "organizations": [{"id": "o-1", "name": "team", "keys": [{"id": "k", "name": "first"}]}],
            "projects": [{"id": "p-1", "name": "api", "template": "base", "cpuCount": 2,
                "memoryMB": 1024, "egressAllowlist": ["a.test"], "secrets": [{"name": "KEY"}]}],
            "secretStores": [],
            "sandboxes": [{"id": "sb-1", "phase": "running", "template": "base", "secrets": []}],
        });
        insta::assert_snapshot!(text(&state));
        assert_eq!(
            text(&json!({"position": 0, "time": null})),
            "Before the first event\nNothing was there."
        );
    }
}
