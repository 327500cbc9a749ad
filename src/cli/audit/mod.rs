//! `oc audit`: what happened and how things were, from the event log, and the proof that the log is
//! whole.

mod diff;
mod follow;
mod log;
mod proof;
mod replay;
mod show;
mod source;

use clap::Subcommand;

use super::Context;
use super::error::CliError;

pub(super) use log::{Event, detail, newest};

/// `oc audit <command>`
#[derive(Subcommand)]
pub enum Audit {
    /// Show recorded events, newest last
    Log(log::Log),
    /// Show the last events, then each one as it is recorded
    Tail(log::Tail),
    /// Show one event in full, with its hashes
    Show(show::Show),
    /// Show projects, stores, sandboxes and keys as they were
    ///
    /// Secrets are shown by name and hosts; values are never there.
    Replay(replay::Replay),
    /// Show what changed between two points
    Diff(diff::Diff),
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
            Self::Tail(tail) => tail.run(context).await,
            Self::Show(show) => show.run(context).await,
            Self::Replay(replay) => replay.run(context).await,
            Self::Diff(diff) => diff.run(context).await,
            Self::Verify => proof::verify(context).await,
            Self::AcceptHead(accept) => accept.run(context),
        }
    }
}
