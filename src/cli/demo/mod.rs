//! `oc demo`: the main job end to end, on this machine alone.
//!
//! Invariants: every claim is checked by looking, outside the code that makes it true; a failed
//! check ends in exit code 1; everything the demo made is taken away on success, failure and
//! Ctrl-C alike.

mod canary;
mod inside;
mod narrator;
mod processes;
mod proofs;
mod scene;
mod stage;
mod steps;
mod upstream;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::error::EXIT_LOCAL;
use super::private_server::{ServerError, failed};
use super::{Global, block_on};
use narrator::Narrator;
use stage::Stage;

/// The whole story may not take longer than this.
const STORY_MS_MAX: u64 = 120_000;

/// `oc demo`
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Keep the folder of the run (data, logs) for a look afterwards
    #[arg(long)]
    keep: bool,
}

/// Why the story ended before its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// A part of it could not be done.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// What came back makes the next step pointless.
    #[error("{0}")]
    Unexpected(String),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl From<super::error::CliError> for Broken {
    fn from(error: super::error::CliError) -> Self {
        Self::Server(error.into())
    }
}

/// Runs the demo; success only when each step was checked and held.
pub fn demo(global: &Global, args: DemoArgs) -> ExitCode {
    let mut story = Narrator::new(global.no_color);
    let good = block_on(run(&mut story, args.keep)).unwrap_or_else(|error| Err(error.into()));
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_LOCAL),
        Err(error) => {
            // Standard error is where it would be told; the exit code says it too.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(EXIT_LOCAL)
        }
    }
}

async fn run(story: &mut Narrator, keep: bool) -> Result<bool, Broken> {
    let watch = |kind| signal(kind).map_err(failed(|| "watch for signals".to_owned()));
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let started = Instant::now();
    let mut stage = Stage::new()?;
    let told = tokio::select! {
        told = timeout(Duration::from_millis(STORY_MS_MAX), steps::tell(&mut stage, story)) => {
            told.unwrap_or_else(|_| {
                Err(Broken::Unexpected(format!("not done within {STORY_MS_MAX} ms")))
            })
        }
        _ = interrupt.recv() => Err(Broken::Interrupted),
        _ = terminate.recv() => Err(Broken::Interrupted),
    };
    if let Err(error) = told {
        story.failure(&error.to_string());
        if !matches!(error, Broken::Interrupted) {
            story.note(&stage.log_tail());
        }
    }
    // From here on signals are ignored: the clean-up is bounded, and half of one helps nobody.
    story.step("Clean up");
    stage.clean_up(story, keep).await;
    Ok(story.verdict(started.elapsed().as_secs_f64()))
}
