//! Commands in a sandbox: what a caller asks for becomes a session of the guest; its output is
//! captured up to a limit. Handles of commands that run on live in memory only, and outlive their
//! command by ten minutes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

use super::activity::InUse;
use super::aggregate::Reject;
use super::create::check_envs;
use super::entity::Failure;
use super::live::LiveSandbox;
use super::platform::Platform;
use crate::ids::SandboxId;
use crate::sandbox::{GuestError, SessionOutput, StartSession};

/// Time a command may take when the caller doesn't say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Longest time a caller may ask for (a week).
const TIMEOUT_SEC_MAX: i64 = 7 * 24 * 3600;
/// What standard error ends with when the command's own limit ended it.
pub const TIMED_OUT: &[u8] = b"\nProcess timed out";
/// How long a finished handle stays readable.
const HANDLE_KEPT: Duration = Duration::from_secs(600);
/// Handles kept at once; beyond it the oldest finished ones go.
const HANDLES_MAX: usize = 4096;
/// Output of finished handles kept at once, in bytes (256 MiB).
const HANDLES_BYTES_MAX: usize = 256 * 1024 * 1024;
const COMMAND_BYTES_MAX: usize = 128 * 1024;
const ARGS_MAX: usize = 4096;

/// A process as a caller asks for it.
#[derive(Debug, Clone, Default)]
pub struct ProcessRequest {
    /// Program, or without `args` a whole command line.
    pub cmd: String,
    /// Arguments, passed as they are.
    pub args: Vec<String>,
    /// Variables of this process.
    pub envs: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Seconds; 0: the route's default.
    pub timeout: Option<i64>,
    /// Expand `$NAME` in `args` for variables injected into the sandbox.
    pub expand_env: bool,
    /// Seconds the process may run after its last client left; 0: no limit.
    pub max_run_after_disconnect: Option<i64>,
}

/// What a command has put out so far, and how it ended.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Some output was dropped: a stream went over the limit.
    pub truncated: bool,
    /// Exit code, once it ended.
    pub exit_code: Option<i32>,
    /// Why it could not be run to its end.
    pub error: Option<String>,
}

impl Captured {
    pub(super) fn push(&mut self, output: SessionOutput, limit: usize) {
        let (stream, bytes) = match output {
            SessionOutput::Stdout(bytes) => (&mut self.stdout, bytes),
            SessionOutput::Stderr(bytes) => (&mut self.stderr, bytes),
            SessionOutput::ReplayEnd | SessionOutput::Position(_) => return,
            SessionOutput::Exit {
                code, timed_out, ..
            } => {
                if timed_out {
                    self.stderr.extend_from_slice(TIMED_OUT);
                }
                self.exit_code = Some(if timed_out { -1 } else { code });
                return;
            }
        };
        let room = limit.saturating_sub(stream.len()).min(bytes.len());
        stream.extend_from_slice(&bytes[..room]);
        self.truncated |= room < bytes.len();
    }

    /// A stream that ended without an exit was cut.
    fn require_exit(&mut self) {
        if self.exit_code.is_none() {
            self.fail(-1, "the sandbox went away while the command ran".to_owned());
        }
    }

    fn fail(&mut self, exit_code: i32, reason: String) {
        self.stderr.extend_from_slice(reason.as_bytes());
        self.exit_code = Some(exit_code);
        self.error = Some(reason);
    }
}

/// A command that was started; its output grows until `exit_code` is there.
pub struct Handle {
    /// Its id.
    pub id: String,
    /// Where it runs.
    pub sandbox: SandboxId,
    /// When it was started.
    pub started_at: OffsetDateTime,
    captured: Mutex<Captured>,
    finished: watch::Sender<Option<Instant>>,
}

impl Handle {
    /// Of a command that is about to be started.
    pub(super) fn of(live: &LiveSandbox, session: &StartSession) -> Arc<Self> {
        Arc::new(Self {
            id: session.session_id.clone(),
            sandbox: live.details.sandbox_id.clone(),
            started_at: OffsetDateTime::now_utc(),
            captured: Mutex::default(),
            finished: watch::Sender::new(None),
        })
    }

    /// What is known now.
    pub fn captured(&self) -> Captured {
        self.captured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until the command ended, at most `longest`; tells whether it did.
    pub async fn finished_within(&self, longest: Duration) -> bool {
        let mut finished = self.finished.subscribe();
        tokio::time::timeout(longest, finished.wait_for(Option::is_some))
            .await
            .is_ok()
    }

    fn captured_exit(&self) -> Option<i32> {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.exit_code
    }

    fn bytes(&self) -> usize {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.stdout.capacity() + captured.stderr.capacity()
    }

    fn update(&self, change: impl FnOnce(&mut Captured)) {
        change(&mut self.captured.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The handles whose ids callers know, by id.
#[derive(Default)]
pub struct Handles(Mutex<HashMap<String, Arc<Handle>>>);

impl Handles {
    /// The handle of that id in that sandbox.
    pub fn find(&self, sandbox: &SandboxId, id: &str) -> Option<Arc<Handle>> {
        let handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        handles
            .get(id)
            .filter(|handle| handle.sandbox == *sandbox)
            .cloned()
    }

    /// Keeps a handle until ten minutes after its command ended; one that is kept stays. Finished ones that are older give
    /// way when there are too many or they hold too much output; a running one never does.
    fn keep(&self, handle: Arc<Handle>) -> Result<(), Failure> {
        let mut handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if handles.contains_key(&handle.id) {
            return Ok(());
        }
        let mut finished: Vec<_> = handles
            .values()
            .filter_map(|old| Some(((*old.finished.borrow())?, old.bytes(), old.id.clone())))
            .collect();
        finished.sort_by_key(|(at, _, _)| *at);
        let mut bytes: usize = finished.iter().map(|(_, bytes, _)| bytes).sum();
        for (at, size, id) in finished {
            let room = handles.len() < HANDLES_MAX && bytes <= HANDLES_BYTES_MAX;
            if room && at.elapsed() < HANDLE_KEPT {
                break;
            }
            bytes -= size;
            handles.remove(&id);
        }
        if handles.len() >= HANDLES_MAX {
            return Err(Failure::Unavailable);
        }
        handles.insert(handle.id.clone(), handle);
        Ok(())
    }

    /// Keeps a handle whose command is not started yet, so that it surely has a place then.
    pub(super) fn reserve(&self, handle: &Arc<Handle>) -> Result<Reserved<'_>, Failure> {
        self.keep(handle.clone())?;
        Ok(Reserved {
            handles: self,
            handle: Some(handle.clone()),
        })
    }
}

/// A handle's place before its command was started: free again when the command never is.
pub(super) struct Reserved<'a> {
    handles: &'a Handles,
    handle: Option<Arc<Handle>>,
}

impl Reserved<'_> {
    /// The command is started: the place is its handle's from now on.
    pub(super) fn taken(mut self) {
        self.handle = None;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let handles = self.handles.0.lock();
            handles
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&handle.id);
        }
    }
}

impl Platform {
    /// Has [`Platform::find_handle`] find a command that was started, for whoever is told its id.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when too many commands run on already.
    pub fn keep_handle(&self, handle: &Arc<Handle>) -> Result<(), Failure> {
        self.handles.keep(handle.clone())
    }

    /// The handle of a command that [`Platform::keep_handle`] was told of.
    pub fn find_handle(&self, sandbox: &SandboxId, id: &str) -> Option<Arc<Handle>> {
        self.handles.find(sandbox, id)
    }

    /// Runs a command and captures its output in its handle, whether somebody waits or not.
    pub(super) fn capture(
        &self,
        live: Arc<LiveSandbox>,
        in_use: Option<InUse>,
        session: StartSession,
        handle: &Arc<Handle>,
    ) {
        let (captured, limit) = (handle.clone(), self.limits.exec_output_bytes_max);
        tokio::spawn(async move {
            let logged = live.log.of(&session).captured();
            let push = |output| {
                logged.output(&output);
                captured.update(|all| all.push(output, limit));
            };
            // Who waits for a command is not left waiting for a sandbox that sleeps.
            let left = async {
                match &in_use {
                    Some(live) => live.activity.left().await,
                    None => std::future::pending().await,
                }
            };
            let ran = tokio::select! {
                ran = live.guest.run_with(session, push) => ran,
                () = left => Ok(()),
            };
            match ran {
                Err(error) => captured.update(|output| fail(output, error)),
                Ok(()) => captured.update(Captured::require_exit),
            }
            let exit_code = captured.captured_exit().unwrap_or(-1);
            if let Some(note) = live.kills.note(&captured.id, exit_code) {
                captured.update(|output| output.stderr.extend_from_slice(note.as_bytes()));
            }
            captured.finished.send_replace(Some(Instant::now()));
        });
    }
}

fn fail(output: &mut Captured, error: GuestError) {
    match error {
        // What a shell answers for a command it can't find or can't execute.
        GuestError::CommandNotFound(reason) => output.fail(127, reason),
        GuestError::Refused(reason) => output.fail(126, reason),
        other => output.fail(-1, other.to_string()),
    }
}

/// The same as [`session`], for a command that somebody waits for.
pub(super) fn command(
    live: &LiveSandbox,
    request: ProcessRequest,
) -> Result<StartSession, Failure> {
    let mut session = session(live, request)?;
    session.timeout.get_or_insert(TIMEOUT_DEFAULT);
    Ok(session)
}

/// Checks a request and turns it into a session of the guest.
pub(super) fn session(
    live: &LiveSandbox,
    request: ProcessRequest,
) -> Result<StartSession, Failure> {
    if request.cmd.is_empty() {
        return Err(Reject::invalid("cmd is required").into());
    }
    let bytes = request.cmd.len() + request.args.iter().map(String::len).sum::<usize>();
    if bytes > COMMAND_BYTES_MAX || request.args.len() > ARGS_MAX {
        let text = format!("the command must not exceed {COMMAND_BYTES_MAX} bytes");
        return Err(Reject::invalid(text).into());
    }
    let texts = request
        .args
        .iter()
        .chain([&request.cmd])
        .chain(&request.cwd);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(Reject::invalid("cmd, args and cwd must not hold NUL").into());
    }
    check_envs(&request.envs)?;
    let args = match request.expand_env {
        true => {
            let mut known = live.injected.clone();
            known.extend(request.envs.clone());
            request.args.iter().map(|arg| expand(arg, &known)).collect()
        }
        false => request.args,
    };
    Ok(StartSession {
        session_id: new_session_id(),
        direct: !args.is_empty() || is_plain_word(&request.cmd),
        cmd: request.cmd,
        args,
        env: live.environment(&request.envs),
        cwd: live.start_in(request.cwd),
        timeout: seconds("timeout", request.timeout)?,
        kill_after_detach: seconds("maxRunAfterDisconnect", request.max_run_after_disconnect)?,
        ..StartSession::default()
    })
}

/// A number of seconds: absent and 0 mean "not given".
fn seconds(field: &str, given: Option<i64>) -> Result<Option<Duration>, Reject> {
    match given {
        None | Some(0) => Ok(None),
        Some(n) if (1..=TIMEOUT_SEC_MAX).contains(&n) => {
            Ok(Some(Duration::from_secs(n.unsigned_abs())))
        }
        Some(_) => Err(Reject::invalid(format!(
            "{field} must be between 0 and {TIMEOUT_SEC_MAX}"
        ))),
    }
}

/// 8 hex digits.
pub(super) fn new_session_id() -> String {
    hex::encode(rand::random::<[u8; 4]>())
}

/// A command line that is one word with no meaning to a shell: it is executed directly.
fn is_plain_word(cmd: &str) -> bool {
    cmd.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._/+-".contains(&b))
}

/// Replaces `$NAME` and `${NAME}` for known names; every other text stays.
fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix('{') {
            Some(inner) => match inner.find('}') {
                Some(end) => (&inner[..end], end + 2),
                None => ("", 0),
            },
            None => {
                let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                let end = after.bytes().position(|b| !word(b)).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match known.get(name) {
            Some(value) => {
                expanded.push_str(value);
                rest = &after[length..];
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_names_are_expanded() {
        let known = BTreeMap::from([("KEY".to_owned(), "v".to_owned())]);
        for (text, expected) in [
            ("$KEY", "v"),
            ("x-api-key: ${KEY}!", "x-api-key: v!"),
            ("$KEYS $OTHER ${OTHER} $", "$KEYS $OTHER ${OTHER} $"),
            ("$$KEY ${KEY", "$v ${KEY"),
            ("é$KEYé", "évé"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }

    #[test]
    fn output_over_the_limit_is_cut_and_said_to_be() {
        let mut captured = Captured::default();
        captured.push(SessionOutput::Stdout(vec![b'a'; 10].into()), 4);
        assert_eq!(
            (captured.stdout.as_slice(), captured.truncated),
            (&b"aaaa"[..], true)
        );
    }

    fn handle(id: usize, finished: bool) -> Arc<Handle> {
        let ended = finished.then(Instant::now);
        Arc::new(Handle {
            id: id.to_string(),
            sandbox: SandboxId::generate(),
            started_at: OffsetDateTime::UNIX_EPOCH,
            captured: Mutex::default(),
            finished: watch::Sender::new(ended),
        })
    }

    /// Goal: finished commands give way to new ones, the oldest first; running ones never do, and
    /// beyond their bound a new one is refused.
    #[test]
    fn finished_handles_give_way_and_running_ones_do_not() {
        let handles = Handles::default();
        let first = handle(0, true);
        handles.keep(first.clone()).unwrap();
        for id in 1..HANDLES_MAX {
            handles.keep(handle(id, false)).unwrap();
        }
        handles.keep(handle(HANDLES_MAX, false)).unwrap();
        assert!(handles.find(&first.sandbox, &first.id).is_none());
        let refused = handles.keep(handle(HANDLES_MAX + 1, false));
        assert!(matches!(refused, Err(Failure::Unavailable)));
    }

    /// Goal: a command with a key has its handle's place before the key is taken: without one it is
    /// not started, with one nothing can refuse it later, and one that never started leaves none.
    #[test]
    fn a_place_is_reserved_before_a_command_starts() {
        let handles = Handles::default();
        for id in 1..HANDLES_MAX {
            handles.keep(handle(id, false)).unwrap();
        }
        let (never, last, late) = (handle(0, false), handle(0, false), handle(9999, false));
        drop(handles.reserve(&never).expect("a place"));
        assert!(handles.find(&never.sandbox, &never.id).is_none());
        handles.reserve(&last).expect("a place").taken();
        assert!(handles.find(&last.sandbox, &last.id).is_some());
        let refused = handles.reserve(&late);
        assert!(matches!(refused, Err(Failure::Unavailable)));
        handles.keep(last).expect("it has its place already");
    }

    /// Goal: the output of finished commands that is kept has a bound of its own.
    #[test]
    fn much_output_gives_way_before_its_time() {
        let handles = Handles::default();
        let large = handle(0, true);
        large.update(|captured| captured.stdout = Vec::with_capacity(HANDLES_BYTES_MAX + 1));
        handles.keep(large.clone()).unwrap();
        handles.keep(handle(1, false)).unwrap();
        assert!(handles.find(&large.sandbox, &large.id).is_none());
    }
}
