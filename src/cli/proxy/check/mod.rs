//! `oc proxy check`: an attack suite for any proxy that swaps tokens for secrets.
//!
//! Every attack is carried out for real: hosts and clients of this process, on loopback, with the
//! proxy under test between them. Invariants: a check that can't tell says `skipped`, never
//! `pass`; no value is printed; nothing is sent to other machines by this process (a proxy that
//! falls for an address may try).

mod attacks;
mod authority;
mod client;
mod frames;
mod h2_client;
mod h2_honest;
mod h2_host;
mod kit;
mod kit_text;
mod message;
mod outcome;
mod spellings;
mod upstream;
mod world;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::timeout;

use crate::cli::block_on;
use crate::cli::error::CliError;
use crate::cli::output::{Output, printable, report};
use client::Trouble;
use outcome::{Line, Verdict, count, text};
use world::World;

/// Exit code when an attack worked.
const EXIT_FAILED: u8 = 1;
/// Exit code when the attacks could not be carried out.
const EXIT_NOT_RUN: u8 = 2;
/// Longest time of one attack.
const ATTACK: Duration = Duration::from_secs(60);

/// `oc proxy check`
#[derive(Args)]
pub struct CheckArgs {
    /// The proxy under test
    #[arg(
        long,
        value_name = "HOST:PORT",
        required_unless_present = "prepare",
        requires = "kit"
    )]
    target: Option<String>,
    /// Folder with the kit the proxy was configured by
    #[arg(long, value_name = "DIR")]
    kit: Option<PathBuf>,
    /// Write a new kit into this folder, and say how to go on
    #[arg(long, value_name = "DIR", conflicts_with_all = ["target", "kit"])]
    prepare: Option<PathBuf>,
    /// Host of the primary secret, if not the kit's
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Token of the primary secret, if not the kit's
    #[arg(long)]
    token: Option<String>,
    /// File with the primary secret's value, if not the kit's
    #[arg(long, value_name = "FILE")]
    value_file: Option<PathBuf>,
    /// Certificate of the proxy's authority (default: proxy-ca.pem of the kit)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Only attacks of this row, or with this text in their name (may be given again)
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
}

/// Runs the suite; the exit code.
pub fn check(args: CheckArgs, output: Output) -> u8 {
    let done = match &args.prepare {
        Some(folder) => prepare(folder, output).map(|()| 0),
        None => block_on(attack(&args, output)).and_then(|done| done),
    };
    done.unwrap_or_else(|error| {
        report(&error, output.json);
        EXIT_NOT_RUN
    })
}

fn prepare(folder: &Path, output: Output) -> Result<(), CliError> {
    kit::prepare(folder).map_err(CliError::Usage)?;
    let shown = folder.display();
    let start = format!("oc proxy --policy {shown}/policy.toml --listen 127.0.0.1:3128");
    let run = format!("oc proxy check --target 127.0.0.1:3128 --kit {shown}");
    let reply = serde_json::json!({ "kit": folder, "start": start, "check": run });
    output.reply(&reply, || {
        printable(&format!("the kit is in {shown}"))
            + "\n"
            + &printable(&start)
            + "\n"
            + &printable(&run)
    })
}

async fn attack(args: &CheckArgs, output: Output) -> Result<u8, CliError> {
    let world = world(args).map_err(CliError::Usage)?;
    baseline(&world).await.map_err(CliError::Usage)?;
    let mut lines = Vec::new();
    for check in attacks::all() {
        let wanted = |word: &String| check.row == word || check.name.contains(word.as_str());
        if !args.only.is_empty() && !args.only.iter().any(wanted) {
            continue;
        }
        let started = Instant::now();
        let done = timeout(ATTACK, (check.run)(&world)).await;
        let result = done.unwrap_or(Err(Trouble::Late));
        lines.push(Line::new(&check, result, started.elapsed()));
    }
    output.reply(&lines, || text(&lines))?;
    Ok(match count(&lines, Verdict::Fail) {
        0 if lines.is_empty() => EXIT_NOT_RUN,
        0 => 0,
        _ => EXIT_FAILED,
    })
}

fn world(args: &CheckArgs) -> Result<World, String> {
    let (Some(target), Some(folder)) = (&args.target, &args.kit) else {
        return Err("name the proxy with --target and its kit with --kit".to_owned());
    };
    let mut kit = kit::read(folder)?;
    if let Some(host) = &args.host {
        kit.api.clone_from(host);
    }
    if let Some(token) = &args.token {
        kit.primary.token.clone_from(token);
    }
    if let Some(path) = &args.value_file {
        kit.primary.value = kit::read_value(path)?;
    }
    let ca = args
        .ca
        .clone()
        .unwrap_or_else(|| folder.join("proxy-ca.pem"));
    let own =
        CertificateDer::from_pem_file(&ca).map_err(|error| format!("{}: {error}", ca.display()))?;
    Ok(World {
        target: target.clone(),
        roots: vec![own, kit.authority.root.clone()],
        kit,
    })
}

/// A proxy that replaces nothing withstands everything; it must do its work first.
async fn baseline(world: &World) -> Result<(), String> {
    let host = world.echo().await.map_err(|trouble| trouble.to_string())?;
    let answer = world
        .ask(&world.kit.api, host.port, world.request("/", ""))
        .await;
    let answer = answer.map_err(|trouble| format!("the proxy does not do its work: {trouble}"))?;
    if host.got(world.kit.primary.real()) {
        return Ok(());
    }
    let seen = match (
        host.got(world.kit.primary.token.as_bytes()),
        answer.status(),
    ) {
        (true, _) => "the host got the token".to_owned(),
        (false, status) => format!("the client got status {status}"),
    };
    Err(format!(
        "the proxy does not do its work, so there is nothing to attack: the value of `primary` did \
         not reach {}; {seen}",
        world.kit.api
    ))
}
