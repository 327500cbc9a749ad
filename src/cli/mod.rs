//! The commands of `oc`: one file a noun.
//!
//! Invariants: commands speak to a running server through its HTTP API only (those that work on a
//! data folder name it with `--data-dir`); each ends with a documented
//! exit code (0 success, 1 local problem, 3 HTTP 4xx, 4 HTTP 409, 5 HTTP 5xx, `exec` the
//! command's own); errors go to standard error, results to standard output.

mod account;
mod address;
mod admin;
mod audit;
mod backup;
mod bench;
mod build_log;
mod checkpoint;
mod checkpoint_diff;
mod client;
mod data;
mod demo;
mod doctor;
mod error;
mod exec;
mod fsck;
mod keys;
mod log;
mod logs;
mod output;
mod placement;
mod private_server;
mod project;
mod proxy;
mod sandbox;
mod sandbox_life;
mod secret;
mod secret_store;
mod settings;
mod shell;
mod slice;
mod snapshot;
mod stats;

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use bench::{BenchArgs, bench};
pub use demo::{DemoArgs, demo};
pub use doctor::{DoctorArgs, doctor};
pub use proxy::{ProxyArgs, proxy};
pub use settings::{SettingsError, write_local};

use client::Api;
use error::{CliError, EXIT_LOCAL};
use output::Output;
use settings::{ApiKey, Settings, Sources};

/// Flags every command takes.
#[derive(Args, Clone)]
pub struct Global {
    /// Print replies as JSON (and errors as JSON on standard error)
    #[arg(long, global = true)]
    pub json: bool,
    /// Print without colours
    #[arg(long = "no-color", global = true)]
    pub no_color: bool,
    /// API key (default: OPENCOMPUTER_API_KEY, then the configuration)
    #[arg(long = "api-key", global = true, value_name = "KEY", value_parser = api_key)]
    pub api_key: Option<ApiKey>,
    /// Server address (default: OPENCOMPUTER_API_URL, then the configuration)
    #[arg(long = "api-url", global = true, value_name = "URL")]
    pub api_url: Option<String>,
}

/// The commands that talk to a server.
#[derive(Subcommand)]
pub enum Command {
    /// Manage projects: defaults and secrets shared by sandboxes
    #[command(subcommand)]
    Project(project::Project),
    /// Manage the secrets of a project or secret store
    #[command(subcommand)]
    Secret(secret::Secret),
    /// Manage secret stores
    #[command(name = "secret-store", subcommand)]
    SecretStore(secret_store::SecretStore),
    /// Manage sandboxes
    #[command(subcommand)]
    Sandbox(sandbox::Sandbox),
    /// Keep, restore and fork sandboxes
    #[command(subcommand, visible_alias = "cp")]
    Checkpoint(checkpoint::Checkpoint),
    /// Scripts that run in every sandbox made from a checkpoint
    #[command(subcommand)]
    Patch(checkpoint::Patch),
    /// Build, list and delete snapshots: named images that sandboxes start from
    #[command(subcommand, visible_alias = "snapshots")]
    Snapshot(snapshot::Snapshot),
    /// Create a sandbox (same as `oc sandbox create`)
    Create(Box<sandbox::Create>),
    /// List sandboxes (same as `oc sandbox list`)
    Ls,
    /// Run a command in a sandbox
    Exec(Box<exec::Exec>),
    /// Open a shell in a sandbox, on this terminal
    Shell(shell::Shell),
    /// Show what a sandbox's programs print, as they print it
    Logs(logs::Logs),
    /// Read the audit log
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Work on the keys of a server that does not run
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Work on the event log of a server that does not run
    #[command(subcommand)]
    Log(log::Log),
    /// Copy the log and its keys to another folder, with or without a server running
    ///
    /// The copy is consistent and read again before it counts. Without --with-master-key it opens
    /// only together with the server's master key. Disks are not part of it, neither those of
    /// sandboxes nor the copies that checkpoints are. It holds
    /// the keys of what is deleted later: shredding reaches only backups that have expired.
    Backup(backup::Backup),
    /// Make a data folder from a backup
    ///
    /// Everything is verified first; a wrong master key is refused.
    Restore(backup::Restore),
    /// Compare the disks of a stopped server with its records
    ///
    /// Finds disks and copies that no record has, records whose disk is missing, what was begun and not
    /// finished, wrong sizes, templates that nothing uses. Ends with 0 when all agrees (or was put
    /// right), with 2 when faults are left. Refused while a server runs on the folder: that one does
    /// the same work every ten seconds.
    Fsck(fsck::Fsck),
    /// Show or change the configuration
    #[command(subcommand)]
    Config(account::Config),
    /// Keep an API key for the commands of this user, once the server has taken it
    ///
    /// The key is asked for on the terminal, or read from standard input. Make one with
    /// `oc admin key create`.
    Login(account::Login),
    /// Forget the API key of `oc login`, and have the server revoke it
    Logout(account::Logout),
    /// Show who the API key belongs to
    Whoami,
    /// Manage organizations and API keys
    #[command(subcommand)]
    Admin(admin::Admin),
    /// Print a completion script for a shell
    Completion {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

/// What a command works with.
struct Context {
    api: Api,
    output: Output,
    settings: Settings,
}

/// Runs a command and prints its result or its error; `program` is the whole command line, for the
/// completion script.
pub fn run(global: Global, command: Command, program: clap::Command) -> ExitCode {
    let output = Output::of(&global);
    finish(dispatch(global, command, output, program), output)
}

/// Parses the arguments of this process as `T`. Help and version end with 0; wrong arguments are
/// reported and end with 1, as every local problem does (and as JSON when `--json` is among them).
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    T::try_parse_from(&arguments).map_err(|error| {
        let json = arguments
            .iter()
            .take_while(|word| *word != "--")
            .any(|word| word == "--json");
        if error.use_stderr() && json {
            let text = error.render().to_string();
            let text = text.trim().trim_start_matches("error: ").to_owned();
            output::report(&CliError::Usage(text), true);
        } else {
            // Nothing is left to tell when neither stream can be written.
            let _ = error.print();
        }
        if error.use_stderr() {
            ExitCode::from(EXIT_LOCAL)
        } else {
            ExitCode::SUCCESS
        }
    })
}

fn dispatch(
    global: Global,
    command: Command,
    output: Output,
    program: clap::Command,
) -> Result<u8, CliError> {
    let sources = Sources {
        flag_url: global.api_url,
        flag_key: global.api_key,
        ..Sources::from_environment()
    };
    let command = match command {
        // These work without a server and with a broken configuration.
        Command::Completion { shell } => return account::completion(shell, program).map(done),
        Command::Config(config) => return config.run(sources, output).map(done),
        Command::Login(login) => return block_on(login.run(sources, output))?.map(done),
        Command::Logout(logout) => return block_on(logout.run(sources, output))?.map(done),
        Command::Keys(keys) => return keys.run(output).map(done),
        Command::Log(log) => return log.run(output).map(done),
        Command::Fsck(fsck) => return fsck.run(output),
        Command::Backup(backup) => return backup.run(output).map(done),
        Command::Restore(restore) => return restore.run(output).map(done),
        Command::Audit(audit) => match audit.run_offline(output)? {
            None => return Ok(0),
            Some(audit) => Command::Audit(audit),
        },
        command => command,
    };
    let settings = Settings::resolve(sources)?;
    let local = matches!(&command, Command::Admin(admin) if admin.is_local());
    if settings.api_key.is_none() && !local {
        let warning = "warning: no API key; set one with `oc config set api-key <key>`";
        // A warning nobody can read is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
    let api = Api::new(&settings.api_url, settings.api_key.as_ref())?;
    let context = Context {
        api,
        output,
        settings,
    };
    block_on(async {
        match command {
            Command::Project(project) => project.run(&context).await.map(done),
            Command::Secret(secret) => secret.run(&context).await.map(done),
            Command::SecretStore(store) => store.run(&context).await.map(done),
            Command::Sandbox(sandbox) => sandbox.run(&context).await.map(done),
            Command::Checkpoint(checkpoint) => checkpoint.run(&context).await.map(done),
            Command::Patch(patch) => patch.run(&context).await.map(done),
            Command::Admin(admin) => admin.run(&context).await.map(done),
            Command::Snapshot(snapshot) => snapshot.run(&context).await.map(done),
            Command::Create(create) => create.run(&context).await.map(done),
            Command::Ls => sandbox::list(&context).await.map(done),
            Command::Exec(exec) => exec.run(&context).await,
            Command::Shell(shell) => shell.run(&context).await,
            Command::Logs(logs) => logs.run(&context).await.map(done),
            Command::Audit(audit) => audit.run(&context).await.map(done),
            Command::Whoami => account::whoami(&context).await.map(done),
            Command::Config(_)
            | Command::Login(_)
            | Command::Logout(_)
            | Command::Completion { .. }
            | Command::Keys(_)
            | Command::Log(_)
            | Command::Fsck(_)
            | Command::Backup(_)
            | Command::Restore(_) => Ok(0),
        }
    })?
}

/// Runs a future on this thread; the program ends with the command, so one thread is enough.
fn block_on<F: Future>(future: F) -> Result<F::Output, CliError> {
    // Another part of the program may have chosen the same provider already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Usage(format!("cannot start the I/O loop: {error}")))?;
    let result = runtime.block_on(future);
    // A look-up that hangs in a blocking thread must not keep a finished command alive.
    runtime.shutdown_background();
    Ok(result)
}

fn finish(result: Result<u8, CliError>, output: Output) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::report(&error, output.json);
            ExitCode::from(error.exit_code())
        }
    }
}

fn done((): ()) -> u8 {
    0
}

fn api_key(text: &str) -> Result<ApiKey, std::convert::Infallible> {
    Ok(ApiKey::from(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// The client's commands without those of the server.
    #[derive(Parser)]
    #[command(name = "oc")]
    struct ClientOnly {
        #[command(flatten)]
        global: Global,
        #[command(subcommand)]
        #[allow(dead_code, reason = "parsing it is what is tested")]
        command: Command,
    }

    /// Goal: clap's own checks of the whole command line (duplicate names, wrong positions).
    #[test]
    fn the_command_line_is_well_formed() {
        ClientOnly::command().debug_assert();
    }

    #[test]
    fn global_flags_go_anywhere_before_the_command_of_exec() {
        let check = |words: &str| {
            ClientOnly::try_parse_from(words.split(' '))
                .map(|parsed| parsed.global.json)
                .ok()
        };
        assert_eq!(check("oc --json project list"), Some(true));
        assert_eq!(check("oc project list --json"), Some(true));
        assert_eq!(check("oc exec sb-1 --json -- ls"), Some(true));
        assert_eq!(check("oc exec sb-1 -- ls --json"), Some(false));
        assert_eq!(check("oc project list --nonsense"), None);
    }
}
