//! The host side of the protocol with the program inside each sandbox.
//!
//! The guest is not trusted: code in the sandbox may have taken it over. Invariants: every message
//! is capped ([`oc_guest::MESSAGE_BYTES_MAX`]), every answer that is collected has a bound of its
//! own, every call that should be short has a time limit, and texts the guest chose are cut and
//! cleaned before they reach an error. A stalled stream costs its own window and stops no other.

mod attach;
mod connect;
mod error;
mod files;
mod run;
mod terminal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use oc_guest::v1::{self, guest_client};
use tonic::transport::Channel;
use tonic::{Request, Status};

pub use attach::{Attachment, LEAVE_TIME_MAX, LogBatch, SessionOutput, StdinSink};
pub use error::GuestError;
pub use files::{DirEntry, LIST_ENTRIES_MAX};
pub use run::RunOutput;
pub use terminal::{StartTerminal, TerminalSize};

/// Time limit of calls that should be short.
const CALL_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest pause between two tries to reach a starting guest.
const HELLO_PAUSE_MAX: Duration = Duration::from_millis(64);
/// Most sessions taken from a guest's list.
const SESSIONS_MAX: usize = 1024;

/// A guest, reached over its Unix socket. Clones share the connection.
#[derive(Clone)]
pub struct GuestClient {
    inner: guest_client::GuestClient<Channel>,
}

/// What the guest says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// How long it has been serving.
    pub uptime: Duration,
}

/// A process to start. `Default` is a shell command without limits as the sandbox user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartSession {
    /// 8 lower-case hex digits, chosen by the host, unlike every session of the last five minutes.
    pub session_id: String,
    /// A shell line, or with `direct` the program.
    pub cmd: String,
    /// The arguments, used with `direct` only.
    pub args: Vec<String>,
    /// Run `cmd` with `args` itself instead of `/bin/sh -c cmd`.
    pub direct: bool,
    /// The whole environment of the process.
    pub env: BTreeMap<String, String>,
    /// Must exist in the sandbox.
    pub cwd: String,
    /// When it passes, the process group is killed; the exit code is then -1.
    pub timeout: Option<Duration>,
    /// Root inside instead of the sandbox user.
    pub as_root: bool,
    /// 0: 1 MiB. Taken to 64 KiB or 16 MiB where it lies outside.
    pub scrollback_bytes_max: u32,
    /// The process group is killed this long after the last client detached.
    pub kill_after_detach: Option<Duration>,
    /// The process reads end of file at once.
    pub stdin_closed: bool,
}

impl StartSession {
    fn into_request(self, one_shot: bool) -> v1::StartSessionRequest {
        v1::StartSessionRequest {
            session_id: self.session_id,
            cmd: self.cmd,
            args: self.args,
            direct: self.direct,
            env: self.env.into_iter().collect(),
            cwd: self.cwd,
            timeout_ms: self.timeout.map_or(0, ms_at_least_1),
            as_root: self.as_root,
            scrollback_bytes_max: self.scrollback_bytes_max,
            kill_after_detach_ms: self.kill_after_detach.map_or(0, ms_at_least_1),
            stdin_closed: self.stdin_closed,
            one_shot,
        }
    }
}

/// Zero means "no limit" to the guest; a limit below a millisecond is still one.
fn ms_at_least_1(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// A session as the guest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The id the host chose.
    pub session_id: String,
    /// As started.
    pub cmd: String,
    /// As started.
    pub args: Vec<String>,
    /// `None` while it runs; see [`SessionOutput::Exit`].
    pub exit_code: Option<i32>,
    /// By the sandbox's clock.
    pub started: SystemTime,
    /// Attached clients.
    pub attached: u32,
    /// The session's own limit ended it.
    pub timed_out: bool,
}

impl From<v1::SessionInfo> for SessionInfo {
    fn from(info: v1::SessionInfo) -> Self {
        let started = Duration::from_millis(info.started_unix_ms);
        Self {
            exit_code: (!info.running).then_some(info.exit_code),
            started: SystemTime::UNIX_EPOCH
                .checked_add(started)
                .unwrap_or(SystemTime::UNIX_EPOCH),
            session_id: info.session_id,
            cmd: info.cmd,
            args: info.args,
            attached: info.attached,
            timed_out: info.timed_out,
        }
    }
}

impl GuestClient {
    /// A client for the guest that listens on `socket`. It connects with the first call and again
    /// after the connection breaks; paths of any length work.
    ///
    /// # Errors
    /// None today: an absent guest shows with the first call. (Async and fallible, so that a
    /// driver with another channel can connect here.)
    pub async fn connect(socket: &Path) -> Result<Self, GuestError> {
        let inner = guest_client::GuestClient::new(connect::channel(socket))
            .max_decoding_message_size(oc_guest::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(oc_guest::MESSAGE_BYTES_MAX);
        Ok(Self { inner })
    }

    fn client(&self) -> guest_client::GuestClient<Channel> {
        self.inner.clone()
    }

    /// Waits until the guest serves, at most `limit`, trying again after 1, 2, 4 … ms.
    ///
    /// # Errors
    /// [`GuestError::Gone`] when it doesn't in time, [`GuestError::Protocol`] when it speaks
    /// another version.
    pub async fn hello(&self, limit: Duration) -> Result<Hello, GuestError> {
        let reply = tokio::time::timeout(limit, self.hello_until_answered()).await;
        let reply = reply.unwrap_or_else(|_| {
            Err(GuestError::Gone(format!(
                "no answer within {} ms",
                limit.as_millis()
            )))
        })?;
        if reply.protocol != oc_guest::PROTOCOL {
            return Err(GuestError::Protocol {
                ours: oc_guest::PROTOCOL,
                theirs: reply.protocol,
            });
        }
        Ok(Hello {
            uptime: Duration::from_millis(reply.uptime_ms),
        })
    }

    async fn hello_until_answered(&self) -> Result<v1::HelloReply, GuestError> {
        let mut pause = Duration::from_millis(1);
        loop {
            match self
                .client()
                .hello(v1::HelloRequest {})
                .await
                .map_err(GuestError::from)
            {
                Err(GuestError::Gone(_)) => tokio::time::sleep(pause).await,
                answer => return answer.map(tonic::Response::into_inner),
            }
            pause = HELLO_PAUSE_MAX.min(pause * 2);
        }
    }

    /// Starts a process in a session of its own, which lives on without any client.
    ///
    /// # Errors
    /// [`GuestError::CommandNotFound`] and [`GuestError::Refused`] (not executable) with `direct`;
    /// [`GuestError::Invalid`] for a missing working directory; [`GuestError::Full`] at 256
    /// running sessions.
    pub async fn start(&self, session: StartSession) -> Result<SessionInfo, GuestError> {
        self.start_request(session.into_request(false)).await
    }

    async fn start_request(
        &self,
        request: v1::StartSessionRequest,
    ) -> Result<SessionInfo, GuestError> {
        let mut client = self.client();
        let started = short(client.start_session(request)).await;
        started.map(SessionInfo::from).map_err(|error| match error {
            GuestError::NotFound(reason) => GuestError::CommandNotFound(reason),
            error => error,
        })
    }

    /// All sessions, oldest first; ended ones for five minutes.
    ///
    /// # Errors
    /// When the guest can't be reached.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, GuestError> {
        let mut client = self.client();
        let reply = short(client.list_sessions(v1::ListSessionsRequest {})).await?;
        Ok(reply
            .sessions
            .into_iter()
            .take(SESSIONS_MAX)
            .map(SessionInfo::from)
            .collect())
    }

    /// Sends `signal` (1–64) to the session's process group; an ended session is fine.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] for an unknown session.
    pub async fn signal(&self, session_id: &str, signal: i32) -> Result<(), GuestError> {
        let session_id = session_id.to_owned();
        let mut client = self.client();
        short(client.signal(v1::SignalRequest { session_id, signal }))
            .await
            .map(drop)
    }
}

/// A call with one answer, within [`CALL_TIME_MAX`].
async fn short<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, GuestError> {
    within(CALL_TIME_MAX, call)
        .await
        .map(tonic::Response::into_inner)
}

/// A call within `limit`.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, GuestError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(GuestError::from),
        Err(_) => Err(GuestError::Gone(format!(
            "no answer within {} s",
            limit.as_secs()
        ))),
    }
}

/// A request with a path.
fn at(path: &str) -> Request<v1::PathRequest> {
    Request::new(v1::PathRequest {
        path: path.to_owned(),
    })
}
