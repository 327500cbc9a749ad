//! `oc sandbox`, `oc create`, `oc ls`.
//!
//! Invariant: create sends a field only when its flag was given, so that a project's defaults
//! are inherited.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Context;
use super::client::{body, decode};
use super::error::CliError;
use super::output::{age, labelled, printable, table};
use super::sandbox_life::Life;
use super::slice::Pairs;
use super::{build_log, snapshot, stats};

/// `oc sandbox <command>`
#[derive(Subcommand)]
pub enum Sandbox {
    /// Create a sandbox
    Create(Box<Create>),
    /// List sandboxes
    #[command(visible_alias = "ls")]
    List,
    /// Show one sandbox
    Get {
        /// Sandbox id
        sandbox_id: String,
    },
    /// Stop a sandbox for good and remove its disk
    #[command(visible_alias = "delete")]
    Kill {
        /// Sandbox id
        sandbox_id: String,
        /// Delete the attached secret store too
        #[arg(long = "delete-secret-store")]
        delete_secret_store: bool,
    },
    /// Show what a sandbox uses: processor time, memory, processes, disk, network
    Stats {
        /// Sandbox id
        sandbox_id: String,
        /// Show it again and again until interrupted, every so many seconds [default: 2]
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
              value_parser = clap::value_parser!(u64).range(1..=3600))]
        watch: Option<u64>,
    },
    #[command(flatten)]
    Life(Life),
    /// Show which hosts a sandbox, and each of its secrets, may reach
    #[command(name = "allowed-hosts")]
    AllowedHosts {
        /// Sandbox id
        sandbox_id: String,
    },
}

/// `oc sandbox create`
#[derive(Args)]
pub struct Create {
    /// Project (name or id) to inherit defaults and secrets from
    #[arg(long)]
    project: Option<String>,
    /// Template to start from
    #[arg(long)]
    template: Option<String>,
    /// Snapshot (name) to start from
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    snapshot: Option<String>,
    /// Image to start from: a file with its manifest as JSON, or - for standard input. It is built
    /// first, unless that was done before
    #[arg(long, value_name = "FILE")]
    image: Option<String>,
    /// Idle timeout in seconds (0: never)
    #[arg(long)]
    timeout: Option<i64>,
    /// Number of vCPUs
    #[arg(long)]
    cpu: Option<i64>,
    /// Memory in MB
    #[arg(long)]
    memory: Option<i64>,
    /// Plain environment variable (repeatable, comma-separated); not sealed
    #[arg(long, value_name = "K=V", value_parser = Pairs::parse)]
    env: Vec<Pairs>,
    /// Free label (repeatable, comma-separated)
    #[arg(long, value_name = "K=V", value_parser = Pairs::parse)]
    metadata: Vec<Pairs>,
    /// Secret store (name) whose secrets are sealed into the sandbox
    #[arg(long = "secret-store", value_name = "NAME")]
    secret_store: Option<String>,
    /// Ask for a token on preview URLs
    #[arg(long = "preview-auth")]
    preview_auth: bool,
    /// The token to ask for (at least 16 characters; implies --preview-auth)
    #[arg(long = "preview-auth-token", value_name = "TOKEN")]
    preview_auth_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(rename = "templateID", skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_count: Option<i64>,
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    memory_mb: Option<i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_store: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview_auth: Option<PreviewAuth>,
}

#[derive(Serialize)]
struct PreviewAuth {
    scheme: &'static str,
    token: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    #[serde(rename = "sandboxID")]
    id: String,
    #[serde(rename = "templateID")]
    template: String,
    status: String,
    cpu_count: i64,
    #[serde(rename = "memoryMB")]
    memory_mb: i64,
    started_at: Option<String>,
    end_at: Option<String>,
    preview_auth_token: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Hosts {
    secret_store: Option<String>,
    base_secret_store: Option<String>,
    project: Option<String>,
    egress_allowlist: Vec<String>,
    per_secret_allowed_hosts: BTreeMap<String, Vec<String>>,
}

impl Sandbox {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List => list(context).await,
            Self::Get { sandbox_id } => get(context, &sandbox_id).await,
            Self::Kill {
                sandbox_id,
                delete_secret_store,
            } => {
                let flag = [("deleteSecretStore", "true".to_owned())];
                let query = if delete_secret_store { &flag[..] } else { &[] };
                context
                    .api
                    .delete(&["sandboxes", &sandbox_id], query)
                    .await?;
                context
                    .output
                    .line(&format!("Sandbox {sandbox_id} killed."))
            }
            Self::Stats { sandbox_id, watch } => stats::run(context, &sandbox_id, watch).await,
            Self::Life(life) => life.run(context).await,
            Self::AllowedHosts { sandbox_id } => allowed_hosts(context, &sandbox_id).await,
        }
    }
}

impl From<Create> for Fields {
    fn from(create: Create) -> Self {
        let token = create.preview_auth_token;
        let token = token.or_else(|| create.preview_auth.then(|| "auto".to_owned()));
        Self {
            template: create.template,
            timeout: create.timeout,
            cpu_count: create.cpu,
            memory_mb: create.memory,
            envs: Pairs::merge(create.env),
            metadata: Pairs::merge(create.metadata),
            project: create.project,
            secret_store: create.secret_store,
            snapshot: create.snapshot,
            image: None,
            preview_auth: token.map(|token| PreviewAuth {
                scheme: "bearer",
                token,
            }),
        }
    }
}

impl Create {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let image = self.image.as_deref().map(snapshot::manifest).transpose()?;
        let mut fields = Fields::from(self);
        let reply = match image {
            // A build takes its time, and has something to say.
            Some((manifest, steps)) => {
                fields.image = Some(manifest);
                build_log::follow(context, &["sandboxes"], body(&fields)?, steps).await?
            }
            None => {
                let body = Some(body(&fields)?);
                context.api.send(Method::POST, &["sandboxes"], body).await?
            }
        };
        let info: Info = decode(reply.clone())?;
        context.output.reply(&reply, || {
            let created = format!("Created sandbox {} (status: {})", info.id, info.status);
            match info.preview_auth_token {
                Some(token) => format!("{created}\nPreview auth token (shown once): {token}"),
                None => created,
            }
        })
    }
}

/// `oc ls`
pub(super) async fn list(context: &Context) -> Result<(), CliError> {
    let reply = context.api.get(&["sandboxes"]).await?;
    let sandboxes: Vec<Info> = decode(reply.clone())?;
    let now = OffsetDateTime::now_utc();
    context.output.reply(&reply, || {
        if sandboxes.is_empty() {
            return "No sandboxes found.".to_owned();
        }
        let row = |sandbox: Info| {
            let (cpu, memory) = (
                sandbox.cpu_count.to_string(),
                format!("{}MB", sandbox.memory_mb),
            );
            let age = age(sandbox.started_at.as_deref(), now);
            [
                sandbox.id,
                sandbox.template,
                sandbox.status,
                cpu,
                memory,
                age,
            ]
        };
        let header = ["ID", "TEMPLATE", "STATUS", "CPU", "MEM", "AGE"];
        table(header, sandboxes.into_iter().map(row).collect())
    })
}

async fn get(context: &Context, id: &str) -> Result<(), CliError> {
    let reply = context.api.get(&["sandboxes", id]).await?;
    let sandbox: Info = decode(reply.clone())?;
    context.output.reply(&reply, || {
        let mut lines = vec![
            ("ID", sandbox.id),
            ("Template", sandbox.template),
            ("Status", sandbox.status),
            ("CPU", sandbox.cpu_count.to_string()),
            ("Memory", format!("{}MB", sandbox.memory_mb)),
            (
                "Started",
                sandbox.started_at.unwrap_or_else(|| "-".to_owned()),
            ),
        ];
        lines.extend(sandbox.end_at.map(|end| ("Ends", end)));
        labelled(&lines)
    })
}

async fn allowed_hosts(context: &Context, id: &str) -> Result<(), CliError> {
    let reply = context.api.get(&["sandboxes", id, "allowed-hosts"]).await?;
    let hosts: Hosts = decode(reply.clone())?;
    context.output.reply(&reply, || hosts.describe(id))
}

impl Hosts {
    fn describe(&self, id: &str) -> String {
        let mut lines = Vec::new();
        if let Some(project) = &self.project {
            lines.push(format!("Project: {project}"));
        }
        match (&self.secret_store, &self.base_secret_store) {
            (Some(store), Some(base)) => lines.push(format!("Secret store: {store} (on {base})")),
            (Some(store), None) => lines.push(format!("Secret store: {store}")),
            (None, _) => lines.push(format!(
                "Sandbox {id} has no secret store, so no store restricts its hosts."
            )),
        }
        if self.egress_allowlist.is_empty() {
            lines.push("Egress allowlist: (all)".to_owned());
        } else {
            lines.push("Egress allowlist:".to_owned());
            lines.extend(
                self.egress_allowlist
                    .iter()
                    .map(|host| format!("  - {host}")),
            );
        }
        if !self.per_secret_allowed_hosts.is_empty() {
            lines.push("Per-secret allowed hosts:".to_owned());
            let secrets = self.per_secret_allowed_hosts.iter();
            lines.extend(secrets.map(|(name, hosts)| format!("  - {name}: {}", hosts.join(", "))));
        }
        lines
            .iter()
            .map(|line| printable(line))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_listed_by_layer_and_secret() {
        let reply = serde_json::json!({
            "project": "p", "egressAllowlist": ["a.test", "*.b.test"],
            "perSecretAllowedHosts": {"Z": ["z.test"], "A": ["a.test", "b.test"]},
        });
        let hosts: Hosts = decode(reply).unwrap();
        let expected = "Project: p\n\
            Sandbox sb-1 has no secret store, so no store restricts its hosts.\n\
            Egress allowlist:\n  - a.test\n  - *.b.test\n\
            Per-secret allowed hosts:\n  - A: a.test, b.test\n  - Z: z.test";
        assert_eq!(hosts.describe("sb-1"), expected);
        let layered = Hosts {
            secret_store: Some("s".into()),
            base_secret_store: Some("b".into()),
            ..Hosts::default()
        };
        assert_eq!(
            layered.describe("sb-1"),
            "Secret store: s (on b)\nEgress allowlist: (all)"
        );
    }
}
