//! `oc`: parse, dispatch, nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use opencomputer::config::{Config, ServeArgs};
use opencomputer::{cli, http, sandbox};

/// Sandboxes for AI agents whose secrets never enter the box.
#[derive(Parser)]
#[command(name = "oc", version, propagate_version = true)]
struct Oc {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // parsed once
enum Command {
    /// Run the server
    Serve(ServeArgs),
    /// Show the whole promise on this machine: secret, sandbox, sealed token, real call, audit trail
    Demo(cli::DemoArgs),
    /// Say what this machine can do for sandboxes, and what is missing
    Doctor,
    /// Measure this machine
    Bench(cli::BenchArgs),
    /// Hold one sandbox (started by the server)
    #[command(hide = true)]
    Supervise(sandbox::SuperviseArgs),
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    let oc = Oc::parse();
    match oc.command {
        Command::Serve(args) => serve(args),
        Command::Demo(args) => cli::demo(args),
        Command::Doctor => cli::doctor(&oc.global),
        Command::Bench(args) => cli::bench(args),
        Command::Supervise(args) => sandbox::supervisor_main(args),
        Command::Client(command) => cli::run(oc.global, command),
    }
}

fn serve(args: ServeArgs) -> ExitCode {
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(error) => return failed(&error),
    };
    opencomputer::start_logging(config.log_json);
    opencomputer::forbid_core_dumps();
    let served = actix::System::new().block_on(http::serve(config, |first| {
        println!("API key (shown once): {}", first.key);
        match cli::write_local(first.url, first.key) {
            Ok(path) => println!("`oc` on this machine uses it from {}", path.display()),
            Err(error) => eprintln!("it could not be kept for `oc` on this machine: {error}"),
        }
    }));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("oc: {error}");
    ExitCode::FAILURE
}
