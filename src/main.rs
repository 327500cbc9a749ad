//! `oc`: parse, dispatch, nothing else.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use opencomputer::config::{Config, DiskStore, ServeArgs};
use opencomputer::{cli, http, sandbox};

/// Events and requests are made on one thread and dropped on another all the time, which the
/// system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    Doctor(cli::DoctorArgs),
    /// Run the sealing proxy on its own, outside any sandbox
    Proxy(cli::ProxyArgs),
    /// Measure this machine
    Bench(cli::BenchArgs),
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    // A supervisor is started by the server, once for each sandbox: it parses nothing else.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some((command, rest)) = args.split_first()
        && command == sandbox::SUPERVISE_SUBCOMMAND
    {
        return sandbox::supervisor_main(rest);
    }
    let oc = match cli::parse::<Oc>() {
        Ok(oc) => oc,
        Err(code) => return code,
    };
    match oc.command {
        Command::Serve(args) => serve(args),
        Command::Demo(args) => cli::demo(&oc.global, args),
        Command::Doctor(args) => cli::doctor(&oc.global, args),
        Command::Proxy(args) => cli::proxy(&oc.global, args),
        Command::Bench(args) => cli::bench(&oc.global, args),
        Command::Client(command) => cli::run(oc.global, command, Oc::command()),
    }
}

fn serve(args: ServeArgs) -> ExitCode {
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(error) => return failed(&error),
    };
    // Before anything starts a thread.
    let pool = config.disk_store != DiskStore::Files;
    if let Err(error) = sandbox::private_mounts(&config.data_dir.join("sandboxes"), pool) {
        return failed(&error);
    }
    opencomputer::start_logging(config.log_json);
    opencomputer::forbid_core_dumps();
    let served = actix::System::new().block_on(http::serve(config, |first| {
        println!("API key (shown once): {}", first.key);
        let home = std::env::var_os("HOME")
            .map(std::path::PathBuf::from)
            .unwrap_or_default();
        match cli::write_local(&home, first.url, first.key) {
            Ok(()) => println!("`oc` finds it in {}", home.join(".oc/local.json").display()),
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
