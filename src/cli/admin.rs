//! `oc admin`: organizations and API keys.
//!
//! Without `--org` a key is one of the caller's own organization, and the caller's key must have the
//! scope `admin`. Organizations, and keys of any of them, are managed on the server's own machine,
//! through a socket in its data folder, by whoever may read that folder.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::Context;
use super::client::{Api, body, decode};
use super::error::CliError;
use super::output::{age, labelled, table};
use crate::config::{ADMIN_SOCKET, default_data_dir};

/// `oc admin <command>`
#[derive(Subcommand)]
pub enum Admin {
    /// Organizations: tenants that see nothing of one another
    #[command(subcommand)]
    Org(OrgCommand),
    /// API keys
    #[command(subcommand)]
    Key(KeyCommand),
}

impl Admin {
    /// Whether it needs no API key.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Org(_) => true,
            Self::Key(KeyCommand::Create(create)) => create.of.org.is_some(),
            Self::Key(KeyCommand::List { of } | KeyCommand::Revoke { of, .. }) => of.org.is_some(),
        }
    }
}

/// Where the server's data folder is.
#[derive(Args)]
pub struct Local {
    /// The server's data folder [default: the one `oc serve` uses]
    #[arg(long, env = "OC_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Local {
    fn api(&self) -> Result<Api, CliError> {
        let dir = self.data_dir.clone().or_else(default_data_dir);
        let dir =
            dir.ok_or_else(|| CliError::Usage("no data folder; pass --data-dir".to_owned()))?;
        Api::local(&dir.join(ADMIN_SOCKET))
    }
}

/// Whose keys.
#[derive(Args)]
pub struct Of {
    /// An organization of the server on this machine [default: that of the API key in use]
    #[arg(long, value_name = "ID")]
    org: Option<String>,
    #[command(flatten)]
    local: Local,
}

impl Of {
    /// The client, and the path of the keys.
    fn keys(self, context: &Context) -> Result<(Api, Vec<String>), CliError> {
        Ok(match self.org {
            Some(org) => {
                let path = ["admin", "orgs", &org, "keys"].map(str::to_owned);
                (self.local.api()?, path.to_vec())
            }
            None => (context.api.clone(), vec!["keys".to_owned()]),
        })
    }
}

/// `oc admin org <command>`
#[derive(Subcommand)]
pub enum OrgCommand {
    /// Make an organization; give it a key with `oc admin key create --org`
    Create {
        /// Its name, shown to its users
        name: String,
        #[command(flatten)]
        local: Local,
    },
    /// List the organizations of the server on this machine
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        local: Local,
    },
}

/// `oc admin key <command>`
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a key; its text is shown once
    Create(Box<CreateKey>),
    /// List keys, also those that were revoked
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        of: Of,
    },
    /// Take a key away at once, with the sandbox tokens that were given to it
    Revoke {
        /// The key's id
        key_id: String,
        #[command(flatten)]
        of: Of,
    },
}

/// What a key may do.
#[derive(Clone, Copy, ValueEnum)]
enum ScopeName {
    /// Look, and change nothing
    Read,
    /// Everything but managing keys
    Write,
    /// Also manage keys
    Admin,
}

/// `oc admin key create`
#[derive(Args)]
pub struct CreateKey {
    /// A name to know it by
    name: String,
    /// What it may do
    #[arg(long, value_enum, default_value = "write")]
    scope: ScopeName,
    /// Good for the data plane of this sandbox alone
    #[arg(long, value_name = "ID", conflicts_with = "project")]
    sandbox: Option<String>,
    /// Good for the data planes of the sandboxes of this project alone (name or id)
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// How long it is valid, e.g. 12h or 30d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires_in: Option<Duration>,
    /// Requests a second it is good for [default: as the server is configured]
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    #[command(flatten)]
    of: Of,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct KeyInfo {
    id: String,
    name: String,
    prefix: String,
    scope: String,
    key: String,
    sandbox_id: Option<String>,
    project_id: Option<String>,
    created_at: Option<String>,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    revoked_at: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct OrgInfo {
    id: String,
    name: String,
    keys: u64,
    created_at: Option<String>,
}

impl Admin {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Org(OrgCommand::Create { name, local }) => {
                create_org(context, &local.api()?, &name).await
            }
            Self::Org(OrgCommand::List { local }) => list_orgs(context, &local.api()?).await,
            Self::Key(KeyCommand::Create(create)) => create.run(context).await,
            Self::Key(KeyCommand::List { of }) => list_keys(context, of).await,
            Self::Key(KeyCommand::Revoke { key_id, of }) => {
                let (api, path) = of.keys(context)?;
                let mut path: Vec<_> = path.iter().map(String::as_str).collect();
                path.push(&key_id);
                api.delete(&path, &[]).await?;
                context.output.line(&format!("Key {key_id} revoked."))
            }
        }
    }
}

async fn create_org(context: &Context, api: &Api, name: &str) -> Result<(), CliError> {
    let fields = json!({ "name": name });
    let reply = api
        .send(Method::POST, &["admin", "orgs"], Some(body(&fields)?))
        .await?;
    let org: OrgInfo = decode(reply.clone())?;
    context.output.reply(&reply, || {
        format!(
            "Created organization {} (id: {})\nGive it a key: oc admin key create <NAME> --org {} \
             --scope admin",
            org.name, org.id, org.id
        )
    })
}

async fn list_orgs(context: &Context, api: &Api) -> Result<(), CliError> {
    let reply = api.get(&["admin", "orgs"]).await?;
    let orgs: Vec<OrgInfo> = decode(reply.clone())?;
    let now = OffsetDateTime::now_utc();
    context.output.reply(&reply, || {
        let row = |org: OrgInfo| {
            let made = format!("{} ago", age(org.created_at.as_deref(), now));
            [org.id, org.name, org.keys.to_string(), made]
        };
        table(
            ["ID", "NAME", "KEYS", "CREATED"],
            orgs.into_iter().map(row).collect(),
        )
    })
}

impl CreateKey {
    fn fields(&self) -> Value {
        let scope = match self.scope {
            ScopeName::Read => "read",
            ScopeName::Write => "write",
            ScopeName::Admin => "admin",
        };
        let mut body = json!({ "name": self.name, "scope": scope });
        if let Some(id) = &self.sandbox {
            body["sandboxId"] = json!(id);
        }
        if let Some(project) = &self.project {
            body["project"] = json!(project);
        }
        if let Some(life) = self.expires_in {
            body["expiresIn"] = json!(life.as_secs());
        }
        if let Some(rate) = self.rate {
            body["requestsPerSec"] = json!(rate);
        }
        body
    }

    async fn run(self, context: &Context) -> Result<(), CliError> {
        let fields = self.fields();
        let (api, path) = self.of.keys(context)?;
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        let reply = api.send(Method::POST, &path, Some(body(&fields)?)).await?;
        let key: KeyInfo = decode(reply.clone())?;
        context.output.reply(&reply, || {
            labelled(&[
                ("Key", format!("{}  (shown once)", key.key)),
                ("ID", key.id),
                ("Scope", key.scope),
                (
                    "Expires",
                    key.expires_at.unwrap_or_else(|| "never".to_owned()),
                ),
            ])
        })
    }
}

async fn list_keys(context: &Context, of: Of) -> Result<(), CliError> {
    let (api, path) = of.keys(context)?;
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    let reply = api.get(&path).await?;
    let keys: Vec<KeyInfo> = decode(reply.clone())?;
    let now = OffsetDateTime::now_utc();
    context.output.reply(&reply, || {
        let ago = |at: Option<&str>| match at {
            Some(at) => format!("{} ago", age(Some(at), now)),
            None => "never".to_owned(),
        };
        let row = |key: KeyInfo| {
            let target = match (key.sandbox_id, key.project_id) {
                (Some(id), _) => id,
                (None, Some(id)) => format!("project {id}"),
                (None, None) => "all".to_owned(),
            };
            let state = match (key.revoked_at, key.expires_at) {
                (Some(at), _) => format!("revoked {}", ago(Some(&at))),
                (None, Some(at)) => format!("until {at}"),
                (None, None) => "valid".to_owned(),
            };
            [
                key.id,
                key.name,
                format!("{}…", key.prefix),
                key.scope,
                target,
                ago(key.created_at.as_deref()),
                ago(key.last_used_at.as_deref()),
                state,
            ]
        };
        let header = [
            "ID",
            "NAME",
            "KEY",
            "SCOPE",
            "GOOD FOR",
            "CREATED",
            "LAST USED",
            "STATE",
        ];
        table(header, keys.into_iter().map(row).collect())
    })
}
