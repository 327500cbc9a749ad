//! The terminal that `oc` runs in: raw while a shell has it, and as it was before afterwards.
//!
//! Invariant: from [`Raw::enter`] on the settings of before are kept where the normal way out, an
//! early return and a panic in any thread all find them; they are put back once.

use std::io;
use std::sync::{Mutex, Once, PoisonError, TryLockError};

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde::Serialize;

/// The settings of before, while the terminal is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    pub cols: u16,
    pub rows: u16,
}

/// The terminal's size; `None` when it does not know itself.
pub fn size() -> Option<Size> {
    let size = tcgetwinsize(stdin()).ok()?;
    let (cols, rows) = (size.ws_col, size.ws_row);
    (cols > 0 && rows > 0).then_some(Size { cols, rows })
}

/// The terminal is raw for as long as this lives.
pub struct Raw(());

impl Raw {
    /// Every key is passed on as it is from now on.
    pub fn enter() -> io::Result<Self> {
        HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                previous(info);
            }));
        });
        let before = tcgetattr(stdin())?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let raw = Self(());
        raw.again()?;
        Ok(raw)
    }

    /// The same once more, after something else had the terminal.
    pub fn again(&self) -> io::Result<()> {
        let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = before.as_ref() {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        }
        Ok(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // A panic may come while the lock is held by its own thread: better no restoring than no end.
    let mut before = match BEFORE.try_lock() {
        Ok(before) => before,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some(before) = before.take() {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}
