//! `oc secret`: the secrets of a project or a store.
//!
//! Invariants: a value is held in [`SecretValue`] from the moment it is read, sent once, and
//! never printed; commands take either kind of id: the project is tried first, the store on 404.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Context;
use super::client::{body_with_capacity, decode};
use super::error::CliError;
use super::output::table;
use super::placement::{PlacementFlags, described};
use super::slice::Words;
use crate::events::families::SecretPlacement;
use crate::secret::{SECRET_VALUE_BYTES_MAX, SecretValue};

/// `oc secret <command>`
#[derive(Subcommand)]
pub enum Secret {
    /// Set a secret (replaces an earlier value)
    Set(Set),
    /// List the names of secrets; values are never shown
    #[command(visible_alias = "ls")]
    List {
        /// Project or store id
        id: String,
    },
    /// Delete a secret; sandboxes that run keep it
    Delete {
        /// Project or store id
        id: String,
        /// Secret name
        name: String,
    },
    /// Delete a secret and make its tokens dead at once, in running sandboxes too
    ///
    /// What is under way with it is cut. A secret of the same name that is set later reaches new
    /// sandboxes only.
    Revoke {
        /// Project or store id
        id: String,
        /// Secret name
        name: String,
    },
}

/// `oc secret set`
#[derive(Args)]
pub struct Set {
    /// Project or store id
    id: String,
    /// Secret name (becomes the environment variable in sandboxes)
    name: String,
    /// The value; other users of this machine can see arguments: prefer --from-stdin
    #[arg(value_parser = secret_value, conflicts_with = "from_stdin")]
    value: Option<Arc<SecretValue>>,
    /// Read the value from standard input (a final line break is dropped)
    #[arg(long = "from-stdin")]
    from_stdin: bool,
    /// Hosts the value may be sent to (repeatable, comma-separated; default: all)
    #[arg(long = "allowed-hosts", value_name = "HOST", value_parser = Words::parse)]
    allowed_hosts: Vec<Words>,
    #[command(flatten)]
    placement: PlacementFlags,
}

/// The two things that have secrets, in the order they are tried.
const HOLDERS: [(&str, &str); 2] = [("projects", "project"), ("secret-stores", "store")];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    value: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_hosts: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<&'a SecretPlacement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    #[serde(default)]
    allowed_hosts: Vec<String>,
    placement: Option<SecretPlacement>,
}

/// A project's list holds names, a store's holds entries.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    Names(Vec<String>),
    Entries(Vec<Entry>),
}

impl Secret {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Set(set) => set.run(context).await,
            Self::List { id } => list(context, &id).await,
            Self::Delete { id, name } => delete(context, &id, &name).await,
            Self::Revoke { id, name } => revoke(context, HOLDERS, &id, &name).await,
        }
    }
}

impl Set {
    async fn run(self, context: &Context) -> Result<(), CliError> {
        let value = match (self.value, self.from_stdin) {
            (Some(value), _) => value,
            (None, true) => Arc::new(read_value(std::io::stdin().lock())?),
            (None, false) => {
                let message = "provide value as argument or use --from-stdin";
                return Err(CliError::Usage(message.to_owned()));
            }
        };
        let hosts = Words::merge(self.allowed_hosts);
        let placement = self.placement.read();
        let body = set_body(&value, hosts.as_deref(), placement.as_ref())?;
        let kind = set(context, &self.id, &self.name, body).await?;
        let hosts = match hosts.as_deref() {
            None | Some([]) => String::new(),
            Some(hosts) => format!(" (allowed hosts: {})", hosts.join(", ")),
        };
        context.output.line(&format!(
            "Secret {} set on {kind} {}{hosts}",
            self.name, self.id
        ))
    }
}

/// Sets the secret wherever `id` exists; answers with the kind of holder.
async fn set(
    context: &Context,
    id: &str,
    name: &str,
    body: Bytes,
) -> Result<&'static str, CliError> {
    for (route, kind) in HOLDERS {
        let path = [route, id, "secrets", name];
        match context
            .api
            .send(Method::PUT, &path, Some(body.clone()))
            .await
        {
            Err(error) if error.is_not_found() => continue,
            result => {
                let warning = result?
                    .get("warning")
                    .and_then(Value::as_str)
                    .map(str::to_owned);
                warning.iter().for_each(|text| context.output.warn(text));
                return Ok(kind);
            }
        }
    }
    Err(unknown_holder(id))
}

async fn list(context: &Context, id: &str) -> Result<(), CliError> {
    for (route, _) in HOLDERS {
        let reply = match context.api.get(&[route, id, "secrets"]).await {
            Err(error) if error.is_not_found() => continue,
            result => result?,
        };
        let listed: Listed = decode(reply.clone())?;
        return context.output.reply(&reply, || match listed {
            Listed::Names(names) if names.is_empty() => "No secrets found.".to_owned(),
            Listed::Names(names) => names.join("\n"),
            Listed::Entries(entries) => entries_table(entries),
        });
    }
    Err(unknown_holder(id))
}

fn entries_table(entries: Vec<Entry>) -> String {
    let row = |entry: Entry| {
        let hosts = match entry.allowed_hosts.as_slice() {
            [] => "(all)".to_owned(),
            hosts => hosts.join(", "),
        };
        let placement = entry.placement.as_ref().map(described);
        [entry.name, hosts, placement.unwrap_or_default()]
    };
    // The third column is there only where it says something.
    if entries.iter().all(|entry| entry.placement.is_none()) {
        let two = |entry| {
            let [name, hosts, _] = row(entry);
            [name, hosts]
        };
        let rows = entries.into_iter().map(two).collect();
        return table(["NAME", "ALLOWED HOSTS"], rows);
    }
    let rows = entries.into_iter().map(row).collect();
    table(["NAME", "ALLOWED HOSTS", "PLACEMENT"], rows)
}

async fn delete(context: &Context, id: &str, name: &str) -> Result<(), CliError> {
    for (route, kind) in HOLDERS {
        match context.api.delete(&[route, id, "secrets", name], &[]).await {
            // 404 says that the secret is missing or that its holder is: only the first is done.
            Err(error) if error.is_not_found() => match context.api.get(&[route, id]).await {
                Err(error) if error.is_not_found() => continue,
                result => drop(result?),
            },
            result => result?,
        }
        return context
            .output
            .line(&format!("Secret {name} deleted from {kind} {id}"));
    }
    Err(unknown_holder(id))
}

/// Revokes a secret wherever `id` exists.
async fn revoke(
    context: &Context,
    holders: impl IntoIterator<Item = (&'static str, &'static str)>,
    id: &str,
    name: &str,
) -> Result<(), CliError> {
    for (route, kind) in holders {
        let path = [route, id, "secrets", name, "revoke"];
        let reply = match context.api.send(Method::POST, &path, None).await {
            // 404 says that the secret is missing or that its holder is.
            Err(error) if error.is_not_found() => match context.api.get(&[route, id]).await {
                Err(error) if error.is_not_found() => continue,
                _ => return Err(error),
            },
            result => result?,
        };
        if reply.get("status").and_then(Value::as_str) == Some("pending") {
            context.output.warn(
                "a sandbox could not be reached: its token dies within 10 s, or when it is back",
            );
        }
        return context
            .output
            .line(&format!("Secret {name} revoked on {kind} {id}"));
    }
    Err(unknown_holder(id))
}

fn unknown_holder(id: &str) -> CliError {
    CliError::Refused {
        status: 404,
        message: format!("no project or secret store has the id {id}"),
    }
}

fn set_body(
    value: &SecretValue,
    hosts: Option<&[String]>,
    placement: Option<&SecretPlacement>,
) -> Result<Bytes, CliError> {
    if value.expose().is_empty() {
        return Err(CliError::Usage("secret value cannot be empty".to_owned()));
    }
    if value.expose().len() > SECRET_VALUE_BYTES_MAX {
        return Err(too_large());
    }
    let text = std::str::from_utf8(value.expose())
        .map_err(|_| CliError::Usage("secret value must be UTF-8 text".to_owned()))?;
    // A control character takes six bytes in JSON; hosts are at most some hundred bytes each, and
    // what a placement holds stands before the value is written.
    let narrow = placement.map_or(0, |one| format!("{one:?}").len());
    let capacity = 6 * text.len() + 512 * (1 + hosts.map_or(0, <[_]>::len)) + 6 * narrow;
    body_with_capacity(
        &Fields {
            value: text,
            allowed_hosts: hosts,
            placement,
        },
        capacity,
    )
}

/// Reads a value to its end, and no more than a value may have; drops one final line break.
fn read_value(input: impl Read) -> Result<SecretValue, CliError> {
    let limit = SECRET_VALUE_BYTES_MAX + "\r\n".len();
    // Room for all of it from the start: a growing buffer would leave copies behind.
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(limit + 1));
    input
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(CliError::Input)?;
    let mut value = bytes.as_slice();
    if let Some(line) = value.strip_suffix(b"\n") {
        value = line.strip_suffix(b"\r").unwrap_or(line);
    }
    if value.len() > SECRET_VALUE_BYTES_MAX {
        return Err(too_large());
    }
    Ok(SecretValue::new(value.to_vec()))
}

fn too_large() -> CliError {
    CliError::Usage(format!(
        "secret value exceeds {SECRET_VALUE_BYTES_MAX} bytes"
    ))
}

fn secret_value(text: &str) -> Result<Arc<SecretValue>, std::convert::Infallible> {
    Ok(Arc::new(SecretValue::from(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_loses_its_final_line_break_only() {
        let check = |input: &str, expected: &str| {
            let value = read_value(input.as_bytes()).unwrap();
            assert_eq!(value.expose(), expected.as_bytes(), "{input:?}");
        };
        check("v\n", "v");
        check("v\r\n", "v");
        check("v", "v");
        check("-----BEGIN\nx\n\n", "-----BEGIN\nx\n");
        check("", "");
    }

    #[test]
    fn values_are_bounded_and_text() {
        let at = |length: usize| read_value("x".repeat(length).as_bytes());
        assert!(at(SECRET_VALUE_BYTES_MAX).is_ok());
        assert!(at(SECRET_VALUE_BYTES_MAX + 1).is_err());
        assert!(at(SECRET_VALUE_BYTES_MAX * 3).is_err());
        let refused =
            |bytes: &[u8]| set_body(&SecretValue::new(bytes.to_vec()), None, None).is_err();
        assert!(refused(b"") && refused(b"\xff") && !refused(b"x"));
    }

    #[test]
    fn hosts_are_sent_only_when_given() {
        let value = SecretValue::from("a\"b\n".to_owned());
        let check = |hosts: Option<&[String]>, expected: &str| {
            assert_eq!(set_body(&value, hosts, None).unwrap(), expected.as_bytes());
        };
        check(None, r#"{"value":"a\"b\n"}"#);
        check(
            Some(&["h.test".to_owned()]),
            r#"{"value":"a\"b\n","allowedHosts":["h.test"]}"#,
        );
    }
}
