//! Commands that work on a server's data folder: where it is and where its master key comes from,
//! by the same rules as for `oc serve`.

use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use crate::config::{Config, ServeArgs};

/// Which data folder, and with which key.
#[derive(Args)]
pub struct DataArgs {
    /// The server's data folder [default: the one `oc serve` uses]
    #[arg(long, env = "OC_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The server's configuration file [default: oc.toml in the data folder, when there is one]
    #[arg(long, env = "OC_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Master key file [default: as configured, else master.key in the data folder]
    #[arg(long, env = "OC_MASTER_KEY_FILE", value_name = "FILE")]
    master_key_file: Option<PathBuf>,
}

impl DataArgs {
    /// The configuration the server would have.
    pub fn config(self) -> Result<Config, CliError> {
        let args = ServeArgs {
            data_dir: self.data_dir,
            config: self.config,
            master_key_file: self.master_key_file,
            ..ServeArgs::default()
        };
        Config::load(args).map_err(|error| CliError::Usage(error.to_string()))
    }
}
