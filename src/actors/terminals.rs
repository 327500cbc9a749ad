//! Shells on terminals in a sandbox. They live in the guest alone; only that an idempotency key
//! started one is in the log.
//!
//! Invariant: as for sessions, a key starts at most one shell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::activity::InUse;
use super::aggregate::Reject;
use super::create::check_envs;
use super::exec::new_session_id;
use super::idempotency::{Begun, Keyed};
use super::live::LiveSandbox;
use super::platform::{Caller, Platform};
use super::sessions::{GONE, SessionFailure, is_refusal};
use crate::sandbox::{GuestError, StartTerminal, TerminalSize};

/// What is tried, in this order, when the caller names no shell.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// A size that every program expects to be possible.
const COLS_DEFAULT: i64 = 80;
const ROWS_DEFAULT: i64 = 24;
/// What programs are told of the terminal; clients speak this language.
const TERM: &str = "xterm-256color";
/// How long a terminal stays with nobody attached.
const ALONE_MAX: Duration = Duration::from_secs(600);
/// Longest path of a shell or a folder, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// A terminal as a caller asks for it.
#[derive(Debug, Clone, Default)]
pub struct TerminalRequest {
    /// Characters in a line; 80 when absent.
    pub cols: Option<i64>,
    /// Lines; 24 when absent.
    pub rows: Option<i64>,
    /// The program; bash or else sh when absent or empty.
    pub shell: Option<String>,
    /// Working directory; the user's own when absent or empty.
    pub cwd: Option<String>,
    /// Variables of the shell.
    pub envs: BTreeMap<String, String>,
}

/// A terminal that a request opened, now or when it first came.
pub struct Terminal {
    /// Its id.
    pub id: String,
    /// This request repeats one, and opened nothing.
    pub replayed: bool,
}

impl Platform {
    /// Opens a terminal, once for each key. A repeat finds it for as long as the guest knows it.
    pub async fn open_terminal(
        self: Arc<Self>,
        caller: Caller,
        live: InUse,
        request: TerminalRequest,
        keyed: Option<Keyed>,
    ) -> Result<Terminal, SessionFailure> {
        let (terminal, shells) = prepare(&live, request)?;
        let id = terminal.terminal_id.clone();
        let first = match self
            .begin_in(&live.details.sandbox_id, keyed.as_ref())
            .await?
        {
            Begun::First(first) => first,
            Begun::Repeat((_, taken)) => {
                let mut known = live.guest.terminals().await?.into_iter();
                let id = taken.session.unwrap_or_default();
                return match known.any(|one| one.session_id == id) {
                    true => Ok(Terminal { id, replayed: true }),
                    false => Err(Reject::Conflict(GONE.to_owned()).into()),
                };
            }
        };
        self.take_key(&caller, &first, &live, &id).await?;
        let started = start(&live, terminal, &shells).await;
        if let (Err(error), Some(claim)) = (&started, &first.claim)
            && error.started_nothing()
        {
            self.give_back(&caller, claim).await;
        }
        started.map(|()| Terminal {
            id,
            replayed: false,
        })
    }
}

impl SessionFailure {
    /// Whether the guest has certainly started nothing.
    fn started_nothing(&self) -> bool {
        match self {
            Self::Guest(error) => is_refusal(error),
            Self::NoShell => true,
            Self::Refused(_) => false,
        }
    }
}

/// Starts the first of the shells that there is.
async fn start(
    live: &LiveSandbox,
    terminal: StartTerminal,
    shells: &[String],
) -> Result<(), SessionFailure> {
    let given = matches!(shells, [_]);
    for shell in shells {
        let terminal = StartTerminal {
            shell: shell.clone(),
            ..terminal.clone()
        };
        live.kills.began(&terminal.terminal_id);
        match live.guest.start_terminal(terminal).await {
            Ok(_) => return Ok(()),
            Err(GuestError::CommandNotFound(_) | GuestError::Refused(_)) if !given => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(SessionFailure::NoShell)
}

/// A size that a caller gives.
///
/// # Errors
/// [`Reject::Invalid`] for one that no terminal has.
pub fn terminal_size(cols: i64, rows: i64) -> Result<TerminalSize, Reject> {
    let text = || Reject::invalid("cols and rows must be between 1 and 65535");
    TerminalSize::new(cols, rows).ok_or_else(text)
}

/// Checks a request and turns it into a terminal of the guest, and the shells to try.
fn prepare(
    live: &LiveSandbox,
    request: TerminalRequest,
) -> Result<(StartTerminal, Vec<String>), Reject> {
    let size = terminal_size(
        request.cols.unwrap_or(COLS_DEFAULT),
        request.rows.unwrap_or(ROWS_DEFAULT),
    )?;
    for text in request.shell.iter().chain(&request.cwd) {
        if text.contains('\0') || text.len() > PATH_BYTES_MAX {
            let text = format!("shell and cwd must not hold NUL or exceed {PATH_BYTES_MAX} bytes");
            return Err(Reject::invalid(text));
        }
    }
    check_envs(&request.envs)?;
    let terminal = StartTerminal {
        terminal_id: new_session_id(),
        shell: String::new(),
        env: environment(live, &request.envs, size),
        cwd: live.start_in(request.cwd),
        size,
        hang_up_when_alone: ALONE_MAX,
    };
    let shells = match request.shell.filter(|shell| !shell.is_empty()) {
        Some(shell) => vec![shell],
        None => SHELLS.map(str::to_owned).to_vec(),
    };
    Ok((terminal, shells))
}

/// The sandbox's environment, what is true of this terminal whatever the sandbox says, and on top
/// what the caller wants.
fn environment(
    live: &LiveSandbox,
    own: &BTreeMap<String, String>,
    size: TerminalSize,
) -> BTreeMap<String, String> {
    let mut environment = live.environment(&BTreeMap::new());
    environment.extend([
        ("TERM".to_owned(), TERM.to_owned()),
        ("COLUMNS".to_owned(), size.cols().to_string()),
        ("LINES".to_owned(), size.rows().to_string()),
    ]);
    environment.extend(own.clone());
    environment
}
