//! Decides when a range is too long for one chain of pages, and where to cut it. Pure.
//!
//! A chain is fetched one page after another, so a session that holds half of all messages would leave the budget idle at the
//! end. Cutting costs requests (the pages already received are dropped, and each part ends on a page that is not full), so it
//! must pay for itself: a chain under way is cut only if it would outlast the rest of the run, or when callers are idle. Does
//! not rely on the order of messages: pages out of time order soon span the whole range, so nothing is cut; and the pages
//! already received are never assumed to be complete for the days they span.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};

use crate::days::{DateRange, begins, day_of};

/// Chains of fewer expected pages are cut only when callers are idle.
const MIN_PAGES_TO_SPLIT: f64 = 72.0;
/// The largest share of the expected pages that cutting may drop.
const MAX_DROPPED_SHARE: f64 = 1.0 / 12.0;
/// When nothing else is left to do, parts are planned to take this long, within these bounds on their pages.
const IDLE_PART: Duration = Duration::from_millis(1_200);
const IDLE_PART_PAGES: (f64, f64) = (2.0, 32.0);
/// The fewest pages planned for a part, unless callers are idle.
const PART_PAGES: f64 = 16.0;
/// The pages still to come are estimated at no more than this many times those seen: one busy hour is not a busy month.
const MAX_EXTRAPOLATION: f64 = 24.0;
/// Higher without a rate limit: the run is then estimated to be longer, so more may be spent on splitting early, and with more
/// chains running until its end, more pages are committed together. With a limit, this would cut long chains too late.
const MAX_EXTRAPOLATION_UNPACED: f64 = 400.0;
/// A chain that would take more than this share of the rest of the run must not wait for others.
const TIGHT: f64 = 0.5;

/// A chain is not judged before it has shown this many pages, unless callers are idle.
const MIN_PAGES_SHOWN: u32 = 6;
/// Splitting may cost a run this many requests, and this share of all it sends.
const ALLOWANCE: (f64, f64) = (64.0, 0.015);

/// What the rest of the run is expected to look like.
#[derive(Debug, Clone, Copy)]
pub struct RunForecast {
    /// The time a chain takes for each page.
    pub time_of_a_page: Duration,
    pub rest_of_run: Duration,
}

impl RunForecast {
    /// The time that a chain of `pages` pages takes, as a share of the rest of the run.
    fn share_of_the_run(&self, pages: f64) -> f64 {
        self.time_of_a_page.as_secs_f64() * pages / self.rest_of_run.as_secs_f64().max(0.001)
    }

    /// Whether the run would end up waiting for a chain of `pages` pages if that had to wait for others first.
    pub fn would_delay_run(&self, pages: f64) -> bool {
        self.share_of_the_run(pages) > TIGHT
    }

    /// By how much a chain of `pages` pages would outlast the rest of the run, as a share of that rest, at most 1; `None` if it
    /// ends first.
    fn worth_of_cutting(&self, pages: f64) -> Option<f64> {
        let share = self.share_of_the_run(pages);
        (share > 1.0).then(|| (share - 1.0).min(1.0))
    }

    fn pages_of_an_idle_part(&self) -> f64 {
        let pages = IDLE_PART.as_secs_f64() / self.time_of_a_page.as_secs_f64().max(0.001);
        pages.clamp(IDLE_PART_PAGES.0, IDLE_PART_PAGES.1)
    }

    /// How many parts to cut `pages` pages into. Parts should end well before the rest of the run; shorter ones would only cost
    /// more requests.
    fn parts(&self, pages: f64) -> usize {
        let a_part = self.rest_of_run.as_secs_f64() / 2.0 / self.time_of_a_page.as_secs_f64().max(0.001);
        (pages / a_part.max(PART_PAGES)).ceil() as usize
    }
}

/// A range that is to be cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    pub parts: Vec<DateRange>,
    /// The total number of pages, extrapolated from those seen; 0 if none were.
    pub expected_pages: i64,
    /// The share of the splitting allowance that may be spent on this. A chain that barely outlasts the run leaves most of it
    /// to longer ones.
    pub worth: f64,
}

impl Split {
    /// The number of requests it costs: the pages that are dropped and, as no part ends on a full page, half a page for each.
    pub fn costs(&self, seen: &Seen) -> u64 {
        u64::from(seen.pages) + self.parts.len() as u64 / 2
    }
}

/// Whether a run that sends at least `requests` requests and has `spent` some on splitting can afford a split of this cost and
/// worth.
pub fn affordable(costs: u64, worth: f64, spent: u64, requests: u64) -> bool {
    (spent + costs) as f64 <= (ALLOWANCE.0 + ALLOWANCE.1 * requests as f64) * worth
}

/// The days of a range, and until when messages can have been sent in them.
#[derive(Debug, Clone, Copy)]
pub struct Days {
    range: DateRange,
    /// The end of the range or this moment, whichever is earlier.
    end: Timestamp,
    /// When the session's last message was sent, according to its list entry: a hint.
    last_sent: Option<Timestamp>,
}

impl Days {
    pub fn new(range: DateRange, last_sent: Option<Timestamp>, now: Timestamp) -> Self {
        let end = range.to.tomorrow().map_or(now, |next| begins(next).min(now));
        Self { range, end, last_sent: last_sent.filter(|last| *last < end) }
    }

    /// Cuts into at most this many parts that share the days in which messages were sent, as far as known, about evenly.
    fn cut(&self, parts: usize, seen: &Seen) -> Option<Vec<DateRange>> {
        let (first, last) = seen.bounds(self);
        let from = day_of(first).unwrap_or(self.range.from).clamp(self.range.from, self.range.to);
        let to = day_of(last.saturating_sub(1)).unwrap_or(self.range.to).clamp(from, self.range.to);
        let mut parts = evenly(DateRange { from, to }, parts)?;
        parts.first_mut()?.from = self.range.from;
        parts.last_mut()?.to = self.range.to;
        Some(parts)
    }
}

/// The time order of a page: 1 if its first message is later than its last, -1 if earlier, else 0.
pub fn direction(ends: Option<(i64, i64)>) -> i64 {
    ends.map_or(0, |(first, last)| i64::from(first > last) - i64::from(first < last))
}

/// What the pages of a chain have shown so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub pages: u32,
    /// The first and last instant of any message, in milliseconds since 1970.
    span: Option<(i64, i64)>,
    /// The number of pages that run from new to old, minus those that run from old to new.
    direction: i64,
}

impl Seen {
    /// Adds another page, given when its first and last messages were sent.
    pub fn add(&mut self, ends: Option<(i64, i64)>) {
        self.pages += 1;
        self.direction += direction(ends);
        let span = ends.map(|(first, last)| (first.min(last), first.max(last)));
        self.span = match (self.span, span) {
            (Some(old), Some(new)) => Some((old.0.min(new.0), old.1.max(new.1))),
            (old, new) => old.or(new),
        };
    }

    /// The instants between which the session's messages of these days were sent, as far as can be told.
    fn bounds(&self, days: &Days) -> (i64, i64) {
        let (start, end) = (begins(days.range.from).as_millisecond(), days.end.as_millisecond());
        let last_sent = days.last_sent.map(Timestamp::as_millisecond);
        let Some((first, last)) = self.span else { return (start, last_sent.unwrap_or(end)) };
        if self.direction > 0 {
            return (start, last);
        }
        // A message sent after `last_sent` shows that the list is wrong.
        (first, last_sent.filter(|sent| *sent >= last).unwrap_or(end))
    }

    /// The number of pages still to come, at the density seen so far.
    pub fn pages_to_come(&self, days: &Days) -> Option<f64> {
        let (first, last) = self.span?;
        let (start, end) = self.bounds(days);
        let spanned = (last.saturating_sub(first) as f64).max(1.0);
        let ahead = (end.saturating_sub(start) as f64 - spanned).max(0.0);
        Some(f64::from(self.pages) * ahead / spanned)
    }

    /// The maximum number of further pages that the pages seen are trusted to predict, in a run with a rate limit or without.
    pub fn trusted(&self, paced: bool) -> f64 {
        f64::from(self.pages) * if paced { MAX_EXTRAPOLATION } else { MAX_EXTRAPOLATION_UNPACED }
    }
}

/// Cuts a chain under way if the pages seen predict that the run would end up waiting for it.
pub fn while_running(days: &Days, seen: &Seen, forecast: RunForecast) -> Option<Split> {
    let to_come = seen.pages_to_come(days)?;
    let expected = to_come + f64::from(seen.pages);
    if seen.pages < MIN_PAGES_SHOWN
        || f64::from(seen.pages) > expected * MAX_DROPPED_SHARE
        || expected < MIN_PAGES_TO_SPLIT
    {
        return None;
    }
    let worth = forecast.worth_of_cutting(to_come)?;
    let parts = days.cut(forecast.parts(expected), seen)?;
    Some(Split { parts, expected_pages: expected as i64, worth })
}

/// Cuts a chain under way when nothing else is left to do, to occupy `idle` callers: requesting pages twice then costs no time,
/// so only the pages still to come count. They must be at least the `mean` of the chains under way: the longest are cut first.
pub fn for_idle(days: &Days, seen: &Seen, forecast: RunForecast, mean: f64, idle: usize) -> Option<Split> {
    let to_come = seen.pages_to_come(days)?;
    let expected = to_come + f64::from(seen.pages);
    let part = forecast.pages_of_an_idle_part();
    if to_come < mean.max(part * 2.0) || f64::from(seen.pages) > to_come {
        return None;
    }
    let parts = days.cut(((expected / part) as usize).min(idle + 1), seen)?;
    Some(Split { parts, expected_pages: expected as i64, worth: 1.0 })
}

/// Cuts a range before its first page is fetched if the same session was long in another window.
pub fn before_start(days: &Days, pages_elsewhere: i64, forecast: RunForecast) -> Option<Split> {
    let month = 30.0;
    let expected = pages_elsewhere as f64 * (f64::from(days.range.days()) / month).min(1.0);
    if expected < MIN_PAGES_TO_SPLIT {
        return None;
    }
    let worth = forecast.worth_of_cutting(expected)?;
    let parts = days.cut(forecast.parts(expected), &Seen::default())?;
    Some(Split { parts, expected_pages: 0, worth })
}

/// Cuts a range into parts of about equally many days, at most one part per day.
fn evenly(range: DateRange, parts: usize) -> Option<Vec<DateRange>> {
    let days = range.days();
    let parts = i32::try_from(parts).unwrap_or(days).min(days);
    if parts < 2 {
        return None;
    }
    let day = |number: i32| range.from.checked_add(number.days()).ok();
    (0..parts)
        .map(|index| {
            let (from, to) = (days * index / parts, days * (index + 1) / parts - 1);
            Some(DateRange { from: day(from)?, to: day(to)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    /// Parts of 50 pages.
    const FORECAST: RunForecast =
        RunForecast { time_of_a_page: Duration::from_millis(150), rest_of_run: Duration::from_secs(15) };
    const DAY_MS: i64 = 86_400_000;

    const MONTH: DateRange = DateRange { from: date(2026, 3, 1), to: date(2026, 3, 31) };

    fn month() -> Days {
        all_of(MONTH)
    }

    fn all_of(range: DateRange) -> Days {
        active_until(range, None)
    }

    fn active_until(range: DateRange, last_sent: Option<f64>) -> Days {
        let last_sent = last_sent.map(|day| Timestamp::from_millisecond(at(day)).unwrap());
        Days::new(range, last_sent, "2026-08-01T00:00:00Z".parse().unwrap())
    }

    /// An instant in the month, in days from its beginning.
    fn at(day: f64) -> i64 {
        begins(MONTH.from).as_millisecond() + (day * DAY_MS as f64) as i64
    }

    fn seen(pages: u32, days: f64) -> Seen {
        Seen { pages, span: Some((at(0.0), at(days))), direction: 0 }
    }

    #[test]
    fn only_what_will_be_long_is_cut() {
        let parts = |pages, days| {
            while_running(&month(), &seen(pages, days), FORECAST).map(|split| split.parts.len())
        };
        assert_eq!(parts(8, 0.4), Some(13), "620 pages to come, 93 s");
        assert_eq!(parts(8, 2.0), Some(3), "124 pages to come, 17 s");
        assert_eq!(parts(8, 2.7), None, "92 pages do not pay for the eight that are there");
        assert_eq!(parts(4, 0.01), None, "a busy quarter of an hour says nothing yet");
        assert_eq!(parts(16, 31.0), None, "pages that do not come in the order of time");
        assert_eq!(while_running(&month(), &Seen { pages: 8, ..Seen::default() }, FORECAST), None);
    }

    #[test]
    fn nothing_is_cut_that_ends_before_the_rest_of_the_run() {
        let parts = |rest, pages| {
            let forecast = RunForecast { rest_of_run: Duration::from_secs(rest), ..FORECAST };
            while_running(&month(), &seen(pages, 0.05 * f64::from(pages)), forecast)
                .map(|split| split.parts.len())
        };
        assert_eq!(parts(0, 8), Some(31), "620 pages to come, 92 s");
        assert_eq!(parts(60, 8), Some(4), "parts that take half as long as the rest");
        assert_eq!(parts(90, 8), Some(3));
        assert_eq!(parts(93, 8), None);
        assert_eq!(parts(90, 50), None, "85 s are left of it");
        assert_eq!(parts(80, 50), Some(3));
        let forecast = RunForecast { rest_of_run: Duration::from_secs(90), ..FORECAST };
        assert!(!forecast.would_delay_run(290.0) && forecast.would_delay_run(310.0), "43 s, 46 s");
    }

    #[test]
    fn when_nothing_else_is_left_smaller_chains_are_cut_for_as_many_as_stand_idle() {
        let parts = |pages, days, idle| {
            for_idle(&month(), &seen(pages, days), FORECAST, 30.0, idle).map(|split| split.parts.len())
        };
        assert_eq!(parts(4, 3.0, 20), Some(5), "37 pages to come");
        assert_eq!(parts(4, 3.0, 2), Some(3));
        assert_eq!(parts(4, 3.0, 0), None, "nobody is idle");
        assert_eq!(parts(40, 15.0, 20), Some(10), "43 pages to come");
        assert_eq!(parts(40, 16.0, 20), None, "half of it is there already");
        assert_eq!(parts(4, 3.8, 20), None, "29 pages to come, others have more");
        let short =
            |forecast| for_idle(&month(), &seen(2, 6.0), forecast, 0.0, 20).map(|split| split.parts.len());
        assert_eq!(short(FORECAST), None, "8 pages to come, 1.2 s");
        assert_eq!(
            short(RunForecast { time_of_a_page: Duration::from_millis(800), ..FORECAST }),
            Some(5),
            "6.7 s"
        );
    }

    #[test]
    fn another_window_of_the_same_session_is_a_hint() {
        assert_eq!(before_start(&month(), 95, FORECAST), None);
        assert_eq!(before_start(&month(), 583, FORECAST).map(|split| split.parts.len()), Some(12));
        let week = DateRange { from: date(2026, 3, 1), to: date(2026, 3, 7) };
        assert_eq!(before_start(&all_of(week), 583, FORECAST).map(|split| split.parts.len()), Some(3));
        let long_run = RunForecast { rest_of_run: Duration::from_secs(90), ..FORECAST };
        assert_eq!(before_start(&month(), 583, long_run), None, "it ends before the others");
        assert_eq!(
            before_start(&all_of(DateRange { to: week.from, ..week }), 10_000, FORECAST),
            None,
            "a day cannot be cut"
        );
    }

    #[test]
    fn splitting_costs_little_of_a_run_and_less_for_what_outlasts_it_by_little() {
        let split = Split { parts: vec![MONTH; 12], expected_pages: 620, worth: 1.0 };
        assert_eq!(split.costs(&seen(8, 0.4)), 14);
        assert!(affordable(64, 1.0, 0, 0) && !affordable(64, 1.0, 1, 0));
        assert!(affordable(14, 1.0, 65, 1_000) && !affordable(14, 1.0, 190, 9_000));
        assert!(affordable(14, 0.2, 10, 4_000) && !affordable(14, 0.2, 14, 4_000));
        let worth = |pages| while_running(&month(), &seen(8, 8.0 * 31.0 / pages), FORECAST).unwrap().worth;
        assert!((worth(128.0) - 0.2).abs() < 1e-9 && (worth(620.0) - 1.0).abs() < 1e-9, "18 s, 92 s");
    }

    #[test]
    fn what_is_to_come_lies_between_the_last_page_and_the_end_of_the_session() {
        let until = |last_sent| active_until(MONTH, Some(last_sent));
        let paged = |pages: &[(f64, f64)]| {
            let mut seen = Seen::default();
            for (first, last) in pages {
                seen.add(Some((at(*first), at(*last))));
            }
            seen
        };
        let to_come = |days: Days, pages: &[(f64, f64)]| paged(pages).pages_to_come(&days).map(f64::round);
        assert_eq!(to_come(month(), &[(0.0, 1.0)]), Some(30.0));
        assert_eq!(to_come(month(), &[(20.0, 21.0)]), Some(10.0), "it began late");
        assert_eq!(to_come(month(), &[(30.0, 29.5), (29.5, 29.0)]), Some(58.0), "newest first");
        assert_eq!(to_come(until(7.0), &[(0.0, 1.0)]), Some(6.0), "it ended early");
        assert_eq!(to_come(until(0.0), &[(0.0, 1.0)]), Some(30.0), "the list is wrong");
        assert_eq!(to_come(until(99.0), &[(0.0, 1.0)]), Some(30.0), "it went on in another window");
        assert_eq!(to_come(month(), &[(20.0, 3.0), (1.0, 30.5), (9.0, 8.0)]), Some(0.0), "in no order");
        assert_eq!(to_come(month(), &[]), None);

        let parts = until(7.0).cut(3, &paged(&[(1.5, 1.6)])).unwrap();
        let days: Vec<_> = parts.iter().map(|part| (part.from.day(), part.to.day())).collect();
        assert_eq!(days, [(1, 3), (4, 5), (6, 31)], "all days, and the seven of the messages evenly");
    }

    proptest! {
        #[test]
        fn parts_cover_every_day_once_and_in_order(
            days in 1i32..31, number in 0usize..100,
            span in proptest::option::of((any::<i64>(), any::<i64>())), direction in -1i64..=1,
            last_sent in proptest::option::of(-40.0f64..40.0),
        ) {
            let range = DateRange { to: MONTH.from.checked_add((days - 1).days()).unwrap(), ..MONTH };
            let (days, seen) = (active_until(range, last_sent), Seen { pages: 9, span, direction });
            prop_assert!(seen.pages_to_come(&days).is_none_or(|pages| pages >= 0.0));
            if let Some(parts) = days.cut(number, &seen) {
                prop_assert!(parts.len() >= 2);
                prop_assert_eq!(parts[0].from, range.from);
                prop_assert_eq!(parts.last().unwrap().to, range.to);
                for part in &parts {
                    prop_assert!(part.from <= part.to);
                }
                for pair in parts.windows(2) {
                    prop_assert_eq!(pair[0].to.tomorrow().unwrap(), pair[1].from);
                }
            }
        }
    }
}
