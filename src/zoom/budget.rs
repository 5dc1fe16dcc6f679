//! The account's budget: how many requests a second Zoom still allows, handed out fairly and smoothly.
//!
//! Owns pacing, slowing down after a 429, recovery, and pauses until an instant. Jobs take turns because each job
//! ([`Lane`](super::Lane)) lets only one of its callers at a time into the account's queue, which is first come, first served.
//! Off-the-shelf rate limiters let bursts through or starve some callers.
//!
//! Two numbers set the pace. The *window* is what we take to be Zoom's second: within it, no more requests are sent than the
//! limit, evenly spaced. The *share* is the part of the limit in use. While no 429 is seen, the window creeps down to
//! `SHORTEST_WINDOW`. A 429 at the full share, with none for `QUIET` before it, is put down to jitter: the window gets
//! `TOO_SHORT` longer, unless it is at its longest. Any other 429 is put down to another app of the account: the share drops
//! (`SLOW_DOWN`), nothing is sent for `HOLD`, and the share recovers, slowly at first (`RECOVERY`).

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::retry::LONGEST_PAUSE;
use crate::clock::SharedClock;
use crate::sync::lock;

/// The longest window: Zoom's one second and a little more, because network jitter bunches requests that were sent evenly
/// spaced. The window begins with this length, and has it again when another app shows up.
const WINDOW: Duration = Duration::from_millis(1_020);
const SHORTEST_WINDOW: Duration = Duration::from_millis(1_002);
/// How much shorter the window gets in a second without a 429.
const CREEP: Duration = Duration::from_millis(1);
/// The same when the window is hardly longer than one that was too short.
const SLOW_CREEP: Duration = Duration::from_micros(30);
/// A 429 is isolated if there was no other for this long before it.
const QUIET: Duration = Duration::from_secs(5);
/// An isolated 429 makes the window longer by this much.
const TOO_SHORT: Duration = Duration::from_millis(3);
/// The factors by which the first, second and third 429 within a window reduce the share; further ones do not count. A single
/// 429 says that the pace is a little too high, several that it is far too high.
const SLOW_DOWN: [f64; 3] = [0.92, 0.72, 0.72];
/// Nothing is sent for this long after a 429, unless that one only made the window longer.
const HOLD: Duration = Duration::from_millis(100);
/// The share recovers by this much a second, times the square of the seconds since the last 429 that slowed us down: hardly at
/// all while the reason for it may persist, fast when that is long ago.
const RECOVERY: f64 = 0.00008;
/// The share never falls below this.
const FLOOR: f64 = 0.05;
/// Pauses that end this close to each other are the same one, named in answers that were read one after another.
const SAME_END: SignedDuration = SignedDuration::from_secs(1);
/// After nothing but 429s for this long, the limit in force is not the per-second one.
const HOPELESS: Duration = Duration::from_secs(60);
/// A pause is slept in slices, so that a wall clock set forward or back is noticed.
const PAUSE_SLICE: Duration = Duration::from_secs(20);

/// Why nothing is being sent to Zoom at the moment, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub until: Timestamp,
    pub reason: String,
}

impl Waiting {
    /// Returns the time left; `None` when it is over, or so long that it was set while the clock was wrong.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        let left = Duration::try_from(self.until.duration_since(now)).ok()?;
        (!left.is_zero() && left <= LONGEST_PAUSE).then_some(left)
    }
}

/// One account's budget, shared by all its jobs.
#[derive(Debug)]
pub struct Budget {
    clock: SharedClock,
    /// The account's queue. Held while its head waits for a slot: that is what makes it first come, first served.
    turn: tokio::sync::Mutex<()>,
    pace: Mutex<Pace>,
    /// Wakes the head of the queue when the rate or the pause changes.
    changed: Notify,
    /// The last pause, for those who watch or persist it.
    paused: watch::Sender<Option<Waiting>>,
}

#[derive(Debug)]
struct Pace {
    /// The configured requests a second; `None` means no pacing.
    own: Option<f64>,
    /// The same, or fewer if Zoom names fewer.
    limit: Option<f64>,
    /// Share of the limit in use: 1 unless a 429 was seen lately.
    share: f64,
    window: Duration,
    /// The last window that was too short.
    too_short: Duration,
    /// When the next request may leave.
    next: Duration,
    /// When the last requests were sent; at most as many as the limit allows in one window.
    recent: VecDeque<Duration>,
    last_slow_down: Option<Duration>,
    /// When the current run of 429s, with no other answer in between, began.
    refused_since: Option<Duration>,
    /// The index into [`SLOW_DOWN`] for the next 429 in the window that began with `last_slow_down`.
    step: usize,
    last_change: Duration,
    waiting: Option<Waiting>,
}

enum Slot {
    Granted,
    Wait(Duration),
}

impl Budget {
    /// `limit` in requests a second, `None` for no pacing.
    pub fn new(limit: Option<f64>, clock: SharedClock) -> Self {
        let own = limit.map(whole);
        let pace = Pace {
            own,
            limit: own,
            share: 1.0,
            window: WINDOW,
            too_short: Duration::ZERO,
            next: Duration::ZERO,
            recent: VecDeque::new(),
            last_slow_down: None,
            refused_since: None,
            step: 0,
            last_change: Duration::ZERO,
            waiting: None,
        };
        Self {
            clock,
            turn: tokio::sync::Mutex::new(()),
            pace: Mutex::new(pace),
            changed: Notify::new(),
            paused: watch::Sender::new(None),
        }
    }

    /// Waits for this caller's turn and the account's next slot.
    pub async fn take(&self) {
        let _turn = self.turn.lock().await;
        loop {
            let changed = self.changed.notified();
            match self.with_pace(|pace| pace.slot(self.clock.elapsed(), self.clock.now())) {
                Slot::Granted => return,
                Slot::Wait(wait) => {
                    tokio::select! {
                        () = self.clock.sleep(wait) => {}
                        () = changed => {}
                    }
                }
            }
        }
    }

    /// Slows down after a per-second 429, and sends nothing for as long as it asks. Returns true when nothing but 429s has come
    /// for so long that the pace cannot be the reason.
    pub fn slow_down(&self, asked: Duration) -> bool {
        let now = self.clock.elapsed();
        let refused_since = self.with_pace(|pace| {
            // If the last 429 is long ago, perhaps nothing has been asked since.
            if pace.last_slow_down.is_none_or(|last| now.saturating_sub(last) > HOPELESS) {
                pace.refused_since = None;
            }
            pace.slow_down(now, asked);
            *pace.refused_since.get_or_insert(now)
        });
        self.changed.notify_waiters();
        now.saturating_sub(refused_since) >= HOPELESS
    }

    /// Notes an answer other than a 429.
    pub fn accepted(&self) {
        self.with_pace(|pace| pace.refused_since = None);
    }

    /// Sends nothing until the pause is over. Returns false, changing nothing, if the one in force ends about then or later.
    pub fn pause(&self, pause: Waiting) -> bool {
        let longer = self.with_pace(|pace| {
            let is_longer = |waiting: &Waiting| pause.until.duration_since(waiting.until) > SAME_END;
            let longer = pace.waiting.as_ref().is_none_or(is_longer);
            if longer {
                pace.waiting = Some(pause.clone());
            }
            longer
        });
        if longer {
            self.paused.send_replace(Some(pause));
            self.changed.notify_waiters();
        }
        longer
    }

    /// Watches pauses as they begin, so that they can outlive the process: Zoom's count goes on across our restart.
    pub fn pauses(&self) -> watch::Receiver<Option<Waiting>> {
        self.paused.subscribe()
    }

    /// Follows a limit named in an answer: does not exceed it until another names a higher one.
    pub fn follow_reported_limit(&self, named: f64) {
        let named = whole(named);
        let (before, limit) = self.with_pace(|pace| {
            let limit = pace.own.map(|own| own.min(named));
            (std::mem::replace(&mut pace.limit, limit), limit)
        });
        if let Some(limit) = limit.filter(|_| limit != before) {
            tracing::warn!(limit, "Zoom's answers name a different rate limit; following it");
            self.changed.notify_waiters();
        }
    }

    /// Requests a second, `None` without pacing.
    pub fn limit(&self) -> Option<f64> {
        self.with_pace(|pace| pace.limit)
    }

    /// The pause in force, if any.
    pub fn waiting(&self) -> Option<Waiting> {
        let now = self.clock.now();
        self.with_pace(|pace| pace.waiting.clone().filter(|waiting| waiting.left(now).is_some()))
    }

    fn with_pace<T>(&self, act: impl FnOnce(&mut Pace) -> T) -> T {
        act(&mut lock(&self.pace))
    }
}

/// A second cannot hold part of a request: a limit of 6.6 becomes 6. Below 1 it stays, as one request every so many seconds.
fn whole(limit: f64) -> f64 {
    if limit >= 1.0 { limit.floor() } else { limit }
}

impl Pace {
    fn slot(&mut self, now: Duration, wall: Timestamp) -> Slot {
        if let Some(waiting) = &self.waiting {
            if let Some(left) = waiting.left(wall) {
                return Slot::Wait(left.min(PAUSE_SLICE));
            }
            self.waiting = None;
            // The pause does not count towards recovery: nothing was refused only because nothing was asked.
            self.last_change = now;
            if self.refused_since.is_some() {
                self.last_slow_down = Some(now);
            }
        }
        let Some(limit) = self.limit else {
            return if self.next > now { Slot::Wait(self.next - now) } else { Slot::Granted };
        };
        self.recover(now);
        let interval = self.window.div_f64(limit * self.share);
        // At most one interval is banked: a late timer does not cost a slot, a long pause does not make a burst.
        let slot = self.next.max(now.saturating_sub(interval));
        if slot > now {
            return Slot::Wait(slot - now);
        }
        let most = (limit as usize).max(1);
        while self.recent.len() > most {
            self.recent.pop_front();
        }
        if self.recent.len() == most {
            let window = if limit >= 1.0 { self.window } else { interval };
            let free = self.recent[0] + window;
            if free > now {
                return Slot::Wait(free - now);
            }
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.next = slot + interval;
        Slot::Granted
    }

    fn slow_down(&mut self, now: Duration, asked: Duration) {
        self.next = self.next.max(now + asked);
        let since = self.last_slow_down.map(|last| now.saturating_sub(last));
        // Requests already in flight when the first 429 came will be refused too; all of them are one event.
        if since.is_none_or(|since| since >= WINDOW) {
            self.last_slow_down = Some(now);
            self.step = 0;
            let quiet = self.share >= 1.0 && since.is_none_or(|since| since >= QUIET);
            if quiet && self.window < WINDOW {
                self.too_short = self.window;
                self.window = (self.window + TOO_SHORT).min(WINDOW);
                return;
            }
        }
        if let Some(share) = SLOW_DOWN.get(self.step) {
            self.share = (self.share * share).max(FLOOR);
            self.window = WINDOW;
            self.last_change = now;
            self.step += 1;
        }
        self.next = self.next.max(now + HOLD);
    }

    fn recover(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.last_change);
        if self.share < 1.0 {
            let slow_since = self.last_slow_down.unwrap_or_default();
            let until =
                |then: Duration| RECOVERY / 3.0 * then.saturating_sub(slow_since).as_secs_f64().powi(3);
            self.share = (self.share + until(now) - until(self.last_change)).min(1.0);
        } else {
            let creep = if self.window > self.too_short + TOO_SHORT { CREEP } else { SLOW_CREEP };
            let shorter = self.window.saturating_sub(creep.mul_f64(passed.as_secs_f64()));
            self.window = shorter.max(SHORTEST_WINDOW);
        }
        self.last_change = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn clock() -> Arc<ManualClock> {
        ManualClock::starting_at("2026-05-30T18:00:00Z".parse().unwrap())
    }

    async fn grants(
        budget: Arc<Budget>,
        clock: Arc<ManualClock>,
        lanes: usize,
        each: usize,
    ) -> Vec<(usize, Duration)> {
        let tasks: Vec<_> = (0..lanes)
            .map(|lane| {
                let (budget, clock) = (budget.clone(), clock.clone());
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    for _ in 0..each {
                        budget.take().await;
                        seen.push((lane, clock.elapsed()));
                    }
                    seen
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all.sort_by_key(|(_, at)| *at);
        all
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_holds_more_than_the_limit_and_the_pace_is_close_to_it() {
        for limit in [2.0, 20.0, 60.0] {
            let clock = clock();
            let budget = Arc::new(Budget::new(Some(limit), clock.clone()));
            let total = limit as usize * 30;
            let all = grants(budget, clock, 10, total / 10).await;
            for (index, (_, at)) in all.iter().enumerate() {
                let within = all[index..]
                    .iter()
                    .take_while(|(_, later)| *later < *at + Duration::from_secs(1))
                    .count();
                assert!(within <= limit as usize, "{within} requests in one second at limit {limit}");
            }
            let rate = total as f64 / all.last().unwrap().1.as_secs_f64();
            assert!(rate > limit * 0.96, "{rate} of {limit}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_served_in_turn() {
        let clock = clock();
        let budget = Arc::new(Budget::new(Some(50.0), clock.clone()));
        let all = grants(budget, clock, 7, 40).await;
        for lane in 0..7 {
            let early = all[..140].iter().filter(|(of, _)| *of == lane).count();
            assert!((19..=21).contains(&early), "lane {lane} had {early} of the first 140 grants");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_slows_down_and_the_pace_recovers_step_by_step() {
        let clock = clock();
        let budget = Arc::new(Budget::new(Some(20.0), clock.clone()));
        budget.slow_down(Duration::ZERO);
        let all = grants(budget.clone(), clock.clone(), 1, 60).await;
        let after = |all: &[(usize, Duration)], start: Duration, second: u64| {
            all.iter().filter(|(_, at)| (*at - start).as_secs() == second).count()
        };
        assert_eq!(after(&all, all[0].1, 1), 18, "a single 429: {all:?}");
        let again = clock.elapsed() + HOLD;
        let before = budget.with_pace(|pace| pace.share);
        for _ in 0..9 {
            budget.slow_down(Duration::ZERO);
        }
        let share = budget.with_pace(|pace| pace.share);
        assert!(
            (share / before - SLOW_DOWN.iter().product::<f64>()).abs() < 0.01,
            "one event however many 429s: {share}"
        );
        let all = grants(budget, clock, 1, 500).await;
        assert!((8..=9).contains(&after(&all, again, 0)), "{}", after(&all, again, 0));
        assert!((9..=10).contains(&after(&all, again, 4)), "slowly at first: {}", after(&all, again, 4));
        // The seconds after which the recovery, which speeds up with time, has restored the whole share.
        let back = (3.0 * (1.0 - share) / RECOVERY).cbrt() as u64;
        assert!(after(&all, again, back) >= 19, "recovered after {back} s: {}", after(&all, again, back));
    }

    /// Simulates Zoom's per-second limit for our requests and another app's, in steps of 0.1 ms. Each app's requests are sent
    /// evenly spaced and take up to ten milliseconds to arrive. Returns how many of ours were sent and refused in each second.
    fn beside_another_app(limit: usize, others: impl Fn(u64) -> u64, seconds: u64) -> Vec<(u64, u64)> {
        const TICKS: u64 = 10_000;
        let latency = Duration::from_millis(150);
        let on_the_way = |number: u64| number * 31 % 97;
        let wall: Timestamp = "2026-05-30T18:00:00Z".parse().unwrap();
        let budget = Budget::new(Some(limit as f64), clock());
        let (mut admitted, mut under_way, mut refusals) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let mut told = vec![(0, 0); seconds as usize];
        for tick in 0..seconds * TICKS {
            let (now, second) = (Duration::from_secs(1) * tick as u32 / TICKS as u32, tick / TICKS);
            let (sent, refused) = &mut told[second as usize];
            while admitted.pop_front_if(|at| now - *at >= Duration::from_secs(1)).is_some() {}
            let spacing = TICKS.checked_div(others(second));
            let theirs = spacing.is_some_and(|spacing| tick % spacing == on_the_way(tick / spacing));
            if theirs && admitted.len() < limit {
                admitted.push_back(now);
            }
            if under_way.pop_front_if(|arrives| *arrives <= tick).is_some() {
                if admitted.len() < limit {
                    admitted.push_back(now);
                } else {
                    *refused += 1;
                    refusals.push_back(now + latency);
                }
            }
            while refusals.pop_front_if(|at| *at <= now).is_some() {
                budget.with_pace(|pace| pace.slow_down(now, Duration::ZERO));
            }
            if let Slot::Granted = budget.with_pace(|pace| pace.slot(now, wall)) {
                *sent += 1;
                under_way.push_back(tick + 1 + on_the_way(*sent));
            }
        }
        told
    }

    #[test]
    fn another_app_gets_its_half_and_little_is_refused() {
        // With fewer requests a second, the refusals of the first second weigh more.
        for (limit, most_refused) in [(20, 0.02), (60, 0.01)] {
            let others = |second| if (30..90).contains(&second) { limit / 2 } else { 0 };
            let told = beside_another_app(limit as usize, others, 120);
            let sum = |of: fn(&(u64, u64)) -> u64, from: usize, to: usize| {
                told[from..to].iter().map(of).sum::<u64>() as f64
            };
            let refused = sum(|second| second.1, 30, 90) / sum(|second| second.0, 30, 90);
            assert!(refused < most_refused, "{refused} at {limit}");
            let share = |from, to| sum(|second| second.0, from, to) / (to - from) as f64 / limit as f64;
            let shares = [share(10, 30), share(35, 90), share(116, 120)];
            let good = shares[0] > 0.98 && (0.46..0.51).contains(&shares[1]) && shares[2] > 0.95;
            assert!(good, "{shares:?} at {limit}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_after_a_long_quiet_only_lengthens_the_window() {
        let clock = clock();
        let budget = Arc::new(Budget::new(Some(20.0), clock.clone()));
        let rate = async || {
            let start = clock.elapsed();
            grants(budget.clone(), clock.clone(), 1, 600).await;
            600.0 / (clock.elapsed() - start).as_secs_f64()
        };
        rate().await;
        let window = || budget.with_pace(|pace| pace.window);
        assert_eq!(window(), SHORTEST_WINDOW);
        budget.slow_down(Duration::ZERO);
        assert_eq!(window(), SHORTEST_WINDOW + TOO_SHORT);
        let after = rate().await;
        assert!(after > 19.8, "{after} a second");
        let least = SHORTEST_WINDOW + TOO_SHORT - SLOW_CREEP * 31;
        assert!(window() >= least, "{:?}: it creeps slowly now", window());
        for expected in [1.0, SLOW_DOWN[0]] {
            budget.slow_down(Duration::ZERO);
            let share = budget.with_pace(|pace| pace.share);
            assert!((share - expected).abs() < 0.001, "{share} where {expected} is right");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_for_ever_is_asked_for_once_a_pause() {
        let clock = clock();
        let budget = Budget::new(Some(60.0), clock.clone());
        let mut asked = Vec::new();
        while clock.elapsed() < Duration::from_secs(600) {
            budget.take().await;
            asked.push(clock.elapsed().as_secs());
            clock.sleep(Duration::from_millis(100)).await;
            if budget.slow_down(Duration::ZERO) {
                let until = clock.now() + Duration::from_secs(60);
                budget.pause(Waiting { until, reason: "one too many".to_owned() });
            }
        }
        let later = asked.iter().filter(|second| **second > 70).count();
        assert!((7..=9).contains(&later), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everybody_until_its_instant_and_is_told() {
        let clock = clock();
        let budget = Arc::new(Budget::new(None, clock.clone()));
        let until = "2026-05-31T00:00:00Z".parse().unwrap();
        budget.pause(Waiting { until, reason: "daily limit".to_owned() });
        assert_eq!(budget.waiting().map(|waiting| waiting.until), Some(until));
        let all = grants(budget.clone(), clock.clone(), 3, 1).await;
        assert!(all[0].1 >= Duration::from_secs(6 * 3600));
        assert_eq!(budget.waiting(), None);
        let until = "2026-06-08T00:00:00Z".parse().unwrap();
        budget.pause(Waiting { until, reason: "made by a clock a week ahead".to_owned() });
        assert_eq!(budget.waiting(), None);
        assert_eq!(grants(budget, clock, 1, 1).await.len(), 1);
    }

    #[test]
    fn the_limit_that_was_named_last_holds_below_the_own_one() {
        let budget = Budget::new(Some(20.0), clock());
        for (named, limit) in [(1.0, 1.0), (10.9, 10.0), (60.0, 20.0), (20.0, 20.0)] {
            budget.follow_reported_limit(named);
            assert_eq!(budget.limit(), Some(limit), "{named}");
        }
        let unpaced = Budget::new(None, clock());
        unpaced.follow_reported_limit(1.0);
        assert_eq!(unpaced.limit(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_below_one_a_second_is_kept_too() {
        let clock = clock();
        let budget = Arc::new(Budget::new(Some(0.5), clock.clone()));
        let all = grants(budget, clock, 2, 5).await;
        assert!(all.last().unwrap().1 >= Duration::from_secs(17), "{:?}", all.last());
    }

    proptest! {
        #[test]
        fn whatever_the_arrivals_no_window_holds_more_than_the_limit(
            limit in 1u32..80, part in 0.0f64..1.0, gaps in proptest::collection::vec(0u64..40_000, 1..400), slow in proptest::collection::vec(0usize..400, 0..4),
        ) {
            let wall: Timestamp = "2026-05-30T18:00:00Z".parse().unwrap();
            let budget = Budget::new(Some(f64::from(limit) + part), clock());
            let mut now = Duration::ZERO;
            let mut granted: Vec<Duration> = Vec::new();
            for (index, gap) in gaps.iter().enumerate() {
                now += Duration::from_micros(*gap);
                if slow.contains(&index) {
                    budget.with_pace(|pace| pace.slow_down(now, Duration::ZERO));
                }
                while let Slot::Wait(wait) = budget.with_pace(|pace| pace.slot(now, wall)) {
                    prop_assert!(wait > Duration::ZERO && wait < Duration::from_secs(60));
                    now += wait;
                }
                granted.push(now);
            }
            for (index, at) in granted.iter().enumerate() {
                let within = granted[index..].iter().take_while(|later| **later < *at + Duration::from_secs(1)).count();
                prop_assert!(within <= limit as usize);
            }
        }
    }
}
