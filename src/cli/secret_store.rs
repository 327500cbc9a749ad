//! `oc secret-store`: named sets of secrets with an egress allowlist.

use clap::Subcommand;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Context;
use super::client::{body, decode};
use super::error::CliError;
use super::output::{age, labelled, table};
use super::slice::Words;

/// `oc secret-store <command>`
#[derive(Subcommand)]
pub enum SecretStore {
    /// Create a secret store
    Create {
        /// Store name, unique in the organization
        #[arg(long)]
        name: String,
        /// Hosts that sandboxes may reach (repeatable, comma-separated)
        #[arg(long = "egress-allowlist", value_name = "HOST", value_parser = Words::parse)]
        egress_allowlist: Vec<Words>,
    },
    /// List secret stores
    #[command(visible_alias = "ls")]
    List,
    /// Show one secret store
    Get {
        /// Store id
        store_id: String,
    },
    /// Change a secret store; only the flags given are changed
    Update {
        /// Store id
        store_id: String,
        /// New name
        #[arg(long)]
        name: Option<String>,
        /// New list of hosts (repeatable, comma-separated; "" clears the list)
        #[arg(long = "egress-allowlist", value_name = "HOST", value_parser = Words::parse)]
        egress_allowlist: Vec<Words>,
    },
    /// Delete a secret store and its secrets; running sandboxes are not affected
    Delete {
        /// Store id
        store_id: String,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_allowlist: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    id: String,
    name: String,
    egress_allowlist: Vec<String>,
    created_at: Option<String>,
}

impl SecretStore {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Create {
                name,
                egress_allowlist,
            } => {
                let egress_allowlist = Words::merge(egress_allowlist);
                create(
                    context,
                    Fields {
                        name: Some(name),
                        egress_allowlist,
                    },
                )
                .await
            }
            Self::List => list(context).await,
            Self::Get { store_id } => get(context, &store_id).await,
            Self::Update {
                store_id,
                name,
                egress_allowlist,
            } => {
                let egress_allowlist = Words::merge(egress_allowlist);
                update(
                    context,
                    &store_id,
                    Fields {
                        name,
                        egress_allowlist,
                    },
                )
                .await
            }
            Self::Delete { store_id } => {
                context
                    .api
                    .delete(&["secret-stores", &store_id], &[])
                    .await?;
                context
                    .output
                    .line(&format!("Secret store {store_id} deleted."))
            }
        }
    }
}

async fn create(context: &Context, fields: Fields) -> Result<(), CliError> {
    let body = body(&fields)?;
    let reply = context
        .api
        .send(Method::POST, &["secret-stores"], Some(body))
        .await?;
    let info: Info = decode(reply.clone())?;
    context.output.reply(&reply, || {
        format!("Created secret store {} (id: {})", info.name, info.id)
    })
}

async fn list(context: &Context) -> Result<(), CliError> {
    let reply = context.api.get(&["secret-stores"]).await?;
    let stores: Vec<Info> = decode(reply.clone())?;
    let now = OffsetDateTime::now_utc();
    context.output.reply(&reply, || {
        if stores.is_empty() {
            return "No secret stores found.".to_owned();
        }
        let row = |store: Info| {
            let hosts = match store.egress_allowlist.as_slice() {
                [] => "(all)".to_owned(),
                hosts => hosts.join(", "),
            };
            [
                store.id,
                store.name,
                hosts,
                format!("{} ago", age(store.created_at.as_deref(), now)),
            ]
        };
        let header = ["ID", "NAME", "EGRESS ALLOWLIST", "CREATED"];
        table(header, stores.into_iter().map(row).collect())
    })
}

async fn get(context: &Context, id: &str) -> Result<(), CliError> {
    let reply = context.api.get(&["secret-stores", id]).await?;
    let store: Info = decode(reply.clone())?;
    context.output.reply(&reply, || {
        let mut lines = vec![("ID", store.id), ("Name", store.name)];
        if !store.egress_allowlist.is_empty() {
            lines.push(("Egress", store.egress_allowlist.join(", ")));
        }
        labelled(&lines)
    })
}

async fn update(context: &Context, id: &str, fields: Fields) -> Result<(), CliError> {
    if fields.name.is_none() && fields.egress_allowlist.is_none() {
        let message = "nothing to update: give --name or --egress-allowlist";
        return Err(CliError::Usage(message.to_owned()));
    }
    let body = body(&fields)?;
    let reply = context
        .api
        .send(Method::PUT, &["secret-stores", id], Some(body))
        .await?;
    let store: Info = decode(reply.clone())?;
    context
        .output
        .reply(&reply, || format!("Updated secret store {}", store.name))
}
