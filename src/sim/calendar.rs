//! Days and instants of the simulated account, and the only places where the simulator reads a clock.
//!
//! UTC throughout. Calendar arithmetic is jiff's, except that of rendering instants, because millions are rendered.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jiff::SignedDuration;
use jiff::civil::{Date, date};

pub(super) const DAY_MS: i64 = 86_400_000;
const EPOCH: Date = date(1970, 1, 1);

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the simulator imports nothing of ours, so it has no Clock")]
pub(super) fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the simulator imports nothing of ours, so it has no Clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

pub(super) fn system_today() -> Date {
    date_of_day(now_ms().div_euclid(DAY_MS))
}

/// Days since 1970-01-01.
pub(super) fn day_number(date: Date) -> i64 {
    date.duration_since(EPOCH).as_hours() / 24
}

/// Year, month and day of a day number.
fn civil_of_day(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * month_from_march + 2) / 5 + 1)
}

fn date_of_day(day: i64) -> Date {
    EPOCH.saturating_add(SignedDuration::from_hours(day * 24))
}

/// The first millisecond of the day.
pub(super) fn start_of_day_ms(date: Date) -> i64 {
    day_number(date) * DAY_MS
}

/// The first millisecond after the day.
pub(super) fn end_of_day_ms(date: Date) -> i64 {
    start_of_day_ms(date) + DAY_MS
}

/// Appends an instant in the form `2026-03-17T08:27:57Z`.
pub(super) fn push_instant(out: &mut String, ms: i64) {
    let (year, month, day) = civil_of_day(ms.div_euclid(DAY_MS));
    let second = ms.rem_euclid(DAY_MS) / 1_000;
    push_padded(out, year, 4);
    for (separator, value) in
        [('-', month), ('-', day), ('T', second / 3_600), (':', second / 60 % 60), (':', second % 60)]
    {
        out.push(separator);
        push_padded(out, value, 2);
    }
    out.push('Z');
}

fn push_padded(out: &mut String, value: i64, digits: u32) {
    for position in (0..digits).rev() {
        let digit = u8::try_from(value / 10_i64.pow(position) % 10).unwrap_or(0);
        out.push(char::from(b'0' + digit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan;

    #[test]
    fn day_numbers_agree_with_the_calendar_library() {
        let mut date = Date::new(1969, 12, 30).unwrap();
        let mut day = -2;
        while date.year() < 2040 {
            assert_eq!(day_number(date), day);
            assert_eq!(date_of_day(day), date);
            let (year, month, day_of_month) = civil_of_day(day);
            assert_eq!(
                (year, month, day_of_month),
                (i64::from(date.year()), i64::from(date.month()), i64::from(date.day()))
            );
            date = date.checked_add(1.day()).unwrap();
            day += 1;
        }
    }

    #[test]
    fn instants_are_rendered_in_utc_seconds() {
        let mut out = String::new();
        push_instant(&mut out, 1_647_505_677_135);
        assert_eq!(out, "2022-03-17T08:27:57Z");
    }
}
