//! `oc snapshot`: named images that sandboxes start from.

use std::io::Read;

use bytes::Bytes;
use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::Context;
use super::build_log;
use super::client::{body, decode};
use super::error::CliError;
use super::output::{age, labelled, table};

/// Largest manifest read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// `oc snapshot <command>`
#[derive(Subcommand)]
pub enum Snapshot {
    /// Build a snapshot from an image manifest, and show its log
    Create {
        /// Name: letters, digits, `.`, `_`, `-`
        name: String,
        /// File with the manifest as JSON (what the libraries' `Image` prints), or - for standard input
        #[arg(long, value_name = "FILE")]
        image: String,
        /// Don't wait for the build
        #[arg(long)]
        detach: bool,
    },
    /// List snapshots
    #[command(visible_alias = "ls")]
    List,
    /// Show one snapshot
    Get {
        /// Name
        name: String,
    },
    /// Delete a snapshot; sandboxes made from it stay
    Delete {
        /// Name
        name: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    id: String,
    name: String,
    status: String,
    content_hash: String,
    checkpoint_id: String,
    error_msg: Option<String>,
    created_at: Option<String>,
    last_used_at: Option<String>,
}

impl Snapshot {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let (api, output) = (&context.api, &context.output);
        match self {
            Self::Create {
                name,
                image,
                detach,
            } => {
                let (manifest, steps) = manifest(&image)?;
                let fields = body(&json!({ "name": name, "image": manifest }))?;
                let reply = match detach {
                    true => {
                        let query = [("async", "1".to_owned())];
                        api.call(Method::POST, &["snapshots"], &query, Some(fields))
                            .await?
                    }
                    false => build_log::follow(context, &["snapshots"], fields, steps).await?,
                };
                let info: Info = decode(reply.clone())?;
                output.reply(&reply, || {
                    format!("Snapshot {} created (status: {})", info.name, info.status)
                })
            }
            Self::List => {
                let reply = api.get(&["snapshots"]).await?;
                let all: Vec<Info> = decode(reply.clone())?;
                output.reply(&reply, || listed(all))
            }
            Self::Get { name } => {
                let reply = api.get(&["snapshots", &name]).await?;
                let info: Info = decode(reply.clone())?;
                output.reply(&reply, || shown(info))
            }
            Self::Delete { name } => match api.delete(&["snapshots", &name], &[]).await {
                // Gone is what was asked for.
                Err(CliError::Refused { status: 404, .. }) | Ok(()) => {
                    output.line(&format!("Snapshot {name} deleted."))
                }
                Err(error) => Err(error),
            },
        }
    }
}

fn listed(all: Vec<Info>) -> String {
    if all.is_empty() {
        return "No snapshots found.".to_owned();
    }
    let now = OffsetDateTime::now_utc();
    let row = |info: Info| {
        let ago = |time: &Option<String>| format!("{} ago", age(time.as_deref(), now));
        let checkpoint = match info.checkpoint_id.as_str() {
            "" => "-".to_owned(),
            id => id.to_owned(),
        };
        let (used, created) = (ago(&info.last_used_at), ago(&info.created_at));
        [info.name, info.status, checkpoint, used, created]
    };
    let header = ["NAME", "STATUS", "CHECKPOINT", "LAST USED", "CREATED"];
    table(header, all.into_iter().map(row).collect())
}

fn shown(info: Info) -> String {
    let or_dash = |text: Option<String>| {
        text.filter(|text| !text.is_empty())
            .unwrap_or_else(|| "-".to_owned())
    };
    let mut lines = vec![
        ("Name", info.name),
        ("Status", info.status),
        ("ID", info.id),
        ("Checkpoint", or_dash(Some(info.checkpoint_id))),
        ("Content", or_dash(Some(info.content_hash))),
        ("Created", or_dash(info.created_at)),
        ("Last used", or_dash(info.last_used_at)),
    ];
    if let Some(error) = info.error_msg {
        lines.push(("Error", error));
    }
    labelled(&lines)
}

/// A manifest, and how many steps it has.
pub(super) fn manifest(file: &str) -> Result<(Value, Option<usize>), CliError> {
    let failed = |error: std::io::Error| CliError::Usage(format!("cannot read {file}: {error}"));
    let mut text = Vec::new();
    let source: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(std::fs::File::open(path).map_err(failed)?),
    };
    source
        .take(MANIFEST_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let text = Bytes::from(text);
    let manifest: Value = serde_json::from_slice(&text)
        .map_err(|error| CliError::Usage(format!("{file} is no JSON: {error}")))?;
    let steps = manifest["steps"].as_array().map(Vec::len);
    Ok((manifest, steps))
}
