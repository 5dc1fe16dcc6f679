//! When a range is too long for one chain of pages, and into which shorter ones it is cut. Pure.
//!
//! A chain is asked for one page after the other, so a session that holds half of all messages would leave the budget
//! idle at the end. Cutting costs requests (the pages already there are dropped, each part ends on a page that is not
//! full), so it must pay for itself: a chain under way is cut only when the rest of the run would end before it. Relies
//! on no order of messages: where pages do not come in the order of time, the time they span says nothing and nothing
//! is cut; and pages already there are never taken for the days they span.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};

use super::windows::{self, DateRange};

/// Chains shorter than this are never cut.
const LONG: f64 = 96.0;
/// Pages that are dropped may be this share of what is still to come, at most.
const MAY_DROP: f64 = 1.0 / 12.0;
/// When nothing else is left to do, parts are planned to take so long, as far as that is between these numbers of pages.
const IDLE_PART: Duration = Duration::from_millis(1_200);
const IDLE_PART_PAGES: (f64, f64) = (2.0, 32.0);
/// The fewest pages a part is planned to have.
const PART_PAGES: f64 = 16.0;
/// A chain is taken to have this many times the pages it has shown at most: one busy hour is no busy month.
const TRUSTED: f64 = 24.0;
/// Without a limit more: the run is then taken to be longer, so more may be spent on splitting early, and with more chains
/// to its end more pages are committed together. With a limit long chains would be cut too late.
const TRUSTED_UNPACED: f64 = 400.0;
/// A chain that would take this share of the rest of the run must not wait for others.
const TIGHT: f64 = 0.5;

/// A chain is not judged before it has shown this many pages.
const SHOWN: u32 = 8;
/// Splitting may cost a run this many requests, and this share of all it sends.
const ALLOWANCE: (f64, f64) = (16.0, 0.015);

/// How fast a chain of pages is, and how long the run will take without it.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub latency: Duration,
    pub rest_of_run: Duration,
}

impl Pace {
    fn outlasts_the_run(&self, pages: f64) -> bool {
        self.latency.as_secs_f64() * pages > self.rest_of_run.as_secs_f64()
    }

    /// Whether the run would wait for a chain of so many pages, if it had to wait for others first.
    pub fn is_tight_for(&self, pages: f64) -> bool {
        self.outlasts_the_run(pages / TIGHT)
    }

    fn pages_of_an_idle_part(&self) -> f64 {
        let pages = IDLE_PART.as_secs_f64() / self.latency.as_secs_f64().max(0.001);
        pages.clamp(IDLE_PART_PAGES.0, IDLE_PART_PAGES.1)
    }

    /// A part should end well before the rest of the run; shorter ones would only cost more requests.
    fn pages_a_part(&self) -> f64 {
        let pages = self.rest_of_run.as_secs_f64() / 2.0 / self.latency.as_secs_f64().max(0.001);
        pages.max(PART_PAGES)
    }
}

/// A range that is to be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    pub parts: Vec<DateRange>,
    /// How many pages it has by those it has shown; 0 when it has shown none.
    pub expected_pages: i64,
}

impl Split {
    /// How many requests it costs at most: the pages that are dropped, and a page that is not full for each further part.
    pub fn costs(&self, seen: &Seen) -> u64 {
        u64::from(seen.pages) + self.parts.len() as u64 - 1
    }
}

/// Whether a run that sends at least so many requests may spend some on splitting.
pub fn affordable(costs: u64, spent: u64, requests: u64) -> bool {
    (spent + costs) as f64 <= ALLOWANCE.0 + ALLOWANCE.1 * requests as f64
}

/// What the pages of a chain have shown so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub pages: u32,
    /// The first and last instant of any message, in milliseconds since 1970.
    pub span: Option<(i64, i64)>,
}

impl Seen {
    /// Another page, and when its first and its last message were sent.
    pub fn add(&mut self, ends: Option<(i64, i64)>) {
        self.pages += 1;
        let span = ends.map(|(first, last)| (first.min(last), first.max(last)));
        self.span = match (self.span, span) {
            (Some(old), Some(new)) => Some((old.0.min(new.0), old.1.max(new.1))),
            (old, new) => old.or(new),
        };
    }

    /// How many pages the whole range would have at this density.
    fn expected_pages(&self, range: DateRange, now: Timestamp) -> Option<f64> {
        let (first, last) = self.span?;
        let end = windows::begins(range.to.tomorrow().ok()?).min(now);
        let start = windows::begins(range.from);
        let whole = (end.as_millisecond() - start.as_millisecond()) as f64;
        let spanned = (last.saturating_sub(first) as f64).max(1.0);
        Some(f64::from(self.pages) * whole / spanned)
    }

    /// How many of them are still to come.
    pub fn pages_to_come(&self, range: DateRange, now: Timestamp) -> Option<f64> {
        Some((self.expected_pages(range, now)? - f64::from(self.pages)).max(0.0))
    }

    /// How many more pages what it has shown is trusted to promise, in a run with a limit or without.
    pub fn trusted(&self, paced: bool) -> f64 {
        f64::from(self.pages) * if paced { TRUSTED } else { TRUSTED_UNPACED }
    }
}

/// Cuts a chain under way when what it has shown says that the run would wait for it; also tells how many pages it
/// would have.
pub fn under_way(range: DateRange, seen: &Seen, pace: Pace, now: Timestamp) -> Option<Split> {
    let expected = seen.expected_pages(range, now)?;
    let pages = f64::from(seen.pages);
    if seen.pages < SHOWN || pages > expected * MAY_DROP || !pace.outlasts_the_run(expected - pages) {
        return None;
    }
    Some(Split { parts: cut(range, expected, pace)?, expected_pages: expected as i64 })
}

/// Cuts a chain under way when there is nothing else left to do and callers stand idle, for so many of them: then pages
/// asked for twice cost no time, and only what is to come must be worth it. That is not less than the `mean` of all
/// chains under way, so that the longest are cut first.
pub fn when_idle(
    range: DateRange,
    seen: &Seen,
    pace: Pace,
    mean: f64,
    idle: usize,
    now: Timestamp,
) -> Option<Split> {
    let expected = seen.expected_pages(range, now)?;
    let to_come = expected - f64::from(seen.pages);
    let part = pace.pages_of_an_idle_part();
    if to_come < mean.max(part * 2.0) || f64::from(seen.pages) > to_come {
        return None;
    }
    let parts = evenly(range, ((expected / part) as usize).min(idle + 1))?;
    Some(Split { parts, expected_pages: expected as i64 })
}

/// Cuts a range before its first page when the same session was long in another window.
pub fn in_advance(range: DateRange, pages_elsewhere: i64, pace: Pace) -> Option<Split> {
    let month = 30.0;
    let days = f64::from(days_of(range));
    let expected = pages_elsewhere as f64 * (days / month).min(1.0);
    if !pace.outlasts_the_run(expected) {
        return None;
    }
    Some(Split { parts: cut(range, expected, pace)?, expected_pages: 0 })
}

fn days_of(range: DateRange) -> i32 {
    range.from.until(range.to).map_or(1, |span| span.get_days() + 1)
}

fn cut(range: DateRange, pages: f64, pace: Pace) -> Option<Vec<DateRange>> {
    if pages < LONG {
        return None;
    }
    evenly(range, (pages / pace.pages_a_part()).ceil() as usize)
}

/// That many parts of about equally many days, as far as there are days.
fn evenly(range: DateRange, parts: usize) -> Option<Vec<DateRange>> {
    let days = days_of(range);
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
    const PACE: Pace = Pace { latency: Duration::from_millis(150), rest_of_run: Duration::from_secs(15) };
    const DAY_MS: i64 = 86_400_000;

    fn month() -> DateRange {
        DateRange { from: date(2026, 3, 1), to: date(2026, 3, 31) }
    }

    fn start_ms() -> i64 {
        windows::begins(month().from).as_millisecond()
    }

    fn later() -> Timestamp {
        "2026-08-01T00:00:00Z".parse().unwrap()
    }

    fn seen(pages: u32, days: f64) -> Seen {
        Seen { pages, span: Some((start_ms(), start_ms() + (days * DAY_MS as f64) as i64)) }
    }

    #[test]
    fn only_what_will_be_long_is_cut() {
        let parts = |pages, days| {
            under_way(month(), &seen(pages, days), PACE, later()).map(|split| split.parts.len())
        };
        assert_eq!(parts(8, 0.4), Some(13), "620 pages to come, 93 s");
        assert_eq!(parts(8, 2.0), Some(3), "124 pages to come, 17 s");
        assert_eq!(parts(8, 2.7), None, "92 pages do not pay for the eight that are there");
        assert_eq!(parts(4, 0.01), None, "a busy quarter of an hour says nothing yet");
        assert_eq!(parts(16, 31.0), None, "pages that do not come in the order of time");
        assert_eq!(under_way(month(), &Seen { pages: 8, span: None }, PACE, later()), None);
    }

    #[test]
    fn nothing_is_cut_that_ends_before_the_rest_of_the_run() {
        let parts = |rest, pages| {
            let pace = Pace { rest_of_run: Duration::from_secs(rest), ..PACE };
            under_way(month(), &seen(pages, 0.05 * f64::from(pages)), pace, later())
                .map(|split| split.parts.len())
        };
        assert_eq!(parts(0, 8), Some(31), "620 pages to come, 92 s");
        assert_eq!(parts(60, 8), Some(4), "parts that take half as long as the rest");
        assert_eq!(parts(90, 8), Some(3));
        assert_eq!(parts(93, 8), None);
        assert_eq!(parts(90, 50), None, "85 s are left of it");
        assert_eq!(parts(80, 50), Some(3));
        let pace = Pace { rest_of_run: Duration::from_secs(90), ..PACE };
        assert!(!pace.is_tight_for(290.0) && pace.is_tight_for(310.0), "43 s, 46 s");
    }

    #[test]
    fn when_nothing_else_is_left_smaller_chains_are_cut_for_as_many_as_stand_idle() {
        let parts = |pages, days, idle| {
            when_idle(month(), &seen(pages, days), PACE, 30.0, idle, later()).map(|split| split.parts.len())
        };
        assert_eq!(parts(4, 3.0, 20), Some(5), "37 pages to come");
        assert_eq!(parts(4, 3.0, 2), Some(3));
        assert_eq!(parts(4, 3.0, 0), None, "nobody is idle");
        assert_eq!(parts(40, 15.0, 20), Some(10), "43 pages to come");
        assert_eq!(parts(40, 16.0, 20), None, "half of it is there already");
        assert_eq!(parts(4, 3.8, 20), None, "29 pages to come, others have more");
        let short =
            |pace| when_idle(month(), &seen(2, 6.0), pace, 0.0, 20, later()).map(|split| split.parts.len());
        assert_eq!(short(PACE), None, "8 pages to come, 1.2 s");
        assert_eq!(short(Pace { latency: Duration::from_millis(800), ..PACE }), Some(5), "6.7 s");
    }

    #[test]
    fn another_window_of_the_same_session_is_a_hint() {
        assert_eq!(in_advance(month(), 95, PACE), None);
        assert_eq!(in_advance(month(), 583, PACE).map(|split| split.parts.len()), Some(12));
        let week = DateRange { from: date(2026, 3, 1), to: date(2026, 3, 7) };
        assert_eq!(in_advance(week, 583, PACE).map(|split| split.parts.len()), Some(3));
        let long_run = Pace { rest_of_run: Duration::from_secs(90), ..PACE };
        assert_eq!(in_advance(month(), 583, long_run), None, "it ends before the others");
        assert_eq!(
            in_advance(DateRange { to: week.from, ..week }, 10_000, PACE),
            None,
            "a day cannot be cut"
        );
    }

    #[test]
    fn splitting_costs_a_hundredth_of_a_run_or_little() {
        let split = Split { parts: vec![month(); 12], expected_pages: 620 };
        assert_eq!(split.costs(&seen(8, 0.4)), 19);
        assert!(affordable(16, 0, 0) && !affordable(16, 1, 0));
        assert!(affordable(14, 14, 1_000) && !affordable(14, 140, 9_000));
    }

    proptest! {
        #[test]
        fn parts_cover_every_day_once_and_in_order(days in 1i32..31, pages in 0.0f64..1e7, latency in 0u64..5_000, rest in 0u64..5_000) {
            let range = DateRange { from: date(2026, 3, 1), to: date(2026, 3, 1).checked_add((days - 1).days()).unwrap() };
            let pace = Pace { latency: Duration::from_millis(latency), rest_of_run: Duration::from_secs(rest) };
            if let Some(parts) = cut(range, pages, pace) {
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
