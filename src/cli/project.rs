//! `oc project`: named defaults and secrets that sandboxes inherit.
//!
//! Invariant: an update sends exactly the flags given, also 0 and the empty text.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::Context;
use super::client::{body, decode};
use super::error::CliError;
use super::output::{labelled, table};
use super::slice::Words;

/// `oc project <command>`
#[derive(Subcommand)]
pub enum Project {
    /// Create a project
    Create {
        /// Project name, unique in the organization
        #[arg(long)]
        name: String,
        #[command(flatten)]
        defaults: Defaults,
    },
    /// List projects
    #[command(visible_alias = "ls")]
    List,
    /// Show one project
    Get {
        /// Project id
        project_id: String,
    },
    /// Change a project; only the flags given are changed
    Update {
        /// Project id
        project_id: String,
        /// New name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        defaults: Defaults,
    },
    /// Delete a project and its secrets; running sandboxes are not affected
    Delete {
        /// Project id
        project_id: String,
    },
}

/// What sandboxes of the project start with.
#[derive(Args)]
pub struct Defaults {
    /// Default template
    #[arg(long)]
    template: Option<String>,
    /// Default number of vCPUs
    #[arg(long)]
    cpu: Option<i64>,
    /// Default memory in MB
    #[arg(long)]
    memory: Option<i64>,
    /// Default idle timeout in seconds
    #[arg(long)]
    timeout: Option<i64>,
    /// Hosts that sandboxes may reach (repeatable, comma-separated; "" clears the list)
    #[arg(long = "egress-allowlist", value_name = "HOST", value_parser = Words::parse)]
    egress_allowlist: Vec<Words>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_count: Option<i64>,
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    memory_mb: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_sec: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_allowlist: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Info {
    id: String,
    name: String,
    template: String,
    cpu_count: i64,
    #[serde(rename = "memoryMB")]
    memory_mb: i64,
    timeout_sec: i64,
    egress_allowlist: Vec<String>,
}

impl Fields {
    fn new(name: Option<String>, defaults: Defaults) -> Self {
        Self {
            name,
            template: defaults.template,
            cpu_count: defaults.cpu,
            memory_mb: defaults.memory,
            timeout_sec: defaults.timeout,
            egress_allowlist: Words::merge(defaults.egress_allowlist),
        }
    }

    fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.template.is_none()
            && self.cpu_count.is_none()
            && self.memory_mb.is_none()
            && self.timeout_sec.is_none()
            && self.egress_allowlist.is_none()
    }
}

impl Project {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Create { name, defaults } => create(context, name, defaults).await,
            Self::List => list(context).await,
            Self::Get { project_id } => get(context, &project_id).await,
            Self::Update {
                project_id,
                name,
                defaults,
            } => update(context, &project_id, Fields::new(name, defaults)).await,
            Self::Delete { project_id } => {
                context.api.delete(&["projects", &project_id], &[]).await?;
                context
                    .output
                    .line(&format!("Project {project_id} deleted."))
            }
        }
    }
}

async fn create(context: &Context, name: String, defaults: Defaults) -> Result<(), CliError> {
    let body = body(&Fields::new(Some(name), defaults))?;
    let reply = context
        .api
        .send(Method::POST, &["projects"], Some(body))
        .await?;
    let info: Info = decode(reply.clone())?;
    context.output.reply(&reply, || {
        format!("Created project {} (id: {})", info.name, info.id)
    })
}

async fn list(context: &Context) -> Result<(), CliError> {
    let reply = context.api.get(&["projects"]).await?;
    let projects: Vec<Info> = decode(reply.clone())?;
    context.output.reply(&reply, || {
        if projects.is_empty() {
            return "No projects found.".to_owned();
        }
        let row = |project: Info| {
            let numbers = [project.cpu_count, project.memory_mb, project.timeout_sec];
            let [cpu, memory, timeout] = numbers.map(|number| number.to_string());
            [
                project.id,
                project.name,
                project.template,
                cpu,
                memory,
                timeout,
            ]
        };
        let header = ["ID", "NAME", "TEMPLATE", "CPU", "MEMORY", "TIMEOUT"];
        table(header, projects.into_iter().map(row).collect())
    })
}

async fn get(context: &Context, id: &str) -> Result<(), CliError> {
    let reply = context.api.get(&["projects", id]).await?;
    let project: Info = decode(reply.clone())?;
    context.output.reply(&reply, || {
        let mut lines = vec![
            ("ID", project.id),
            ("Name", project.name),
            ("Template", project.template),
            ("CPU", project.cpu_count.to_string()),
            ("Memory", format!("{}MB", project.memory_mb)),
            ("Timeout", format!("{}s", project.timeout_sec)),
        ];
        if !project.egress_allowlist.is_empty() {
            lines.push(("Egress", project.egress_allowlist.join(", ")));
        }
        labelled(&lines)
    })
}

async fn update(context: &Context, id: &str, fields: Fields) -> Result<(), CliError> {
    if fields.is_empty() {
        let flags = "--name, --template, --cpu, --memory, --timeout or --egress-allowlist";
        return Err(CliError::Usage(format!("nothing to update: give {flags}")));
    }
    let reply = context
        .api
        .send(Method::PUT, &["projects", id], Some(body(&fields)?))
        .await?;
    let project: Info = decode(reply.clone())?;
    context
        .output
        .reply(&reply, || format!("Updated project {}", project.name))
}
