//! The database outside of a server's own use: as it lies under the fence, beside a running server,
//! or new, with the commits of another.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{OpenFlags, TransactionBehavior};
use ulid::Ulid;

use super::draft::Draft;
use super::fence::Fence;
use super::open::{connect, database, io_error, log_id, make_folder};
use super::read::View;
use super::witness::{Seen, Witness};
use super::{FILE, checkpoint, failed};
use crate::events::engines::{Commit, Reader};
use crate::events::error::{EngineError, OpenError};
use crate::events::event::Head;
use crate::events::pragmas;

/// A stopped server's log, held against other servers and not judged yet.
pub struct Held {
    view: View,
    // Last: it falls after the file is closed.
    _fence: Fence,
}

impl Held {
    /// Takes the folder; `None`: there is no log in it.
    pub fn open(dir: &Path) -> Result<Option<Held>, OpenError> {
        let _fence = Fence::raise(dir)?;
        Ok(database(dir, false)?.map(|view| Held { view, _fence }))
    }

    pub fn view(&self) -> &dyn Reader {
        &self.view
    }
}

/// A view of a log that may be in use by a server: it takes no fence and can write nothing.
pub fn attach(dir: &Path) -> Result<Box<dyn Reader>, EngineError> {
    let conn = connect(&dir.join(FILE), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.pragma_update(None, "query_only", "ON")
        .map_err(failed)?;
    let log = log_id(&conn)?;
    Ok(Box::new(View::new(conn, dir.to_owned(), log)))
}

/// What a copy will be used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A server's log.
    Serve,
    /// A file on a medium that may be read-only later: no write-ahead log beside it.
    Archive,
}

/// A log in the making, in a folder of its own. It counts only once it is finished.
pub struct Copying {
    view: View,
    dir: PathBuf,
    head: Head,
    last_block: i64,
    _fence: Fence,
}

impl Copying {
    /// A log with the identity `log` and no commit yet; nothing may be in `dir`.
    pub fn create(dir: &Path, log: Ulid) -> Result<Copying, OpenError> {
        make_folder(dir).map_err(|error| io_error(dir, "created", &error))?;
        let fence = Fence::raise(dir)?;
        if dir.join(FILE).exists() {
            let taken = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(io_error(&dir.join(FILE), "created", &taken));
        }
        let mut view = database(dir, true)?.ok_or_else(|| {
            let lost = std::io::Error::other("it was there and is gone");
            io_error(&dir.join(FILE), "created", &lost)
        })?;
        identify(&mut view, log).map_err(|error| super::doubt(dir, error))?;
        Ok(Copying {
            view: View::new(view.conn, dir.to_owned(), log),
            dir: dir.to_owned(),
            head: Head::beginning(log),
            last_block: 0,
            _fence: fence,
        })
    }

    /// Adds commits that were verified to follow.
    pub fn append(&mut self, commits: &[Commit]) -> Result<(), EngineError> {
        let mut draft = Draft::default();
        for commit in commits {
            draft.add(&self.view.conn, self.last_block, commit)?;
        }
        self.last_block = draft.finish(&self.view.conn)?.last_block;
        if let Some(last) = commits.last() {
            self.head = last.head();
        }
        // The write-ahead log must not grow to the size of the whole.
        checkpoint(&self.view.conn, "PASSIVE").map(drop)
    }

    /// Puts everything into the file, makes the witness, and syncs the folder.
    pub fn finish(self, purpose: Purpose) -> Result<Head, OpenError> {
        let Self {
            view,
            dir,
            head,
            _fence,
            ..
        } = self;
        let told = |error: EngineError| super::doubt(&dir, error);
        let (log, conn) = (view.log(), view.conn);
        checkpoint(&conn, "TRUNCATE").map_err(told)?;
        if purpose == Purpose::Archive {
            let modes = [("journal_mode", "DELETE", "delete")];
            pragmas::hold(&conn, &modes)
                .map_err(|unset| told(EngineError::Io(unset.to_string())))?;
        }
        drop(conn);
        let io = |error: std::io::Error| io_error(&dir, "written", &error);
        Witness::create(&dir, &Seen { log, head }).map_err(io)?;
        File::open(&dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io)?;
        Ok(head)
    }
}

/// Gives a log that was just made the identity `log` instead of its own.
fn identify(view: &mut View, log: Ulid) -> Result<(), EngineError> {
    let tx = view
        .conn
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    let guard: String = tx
        .query_row(
            "SELECT sql FROM sqlite_schema WHERE name = 'log_is_fixed_1'",
            [],
            |row| row.get(0),
        )
        .map_err(failed)?;
    tx.execute("DROP TRIGGER log_is_fixed_1", [])
        .and_then(|_| tx.execute("UPDATE log SET id = ?1", [log.to_bytes()]))
        .and_then(|_| tx.execute(&guard, []))
        .map_err(failed)?;
    tx.commit().map_err(failed)
}
