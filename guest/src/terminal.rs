//! A pseudo-terminal: its outer end, which the guest reads and writes.
//!
//! Invariants: the outer end never blocks; the inner end belongs to the shell's user, so that
//! programs which open it by name (multiplexers, password prompts) may; only the shell and its
//! children hold the inner end, so that their end is seen as the end of the output.

use std::io;
use std::os::fd::OwnedFd;

use oc_guest::v1::TerminalSize;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::spawn::Identity;

/// Width and height in characters, each from 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    cols: u16,
    rows: u16,
}

impl Size {
    /// `None` for a size no terminal has.
    pub fn new(size: Option<TerminalSize>) -> Option<Self> {
        let fit = |count: u32| u16::try_from(count).ok().filter(|count| *count > 0);
        let TerminalSize { cols, rows } = size?;
        Some(Self {
            cols: fit(cols)?,
            rows: fit(rows)?,
        })
    }

    fn winsize(self) -> Winsize {
        Winsize {
            ws_col: self.cols,
            ws_row: self.rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

/// See the module.
pub struct Terminal {
    outer: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// A new terminal and its inner end, owned by `user` (`None`: by the guest itself).
    ///
    /// # Errors
    /// Those of the system calls: no terminals left, no `/dev/ptmx`.
    pub fn open(size: Size, user: Option<&Identity>) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = openpt(flags)?;
        rustix::io::ioctl_fionbio(&outer, true)?;
        unlockpt(&outer)?;
        // By the outer end and not by name: names below /dev are the sandbox's own to change.
        let inner = ioctl_tiocgptpeer(&outer, flags)?;
        if let Some(user) = user {
            // Where it fails the terminal can't be opened by its name, and works otherwise.
            let _ = rustix::fs::fchown(&inner, Some(rustix::fs::Uid::from_raw(user.uid)), None);
        }
        rustix::termios::tcsetwinsize(&outer, size.winsize())?;
        let mut modes = rustix::termios::tcgetattr(&inner)?;
        // Backspace takes away a whole character, not its last byte.
        modes.input_modes |= InputModes::IUTF8;
        rustix::termios::tcsetattr(&inner, OptionalActions::Now, &modes)?;
        // SAFETY: an `OwnedFd` is one descriptor that stays open for as long as it lives.
        let outer = unsafe { AsyncFd::register(outer)? };
        Ok((Self { outer }, inner))
    }

    /// Changes the size; what runs in the foreground is told by `SIGWINCH`.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        Ok(rustix::termios::tcsetwinsize(
            self.outer.get_ref(),
            size.winsize(),
        )?)
    }

    /// The process group in the foreground, which may have no process any more.
    pub fn foreground(&self) -> Option<Pid> {
        rustix::termios::tcgetpgrp(self.outer.get_ref()).ok()
    }

    /// Waits until there may be something to read.
    pub async fn readable(&self) {
        // An error shows again, and is handled, when the terminal is read.
        drop(self.outer.readable().await);
    }

    /// Reads what was written to the terminal; 0 when nobody holds its inner end any more.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.outer.try_io(Interest::READABLE, |outer| {
            Ok(rustix::io::read(outer, &mut *buffer)?)
        });
        match read {
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
            read => read,
        }
    }

    /// Types all of `data`, waiting while the terminal's buffer is full. What nobody can read any
    /// more is dropped.
    pub async fn write_all(&self, mut data: &[u8]) {
        while !data.is_empty() {
            let written = self.outer.async_io(Interest::WRITABLE, |outer| {
                Ok(rustix::io::write(outer, data)?)
            });
            match written.await {
                Ok(0) => return,
                Ok(count) => data = data.get(count..).unwrap_or(&[]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Bytes that can be read now.
    pub fn waiting(&self) -> usize {
        let count = rustix::io::ioctl_fionread(self.outer.get_ref());
        count
            .ok()
            .map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(cols: u32, rows: u32) -> Option<Size> {
        Size::new(Some(TerminalSize { cols, rows }))
    }

    #[test]
    fn sizes_have_bounds() {
        assert!(size(1, 1).is_some() && size(65_535, 65_535).is_some());
        assert!(size(0, 24).is_none() && size(80, 0).is_none() && size(65_536, 24).is_none());
        assert!(Size::new(None).is_none());
    }

    /// Goal: both ends carry bytes, the size is the one asked for, and the end is seen as an end.
    #[tokio::test]
    async fn a_terminal_carries_bytes_both_ways() {
        let (terminal, inner) = Terminal::open(size(91, 17).unwrap(), None).unwrap();
        let seen = rustix::termios::tcgetwinsize(&inner).unwrap();
        assert_eq!((seen.ws_col, seen.ws_row), (91, 17));
        terminal.resize(size(40, 10).unwrap()).unwrap();
        let seen = rustix::termios::tcgetwinsize(&inner).unwrap();
        assert_eq!((seen.ws_col, seen.ws_row), (40, 10));
        let modes = rustix::termios::tcgetattr(&inner).unwrap();
        assert!(modes.input_modes.contains(InputModes::IUTF8));

        terminal.write_all("gr\u{fc}n\n".as_bytes()).await;
        let mut typed = [0; 64];
        let count = rustix::io::read(&inner, &mut typed).unwrap();
        assert_eq!(&typed[..count], "gr\u{fc}n\n".as_bytes());
        rustix::io::write(&inner, b"out").unwrap();
        drop(inner);
        let mut output = Vec::new();
        loop {
            terminal.readable().await;
            let mut buffer = [0; 64];
            match terminal.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => output.extend_from_slice(&buffer[..count]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        // What was typed is echoed first.
        assert_eq!(String::from_utf8(output).unwrap(), "gr\u{fc}n\r\nout");
        terminal.write_all(b"nobody reads this").await;
    }
}
