//! `oc shell`: a shell in a sandbox, on the terminal that `oc` runs in.
//!
//! Invariants: whatever way the command ends, the terminal is as it was before, and the sandbox's
//! shell is told to end; the keys go to the sandbox as they are, Ctrl-C and Ctrl-Z included.

mod modes;
mod raw;
mod relay;

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use super::Context;
use super::client::{Api, body, decode};
use super::error::CliError;
use raw::Size;
use relay::End;

/// How long the end of the sandbox's shell is waited for.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// `oc shell`
#[derive(Args)]
pub struct Shell {
    /// Sandbox id
    sandbox_id: String,
    /// The shell to run (default: bash, or else sh)
    #[arg(long, value_name = "PATH")]
    shell: Option<String>,
}

/// The request body of route 61.
#[derive(Serialize)]
struct Open<'a> {
    #[serde(flatten)]
    size: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell: Option<&'a str>,
}

#[derive(Deserialize)]
struct Opened {
    #[serde(rename = "sessionID")]
    id: String,
}

/// What of a sandbox says where its data plane is.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Place {
    #[serde(rename = "connectURL")]
    url: Option<String>,
    token: Option<String>,
}

impl Shell {
    /// Runs until the shell ends, or until this side has to.
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        if !is_sandbox_id(&self.sandbox_id) {
            let id = &self.sandbox_id;
            return Err(CliError::Usage(format!("`{id}` is not a sandbox id")));
        }
        if !std::io::stdin().is_terminal() {
            let advice = "`oc shell` needs a terminal as its standard input; to run a command \
                          without one: oc exec <sandbox-id> -- <command>";
            return Err(CliError::Usage(advice.to_owned()));
        }
        let signals = relay::Signals::listen()?;
        let (api, opened) = self.open(context).await?;
        let path = ["sandboxes", &self.sandbox_id, "pty", &opened.id];
        let ended = relay::run(&api, &path, signals).await;
        let closed = timeout(CLOSE_MAX, api.delete(&path, &[])).await;
        match ended? {
            End::Shell => Ok(0),
            End::Signal(number) => Ok(128 + number),
            End::Lost(reason) => {
                let left = match closed {
                    Ok(Ok(())) => "its shell was ended",
                    Ok(Err(error)) if error.is_not_found() => "its shell has ended",
                    _ => "its shell ends by itself after ten minutes",
                };
                let text = format!("the connection to the sandbox broke off: {reason}; {left}");
                Err(CliError::Dropped(text))
            }
        }
    }

    /// Opens a terminal where the sandbox says that its data plane is, or else where the sandbox was
    /// asked for: an address that the server knows itself by may lead nowhere from here.
    async fn open(&self, context: &Context) -> Result<(Api, Opened), CliError> {
        let id = self.sandbox_id.as_str();
        let place: Place = decode(context.api.get(&["sandboxes", id]).await?)?;
        let direct = match (&place.url, &place.token) {
            (Some(url), Some(token)) if !url.is_empty() && !token.is_empty() => {
                Some(Api::with_token(url, token)?)
            }
            _ => None,
        };
        let request = body(&Open {
            size: raw::size(),
            shell: self.shell.as_deref(),
        })?;
        let path = ["sandboxes", id, "pty"];
        let open = async |api: Api| {
            let reply = api.send(Method::POST, &path, Some(request.clone())).await?;
            Ok::<_, CliError>((api, decode(reply)?))
        };
        match direct {
            Some(api) => match open(api).await {
                Err(CliError::Unreachable { .. }) => open(context.api.clone()).await,
                opened => opened,
            },
            None => open(context.api.clone()).await,
        }
    }
}

/// Whether the text can be a sandbox's id: anything else is a mistake to be told of at once.
fn is_sandbox_id(text: &str) -> bool {
    text.starts_with("sb-") || Uuid::try_parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_sandboxes_pass() {
        for good in [
            "sb-01m80b725pjqcxd1238cspm1w4",
            "sb-1",
            "01a200b3-8814-7109-9be3-7d28e3fd3acd",
        ] {
            assert!(is_sandbox_id(good), "{good}");
        }
        for bad in ["", "sb", "SB-1", "my-sandbox", "01a200b3-8814-7109-9be3"] {
            assert!(!is_sandbox_id(bad), "{bad}");
        }
    }

    #[test]
    fn an_unknown_size_is_left_out() {
        let json = |size, shell| serde_json::to_string(&Open { size, shell }).unwrap();
        let size = Some(Size { cols: 91, rows: 17 });
        assert_eq!(
            json(size, Some("/bin/sh")),
            r#"{"cols":91,"rows":17,"shell":"/bin/sh"}"#
        );
        assert_eq!(json(None, None), "{}");
    }
}
