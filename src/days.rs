//! Ranges of days, as used for requests, windows, lists and ranges.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// The instant at which a day begins, in UTC.
pub fn begins(day: Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |begin| begin.timestamp())
}

/// The UTC day of an instant in milliseconds since 1970; `None` if it is out of the supported range.
pub fn day_of(at_ms: i64) -> Option<Date> {
    Some(Timestamp::from_millisecond(at_ms).ok()?.to_zoned(TimeZone::UTC).date())
}

/// Days `from` to `to`, both included, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateRange {
    pub from: Date,
    pub to: Date,
}

impl DateRange {
    pub const fn new(from: Date, to: Date) -> Self {
        Self { from, to }
    }

    /// A single day.
    pub fn day(day: Date) -> Self {
        Self { from: day, to: day }
    }

    /// Whether this range contains all of `other`.
    pub fn covers(self, other: Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }

    /// The number of days in this range.
    pub fn days(self) -> i32 {
        self.from.until(self.to).map_or(1, |span| span.get_days() + 1)
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    /// The parts of this range before `day` and from `day` on; `None` for an empty part.
    pub fn split_at(self, day: Date) -> (Option<Self>, Option<Self>) {
        let last = day.yesterday().ok().filter(|last| self.from <= *last);
        (last.map(|last| Self { to: self.to.min(last), ..self }), self.since(day))
    }

    /// The part of this range from `oldest` on; `None` if it is empty.
    pub fn since(self, oldest: Date) -> Option<Self> {
        (self.to >= oldest).then(|| Self { from: self.from.max(oldest), ..self })
    }
}

impl fmt::Display for DateRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} to {}", self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn a_range_is_split_where_it_is_crossed() {
        let days = |from, to| DateRange::new(date(2026, 5, from), date(2026, 5, to));
        for (day, before, rest) in [
            (3, None, Some(days(3, 6))),
            (2, None, Some(days(3, 6))),
            (4, Some(days(3, 3)), Some(days(4, 6))),
            (6, Some(days(3, 5)), Some(days(6, 6))),
            (7, Some(days(3, 6)), None),
            (9, Some(days(3, 6)), None),
        ] {
            assert_eq!(days(3, 6).split_at(date(2026, 5, day)), (before, rest), "{day}");
        }
        assert_eq!(days(3, 6).split_at(Date::MIN), (None, Some(days(3, 6))));
    }

    #[test]
    fn ranges_cover_and_overlap_day_by_day() {
        let all = |from, to| DateRange::new(date(2026, 5, from), date(2026, 5, to));
        for (one, other) in [(3, 6), (3, 3), (5, 9), (1, 2), (7, 7), (1, 9)]
            .into_iter()
            .flat_map(|(from, to)| [((3, 6), (from, to)), ((from, to), (3, 6))])
        {
            let of = |(from, to): (i8, i8)| from..=to;
            let [own, others] = [one, other].map(|(from, to)| all(from, to));
            assert_eq!(own.covers(others), of(other).all(|day| of(one).contains(&day)));
            assert_eq!(own.overlaps(others), of(other).any(|day| of(one).contains(&day)));
        }
    }
}
