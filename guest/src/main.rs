//! The program inside each sandbox.

mod files;
mod reaper;
mod serve;
mod service;
mod session;
mod spawn;

use std::process::ExitCode;

fn main() -> ExitCode {
    match serve::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oc-guest: {error}");
            ExitCode::from(2)
        }
    }
}
