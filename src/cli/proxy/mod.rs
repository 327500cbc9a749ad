//! `oc proxy`: the sealing proxy as a program of its own, and the attack suite for any such proxy.
//!
//! Invariants: no server, data folder or event log is used; the engine is the one every sandbox
//! has ([`SandboxProxy`](crate::proxy::SandboxProxy)); what the policy file says wrongly is an
//! error, never a weaker policy; real values are in [`SecretValue`](crate::secret::SecretValue)
//! only, in a process that can't be dumped.

mod audit;
mod authority;
mod check;
mod egress;
mod load;
mod policy_error;
mod policy_file;
mod run;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::error::CliError;
use super::output::Output;
use super::{Global, finish};

/// Where the proxy listens unless told otherwise.
const LISTEN: &str = "127.0.0.1:3128";

/// `oc proxy`
#[derive(Args)]
#[command(subcommand_negates_reqs = true)]
pub struct ProxyArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// The policy: secrets, hosts, certificate authority (TOML)
    #[arg(long, value_name = "FILE", required = true)]
    policy: Option<PathBuf>,
    /// Address to listen on; everybody who reaches it uses the secrets
    #[arg(long, value_name = "ADDR", default_value = LISTEN)]
    listen: SocketAddr,
    /// Append every decision to this file as a line of JSON, instead of standard error
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Attack a proxy, this one or another, and print what it withstood
    ///
    /// `--prepare DIR` writes a kit: a policy, secrets and certificates that the proxy under test
    /// is told. Exit code 1 when an attack worked, 2 when the attacks could not be carried out.
    Check(Box<check::CheckArgs>),
}

/// Runs the proxy until SIGTERM or Ctrl-C, or the attacks on one.
pub fn proxy(global: &Global, args: ProxyArgs) -> ExitCode {
    let output = Output::of(global);
    let done = match args {
        ProxyArgs {
            what: Some(What::Check(args)),
            policy: None,
            ..
        } => Ok(check::check(*args, output)),
        ProxyArgs {
            policy: Some(policy),
            what: None,
            listen,
            audit,
        } => run::run(
            &run::Start {
                policy,
                listen,
                audit,
            },
            output,
        )
        .map(|()| 0),
        // One or the other: a policy would have no effect on the attacks.
        _ => Err(CliError::Usage(
            "give --policy FILE, or `check` alone".to_owned(),
        )),
    };
    finish(done, output)
}
