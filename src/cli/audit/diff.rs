//! `oc audit diff`: what changed between two points of the log.
//!
//! Two states are compared object by object and field by field, without knowing what the fields
//! mean: lists of objects are looked at by the objects' ids or names, so that an order says
//! nothing; other lists are values as they stand.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::{Value, json};

use super::replay::{LISTS, point};
use super::source::{Folder, moment};
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::cli::output::printable;

/// `oc audit diff`
#[derive(Args)]
pub struct Diff {
    /// The earlier point: a position, an RFC 3339 time, or how long ago (90s, 15m, 2h, 3d)
    #[arg(value_name = "A", value_parser = moment)]
    before: String,
    /// The later point
    #[arg(value_name = "B", value_parser = moment, default_value = "now")]
    after: String,
    /// Only this project, store, sandbox or organization (its id or stream)
    #[arg(long)]
    entity: Option<String>,
    #[command(flatten)]
    folder: Folder,
}

impl Diff {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let source = self.folder.open(context)?;
        let states = async {
            let entity = self.entity.as_deref();
            let before = source.state(&self.before, entity).await?;
            Ok::<_, CliError>((before, source.state(&self.after, entity).await?))
        };
        let states = states.await;
        source.close().await;
        let (before, after) = states?;
        let changes = compare(&before, &after);
        context.output.reply(&changes, || text(&changes))
    }
}

/// What is different, as JSON.
fn compare(before: &Value, after: &Value) -> Value {
    let (mut added, mut removed, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for (list, kind) in LISTS {
        let (old, new) = (by_name(&before[list]), by_name(&after[list]));
        let head =
            |object: &Value| json!({ "kind": kind, "id": object["id"], "name": object["name"] });
        for (id, object) in &new {
            let Some(was) = old.get(id) else {
                let mut entry = head(object);
                entry["object"] = (*object).clone();
                added.push(entry);
                continue;
            };
            let fields = differences(was, object);
            if !fields.is_empty() {
                let mut entry = head(object);
                entry["fields"] = json!(fields);
                changed.push(entry);
            }
        }
        for (_, object) in old.iter().filter(|(id, _)| !new.contains_key(*id)) {
            let mut entry = head(object);
            entry["object"] = (*object).clone();
            removed.push(entry);
        }
    }
    let end = |state: &Value| json!({ "position": state["position"], "time": state["time"] });
    json!({
        "from": end(before),
        "to": end(after),
        "added": added,
        "removed": removed,
        "changed": changed,
    })
}

/// The objects of a list by what names them.
fn by_name(list: &Value) -> BTreeMap<String, &Value> {
    let objects = list.as_array().into_iter().flatten();
    objects
        .filter_map(|object| Some((name_of(object)?, object)))
        .collect()
}

fn name_of(object: &Value) -> Option<String> {
    // A secret keeps its name and its id; the name is what people know it by.
    let by_name = object.get("allowedHosts").and(object.get("name"));
    let name = by_name.or(object.get("id")).or(object.get("name"))?;
    name.as_str().map(str::to_owned)
}

/// Fields that are not the same: path, before, after; absent is null.
fn differences(before: &Value, after: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    descend("", Some(before), Some(after), &mut found);
    found
}

fn descend(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Value>) {
    if before == after {
        return;
    }
    let (Some(old), Some(new)) = (before.and_then(parts), after.and_then(parts)) else {
        found.push(json!({ "path": path, "before": before, "after": after }));
        return;
    };
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let below = match path.is_empty() {
            true => name.clone(),
            false => format!("{path}.{name}"),
        };
        let (was, is) = (old.get(name).copied(), new.get(name).copied());
        descend(&below, was, is, found);
    }
}

/// The named parts of an object, or of a list whose items have names; `None` for what is a value.
fn parts(value: &Value) -> Option<BTreeMap<String, &Value>> {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter();
            Some(fields.map(|(name, part)| (name.clone(), part)).collect())
        }
        Value::Array(items) if items.iter().all(|item| name_of(item).is_some()) => {
            Some(by_name(value))
        }
        _ => None,
    }
}

fn text(changes: &Value) -> String {
    let mut lines = vec![
        format!("- {}", point(&changes["from"])),
        format!("+ {}", point(&changes["to"])),
    ];
    let title = |entry: &Value| {
        let word = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let name = match word("name") {
            name if name.is_empty() => String::new(),
            name => format!(" {name}"),
        };
        printable(&format!("{}{name} ({})", word("kind"), word("id")))
    };
    let list = |field: &str| changes[field].as_array().into_iter().flatten();
    for entry in list("removed") {
        lines.push(format!("removed {}", title(entry)));
    }
    for entry in list("added") {
        lines.push(format!("added   {}", title(entry)));
    }
    for entry in list("changed") {
        lines.push(format!("changed {}", title(entry)));
        for field in entry["fields"].as_array().into_iter().flatten() {
            let path = field["path"].as_str().unwrap_or_default();
            let line = match (&field["before"], &field["after"]) {
                (Value::Null, after) => format!("  + {path}: {after}"),
                (before, Value::Null) => format!("  - {path}: {before}"),
                (before, after) => format!("  ~ {path}: {before} → {after}"),
            };
            lines.push(printable(&line));
        }
    }
    if lines.len() == 2 {
        lines.push("Nothing changed.".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(id: &str, name: &str, cpus: u64, secrets: Value) -> Value {
        json!({ "id": id, "name": name, "cpuCount": cpus, "egressAllowlist": ["b", "a"],
                "secrets": secrets })
    }

    fn secret(name: &str, version: u64) -> Value {
        json!({ "id": format!("s-{name}"), "name": name, "allowedHosts": [], "version": version })
    }

    fn state(position: u64, projects: Value) -> Value {
        json!({ "position": position, "time": "2026-01-01T00:00:00Z", "organizations": [],
                "projects": projects, "secretStores": [], "sandboxes": [] })
    }

    /// Goal: what came, went and changed is named, by field; an order of objects is no change.
    #[test]
    fn every_difference_is_named_and_nothing_else() {
        let before = state(
            3,
            json!([
                project("p-1", "gone", 1, json!([])),
                project("p-2", "old", 1, json!([secret("A", 1), secret("B", 1)])),
                project("p-3", "same", 1, json!([secret("A", 1), secret("B", 1)])),
            ]),
        );
        let after = state(
            9,
            json!([
                project("p-4", "new", 1, json!([])),
                project("p-3", "same", 1, json!([secret("B", 1), secret("A", 1)])),
                project(
                    "p-2",
                    "ren\u{1b}amed",
                    2,
                    json!([secret("A", 2), secret("C", 1)])
                ),
            ]),
        );
        let changes = compare(&before, &after);
        insta::assert_snapshot!("text", text(&changes));
        insta::assert_json_snapshot!("json", changes);
    }

    #[test]
    fn a_state_is_like_itself() {
        let state = state(3, json!([project("p-1", "x", 1, json!([secret("A", 1)]))]));
        let changes = compare(&state, &state);
        for list in ["added", "removed", "changed"] {
            assert_eq!(changes[list], json!([]));
        }
        assert!(text(&changes).ends_with("\nNothing changed."));
    }
}
