-- What captures have since version 4; older ones get it.

-- Pages taken off a range of these days, because it was cut or its chain began again: until its unit has been compared with them
-- they may be all there is.
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

CREATE INDEX unknown_members_of_list ON unknown_members(list) WHERE list IS NOT NULL;
CREATE INDEX unknown_members_of_range ON unknown_members(range) WHERE range IS NOT NULL;
