//! `oc bench`: measurements on this machine. They come with a later change.

use std::process::ExitCode;

use super::Global;

/// `oc bench`
#[derive(clap::Args)]
pub struct BenchArgs {}

/// Refuses until the measurements are there.
pub fn bench(_global: &Global, _args: BenchArgs) -> ExitCode {
    eprintln!("error: this build has no benchmarks");
    ExitCode::FAILURE
}
