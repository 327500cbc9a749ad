//! OpenComputer: self-hosted sandboxes for AI agents whose secrets never enter the box.
//!
//! The rooms of the house, and which way the arrows point
//! (`http`, `cli` → `actors` → `events`, `sandbox`, `proxy`; the last three do not know each other):

/// Identifiers: a project id can't be passed where a sandbox id is meant.
pub mod ids;
/// The one type a real secret value may live in.
pub mod secret;

/// Who decides: aggregates, the generic entity actor, read models, the reconciler.
pub mod actors;
/// The commands of `oc`.
pub mod cli;
/// One configuration from defaults, file, environment and flags.
pub mod config;
/// What happened: the event log, its proof, and the keys its secrets are sealed with.
pub mod events;
/// The door: the HTTP API. It translates and decides nothing.
pub mod http;
/// The seal: the byte path that swaps sealed tokens for real values, and back.
pub mod proxy;
/// The box: how a sandbox is isolated, and how the host talks to what runs inside.
pub mod sandbox;

/// Starts writing logs to stderr: `RUST_LOG` filters, `info` by default.
pub fn start_logging(json: bool) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match json {
        true => logs.json().init(),
        false => logs.init(),
    }
}

/// Keeps this process's memory, which holds real values, out of core dumps and other processes' reach.
pub fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "this process can't be kept out of core dumps");
    }
}
