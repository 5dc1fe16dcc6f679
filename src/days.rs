//! Ranges of days: what requests, windows, lists and ranges are of.

use std::fmt;

use jiff::civil::Date;

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

    /// Whether all of `other` is in it.
    pub fn covers(self, other: Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    /// What of it is not before this day; `None` if nothing is.
    pub fn since(self, oldest: Date) -> Option<Self> {
        (self.to >= oldest).then(|| Self { from: self.from.max(oldest), ..self })
    }
}

impl fmt::Display for DateRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} to {}", self.from, self.to)
    }
}
