//! Setting SQLite's pragmas and reading them back: durability and wiping rest on them, and SQLite
//! ignores a pragma it does not know or can't follow without a word.

use rusqlite::Connection;
use rusqlite::types::ValueRef;

/// Why the settings do not hold.
#[derive(Debug, thiserror::Error)]
pub enum Unset {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(
        "SQLite keeps {name} at {got} where {wanted} is needed (does the file system lack shared \
         memory or locks?)"
    )]
    Refused {
        name: &'static str,
        got: String,
        wanted: &'static str,
    },
}

/// Sets each `(name, value, wanted)` and checks that reading it gives `wanted`.
pub fn hold(
    conn: &Connection,
    pragmas: &[(&'static str, &'static str, &'static str)],
) -> Result<(), Unset> {
    for &(name, value, wanted) in pragmas {
        // Some answer with a row when set, some don't; both are fine.
        conn.pragma(None, name, value, |_| Ok(()))?;
        let got = read(conn, name)?;
        if got != wanted {
            return Err(Unset::Refused { name, got, wanted });
        }
    }
    Ok(())
}

/// A pragma's present value as text.
pub fn read(conn: &Connection, name: &str) -> rusqlite::Result<String> {
    conn.pragma_query_value(None, name, |row| {
        Ok(match row.get_ref(0)? {
            ValueRef::Integer(number) => number.to_string(),
            other => other.as_str()?.to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a setting that does not take is an error and not a wish. A database in memory can't
    /// have a WAL.
    #[test]
    fn a_setting_that_does_not_hold_is_refused() {
        let conn = Connection::open_in_memory().expect("a database in memory");
        let refused = hold(
            &conn,
            &[("synchronous", "FULL", "2"), ("journal_mode", "WAL", "wal")],
        );
        let message = refused.expect_err("no WAL in memory").to_string();
        assert!(
            message.contains("journal_mode at memory where wal is needed"),
            "{message}"
        );
        assert!(hold(&conn, &[("no_such_pragma", "1", "1")]).is_err());
    }
}
