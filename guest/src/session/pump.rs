//! Moves what a process writes from its pipes or its terminal to its session's output.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::io::Source;
use super::output::{Exit, Output};
use super::scrollback::Stream;
use super::{DRAIN_MAX, Session, until};

/// Most pipes of ended sessions that are still read, so that background processes can write.
const ORPHAN_PIPES_MAX: usize = 128;
static ORPHAN_PIPES: Semaphore = Semaphore::const_new(ORPHAN_PIPES_MAX);

/// A process's outputs; `None` after end of file. A terminal is the first one, alone.
pub struct Sources {
    pub stdout: Option<Source>,
    pub stderr: Option<Source>,
}

/// Reads until both outputs end, or the process has ended and they are drained; then tells the
/// exit. Answers with it.
pub async fn pump(session: Arc<Session>, mut sources: Sources) -> Exit {
    let mut ended = session.ended.subscribe();
    // Once the process has ended: until when its output is read, and how much it surely left.
    let mut drain: Option<Instant> = None;
    let mut owed = 0;
    while drain.is_none() || sources.stdout.is_some() || sources.stderr.is_some() {
        let room = session.output.room();
        let expired = drain.filter(|_| owed == 0);
        tokio::select! {
            () = session.output.room_made(), if room == 0 => {}
            () = Source::readable(sources.stdout.as_ref()), if room > 0 => {
                owed -= take(&mut sources.stdout, Stream::Stdout, room, &session.output).min(owed);
            }
            () = Source::readable(sources.stderr.as_ref()), if room > 0 => {
                owed -= take(&mut sources.stderr, Stream::Stderr, room, &session.output).min(owed);
            }
            _ = ended.wait_for(Option::is_some), if drain.is_none() => {
                drain = Some(Instant::now() + DRAIN_MAX);
                owed = waiting(sources.stdout.as_ref()) + waiting(sources.stderr.as_ref());
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
    [sources.stdout, sources.stderr]
        .into_iter()
        .flatten()
        .for_each(discard);
    exit
}

/// Reads once; answers the bytes read. Closes the source at its end.
fn take(source: &mut Option<Source>, stream: Stream, room: usize, output: &Output) -> usize {
    // On the stack and not in the task: two hundred idle sessions would hold 8 MB.
    let mut buffer = [0; oc_guest::OUTPUT_BYTES_MAX];
    let buffer = buffer.get_mut(..room).unwrap_or(&mut []);
    let Some(open) = source else { return 0 };
    match open.try_read(buffer) {
        Ok(0) => *source = None,
        Ok(count) => {
            output.append(stream, buffer.get(..count).unwrap_or(&[]));
            return count;
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(_) => *source = None,
    }
    0
}

/// Bytes that can be read now.
fn waiting(source: Option<&Source>) -> usize {
    source.map_or(0, Source::waiting)
}

/// Keeps a pipe readable for whoever still writes to it, within [`ORPHAN_PIPES_MAX`]. A terminal
/// was taken from everybody when its shell ended.
fn discard(source: Source) {
    let Source::Pipe(pipe) = source else { return };
    let Ok(permit) = ORPHAN_PIPES.try_acquire() else {
        return;
    };
    tokio::spawn(async move {
        let mut pipe = pipe;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
        drop(permit);
    });
}
