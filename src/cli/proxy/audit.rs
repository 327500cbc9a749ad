//! The decisions of the proxy as lines of JSON.
//!
//! Invariants: every line is written out before the next is taken, by one thread; when that fails,
//! the queue closes, and the engine refuses what it can't record.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::proxy::Decision;

/// Decisions waiting to be written.
const BACKLOG_MAX: usize = 1024;

/// Opens the trail: the file (appended to, made with mode 0600), or standard error. The third part
/// tells how writing ended: when all senders are gone, or for an error.
pub fn open(
    file: Option<&Path>,
) -> io::Result<(Sender<Decision>, oneshot::Receiver<io::Result<()>>)> {
    let out: Box<dyn Write + Send> = match file {
        Some(path) => Box::new(
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)?,
        ),
        None => Box::new(io::stderr()),
    };
    let (sender, receiver) = channel(BACKLOG_MAX);
    let (end, ended) = oneshot::channel();
    thread::Builder::new()
        .name("oc-proxy-audit".to_owned())
        .spawn(move || {
            // Nobody listens any more when the process is about to end anyway.
            let _ = end.send(write(receiver, out));
        })?;
    Ok((sender, ended))
}

fn write(mut decisions: Receiver<Decision>, mut out: impl Write) -> io::Result<()> {
    while let Some(decision) = decisions.blocking_recv() {
        let mut line = serde_json::to_vec(&decision)?;
        line.push(b'\n');
        // One call a line: lines of this process's log may come between, but not inside.
        out.write_all(&line)?;
        out.flush()?;
    }
    Ok(())
}
