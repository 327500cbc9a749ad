//! The running proxy: listen, obey signals, follow the policy file.
//!
//! Invariants: a new policy applies whole or not at all, and a bad one leaves the old in force;
//! connections under old ways out are cut when those change; at the end, what was decided is
//! written before the process goes.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::audit;
use super::egress::Egress;
use super::load::{Loaded, Shown, Tokens, load};
use super::watch::Watch;
use crate::cli::error::CliError;
use crate::cli::output::{Output, printable, write_stdout};
use crate::proxy::{Decision, SandboxProxy};

/// How often the files of the policy are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Time for open requests after SIGTERM; then their connections are cut.
const FAREWELL: Duration = Duration::from_secs(3);
/// Time for the last decisions to be written.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be accepted (no descriptors are left, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What to start with.
pub struct Start {
    /// The policy file.
    pub policy: PathBuf,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// File for decisions.
    pub audit: Option<PathBuf>,
}

/// Runs until SIGTERM or Ctrl-C; an error when it can't start, or can't go on.
pub fn run(start: &Start, output: Output) -> Result<(), CliError> {
    // Before the first value is read.
    crate::start_logging(output.json);
    crate::forbid_core_dumps();
    let failed = |what: &'static str| {
        move |error: io::Error| CliError::Usage(format!("cannot {what}: {error}"))
    };
    let runtime = Runtime::new().map_err(failed("start the I/O loop"))?;
    let loaded = load(&start.policy, Tokens::new());
    let loaded = loaded.map_err(|error| CliError::Usage(error.to_string()))?;
    let done = runtime.block_on(async {
        let listener = TcpListener::bind(start.listen).await;
        let listener = listener.map_err(failed("listen there"))?;
        let own = listener.local_addr().map_err(failed("listen there"))?;
        if !own.ip().is_loopback() {
            tracing::warn!(%own, "everybody who reaches this address uses the secrets");
        }
        let (trail, ended) =
            audit::open(start.audit.as_deref()).map_err(failed("open the audit file"))?;
        let watch = |kind| signal(kind).map_err(failed("watch for signals"));
        let signals = Signals {
            reload: watch(SignalKind::hangup())?,
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        };
        let mut running = Running {
            path: start.policy.clone(),
            own,
            output,
            trail,
            current: None,
        };
        let engine = running.adopt("ready", loaded)?;
        running.serve(engine, listener, signals, ended).await
    });
    // A name look-up that hangs must not hold a program that is asked to end.
    runtime.shutdown_background();
    done
}

struct Signals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

struct Running {
    path: PathBuf,
    own: SocketAddr,
    output: Output,
    trail: Sender<Decision>,
    current: Option<Current>,
}

/// The policy in force.
struct Current {
    engine: Arc<SandboxProxy>,
    egress: Egress,
    tokens: Tokens,
    watch: Watch,
}

/// What is printed at the start and after each change.
#[derive(Serialize)]
struct Announcement<'a> {
    event: &'static str,
    listen: SocketAddr,
    proxy: String,
    ca: &'a Path,
    secrets: &'a [Shown],
}

impl Running {
    async fn serve(
        mut self,
        mut engine: Arc<SandboxProxy>,
        listener: TcpListener,
        mut signals: Signals,
        mut ended: oneshot::Receiver<io::Result<()>>,
    ) -> Result<(), CliError> {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let connections = TaskTracker::new();
        loop {
            let reload = tokio::select! {
                accepted = listener.accept() => {
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(engine.clone().serve_explicit(stream));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a connection was not accepted");
                            sleep(ACCEPT_PAUSE).await;
                        }
                    }
                    false
                }
                _ = signals.reload.recv() => true,
                _ = looks.tick() => self.current.as_mut().is_some_and(|now| now.watch.changed()),
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                end = &mut ended => return Err(broken_trail(end.ok())),
            };
            if reload {
                engine = self.reload(engine).await?;
            }
        }
        drop(listener);
        tracing::info!("ending");
        connections.close();
        tokio::select! {
            _ = timeout(FAREWELL, connections.wait()) => {}
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
        }
        engine.close();
        let Self { trail, current, .. } = self;
        drop((trail, current, engine));
        // The engine's last owners are connections that were cut a moment ago.
        match timeout(LAST_WORDS, ended).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(end) => Err(broken_trail(end.ok())),
            Err(_) => Err(CliError::Usage(
                "the last decisions were not written in time".into(),
            )),
        }
    }

    /// Reads the policy again; the engine to use from now on.
    async fn reload(&mut self, engine: Arc<SandboxProxy>) -> Result<Arc<SandboxProxy>, CliError> {
        let tokens = self.current.as_ref().map(|now| now.tokens.clone());
        let path = self.path.clone();
        let loaded = spawn_blocking(move || load(&path, tokens.unwrap_or_default())).await;
        match loaded {
            Ok(Ok(loaded)) => self.adopt("reloaded", loaded),
            Ok(Err(error)) => {
                let error = printable(&error.to_string());
                tracing::error!(%error, "the new policy is not used; the old one stays in force");
                Ok(engine)
            }
            Err(_) => {
                tracing::error!("the policy could not be read; the old one stays in force");
                Ok(engine)
            }
        }
    }

    /// Puts a policy in force and tells of it.
    fn adopt(
        &mut self,
        event: &'static str,
        loaded: Loaded,
    ) -> Result<Arc<SandboxProxy>, CliError> {
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let announcement = Announcement {
            event,
            listen: self.own,
            proxy: format!("http://{}", self.own),
            ca: &loaded.ca_path,
            secrets: &loaded.secrets,
        };
        let text = if self.output.json {
            serde_json::to_string(&announcement)
                .map_err(|error| CliError::Usage(error.to_string()))?
        } else {
            announcement.text()
        };
        let engine = match self.current.take() {
            Some(old) if old.fits(&loaded) => {
                old.engine.set_policy(loaded.policy);
                old.engine
            }
            old => {
                let settings = Arc::new(loaded.egress.settings(self.own));
                let trail = self.trail.clone();
                let new = SandboxProxy::new(settings, loaded.ca, Some(loaded.policy), trail);
                if let Some(old) = old {
                    // Connections made under other rules for addresses or trust may not stay.
                    old.engine.close();
                }
                new
            }
        };
        self.current = Some(Current {
            engine: engine.clone(),
            egress: loaded.egress,
            tokens: loaded.tokens,
            watch: loaded.watch,
        });
        write_stdout(&format!("{text}\n"))?;
        Ok(engine)
    }
}

impl Current {
    /// Whether the engine can go on under the policy.
    fn fits(&self, loaded: &Loaded) -> bool {
        self.egress == loaded.egress
            && self.engine.ca_certificate_pem() == loaded.ca.certificate_pem()
    }
}

impl Announcement<'_> {
    fn text(&self) -> String {
        let mut lines = vec![
            format!("{} on {}", self.event, self.proxy),
            format!("ca certificate: {}", self.ca.display()),
        ];
        for secret in self.secrets {
            let hosts = secret.hosts.join(", ");
            lines.push(format!(
                "secret {}: {} for {hosts}",
                secret.name, secret.token
            ));
        }
        let lines: Vec<_> = lines.iter().map(|line| printable(line)).collect();
        lines.join("\n")
    }
}

fn broken_trail(end: Option<io::Result<()>>) -> CliError {
    let reason = match end {
        Some(Err(error)) => error.to_string(),
        _ => "its writer ended".to_owned(),
    };
    CliError::Usage(format!("decisions can't be written: {reason}"))
}
