//! A session's input and output, live.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use oc_guest::v1::{self, AttachInput, AttachOutput, attach_input, attach_output};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{CALL_TIME_MAX, GuestClient, GuestError, within};

/// Input messages on their way to the guest; a full queue makes `send` wait.
const INPUTS_MAX: usize = 4;
/// Largest input message, in bytes; longer input is sent in pieces.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// How long a process may take to read what a client sent before it left.
pub const LEAVE_TIME_MAX: Duration = Duration::from_secs(2);

/// One piece of a session's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionOutput {
    /// The process wrote to its standard output.
    Stdout(Bytes),
    /// The process wrote to its standard error.
    Stderr(Bytes),
    /// To observers only: what follows begins so many bytes into the session's output. Comes first,
    /// and again after bytes that were missed. A guest of an older version does not say it.
    Position(u64),
    /// What came before was written before this client attached. Sent once, before any `Exit`.
    ReplayEnd,
    /// Always the last piece.
    Exit {
        /// The process's own code, 128 + signal when a signal ended it, -1 after its time limit.
        code: i32,
        /// The session's own limit ended it.
        timed_out: bool,
        /// The signal that ended it.
        signal: Option<i32>,
    },
}

/// An attached client. Dropping it detaches, and loses input that is still on its way;
/// [`Attachment::leave`] does not. The process runs on.
pub struct Attachment {
    stdin: StdinSink,
    outputs: Streaming<AttachOutput>,
    ended: bool,
}

/// The way to the process's standard input; clones write to the same one.
#[derive(Clone)]
pub struct StdinSink {
    inputs: mpsc::Sender<AttachInput>,
}

impl StdinSink {
    /// Sends bytes, waiting while the process does not read. Bytes for a process that has ended
    /// are dropped.
    ///
    /// # Errors
    /// [`GuestError::Gone`] after the attachment has ended.
    pub async fn send(&self, mut data: Bytes) -> Result<(), GuestError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(INPUT_BYTES_MAX));
            self.input(attach_input::Input::Stdin(piece.into())).await?;
        }
        Ok(())
    }

    /// Closes the standard input for every attached client, after what was sent before.
    ///
    /// # Errors
    /// As [`StdinSink::send`].
    pub async fn close(&self) -> Result<(), GuestError> {
        self.input(attach_input::Input::CloseStdin(true)).await
    }

    async fn input(&self, input: attach_input::Input) -> Result<(), GuestError> {
        let sent = self.inputs.send(AttachInput { input: Some(input) }).await;
        sent.map_err(|_| GuestError::Gone("the session's connection has ended".into()))
    }
}

impl Attachment {
    /// The session's standard input.
    pub fn stdin(&self) -> StdinSink {
        self.stdin.clone()
    }

    /// The next piece; `None` after the exit. Cancel safe.
    ///
    /// # Errors
    /// [`GuestError::Gone`] when the connection breaks, [`GuestError::Broken`] when this client was
    /// dropped for taking no output for 30 s while others waited. Nothing follows an error.
    pub async fn next(&mut self) -> Result<Option<SessionOutput>, GuestError> {
        while !self.ended {
            let message = match self.outputs.message().await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.ended = true;
                    return Err(GuestError::Gone("the output ended without an exit".into()));
                }
                Err(status) => {
                    self.ended = true;
                    return Err(status.into());
                }
            };
            // A message of a kind a newer guest may send is passed over.
            if let Some(output) = message.output {
                self.ended = matches!(output, attach_output::Output::Exit(_));
                return Ok(Some(piece(output)));
            }
        }
        Ok(None)
    }

    /// Detaches when what was sent before has been written to the process, or after
    /// [`LEAVE_TIME_MAX`]: what it does not read until then is lost. Output is dropped meanwhile, so
    /// that the process is not held back. No [`StdinSink`] may be left, or the time runs out.
    pub async fn leave(self) {
        let Self {
            stdin, mut outputs, ..
        } = self;
        // The end of the inputs, which the guest answers by the end of the outputs.
        drop(stdin);
        let answered = async { while let Ok(Some(_)) = outputs.message().await {} };
        let _ = tokio::time::timeout(LEAVE_TIME_MAX, answered).await;
    }
}

/// Lines that were added to files, each with its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// Paths and lines.
    pub lines: Vec<(String, String)>,
    /// Names it to a later call. 0: the guest is of an older version, and numbers none.
    pub number: u64,
}

impl From<v1::LogLines> for LogBatch {
    fn from(batch: v1::LogLines) -> Self {
        let lines = batch.lines.into_iter();
        Self {
            lines: lines.map(|line| (line.path, line.line)).collect(),
            number: batch.batch,
        }
    }
}

fn piece(output: attach_output::Output) -> SessionOutput {
    match output {
        attach_output::Output::Stdout(data) => SessionOutput::Stdout(data.into()),
        attach_output::Output::Stderr(data) => SessionOutput::Stderr(data.into()),
        attach_output::Output::Position(at) => SessionOutput::Position(at),
        attach_output::Output::ReplayEnd(_) => SessionOutput::ReplayEnd,
        attach_output::Output::Exit(v1::Exit {
            code,
            timed_out,
            signal,
        }) => SessionOutput::Exit {
            code,
            timed_out,
            signal: (signal != 0).then_some(signal),
        },
    }
}

impl GuestClient {
    /// Lines that are added to the sandbox's files below `/var/log` after the batch of that number (0:
    /// that nobody was sent yet), until the connection ends. Texts are the guest's, at most a message
    /// long.
    ///
    /// # Errors
    /// When the guest can't be reached, or knows no such call.
    pub async fn follow_logs(
        &self,
        after: u64,
    ) -> Result<
        impl futures_util::Stream<Item = Result<LogBatch, GuestError>> + Send + use<>,
        GuestError,
    > {
        let mut client = self.client();
        let call = client.follow_logs(v1::FollowLogsRequest { after });
        let batches = within(CALL_TIME_MAX, call).await?.into_inner();
        Ok(batches.map(|batch| batch.map(LogBatch::from).map_err(GuestError::from)))
    }

    /// Attaches to a session: its scrollback, then its live output, then its exit.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] for an unknown session.
    pub async fn attach(&self, session_id: &str) -> Result<Attachment, GuestError> {
        self.attach_to(attach_input::Input::SessionId(session_id.to_owned()))
            .await
    }

    /// The same without being a client: not counted, not waited for, and with no input. What is not
    /// taken in time is missed.
    ///
    /// # Errors
    /// As [`GuestClient::attach`].
    pub async fn observe(&self, session_id: &str) -> Result<Attachment, GuestError> {
        self.attach_to(attach_input::Input::Observe(session_id.to_owned()))
            .await
    }

    /// Attaches to what the first input names.
    pub(super) async fn attach_to(
        &self,
        first: attach_input::Input,
    ) -> Result<Attachment, GuestError> {
        let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
        let stdin = StdinSink { inputs };
        stdin.input(first).await?;
        let mut client = self.client();
        let outputs = within(CALL_TIME_MAX, client.attach(ReceiverStream::new(receiver))).await?;
        Ok(Attachment {
            stdin,
            outputs: outputs.into_inner(),
            ended: false,
        })
    }
}
