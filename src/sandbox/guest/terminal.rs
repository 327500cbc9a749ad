//! Shells on pseudo-terminals. They are no sessions: neither kind's calls find the other's ids.

use std::collections::BTreeMap;
use std::time::Duration;

use oc_guest::v1::{self, attach_input};

use super::{Attachment, GuestClient, GuestError, SESSIONS_MAX, SessionInfo, ms_at_least_1, short};

/// Width and height of a terminal in characters, each from 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    cols: u16,
    rows: u16,
}

impl TerminalSize {
    /// `None` for a size no terminal has.
    pub fn new(cols: i64, rows: i64) -> Option<Self> {
        let fit = |count: i64| u16::try_from(count).ok().filter(|count| *count > 0);
        Some(Self {
            cols: fit(cols)?,
            rows: fit(rows)?,
        })
    }

    /// Characters in a line.
    pub fn cols(self) -> u16 {
        self.cols
    }

    /// Lines.
    pub fn rows(self) -> u16 {
        self.rows
    }
}

impl From<TerminalSize> for v1::TerminalSize {
    fn from(size: TerminalSize) -> Self {
        Self {
            cols: size.cols.into(),
            rows: size.rows.into(),
        }
    }
}

/// A shell to start on a terminal of its own, as the sandbox user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartTerminal {
    /// 8 lower-case hex digits, chosen by the host, unlike every session and terminal of the last
    /// five minutes.
    pub terminal_id: String,
    /// The program, without arguments.
    pub shell: String,
    /// The whole environment of the shell.
    pub env: BTreeMap<String, String>,
    /// Must exist in the sandbox.
    pub cwd: String,
    /// At first.
    pub size: TerminalSize,
    /// The terminal is hung up when nobody was attached for so long.
    pub hang_up_when_alone: Duration,
}

impl GuestClient {
    /// Starts a shell, which lives on without any client. What it writes is kept (the last 1 MiB)
    /// for whoever attaches.
    ///
    /// # Errors
    /// As [`GuestClient::start`]; [`GuestError::Unsupported`] when the guest has no terminals.
    pub async fn start_terminal(&self, terminal: StartTerminal) -> Result<SessionInfo, GuestError> {
        let request = v1::StartTerminalRequest {
            terminal_id: terminal.terminal_id,
            shell: terminal.shell,
            args: Vec::new(),
            env: terminal.env.into_iter().collect(),
            cwd: terminal.cwd,
            size: Some(terminal.size.into()),
            scrollback_bytes_max: 0,
            hang_up_when_alone_ms: ms_at_least_1(terminal.hang_up_when_alone),
        };
        let mut client = self.client();
        let started = short(client.start_terminal(request)).await;
        started.map(SessionInfo::from).map_err(|error| match error {
            GuestError::NotFound(reason) => GuestError::CommandNotFound(reason),
            error => error,
        })
    }

    /// All terminals, oldest first; ended ones for five minutes.
    ///
    /// # Errors
    /// When the guest can't be reached, or has no terminals.
    pub async fn terminals(&self) -> Result<Vec<SessionInfo>, GuestError> {
        let mut client = self.client();
        let reply = short(client.list_terminals(v1::ListSessionsRequest {})).await?;
        let terminals = reply.sessions.into_iter().take(SESSIONS_MAX);
        Ok(terminals.map(SessionInfo::from).collect())
    }

    /// Attaches to a terminal: its scrollback, then its live output, then the shell's exit. All
    /// output is [`SessionOutput::Stdout`](super::SessionOutput::Stdout).
    ///
    /// # Errors
    /// [`GuestError::NotFound`] for an unknown terminal.
    pub async fn attach_terminal(&self, terminal_id: &str) -> Result<Attachment, GuestError> {
        self.attach_to(attach_input::Input::TerminalId(terminal_id.to_owned()))
            .await
    }

    /// Changes a terminal's size; one whose shell has ended is fine.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] for an unknown terminal.
    pub async fn resize_terminal(
        &self,
        terminal_id: &str,
        size: TerminalSize,
    ) -> Result<(), GuestError> {
        let request = v1::ResizeRequest {
            terminal_id: terminal_id.to_owned(),
            size: Some(size.into()),
        };
        short(self.client().resize(request)).await.map(drop)
    }

    /// Ends a terminal, its shell and what runs in its foreground, and forgets it. Within a second
    /// or so, by force if need be.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] for an unknown terminal.
    pub async fn hang_up_terminal(&self, terminal_id: &str) -> Result<(), GuestError> {
        let terminal_id = terminal_id.to_owned();
        let request = v1::HangUpRequest { terminal_id };
        short(self.client().hang_up(request)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_bounds() {
        let size = TerminalSize::new(65_535, 1).unwrap();
        assert_eq!((size.cols(), size.rows()), (65_535, 1));
        for (cols, rows) in [
            (0, 24),
            (80, 0),
            (65_536, 24),
            (80, 65_536),
            (-1, 24),
            (80, i64::MIN),
        ] {
            assert_eq!(TerminalSize::new(cols, rows), None, "{cols}x{rows}");
        }
    }
}
