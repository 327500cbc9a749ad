-- The event log, format 2. Rows are only ever added; the triggers hold even the sqlite3 shell to it.
CREATE TABLE log (
    id BLOB NOT NULL CHECK (length(id) = 16)
) STRICT;

-- Commits in the order of the log, a few to a row, and nothing that is written all over: what a
-- commit costs on disk is about its own bytes. Streams and ids are found by the log's index.
CREATE TABLE blocks (
    first_position INTEGER PRIMARY KEY,
    records        BLOB NOT NULL
) STRICT;

CREATE TRIGGER log_is_fixed_1    BEFORE UPDATE ON log    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_is_fixed_2    BEFORE DELETE ON log    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER blocks_are_fixed_1 BEFORE UPDATE ON blocks BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER blocks_are_fixed_2 BEFORE DELETE ON blocks BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
