-- One job's durable record. Dates are ISO text (they sort), instants RFC 3339 text. Segments are in a file beside it. A check
-- of the whole file detects values garbled by a bad disk by the types, constraints and references here. Pages deliberately have
-- no CHECK constraints: a bad value there costs its range, not the whole capture.
CREATE TABLE meta (
    key TEXT PRIMARY KEY, value TEXT NOT NULL CHECK (key <> 'request' OR json_valid(value))
) STRICT, WITHOUT ROWID;

CREATE TABLE windows (
    idx INTEGER PRIMARY KEY,
    first_day TEXT NOT NULL CHECK (first_day IS date(first_day)),
    last_day TEXT NOT NULL CHECK (last_day IS date(last_day))
) STRICT;

-- A chain of list pages: a whole window, or a part of one that could not be listed whole.
CREATE TABLE lists (
    id INTEGER PRIMARY KEY,
    window INTEGER NOT NULL REFERENCES windows(idx),
    first_day TEXT NOT NULL CHECK (first_day IS date(first_day)),
    last_day TEXT NOT NULL CHECK (last_day IS date(last_day)),
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'cut', 'failed')),
    next_token TEXT, token_at TEXT, pages INTEGER NOT NULL DEFAULT 0,
    failure TEXT, failed_at TEXT
) STRICT;

CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    zoom_id TEXT NOT NULL,                          -- unique, by known.sessions (listed.rs), not by an index
    info TEXT NOT NULL                              -- as received, from the latest window that lists it
) STRICT;

CREATE TABLE units (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions(id),
    window INTEGER NOT NULL REFERENCES windows(idx),
    listed INTEGER NOT NULL,                        -- 0: known from another window and probed in this one
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'not_found', 'failed')),
    expected_pages INTEGER NOT NULL DEFAULT 0,      -- an estimate, made once pages have come: when some are set aside or a range is split
    last_commit INTEGER,                            -- the last commit to end a range of it or compare it; numbers ascend
    UNIQUE (session, window)
) STRICT;
CREATE INDEX units_by_commit ON units(last_commit, session) WHERE last_commit IS NOT NULL;

CREATE TABLE ranges (
    id INTEGER PRIMARY KEY,
    unit INTEGER NOT NULL REFERENCES units(id),
    window INTEGER NOT NULL,
    first_day TEXT NOT NULL CHECK (first_day IS date(first_day)),
    last_day TEXT NOT NULL CHECK (last_day IS date(last_day)),
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'not_found', 'failed')),
    next_token TEXT, token_at TEXT, query TEXT,
    pages INTEGER NOT NULL DEFAULT 0 CHECK (pages BETWEEN 0 AND 4294967295),
    repeats INTEGER NOT NULL DEFAULT 0 CHECK (repeats >= 0),    -- items dropped because the previous page held them
    failure TEXT, failed_at TEXT,
    newest_first INTEGER NOT NULL DEFAULT 0,        -- pages in that order, minus those in the other
    kept INTEGER NOT NULL DEFAULT 0                 -- items added back because they were missing when it was fetched again
) STRICT;
CREATE INDEX ranges_of_unit ON ranges(unit, first_day);
CREATE INDEX ranges_pending ON ranges(window, id) WHERE state = 'pending';

CREATE TABLE pages (
    range INTEGER NOT NULL REFERENCES ranges(id),
    seq INTEGER NOT NULL,
    kind INTEGER NOT NULL,                          -- 0 messages, 1 edited_messages, 2 deleted_messages
    items INTEGER NOT NULL,
    raw_len INTEGER NOT NULL,
    crc32 INTEGER NOT NULL,
    offset INTEGER NOT NULL,                        -- where its segment is in capture.segments
    length INTEGER NOT NULL,
    PRIMARY KEY (range, seq, kind)
) STRICT, WITHOUT ROWID;

-- Pages removed from a range of these days because it was split, replaced or fetched again. Until its unit has been compared
-- with them they may be the only copy.
CREATE TABLE set_aside (
    unit INTEGER NOT NULL REFERENCES units(id),
    first_day TEXT NOT NULL CHECK (first_day IS date(first_day)),
    last_day TEXT NOT NULL CHECK (last_day IS date(last_day)),
    kind INTEGER NOT NULL,
    items INTEGER NOT NULL,
    raw_len INTEGER NOT NULL,
    crc32 INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL
) STRICT;
CREATE INDEX set_aside_of_unit ON set_aside(unit);

-- Members of responses that are unknown to us, verbatim.
CREATE TABLE unknown_members (
    list INTEGER, range INTEGER, seq INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL
) STRICT;
CREATE INDEX unknown_members_of_list ON unknown_members(list) WHERE list IS NOT NULL;
CREATE INDEX unknown_members_of_range ON unknown_members(range) WHERE range IS NOT NULL;
