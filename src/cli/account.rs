//! `oc config`, `oc whoami`, `oc completion`.

use clap::Subcommand;
use clap_complete::Shell;
use serde::Deserialize;
use serde_json::json;

use super::Context;
use super::client::decode;
use super::error::CliError;
use super::output::{Output, labelled, write_stdout};
use super::settings::{Settings, SettingsError, Sources, set_field};

/// `oc config <command>`
#[derive(Subcommand)]
pub enum Config {
    /// Change a setting
    Set {
        /// `api-key` or `api-url`
        key: String,
        /// The new value
        value: String,
    },
    /// Show the settings in use; the key is masked
    Show,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Identity {
    org_id: Option<String>,
    user_id: Option<String>,
    email: Option<String>,
    org_name: Option<String>,
}

impl Config {
    pub(super) fn run(self, sources: Sources, output: Output) -> Result<(), CliError> {
        match self {
            Self::Set { key, value } => set(sources, output, &key, &value),
            Self::Show => show(sources, output),
        }
    }
}

fn set(sources: Sources, output: Output, key: &str, value: &str) -> Result<(), CliError> {
    let field = match key {
        "api-key" => "api_key",
        "api-url" => "api_url",
        _ => {
            let message = format!("unknown config key: {key} (valid: api-key, api-url)");
            return Err(CliError::Usage(message));
        }
    };
    let home = sources.home.ok_or(SettingsError::NoHome)?;
    set_field(&home, field, value)?;
    output.line(&format!("Config {key} updated."))
}

fn show(sources: Sources, output: Output) -> Result<(), CliError> {
    let settings = Settings::resolve(sources)?;
    let key = settings
        .api_key
        .map_or_else(|| "(not set)".to_owned(), |key| key.masked());
    let file = settings
        .config_file
        .map_or_else(|| "-".to_owned(), |file| file.display().to_string());
    let reply = json!({ "api_url": settings.api_url, "api_key": key, "config_file": file });
    output.reply(&reply, || {
        labelled(&[
            ("API URL", settings.api_url),
            ("API Key", key),
            ("Config file", file),
        ])
    })
}

/// `oc whoami`
pub(super) async fn whoami(context: &Context) -> Result<(), CliError> {
    let reply = context.api.get(&["whoami"]).await?;
    let who: Identity = decode(reply.clone())?;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    context.output.reply(&reply, || {
        labelled(&[
            ("User", or_dash(who.email.or(who.user_id))),
            ("Workspace", or_dash(who.org_name)),
            ("Org ID", or_dash(who.org_id)),
            ("API", context.settings.api_url.clone()),
        ])
    })
}

/// `oc completion <shell>`
pub(super) fn completion(shell: Shell, mut program: clap::Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "oc", &mut script);
    write_stdout(&String::from_utf8_lossy(&script))
}
