//! `oc audit verify` and `oc audit accept-head`: is the log whole, and what when it is not.

use std::path::PathBuf;

use clap::Args;
use reqwest::Method;
use serde_json::json;

use crate::cli::Context;
use crate::cli::error::CliError;
use crate::config::default_data_dir;
use crate::events::EventLog;

/// `oc audit accept-head`
#[derive(Args)]
pub struct AcceptHead {
    /// The server's data folder [default: the one `oc serve` uses]
    #[arg(long, env = "OC_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Fails when the log is not whole.
pub(super) async fn verify(context: &Context) -> Result<(), CliError> {
    let reply = context
        .api
        .send(Method::POST, &["audit", "verify"], None)
        .await?;
    if reply["ok"] != json!(true) {
        let reason = reply["error"].as_str().unwrap_or("no reason given");
        return Err(CliError::Damaged(reason.to_owned()));
    }
    context.output.reply(&reply, || {
        format!(
            "The log is whole: {} commits, {} events, chain {}",
            reply["commits"],
            reply["positions"],
            reply["chain"].as_str().unwrap_or_default()
        )
    })
}

impl AcceptHead {
    pub(super) fn run(self, context: &Context) -> Result<(), CliError> {
        let data_dir = self.data_dir.or_else(default_data_dir).ok_or_else(|| {
            CliError::Usage("no data folder: HOME is not set; pass --data-dir".to_owned())
        })?;
        let head = EventLog::accept_head(&data_dir.join("log"))
            .map_err(|error| CliError::Damaged(error.to_string()))?;
        let reply = json!({ "position": head.position, "commit": head.commit });
        context.output.reply(&reply, || {
            format!(
                "The log now ends at event {} (commit {}).",
                head.position, head.commit
            )
        })
    }
}
