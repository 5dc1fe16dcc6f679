//! Windows: the fewest date ranges Zoom accepts that cover what was asked for.
//!
//! Pure functions of (range, today). Zoom takes at most a month a request and keeps six months
//! (vendor's description of both report endpoints).

use jiff::civil::Date;
use jiff::{Span, ToSpan};

use crate::days::DateRange;

/// How far back Zoom's report reaches, in months.
pub const REACH_MONTHS: i32 = 6;

/// The oldest day that Zoom still answers for, by the calendar.
pub fn oldest_reachable(today: Date) -> Date {
    today.checked_sub(Span::new().months(REACH_MONTHS)).unwrap_or(Date::MIN)
}

/// Parses a day, strictly as `yyyy-mm-dd`: other ISO forms would be understood here but refused by Zoom.
pub fn parse_day(text: &str) -> Result<Date, String> {
    let is_plain = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(index, byte)| if index == 4 || index == 7 { byte == b'-' } else { byte.is_ascii_digit() });
    if !is_plain {
        return Err("must be a date as yyyy-mm-dd".to_owned());
    }
    text.parse().map_err(|_| format!("{text} is not a date in the calendar"))
}

/// What is wrong with a range of days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("must not be after the last day ({from} > {to})")]
    Reversed { from: Date, to: Date },
    #[error(
        "{from} is older than the six months that Zoom's reports cover; the oldest possible date is {oldest}"
    )]
    OutOfReach { from: Date, oldest: Date },
    #[error("must not be in the future; today (UTC) is {today}")]
    InFuture { today: Date },
}

impl RangeError {
    /// `from` or `to`.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Reversed { .. } | Self::OutOfReach { .. } => "from",
            Self::InFuture { .. } => "to",
        }
    }
}

/// Checks the days of a range, as far as they could be read, and returns all that is wrong. `oldest` is the first possible day.
pub fn validate(oldest: Date, from: Option<Date>, to: Option<Date>, today: Date) -> Vec<RangeError> {
    let order = match (from, to) {
        (Some(from), Some(to)) if from > to => Some(RangeError::Reversed { from, to }),
        (Some(from), _) if from < oldest => Some(RangeError::OutOfReach { from, oldest }),
        _ => None,
    };
    let future = to.filter(|to| *to > today).map(|_| RangeError::InFuture { today });
    order.into_iter().chain(future).collect()
}

/// Plans the windows, oldest first: each runs to the day before the same day of the next month, month ends clamp.
pub fn plan(range: DateRange) -> Vec<DateRange> {
    let mut windows = Vec::new();
    let mut from = range.from;
    while from <= range.to {
        let next = from.checked_add(1.month()).unwrap_or(Date::MAX);
        let to = next.yesterday().unwrap_or(Date::MAX).min(range.to);
        windows.push(DateRange { from, to });
        let Ok(following) = to.tomorrow() else { break };
        from = following;
    }
    windows
}

/// Cuts a range that could not be fetched whole in two: at its first month boundary if it has one, else in the middle. A single
/// day cannot be cut.
pub fn cut(range: DateRange) -> Option<Vec<DateRange>> {
    if range.from >= range.to {
        return None;
    }
    let month_end = range.from.last_of_month();
    let middle = if month_end < range.to {
        month_end
    } else {
        range.from.checked_add(((range.days() - 1) / 2).days()).ok()?
    };
    let rest = DateRange { from: middle.tomorrow().ok()?, to: range.to };
    Some(vec![DateRange { from: range.from, to: middle }, rest])
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    fn days() -> impl Strategy<Value = DateRange> {
        (0i32..4000, 0i32..200).prop_map(|(start, length)| {
            let from = date(2019, 1, 1).checked_add(start.days()).unwrap();
            DateRange { from, to: from.checked_add(length.days()).unwrap() }
        })
    }

    proptest! {
        #[test]
        fn windows_cover_every_day_once_in_order_and_none_is_longer_than_a_month(range in days()) {
            let windows = plan(range);
            prop_assert_eq!(windows[0].from, range.from);
            prop_assert_eq!(windows.last().unwrap().to, range.to);
            for pair in windows.windows(2) {
                prop_assert_eq!(pair[0].to.tomorrow().unwrap(), pair[1].from);
            }
            for window in &windows {
                prop_assert!(window.from <= window.to);
                prop_assert!(window.to < window.from.checked_add(1.month()).unwrap());
            }
        }

        #[test]
        fn cutting_ends_in_single_days_and_loses_none(range in days()) {
            let mut open = vec![range];
            let mut single = Vec::new();
            while let Some(range) = open.pop() {
                match cut(range) {
                    Some(parts) => open.extend(parts.into_iter().rev()),
                    None => single.push(range.from),
                }
            }
            let expected: Vec<_> = range.from.series(1.day()).take_while(|day| *day <= range.to).collect();
            prop_assert_eq!(single, expected);
        }
    }

    #[test]
    fn month_ends_clamp() {
        let windows = plan(DateRange { from: date(2026, 1, 31), to: date(2026, 4, 10) });
        let ends: Vec<_> =
            windows.iter().map(|window| (window.from.to_string(), window.to.to_string())).collect();
        let expected =
            [("2026-01-31", "2026-02-27"), ("2026-02-28", "2026-03-27"), ("2026-03-28", "2026-04-10")];
        assert_eq!(ends, expected.map(|(from, to)| (from.to_owned(), to.to_owned())));
    }

    #[test]
    fn a_window_over_a_month_boundary_is_cut_there_first() {
        let parts = cut(DateRange { from: date(2026, 1, 15), to: date(2026, 2, 14) }).unwrap();
        assert_eq!(parts[0], DateRange { from: date(2026, 1, 15), to: date(2026, 1, 31) });
        assert_eq!(parts[1], DateRange { from: date(2026, 2, 1), to: date(2026, 2, 14) });
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let today = date(2026, 8, 31);
        let fields = |from, to| {
            validate(oldest_reachable(today), Some(from), Some(to), today)
                .into_iter()
                .map(|error| error.field())
                .collect::<Vec<_>>()
        };
        assert!(fields(date(2026, 2, 28), date(2026, 8, 31)).is_empty());
        assert_eq!(fields(date(2026, 2, 27), date(2026, 9, 1)), ["from", "to"]);
        assert_eq!(fields(date(2026, 8, 3), date(2026, 8, 2)), ["from"]);
        let message = validate(oldest_reachable(today), Some(date(2025, 1, 1)), None, today)[0].to_string();
        assert!(message.contains("2026-02-28"), "{message}");
    }
}
