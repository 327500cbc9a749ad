//! Moves what a process writes from its pipes to its session's output.

use std::future::pending;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::output::{Exit, Output};
use super::scrollback::Stream;
use super::{DRAIN_MAX, Session, until};

/// Most pipes of ended sessions that are still read, so that background processes can write.
const ORPHAN_PIPES_MAX: usize = 128;
static ORPHAN_PIPES: Semaphore = Semaphore::const_new(ORPHAN_PIPES_MAX);

/// The read ends of a process's stdout and stderr; `None` after end of file.
pub struct Pipes {
    pub stdout: Option<Receiver>,
    pub stderr: Option<Receiver>,
}

/// Reads until both pipes end, or the process has ended and the pipes are drained; then tells the
/// exit. Answers with it.
pub async fn pump(session: Arc<Session>, mut pipes: Pipes) -> Exit {
    let mut ended = session.ended.subscribe();
    // Once the process has ended: until when its pipes are read, and how much it surely left.
    let mut drain: Option<Instant> = None;
    let mut owed = 0;
    while drain.is_none() || pipes.stdout.is_some() || pipes.stderr.is_some() {
        let room = session.output.room();
        let expired = drain.filter(|_| owed == 0);
        tokio::select! {
            () = session.output.room_made(), if room == 0 => {}
            () = readable(pipes.stdout.as_ref()), if room > 0 => {
                owed -= take(&mut pipes.stdout, Stream::Stdout, room, &session.output).min(owed);
            }
            () = readable(pipes.stderr.as_ref()), if room > 0 => {
                owed -= take(&mut pipes.stderr, Stream::Stderr, room, &session.output).min(owed);
            }
            _ = ended.wait_for(Option::is_some), if drain.is_none() => {
                drain = Some(Instant::now() + DRAIN_MAX);
                owed = waiting(pipes.stdout.as_ref()) + waiting(pipes.stderr.as_ref());
            }
            () = until(expired) => break,
        }
    }
    let unknown = Exit {
        code: -1,
        signal: 0,
        timed_out: false,
    };
    let exit = (*ended.borrow()).unwrap_or(unknown);
    session.output.finish(exit);
    [pipes.stdout, pipes.stderr]
        .into_iter()
        .flatten()
        .for_each(discard);
    exit
}

async fn readable(pipe: Option<&Receiver>) {
    match pipe {
        // An error shows again, and is handled, when the pipe is read.
        Some(pipe) => drop(pipe.ready(Interest::READABLE).await),
        None => pending().await,
    }
}

/// Reads once; answers the bytes read. Closes the pipe at its end.
fn take(pipe: &mut Option<Receiver>, stream: Stream, room: usize, output: &Output) -> usize {
    // On the stack and not in the task: two hundred idle sessions would hold 8 MB.
    let mut buffer = [0; oc_guest::OUTPUT_BYTES_MAX];
    let buffer = buffer.get_mut(..room).unwrap_or(&mut []);
    let Some(receiver) = pipe else { return 0 };
    match receiver.try_read(buffer) {
        Ok(0) => *pipe = None,
        Ok(count) => {
            output.append(stream, buffer.get(..count).unwrap_or(&[]));
            return count;
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(_) => *pipe = None,
    }
    0
}

/// Bytes in the pipe now.
fn waiting(pipe: Option<&Receiver>) -> usize {
    let count = pipe.and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok());
    count
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(0)
}

/// Keeps a pipe readable for whoever still writes to it, within [`ORPHAN_PIPES_MAX`].
fn discard(pipe: Receiver) {
    let Ok(permit) = ORPHAN_PIPES.try_acquire() else {
        return;
    };
    tokio::spawn(async move {
        let mut pipe = pipe;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
        drop(permit);
    });
}
