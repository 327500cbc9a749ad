//! `oc config`, `oc login`, `oc logout`, `oc whoami`, `oc completion`.

use std::io::{self, IsTerminal, Read};

use clap::{Args, Subcommand};
use clap_complete::Shell;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::Context;
use super::client::{Api, decode};
use super::error::CliError;
use super::output::{Output, labelled, printable, write_stdout};
use super::settings::{ApiKey, Settings, SettingsError, Sources, clear_field, kept_key, set_field};

/// Longest key read, in bytes.
const KEY_BYTES_MAX: u64 = 4096;

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

/// `oc login`
#[derive(Args)]
pub struct Login {
    /// Replace a key that is kept already
    #[arg(long)]
    force: bool,
}

impl Login {
    pub(super) async fn run(self, sources: Sources, output: Output) -> Result<(), CliError> {
        let home = sources.home.clone().ok_or(SettingsError::NoHome)?;
        if kept_key(&home)?.is_some() && !self.force {
            let text = "a key is kept already: `oc logout` first, or pass --force";
            return Err(CliError::Usage(text.to_owned()));
        }
        let key = read_key()?;
        let url = Settings::resolve(sources)?.api_url;
        let who = Api::new(&url, Some(&key))?.get(&["whoami"]).await?;
        let who: Identity = decode(who)?;
        set_field(&home, "api_url", &url)?;
        set_field(&home, "api_key", key.expose())?;
        let org = who.org_name.or(who.org_id);
        let org = org.unwrap_or_else(|| "-".to_owned());
        output.line(&format!(
            "Logged in to {url} (organization {}).",
            printable(&org)
        ))
    }
}

/// From the terminal, without showing it, or from standard input.
fn read_key() -> Result<ApiKey, CliError> {
    let failed = |error: io::Error| CliError::Usage(format!("cannot read the key: {error}"));
    let mut text = Zeroizing::new(String::new());
    if io::stdin().is_terminal() {
        *text = rpassword::prompt_password("API key: ").map_err(failed)?;
    } else {
        let mut input = io::stdin().lock().take(KEY_BYTES_MAX);
        input.read_to_string(&mut text).map_err(failed)?;
    }
    match text.trim() {
        "" => Err(CliError::Usage("no key was given".to_owned())),
        key => Ok(ApiKey::from(key.to_owned())),
    }
}

/// `oc logout`
#[derive(Args)]
pub struct Logout {
    /// Only forget it here; the key stays valid
    #[arg(long)]
    local: bool,
}

impl Logout {
    pub(super) async fn run(self, sources: Sources, output: Output) -> Result<(), CliError> {
        let home = sources.home.clone().ok_or(SettingsError::NoHome)?;
        let Some(key) = kept_key(&home)? else {
            return output.line("Not logged in.");
        };
        if !self.local {
            let url = Settings::resolve(sources)?.api_url;
            let origin = url.trim_end_matches("/api");
            match Api::at_origin(origin, &key)?
                .delete(&["auth", "cli", "credential"], &[])
                .await
            {
                // Done before.
                Err(CliError::Refused {
                    status: 401 | 404, ..
                }) => {}
                done => done?,
            }
        }
        clear_field(&home, "api_key")?;
        output.line("Logged out.")?;
        match self.local {
            true => output.line("The key itself stays valid; `oc admin key revoke` ends it."),
            false => Ok(()),
        }
    }
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
