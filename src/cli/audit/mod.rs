//! `oc audit`: what happened and how things were, from the event log, and the proof that the log is
//! whole.

mod diff;
mod export;
mod follow;
mod log;
mod proof;
mod replay;
mod secrets;
mod show;
mod source;

use clap::Subcommand;

use super::Context;
use super::error::CliError;
use super::output::Output;

pub(super) use follow::{Line, Lines, may_pass};
pub(super) use log::{Event, detail, newest};
pub(super) use source::time;

/// `oc audit <command>`
#[derive(Subcommand)]
pub enum Audit {
    /// Show recorded events, newest last
    Log(log::Log),
    /// Show the last events, then each one as it is recorded
    Tail(log::Tail),
    /// Show one event in full, with its hashes
    Show(show::Show),
    /// Show which secret went where, when, from which sandbox and how often
    ///
    /// With --json every single use; values, paths and queries are never there.
    Secrets(secrets::Secrets),
    /// Show projects, stores, sandboxes and keys as they were
    ///
    /// Secrets are shown by name and hosts; values are never there.
    Replay(replay::Replay),
    /// Show what changed between two points
    Diff(diff::Diff),
    /// Check the whole log: every hash, every link, no gap
    ///
    /// The server checks its own log. With --file an export is checked, with --data-dir the folder
    /// of a server that does not run: both without any server. A log that was rewritten from its
    /// first commit on shows only against a checkpoint, or a chain hash noted elsewhere.
    Verify(proof::Verify),
    /// Write the log as JSON Lines with its proofs
    ///
    /// The server gives the organization's own events in full and of others only their content
    /// hashes, so the chain verifies all the same. Sealed values stay sealed. The export is checked
    /// with `oc audit verify --file` or by strangers with fixtures/verify_chain.py.
    Export(export::Export),
    /// Print a signed checkpoint of the log as it is now
    Checkpoint,
    /// Print the public key that checkpoints are verified with
    ///
    /// Note it where whoever runs the server can't change it: asked for later, a server could name
    /// another one.
    Key(export::Key),
    /// Take a stopped server's event log as it is, after its end was lost
    ///
    /// A log that ends before its witness has lost events that were acknowledged, and a server
    /// refuses to start on it. Restore a backup if there is one; this gives the lost events up.
    #[command(name = "accept-head")]
    AcceptHead(proof::AcceptHead),
}

impl Audit {
    /// Runs what needs no server; gives back what does.
    pub(super) fn run_offline(self, output: Output) -> Result<Option<Self>, CliError> {
        match self {
            Self::Verify(verify) if verify.is_offline() => verify.run_offline(output)?,
            Self::Export(export) if export.is_offline() => export.run_offline(output)?,
            Self::Key(key) if key.is_offline() => key.run_offline(output)?,
            Self::AcceptHead(accept) => accept.run(output)?,
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Log(log) => log.run(context).await,
            Self::Tail(tail) => tail.run(context).await,
            Self::Show(show) => show.run(context).await,
            Self::Secrets(secrets) => secrets.run(context).await,
            Self::Replay(replay) => replay.run(context).await,
            Self::Diff(diff) => diff.run(context).await,
            Self::Verify(verify) => verify.run(context).await,
            Self::Export(export) => export.run(context).await,
            Self::Checkpoint => export::checkpoint(context).await,
            Self::Key(key) => key.run(context).await,
            Self::AcceptHead(accept) => accept.run(context.output),
        }
    }
}
