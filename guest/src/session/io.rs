//! What a session's process reads from and writes to: pipes, or a terminal that is both.

use std::future::pending;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::pipe;

use crate::terminal::Terminal;

/// The way to a process's standard input.
pub enum Input {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

impl Input {
    /// Writes everything, waiting for room. False when the process can read no more of it.
    pub async fn write_all(&mut self, data: &[u8]) -> bool {
        match self {
            Self::Pipe(pipe) => pipe.write_all(data).await.is_ok(),
            Self::Terminal(terminal) => {
                terminal.write_all(data).await;
                true
            }
        }
    }
}

/// One output of a process.
pub enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

impl Source {
    /// Waits until there may be something to read; for ever without a source.
    pub async fn readable(source: Option<&Self>) {
        match source {
            // An error shows again, and is handled, when the pipe is read.
            Some(Self::Pipe(pipe)) => drop(pipe.ready(Interest::READABLE).await),
            Some(Self::Terminal(terminal)) => terminal.readable().await,
            None => pending().await,
        }
    }

    /// Reads what is there; 0 at the end.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(terminal) => terminal.try_read(buffer),
        }
    }

    /// Bytes that can be read now.
    pub fn waiting(&self) -> usize {
        match self {
            Self::Pipe(pipe) => {
                let count = rustix::io::ioctl_fionread(pipe).ok();
                count
                    .and_then(|count| usize::try_from(count).ok())
                    .unwrap_or(0)
            }
            Self::Terminal(terminal) => terminal.waiting(),
        }
    }
}
