//! `oc demo`: the main job end to end, on this machine alone. Its steps come with the next change.

use std::process::ExitCode;

use super::Global;

/// `oc demo`
#[derive(clap::Args)]
pub struct DemoArgs {}

/// Refuses until the steps are there.
pub fn demo(_global: &Global, _args: DemoArgs) -> ExitCode {
    eprintln!("error: this build has no demo");
    ExitCode::FAILURE
}
