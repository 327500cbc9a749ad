//! The decisions of the proxy as lines of JSON.
//!
//! Invariants: one thread writes them, in order, within moments and as whole lines; when that fails,
//! the queue closes, and the engine refuses what it can't record.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::proxy::Decision;

/// How long decisions are gathered before they are written.
const GATHER: Duration = Duration::from_millis(10);
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
    let mut lines = Vec::new();
    while let Some(first) = decisions.blocking_recv() {
        // Others follow when there is much to do: one call for all of them costs what one does.
        thread::sleep(GATHER);
        let mut next = Some(first);
        while let Some(decision) = next {
            serde_json::to_writer(&mut lines, &decision)?;
            lines.push(b'\n');
            next = decisions.try_recv().ok();
        }
        // Whole lines in one call: those of this process's log may come between, but not inside.
        out.write_all(&lines)?;
        out.flush()?;
        lines.clear();
    }
    Ok(())
}
