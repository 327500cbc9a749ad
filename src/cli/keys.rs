//! `oc keys`: the keys that secret values in the log are sealed with.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::data::DataArgs;
use super::error::CliError;
use super::output::Output;
use crate::config::MasterSource;
use crate::events::DataFolder;

/// `oc keys <command>`
#[derive(Subcommand)]
pub enum Keys {
    /// Exchange the master key of a server that does not run
    ///
    /// Every data key is wrapped anew; the event log is not touched. Cut off at any moment, the
    /// server still starts, and the command can be repeated. Backups made before open only with
    /// the master key of then: keep it with --keep-old for as long as they are kept.
    Rotate(Rotate),
}

/// `oc keys rotate`
#[derive(Args)]
pub struct Rotate {
    #[command(flatten)]
    data: DataArgs,
    /// For a master key from the environment or a command: file with the new one, made when missing
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// Keep a copy of the old key file here
    #[arg(long, value_name = "FILE")]
    keep_old: Option<PathBuf>,
}

impl Keys {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        match self {
            Self::Rotate(rotate) => rotate.run(output),
        }
    }
}

impl Rotate {
    fn run(self, output: Output) -> Result<(), CliError> {
        let config = self.data.config()?;
        let (new, old) = (self.new_key_file.as_deref(), self.keep_old.as_deref());
        let rotated = DataFolder::new(&config.data_dir)
            .rotate_master(&config.master_key, new, old)
            .map_err(|error| CliError::Damaged(error.to_string()))?;
        let next = match (&config.master_key, new) {
            (MasterSource::File(path), _) => format!("The new key is in {}.", path.display()),
            (source, new) => format!(
                "Put the content of {} where the server takes its key from ({}) before it starts.",
                new.unwrap_or(&PathBuf::new()).display(),
                source.describe()
            ),
        };
        let reply = json!({
            "keys": rotated.keys,
            "finishedEarlier": rotated.finished_earlier,
            "next": next,
        });
        output.reply(&reply, || {
            let earlier = match rotated.finished_earlier {
                true => "An earlier rotation had been cut off and is finished. ",
                false => "",
            };
            format!(
                "{earlier}{} data keys are wrapped by the new master key. {next} \
                 Back it up; older backups need the old one.",
                rotated.keys
            )
        })
    }
}
