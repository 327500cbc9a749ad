use std::process::ExitCode;

use opencomputer::sandbox::{SUPERVISE_SUBCOMMAND, supervisor_main};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == SUPERVISE_SUBCOMMAND => supervisor_main(rest),
        _ => ExitCode::from(2),
    }
}
