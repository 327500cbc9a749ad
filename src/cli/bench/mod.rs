//! `oc bench`: what this machine and this program make of the promises of speed. Every figure stands
//! beside one of the machine's own, taken in turns in the same minutes: the ratio is what carries
//! over to other machines.

mod boxes;
mod commands;
mod fork;
mod idle;
mod log;
mod raw;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::error::CliError;
use super::output::Output;
use super::private_server::ServerError;
use super::{Global, block_on, finish};

/// `oc bench`
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Start of a sandbox, round trips, sleep and end as ratios to bubblewrap; many starts at once;
    /// memory and descriptors of idle sandboxes
    Start(StartArgs),
    /// Checkpoints, forks and restores by what is on the disk, as ratios to an empty one and to a
    /// plain create; many forks of one checkpoint at once
    Fork(ForkArgs),
    /// The event log: durable appends as ratios to a bare file with one sync a group, verification,
    /// replay, and durable commands over HTTP
    Log(LogArgs),
}

/// `oc bench start`
#[derive(Args)]
pub struct StartArgs {
    /// Measured rounds of each
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Sandboxes started at once; 0: none
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=200))]
    burst: u32,
    /// Numbers of idle sandboxes at which memory and descriptors are looked at, growing
    #[arg(long, value_delimiter = ',', default_value = "10,100",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    idle: Vec<u32>,
    /// Also stream a file of 1 GiB in and out
    #[arg(long)]
    large: bool,
}

/// `oc bench fork`
#[derive(Args)]
pub struct ForkArgs {
    /// Measured rounds with each upper layer
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Forks made of one checkpoint at once; 0: none
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=500))]
    forks: u32,
    /// Size of the large file, in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16384))]
    large_mib: u32,
    /// Where disks lie: files, pool, pool-xfs or pool-btrfs
    #[arg(long, default_value = "files", value_name = "STORE")]
    store: String,
    /// Folder to work in, on the disk that is to be measured [default: the system's temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// `oc bench log`
#[derive(Args)]
pub struct LogArgs {
    /// Measured rounds of each number of callers
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Events of the log that is verified and replayed
    #[arg(long, default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(10_000..=100_000_000))]
    events: u64,
    /// Seconds of durable commands over HTTP
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Folder to work in, on the disk that is to be measured [default: the system's temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the measurement and prints it.
pub fn bench(global: &Global, args: BenchArgs) -> ExitCode {
    let output = Output::of(global);
    let run = async {
        match args.what {
            What::Start(args) => start::run(args, output).await,
            What::Fork(args) => fork::run(args, output).await,
            What::Log(args) => log::run(args, output).await,
        }
    };
    let measured = block_on(run).and_then(|measured| measured);
    finish(measured.map(|()| 0), output)
}

fn broken(error: ServerError) -> CliError {
    match error {
        ServerError::Call(error) => error,
        error => CliError::Usage(error.to_string()),
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}
