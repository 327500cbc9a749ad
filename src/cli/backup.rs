//! `oc backup` and `oc restore`: the log and its keys, to another folder and back.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::data::DataArgs;
use super::error::CliError;
use super::output::Output;
use crate::config::{MasterSource, configured_master};
use crate::events::{BackupError, DataFolder, Manifest};

/// `oc backup`
#[derive(Args)]
pub struct Backup {
    /// Folder to make, new or empty
    dir: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Also copy the private keys (master.key, checkpoint.key), which make the backup open for
    /// whoever has it
    #[arg(long)]
    with_master_key: bool,
}

/// `oc restore`
#[derive(Args)]
pub struct Restore {
    /// A folder that `oc backup` made
    backup: PathBuf,
    /// The new data folder, new or empty
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// File with the master key the server had; it decides alone [default: OC_MASTER_KEY, `master_key_command` in the
    /// backup's configuration, or the key in the backup]
    #[arg(long, env = "OC_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,
}

fn failed(error: BackupError) -> CliError {
    CliError::Damaged(error.to_string())
}

impl Backup {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        let config = self.data.config()?;
        // A key from elsewhere may be out of reach here; the backup then says that it is unchecked.
        let master = match &config.master_key {
            MasterSource::File(path) if !path.exists() && !self.with_master_key => None,
            source => Some(source),
        };
        let manifest = DataFolder::new(&config.data_dir)
            .backup(&self.dir, master, self.with_master_key)
            .map_err(failed)?;
        output.reply(&reply(&manifest), || {
            let keys = match manifest.with_master_key {
                true => "The private keys are in it: whoever has it can open every secret.",
                false => "The master key is not in it: keep that apart, nothing opens without it.",
            };
            format!(
                "Backed up {} commits, {} events, chain {} to {}; the copy was read again and \
                 verifies.\n{keys}\nDisks are not part of a backup: neither those of sandboxes nor the \
                 copies that checkpoints are (docs/checkpoints.md). Keys of what is \
                 deleted later stay in it: let old backups expire.",
                manifest.commits,
                manifest.positions,
                hex::encode(manifest.chain),
                self.dir.display()
            )
        })
    }
}

impl Restore {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        let master = self.master()?;
        let manifest = DataFolder::new(&self.data_dir)
            .restore(&self.backup, master.as_ref())
            .map_err(failed)?;
        let (kept, place) = self.key_place(master.as_ref())?;
        let mut said = reply(&manifest);
        said["masterKey"] = json!(place);
        output.reply(&said, || {
            let key = match kept {
                true => String::new(),
                false => format!("The server will take its master key from {place}. "),
            };
            format!(
                "Restored {} commits, {} events, chain {} to {}; everything verifies and the \
                 master key opens the keyring. {key}Start the server with `oc serve --data-dir {}`.",
                manifest.commits,
                manifest.positions,
                hex::encode(manifest.chain),
                self.data_dir.display(),
                self.data_dir.display()
            )
        })
    }

    /// The key that was named, or as a server on the restored folder would have it; `None`: the one
    /// in the backup.
    fn master(&self) -> Result<Option<MasterSource>, CliError> {
        if let Some(path) = &self.master_key_file {
            return Ok(Some(MasterSource::File(path.clone())));
        }
        Ok(match self.configured(true)? {
            // Where the restored server will look, and where there can't be one yet.
            MasterSource::File(path) if !path.exists() => None,
            source => Some(source),
        })
    }

    fn configured(&self, variable: bool) -> Result<MasterSource, CliError> {
        configured_master(&self.data_dir, &self.backup.join("oc.toml"), variable)
            .map_err(|error| CliError::Usage(error.to_string()))
    }

    /// Whether the restored folder has the key, and where its server will look for it.
    fn key_place(&self, master: Option<&MasterSource>) -> Result<(bool, String), CliError> {
        if let Some(MasterSource::Environment) = master {
            return Ok((false, MasterSource::Environment.describe()));
        }
        let source = self.configured(false)?;
        let own = std::path::absolute(self.data_dir.join("master.key"));
        let kept = own.is_ok_and(|own| source == MasterSource::File(own));
        Ok((kept, source.describe()))
    }
}

fn reply(manifest: &Manifest) -> Value {
    json!({
        "log": manifest.log,
        "commits": manifest.commits,
        "positions": manifest.positions,
        "chain": hex::encode(manifest.chain),
        "withMasterKey": manifest.with_master_key,
        "keysChecked": manifest.keys_checked,
    })
}
