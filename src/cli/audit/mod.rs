//! `oc audit`: what happened, from the event log, and the proof that the log is whole.

mod log;
mod proof;

use clap::Subcommand;

use super::Context;
use super::error::CliError;

pub(super) use log::{Event, detail, newest};

/// `oc audit <command>`
#[derive(Subcommand)]
pub enum Audit {
    /// Show recorded events, newest last
    Log(log::Log),
    /// Have the server check its whole log: every hash, every link, no gap
    Verify,
    /// Take a stopped server's event log as it is, after its end was lost
    ///
    /// A log that ends before its witness has lost events that were acknowledged, and a server
    /// refuses to start on it. Restore a backup if there is one; this gives the lost events up.
    #[command(name = "accept-head")]
    AcceptHead(proof::AcceptHead),
}

impl Audit {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Log(log) => log.run(context).await,
            Self::Verify => proof::verify(context).await,
            Self::AcceptHead(accept) => accept.run(context),
        }
    }
}
