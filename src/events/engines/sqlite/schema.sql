-- The event log, format 1. Rows are only ever added; the triggers hold even the sqlite3 shell to it.
CREATE TABLE log (
    id BLOB NOT NULL CHECK (length(id) = 16)
) STRICT;

CREATE TABLE commits (
    number         INTEGER PRIMARY KEY,
    first_position INTEGER NOT NULL UNIQUE,
    last_position  INTEGER NOT NULL,
    recorded_at_ms INTEGER NOT NULL,
    command        BLOB NOT NULL UNIQUE CHECK (length(command) = 16),
    request_hash   BLOB NOT NULL CHECK (length(request_hash) = 32),
    actor_kind     TEXT NOT NULL,
    actor_org      TEXT,
    actor_key      TEXT,
    correlation    BLOB,
    causation      BLOB,
    -- The content hashes in order: the chain can be walked without reading a single event.
    event_hashes   BLOB NOT NULL CHECK (length(event_hashes) = 32 * (last_position - first_position + 1)),
    chain          BLOB NOT NULL CHECK (length(chain) = 32)
) STRICT;

CREATE TABLE events (
    position      INTEGER PRIMARY KEY,
    commit_number INTEGER NOT NULL REFERENCES commits (number),
    id            BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    stream        TEXT NOT NULL,
    revision      INTEGER NOT NULL,
    kind          TEXT NOT NULL,
    content_hash  BLOB NOT NULL CHECK (length(content_hash) = 32),
    data          TEXT NOT NULL,
    UNIQUE (stream, revision)
) STRICT;

CREATE TRIGGER log_is_fixed_1     BEFORE UPDATE ON log     BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_is_fixed_2     BEFORE DELETE ON log     BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER commits_are_fixed_1 BEFORE UPDATE ON commits BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER commits_are_fixed_2 BEFORE DELETE ON commits BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER events_are_fixed_1  BEFORE UPDATE ON events  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER events_are_fixed_2  BEFORE DELETE ON events  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
