//! `oc audit show`: one event in full, with its place in the chain.

use clap::Args;
use serde_json::Value;

use super::source::Folder;
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::cli::output::{labelled, printable};

/// `oc audit show`
#[derive(Args)]
pub struct Show {
    /// The event's position or its id
    event: String,
    #[command(flatten)]
    folder: Folder,
}

impl Show {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let source = self.folder.open(context)?;
        let event = source.event(&self.event).await;
        source.close().await;
        let event = event?;
        context.output.reply(&event, || text(&event))
    }
}

fn text(event: &Value) -> String {
    let field = |path: &str| match event.pointer(path) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let lines = [
        ("Position", field("/position")),
        ("Event", field("/id")),
        ("Type", field("/type")),
        ("Stream", field("/stream")),
        ("Revision", field("/revision")),
        ("Recorded", field("/recordedAt")),
        ("Actor", field("/actor/kind")),
        ("Key", field("/actor/key")),
        ("Organization", field("/actor/org")),
        ("Command", field("/command")),
        ("Correlation", field("/correlation")),
        ("Causation", field("/causation")),
        ("Content hash", field("/contentHash")),
        ("Commit", field("/commit")),
        ("Chain before", field("/chain/previous")),
        ("Chain", field("/chain/hash")),
    ];
    let data = serde_json::to_string_pretty(&event["data"]).unwrap_or_default();
    let data: Vec<String> = data.lines().map(printable).collect();
    format!("{}\n\n{}", labelled(&lines), data.join("\n"))
}
