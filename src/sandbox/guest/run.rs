//! Running a command to its end.

use std::time::Duration;

use super::{GuestClient, GuestError, SessionOutput, StartSession};

/// How long after a command's own limit the guest may take to say that it has ended.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// What a command wrote and how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOutput {
    /// See [`SessionOutput::Exit`].
    pub exit_code: i32,
    /// The first bytes it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// The first bytes it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// It wrote more to a stream than was to be kept; it ran on all the same.
    pub truncated: bool,
    /// Its own limit ended it.
    pub timed_out: bool,
}

impl GuestClient {
    /// Runs a command to its end and keeps the first `capture_bytes_max` bytes of each stream;
    /// otherwise as [`GuestClient::run_with`].
    pub async fn run(
        &self,
        session: StartSession,
        capture_bytes_max: usize,
    ) -> Result<RunOutput, GuestError> {
        let mut output = RunOutput::default();
        self.run_with(session, |piece| output.take(piece, capture_bytes_max))
            .await?;
        Ok(output)
    }

    /// Runs a command to its end and hands its output over as it comes, its exit last. None of its
    /// early output is lost, and its session is forgotten with its exit. Its standard input is
    /// empty. When the future is dropped the command is killed.
    ///
    /// # Errors
    /// As [`GuestClient::start`]; [`GuestError::Gone`] when a command with a limit has not ended
    /// 10 s after it.
    pub async fn run_with(
        &self,
        session: StartSession,
        mut each: impl FnMut(SessionOutput),
    ) -> Result<(), GuestError> {
        let id = session.session_id.clone();
        let limit = session.timeout;
        let mut request = session.into_request(true);
        request.stdin_closed = true;
        // A caller that gave up wants no result: the command ends with the connection.
        request.kill_after_detach_ms = 1;
        self.start_request(request).await?;
        let collect = async {
            let mut attachment = self.attach(&id).await?;
            while let Some(piece) = attachment.next().await? {
                each(piece);
            }
            Ok(())
        };
        match limit {
            None => collect.await,
            Some(limit) => match tokio::time::timeout(limit + EXIT_GRACE, collect).await {
                Ok(ended) => ended,
                Err(_) => Err(GuestError::Gone(
                    "the command did not end at its limit".into(),
                )),
            },
        }
    }
}

impl RunOutput {
    fn take(&mut self, piece: SessionOutput, bytes_max: usize) {
        match piece {
            SessionOutput::Stdout(data) => {
                self.truncated |= !keep(&mut self.stdout, &data, bytes_max);
            }
            SessionOutput::Stderr(data) => {
                self.truncated |= !keep(&mut self.stderr, &data, bytes_max);
            }
            SessionOutput::ReplayEnd | SessionOutput::Position(_) => {}
            SessionOutput::Exit {
                code, timed_out, ..
            } => {
                self.exit_code = code;
                self.timed_out = timed_out;
            }
        }
    }
}

/// Keeps what fits under the limit; false when something did not.
fn keep(kept: &mut Vec<u8>, data: &[u8], bytes_max: usize) -> bool {
    let room = bytes_max.saturating_sub(kept.len());
    kept.extend_from_slice(data.get(..room).unwrap_or(data));
    data.len() <= room
}
