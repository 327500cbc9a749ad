//! One attached client: its input to the process, the output to it.

use std::sync::Arc;

use oc_guest::v1::{self, AttachInput, AttachOutput, attach_input::Input, attach_output};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Session;
use super::output::{Piece, Reader};
use super::scrollback::Stream;
use super::table::Table;

/// Messages between the output and one client's connection: 128 KiB at most.
const MESSAGES_MAX: usize = 4;

/// What a client receives.
pub type Outputs = ReceiverStream<Result<AttachOutput, Status>>;

/// Counts a client for as long as it lives.
struct Attached(Arc<Session>);

impl Attached {
    fn new(session: Arc<Session>) -> Self {
        session.attached.send_modify(|count| *count += 1);
        Self(session)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.attached.send_modify(|count| *count -= 1);
    }
}

/// Ends the input side with the output side.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Attaches a client whose first message has been read.
pub fn attach(session: Arc<Session>, table: Arc<Table>, inputs: Streaming<AttachInput>) -> Outputs {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let reader = session.output.reader();
    let attached = Attached::new(session.clone());
    let (leaving, left) = oneshot::channel();
    let input = tokio::spawn(async move {
        forward_input(session, inputs).await;
        // The output side may have ended before.
        let _ = leaving.send(());
    });
    let input = AbortOnDrop(input.abort_handle());
    tokio::spawn(async move {
        if forward_output(reader, &sender, left).await && attached.0.one_shot {
            table.forget(&attached.0.id);
        }
        drop(input);
    });
    ReceiverStream::new(receiver)
}

/// Gives a session's output to somebody who is no client of it: uncounted, and waited for by nobody.
pub fn observe(session: &Session) -> Outputs {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let reader = session.output.observer();
    // An observer sends nothing, so it never leaves before it is gone.
    let (stays, left) = oneshot::channel();
    tokio::spawn(async move {
        forward_output(reader, &sender, left).await;
        drop(stays);
    });
    ReceiverStream::new(receiver)
}

/// Sends until the exit, until the client is gone, or until all is written that it sent before it
/// left; whether it was given the exit.
async fn forward_output(
    mut reader: Reader,
    client: &mpsc::Sender<Result<AttachOutput, Status>>,
    mut left: oneshot::Receiver<()>,
) -> bool {
    loop {
        let piece = tokio::select! {
            piece = reader.next() => piece,
            () = client.closed() => return false,
            _ = &mut left => return false,
        };
        let last = matches!(piece, Piece::Exit(_) | Piece::Dropped);
        let given_exit = matches!(piece, Piece::Exit(_));
        if client.send(message(piece)).await.is_err() {
            return false;
        }
        if last {
            return given_exit;
        }
    }
}

fn message(piece: Piece) -> Result<AttachOutput, Status> {
    let output = match piece {
        Piece::Data(Stream::Stdout, data) => attach_output::Output::Stdout(data),
        Piece::Data(Stream::Stderr, data) => attach_output::Output::Stderr(data),
        Piece::At(position) => attach_output::Output::Position(position),
        Piece::ReplayEnd => attach_output::Output::ReplayEnd(true),
        Piece::Exit(exit) => attach_output::Output::Exit(v1::Exit {
            code: exit.code,
            timed_out: exit.timed_out,
            signal: exit.signal,
        }),
        Piece::Dropped => {
            let reason = "the client took no output for too long; attach again for the scrollback";
            return Err(Status::data_loss(reason));
        }
    };
    Ok(AttachOutput {
        output: Some(output),
    })
}

/// Writes to the process what the client sends, until it sends no more.
async fn forward_input(session: Arc<Session>, mut inputs: Streaming<AttachInput>) {
    // An error means that the client is gone; the output side notices as well.
    while let Ok(Some(AttachInput { input })) = inputs.message().await {
        match input {
            Some(Input::Stdin(data)) => session.write_stdin(&data).await,
            Some(Input::CloseStdin(_)) => session.close_stdin().await,
            Some(Input::SessionId(_) | Input::TerminalId(_) | Input::Observe(_)) | None => {}
        }
    }
}
