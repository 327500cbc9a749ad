//! Reading: statements, and rows turned into events whose content hash was recomputed.

use rusqlite::{Connection, OptionalExtension, Params, Row, ToSql, named_params};
use serde_json::value::RawValue;
use ulid::Ulid;

use super::{failed, int};
use crate::events::chain::{self, Hash};
use crate::events::engines::{CommitRow, READ_BYTES_MAX, Reader};
use crate::events::error::EngineError;
use crate::events::event::{Actor, Head, Recorded, from_unix_ms};
use crate::events::stream::StreamId;

// `CROSS JOIN` holds SQLite to this order: walk the events, look up each one's commit.
const EVENTS: &str = "SELECT e.position, e.commit_number, e.id, e.stream, e.revision, e.kind, \
     e.data, e.content_hash, c.recorded_at_ms, c.command, c.actor_kind, c.actor_org, c.actor_key, \
     c.correlation, c.causation FROM events e CROSS JOIN commits c ON c.number = e.commit_number";
const COMMITS: &str = "SELECT number, first_position, last_position, recorded_at_ms, command, \
     request_hash, event_hashes, chain FROM commits";

/// One connection's view of the log.
pub struct View {
    pub(super) conn: Connection,
    log: Ulid,
}

impl View {
    pub(super) fn new(conn: Connection, log: Ulid) -> Self {
        Self { conn, log }
    }

    /// Rows of [`EVENTS`] with `tail` behind it, until `limit` or [`READ_BYTES_MAX`] is reached.
    fn page(
        &self,
        tail: &str,
        limit: usize,
        values: &[(&str, &dyn ToSql)],
    ) -> Result<Vec<Recorded>, EngineError> {
        let mut statement = self
            .conn
            .prepare_cached(&format!("{EVENTS} {tail}"))
            .map_err(failed)?;
        let mut rows = statement.query(values).map_err(failed)?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while page.len() < limit && bytes < READ_BYTES_MAX {
            let Some(row) = rows.next().map_err(failed)? else {
                break;
            };
            let event = event(row)?;
            bytes += event.data.get().len();
            page.push(event);
        }
        Ok(page)
    }

    fn number(&self, sql: &str, values: impl Params) -> Result<Option<u64>, EngineError> {
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let found: Option<i64> = statement
            .query_row(values, |row| row.get(0))
            .optional()
            .map_err(failed)?;
        found.map(unsigned).transpose()
    }
}

impl Reader for View {
    fn log(&self) -> Ulid {
        self.log
    }

    fn head(&self) -> Result<Head, EngineError> {
        let sql = "SELECT last_position, number, chain FROM commits ORDER BY number DESC LIMIT 1";
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let found: Option<(i64, i64, Hash)> = statement
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()
            .map_err(failed)?;
        match found {
            None => Ok(Head {
                position: 0,
                commit: 0,
                chain: chain::genesis(self.log),
            }),
            Some((position, commit, chain)) => Ok(Head {
                position: unsigned(position)?,
                commit: unsigned(commit)?,
                chain,
            }),
        }
    }

    fn events(&self, from: u64, limit: usize) -> Result<Vec<Recorded>, EngineError> {
        let tail = "WHERE e.position >= :from ORDER BY e.position";
        self.page(tail, limit, named_params! { ":from": bound(from) })
    }

    fn events_before(&self, before: u64, limit: usize) -> Result<Vec<Recorded>, EngineError> {
        let tail = "WHERE e.position < :before ORDER BY e.position DESC";
        self.page(tail, limit, named_params! { ":before": bound(before) })
    }

    fn stream(
        &self,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Recorded>, EngineError> {
        let tail = "WHERE e.stream = :stream AND e.revision >= :from ORDER BY e.revision";
        let values = named_params! { ":stream": stream.as_str(), ":from": bound(from) };
        self.page(tail, limit, values)
    }

    fn stream_revision(&self, stream: &StreamId) -> Result<Option<u64>, EngineError> {
        let sql = "SELECT revision FROM events WHERE stream = ?1 ORDER BY revision DESC LIMIT 1";
        self.number(sql, [stream.as_str()])
    }

    fn commits(&self, from: u64, limit: usize) -> Result<Vec<CommitRow>, EngineError> {
        let sql = format!("{COMMITS} WHERE number >= ?1 ORDER BY number");
        let mut statement = self.conn.prepare_cached(&sql).map_err(failed)?;
        let mut rows = statement.query([bound(from)]).map_err(failed)?;
        let mut page = Vec::new();
        while page.len() < limit {
            let Some(row) = rows.next().map_err(failed)? else {
                break;
            };
            page.push(commit(row)?);
        }
        Ok(page)
    }

    fn commit_of(&self, command: Ulid) -> Result<Option<CommitRow>, EngineError> {
        let sql = format!("{COMMITS} WHERE command = ?1");
        let mut statement = self.conn.prepare_cached(&sql).map_err(failed)?;
        let mut rows = statement.query([command.to_bytes()]).map_err(failed)?;
        rows.next().map_err(failed)?.map(commit).transpose()
    }

    fn has_event(&self, id: Ulid) -> Result<bool, EngineError> {
        let sql = "SELECT position FROM events WHERE id = ?1";
        Ok(self.number(sql, [id.to_bytes()])?.is_some())
    }

    fn check_files(&self) -> Result<(), EngineError> {
        let said: String = self
            .conn
            .pragma_query_value(None, "integrity_check", |row| row.get(0))
            .map_err(failed)?;
        if said == "ok" {
            Ok(())
        } else {
            Err(EngineError::Damaged(said))
        }
    }
}

/// A row of [`EVENTS`], believed only when its content hash is right.
fn event(row: &Row<'_>) -> Result<Recorded, EngineError> {
    let position = get::<i64>(row, 0)?;
    let damaged = |what: &str| EngineError::Damaged(format!("event {position}: {what}"));
    let optional = |index: usize| -> Result<Option<Ulid>, EngineError> {
        Ok(get::<Option<[u8; 16]>>(row, index)?.map(Ulid::from_bytes))
    };
    let org: Option<String> = get(row, 11)?;
    let key: Option<String> = get(row, 12)?;
    let recorded = Recorded {
        id: Ulid::from_bytes(get(row, 2)?),
        stream: StreamId::new(get::<String>(row, 3)?)
            .map_err(|_| damaged("its stream's name is not one"))?,
        revision: unsigned(get(row, 4)?)?,
        position: unsigned(position)?,
        commit: unsigned(get(row, 1)?)?,
        kind: get(row, 5)?,
        recorded_at: from_unix_ms(get(row, 8)?).ok_or_else(|| damaged("its time is not one"))?,
        actor: Actor {
            org: parsed(org).map_err(|()| damaged("its organization is not one"))?,
            key: parsed(key).map_err(|()| damaged("its API key is not one"))?,
            kind: get::<String>(row, 10)?.into(),
        },
        command: Ulid::from_bytes(get(row, 9)?),
        correlation: optional(13)?,
        causation: optional(14)?,
        data: RawValue::from_string(get(row, 6)?).map_err(|_| damaged("its data is not JSON"))?,
        content_hash: get(row, 7)?,
    };
    if chain::content_hash(&recorded) != recorded.content_hash {
        return Err(damaged("its content does not match its hash"));
    }
    Ok(recorded)
}

/// A row of [`COMMITS`].
fn commit(row: &Row<'_>) -> Result<CommitRow, EngineError> {
    let hashes: Vec<u8> = get(row, 6)?;
    let (event_hashes, rest) = hashes.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(EngineError::Damaged(
            "a commit's list of hashes is cut short".into(),
        ));
    }
    Ok(CommitRow {
        number: unsigned(get(row, 0)?)?,
        first_position: unsigned(get(row, 1)?)?,
        last_position: unsigned(get(row, 2)?)?,
        recorded_at_ms: get(row, 3)?,
        command: Ulid::from_bytes(get(row, 4)?),
        request_hash: get(row, 5)?,
        event_hashes: event_hashes.to_vec(),
        chain: get(row, 7)?,
    })
}

fn get<T: rusqlite::types::FromSql>(row: &Row<'_>, index: usize) -> Result<T, EngineError> {
    row.get(index).map_err(failed)
}

fn parsed<T: std::str::FromStr>(text: Option<String>) -> Result<Option<T>, ()> {
    text.map(|text| text.parse().map_err(|_| ())).transpose()
}

fn unsigned(number: i64) -> Result<u64, EngineError> {
    u64::try_from(number)
        .map_err(|_| EngineError::Damaged(format!("{number} where a count belongs")))
}

/// A bound of a search; beyond SQLite's range is as good as its end.
fn bound(number: u64) -> i64 {
    int(number).unwrap_or(i64::MAX)
}
