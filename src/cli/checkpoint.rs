//! `oc checkpoint` and `oc patch`.

use std::collections::HashSet;
use std::io::Read;

use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use super::client::{body, decode};
use super::error::CliError;
use super::output::{age, printable, table};
use super::{Context, checkpoint_diff};

/// Longest script read from a file or standard input, in bytes.
const SCRIPT_BYTES_MAX: u64 = 1024 * 1024;
/// Most sandboxes that a tree shows.
const TREE_MAX: usize = 500;

/// `oc checkpoint <command>`
#[derive(Subcommand)]
pub enum Checkpoint {
    /// Keep a running sandbox's disk as it is now
    Create {
        /// Sandbox id
        sandbox_id: String,
        /// Name, unique among the sandbox's checkpoints
        #[arg(long)]
        name: String,
        /// full or disk_only
        #[arg(long, default_value = "full")]
        kind: String,
        #[arg(long = "promote-to-full", hide = true)]
        promote_to_full: bool,
        /// none, or delete_oldest to make room
        #[arg(long = "retention-policy", value_name = "MODE")]
        retention_policy: Option<String>,
        /// How many to keep with delete_oldest (0: as many as there may be)
        #[arg(long = "retention-max-count", default_value_t = 0)]
        retention_max_count: i64,
    },
    /// List a sandbox's checkpoints
    #[command(visible_alias = "ls")]
    List {
        /// Sandbox id
        sandbox_id: String,
    },
    /// Put a sandbox back to one of its checkpoints
    Restore {
        /// Sandbox id
        sandbox_id: String,
        /// Checkpoint id
        checkpoint_id: String,
    },
    /// Make a new sandbox from a checkpoint
    #[command(visible_alias = "fork")]
    Spawn {
        /// Checkpoint id
        checkpoint_id: String,
        /// Idle timeout in seconds (0: the server's default)
        #[arg(long, default_value_t = 0)]
        timeout: i64,
    },
    /// Delete a checkpoint; sandboxes made from it stay
    Delete {
        /// Sandbox id
        sandbox_id: String,
        /// Checkpoint id
        checkpoint_id: String,
    },
    /// Let other organizations fork a checkpoint
    Publish {
        /// Checkpoint id
        checkpoint_id: String,
    },
    /// Let nobody else fork it any more
    Unpublish {
        /// Checkpoint id
        checkpoint_id: String,
    },
    /// List the files that differ between two checkpoints
    ///
    /// A line each: A added, D removed, M changed (and in what), ? not compared. Times are not looked
    /// at. With --json each line is a JSON object, as the server sends it, a `summary` the last.
    Diff {
        /// Checkpoint id
        from: String,
        /// Checkpoint id
        to: String,
    },
    /// Draw the branches of a sandbox: its checkpoints and what was made from them
    Tree {
        /// Sandbox id
        sandbox_id: String,
    },
}

/// `oc patch <command>`
#[derive(Subcommand)]
pub enum Patch {
    /// Add a script that runs as root in every sandbox made from a checkpoint
    Create {
        /// Checkpoint id
        checkpoint_id: String,
        /// File with the script, or - for standard input
        #[arg(long)]
        script: String,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
    },
    /// List a checkpoint's patches
    #[command(visible_alias = "ls")]
    List {
        /// Checkpoint id
        checkpoint_id: String,
    },
    /// Take a patch away; where it ran, it stays
    Delete {
        /// Checkpoint id
        checkpoint_id: String,
        /// Patch id
        patch_id: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    id: String,
    name: String,
    status: String,
    size_bytes: u64,
    is_public: bool,
    created_at: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spawned {
    #[serde(rename = "sandboxID")]
    id: String,
    status: String,
    #[serde(rename = "connectURL")]
    connect_url: Option<String>,
    patch_error: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PatchInfo {
    id: String,
    sequence: u32,
    description: String,
    strategy: String,
    created_at: Option<String>,
}

#[derive(Deserialize, Default)]
struct Added {
    patch: PatchInfo,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Lineage {
    checkpoints: Vec<Info>,
    forks: Vec<Fork>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Fork {
    sandbox_id: String,
    checkpoint_id: String,
    status: Option<String>,
}

impl Checkpoint {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let (api, output) = (&context.api, &context.output);
        match self {
            Self::Create {
                sandbox_id,
                name,
                kind,
                promote_to_full,
                retention_policy,
                retention_max_count,
            } => {
                let mut fields = json!({ "name": name, "kind": kind });
                if promote_to_full {
                    fields["promoteToFull"] = json!(true);
                }
                if let Some(mode) = retention_policy {
                    fields["retentionPolicy"] = json!({ "mode": mode });
                    if retention_max_count != 0 {
                        fields["retentionPolicy"]["maxCount"] = json!(retention_max_count);
                    }
                }
                let path = ["sandboxes", &sandbox_id, "checkpoints"];
                let reply = api.send(Method::POST, &path, Some(body(&fields)?)).await?;
                let info: Info = decode(reply.clone())?;
                output.reply(&reply, || {
                    let (id, status) = (&info.id, &info.status);
                    format!(
                        "Checkpoint created: {id} (status: {status})\nName: {}",
                        info.name
                    )
                })
            }
            Self::List { sandbox_id } => {
                let path = ["sandboxes", &sandbox_id, "checkpoints"];
                let reply = api.get(&path).await?;
                let all: Vec<Info> = decode(reply.clone())?;
                output.reply(&reply, || listed(all))
            }
            Self::Restore {
                sandbox_id,
                checkpoint_id,
            } => {
                let path = [
                    "sandboxes",
                    &sandbox_id,
                    "checkpoints",
                    &checkpoint_id,
                    "restore",
                ];
                let reply = api.send(Method::POST, &path, None).await?;
                output.reply(&reply, || {
                    format!("Sandbox {sandbox_id} restored to checkpoint {checkpoint_id}")
                })
            }
            Self::Spawn {
                checkpoint_id,
                timeout,
            } => {
                let fields = match timeout {
                    0 => json!({}),
                    seconds => json!({ "timeout": seconds }),
                };
                let path = ["sandboxes", "from-checkpoint", &checkpoint_id];
                let reply = api.send(Method::POST, &path, Some(body(&fields)?)).await?;
                let made: Spawned = decode(reply.clone())?;
                output.reply(&reply, || {
                    let (id, status) = (&made.id, &made.status);
                    let mut text =
                        format!("Created sandbox {id} from checkpoint (status: {status})");
                    if let Some(url) = made.connect_url {
                        text += &format!("\nConnect URL: {url}");
                    }
                    if let Some(error) = made.patch_error {
                        text += &format!("\nPatches: {}", printable(&error));
                    }
                    text
                })
            }
            Self::Delete {
                sandbox_id,
                checkpoint_id,
            } => {
                let path = ["sandboxes", &sandbox_id, "checkpoints", &checkpoint_id];
                match api.delete(&path, &[]).await {
                    // Gone is what was asked for.
                    Err(CliError::Refused { status: 404, .. }) | Ok(()) => {
                        output.line(&format!("Checkpoint {checkpoint_id} deleted."))
                    }
                    Err(error) => Err(error),
                }
            }
            Self::Publish { checkpoint_id } => publish(context, &checkpoint_id, "publish").await,
            Self::Unpublish { checkpoint_id } => {
                publish(context, &checkpoint_id, "unpublish").await
            }
            Self::Diff { from, to } => checkpoint_diff::run(context, &from, &to).await,
            Self::Tree { sandbox_id } => tree(context, &sandbox_id).await,
        }
    }
}

fn listed(all: Vec<Info>) -> String {
    if all.is_empty() {
        return "No checkpoints found.".to_owned();
    }
    let now = OffsetDateTime::now_utc();
    let row = |info: Info| {
        let size = match info.size_bytes {
            0 => "-".to_owned(),
            bytes => format!("{:.1} MB", bytes as f64 / 1_048_576.0),
        };
        let created = format!("{} ago", age(info.created_at.as_deref(), now));
        [info.id, printable(&info.name), info.status, size, created]
    };
    let header = ["ID", "NAME", "STATUS", "SIZE", "CREATED"];
    table(header, all.into_iter().map(row).collect())
}

async fn publish(context: &Context, id: &str, how: &str) -> Result<(), CliError> {
    let path = ["sandboxes", "checkpoints", id, how];
    let reply = context.api.send(Method::POST, &path, None).await?;
    let info: Info = decode(reply.clone())?;
    context.output.reply(&reply, || {
        format!("Checkpoint {id} is_public={}", info.is_public)
    })
}

/// A sandbox, its checkpoints below it, and the sandboxes made from each below that.
async fn tree(context: &Context, root: &str) -> Result<(), CliError> {
    // Depth first, with an own stack: a line of forks may be long.
    let mut open = vec![(root.to_owned(), String::new(), "running".to_owned())];
    let (mut lines, mut seen) = (Vec::new(), HashSet::new());
    while let Some((id, indent, status)) = open.pop() {
        if lines.len() >= TREE_MAX || !seen.insert(id.clone()) {
            continue;
        }
        let reply = context.api.get(&["sandboxes", &id, "lineage"]).await?;
        let lineage: Lineage = decode(reply)?;
        match indent.is_empty() {
            true => lines.push(id.clone()),
            false => lines.push(format!("{indent}└─ {id} ({status})")),
        }
        let inner = format!("{indent}   ");
        // Oldest first, and what is pushed last is shown first.
        let mut below = Vec::new();
        for checkpoint in lineage.checkpoints.iter().rev() {
            let (name, id) = (printable(&checkpoint.name), &checkpoint.id);
            lines.push(format!("{inner}● {name} [{}] {id}", checkpoint.status));
            let own = lineage
                .forks
                .iter()
                .filter(|fork| fork.checkpoint_id == *id);
            below.extend(own);
        }
        let known = |fork: &&Fork| {
            let mut all = lineage.checkpoints.iter();
            all.any(|checkpoint| checkpoint.id == fork.checkpoint_id)
        };
        below.extend(lineage.forks.iter().filter(|fork| !known(fork)));
        for fork in below.into_iter().rev() {
            let status = fork.status.clone().unwrap_or_default();
            open.push((fork.sandbox_id.clone(), inner.clone(), status));
        }
    }
    context
        .output
        .reply(&json!({ "lines": lines }), || lines.join("\n"))
}

impl Patch {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let (api, output) = (&context.api, &context.output);
        match self {
            Self::Create {
                checkpoint_id,
                script,
                description,
            } => {
                let fields = json!({ "script": read(&script)?, "description": description });
                let path = ["sandboxes", "checkpoints", &checkpoint_id, "patches"];
                let reply = api.send(Method::POST, &path, Some(body(&fields)?)).await?;
                let Added { patch } = decode(reply.clone())?;
                output.reply(&reply, || {
                    format!("Patch created: {} (sequence: {})", patch.id, patch.sequence)
                })
            }
            Self::List { checkpoint_id } => {
                let path = ["sandboxes", "checkpoints", &checkpoint_id, "patches"];
                let reply = api.get(&path).await?;
                let all: Vec<PatchInfo> = decode(reply.clone())?;
                output.reply(&reply, || {
                    if all.is_empty() {
                        return "No patches found.".to_owned();
                    }
                    let now = OffsetDateTime::now_utc();
                    let row = |patch: PatchInfo| {
                        let created = format!("{} ago", age(patch.created_at.as_deref(), now));
                        [
                            patch.id,
                            patch.sequence.to_string(),
                            printable(&patch.description),
                            patch.strategy,
                            created,
                        ]
                    };
                    let header = ["ID", "SEQ", "DESCRIPTION", "STRATEGY", "CREATED"];
                    table(header, all.into_iter().map(row).collect())
                })
            }
            Self::Delete {
                checkpoint_id,
                patch_id,
            } => {
                let path = [
                    "sandboxes",
                    "checkpoints",
                    &checkpoint_id,
                    "patches",
                    &patch_id,
                ];
                api.delete(&path, &[]).await?;
                output.line(&format!("Patch {patch_id} deleted."))
            }
        }
    }
}

/// The script in a file, or on standard input.
fn read(file: &str) -> Result<String, CliError> {
    let failed = |error: std::io::Error| CliError::Usage(format!("cannot read {file}: {error}"));
    let mut text = String::new();
    let source: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(std::fs::File::open(path).map_err(failed)?),
    };
    let mut bounded = source.take(SCRIPT_BYTES_MAX);
    bounded.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
