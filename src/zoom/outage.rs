//! Whether one of Zoom's endpoints answers at all: distinguishes an outage from a request that fails for its own reasons.
//!
//! Owns the suspicion, the one prober, and the pause. Calls that begin during an outage wait and spend no attempts; requests
//! queued before it are still sent. One caller at a time probes, with growing delay. Knows no HTTP: callers say what happened
//! and how to probe.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use jiff::{Timestamp, Unit};
use tokio::sync::Notify;

use super::budget::Waiting;
use super::error::{Failure, FailureKind};
use crate::clock::SharedClock;
use crate::sync::lock;

/// This many different sessions failing in a row, without any answer in between, look like an outage.
pub(super) const DIFFERENT: usize = 5;
/// The delay after the first probe; it doubles with each.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Failures this far apart do not point to one outage: even after the longest delay an answer may ask for, a request is sent
/// again sooner.
const LONG_AGO: Duration = Duration::from_secs(15 * 60);

#[derive(Debug)]
pub struct Outage {
    /// The endpoint, in words.
    of: &'static str,
    clock: SharedClock,
    /// Nobody waits longer than this.
    longest: Duration,
    state: Mutex<State>,
    /// Held by the prober. Whoever waits here takes over when the prober is cancelled.
    probing: tokio::sync::Mutex<()>,
    over: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Answers of any kind so far.
    answers: u64,
    /// Outages so far.
    outages: u64,
    /// What has failed since the last answer: sessions, or the list.
    failing: HashSet<String>,
    /// When the first of these failed, and the last.
    failing_since: Option<Timestamp>,
    failed_last: Duration,
    down: Option<Down>,
}

#[derive(Debug)]
struct Down {
    since: Timestamp,
    /// When the first probe was not answered; moved on by each later one that took longer than `LONG_AGO`, as it had to wait for
    /// the end of the account's pause.
    counts_from: Duration,
    delay: Duration,
    /// When the next probe is due; `until` is the same for users, to the second.
    next: Duration,
    until: Timestamp,
    why: String,
}

/// How things stood before a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    answers: u64,
    outages: u64,
}

impl Mark {
    /// True when an outage has begun since `earlier`.
    pub fn saw_outage_since(self, earlier: Self) -> bool {
        self.outages != earlier.outages
    }
}

impl Outage {
    pub fn new(of: &'static str, longest: Duration, clock: SharedClock) -> Self {
        Self {
            of,
            clock,
            longest,
            state: Mutex::default(),
            probing: tokio::sync::Mutex::default(),
            over: Notify::new(),
        }
    }

    pub fn mark(&self) -> Mark {
        self.with(|state| Mark { answers: state.answers, outages: state.outages })
    }

    pub fn is_on(&self) -> bool {
        self.with(|state| state.down.is_some())
    }

    /// Notes that Zoom answered, if only with a refusal.
    pub fn answered(&self) {
        let ended = self.with(|state| {
            state.answers += 1;
            state.failing.clear();
            state.failing_since = None;
            state.down.take()
        });
        if let Some(down) = ended {
            tracing::info!(of = self.of, since = %down.since, "Zoom answers again");
            self.over.notify_waiters();
        }
    }

    /// Notes a failure that may be due to an outage; `subject` is the request's session, if it has one. Returns true when it is
    /// time to probe: many different subjects fail, or this request is about to be given up and nothing has been answered since
    /// it was sent.
    pub fn failed(&self, subject: &str, last_try: bool, sent: Mark) -> bool {
        let (now, wall) = (self.clock.elapsed(), self.clock.now());
        self.with(|state| {
            state.failed_last = now;
            state.failing.insert(subject.to_owned());
            state.failing_since.get_or_insert(wall);
            state.failing.len() >= DIFFERENT || (last_try && state.answers == sent.answers)
        })
    }

    /// How many different subjects have failed since the last answer.
    pub fn failing(&self) -> usize {
        self.with(|state| state.failing.len())
    }

    /// Probes until Zoom answers, for at most `longest`. An error of `probe` says why there was no answer. Returns true if
    /// there was an outage; false if the first probe was answered or, when it was not, another request had been meanwhile.
    pub async fn wait_out<F>(&self, probe: impl Fn() -> F) -> Result<bool, Failure>
    where
        F: Future<Output = Result<(), String>>,
    {
        let since = self.clock.elapsed();
        let (before, was_on) = (self.mark(), self.is_on());
        let _only_one = self.probing.lock().await;
        loop {
            let over = self.over.notified();
            let (down, settled) = self.with(|state| {
                (state.down.as_ref().map(|down| (down.counts_from, down.next)), state.failing.is_empty())
            });
            if down.is_none() && settled {
                return Ok(was_on || self.mark().saw_outage_since(before));
            }
            if let Some((counts_from, next)) = down {
                let now = self.clock.elapsed();
                if now.saturating_sub(since.max(counts_from)) >= self.longest {
                    return Err(self.given_up());
                }
                tokio::select! {
                    () = self.clock.sleep(next.saturating_sub(now)) => {}
                    () = over => continue,
                }
            }
            let (before_probe, asked) = (self.mark(), self.clock.elapsed());
            match probe().await {
                Ok(()) => self.answered(),
                // Another request has been answered meanwhile: only the probe was not.
                Err(_) if self.mark().answers != before_probe.answers => {
                    return Ok(was_on || self.mark().saw_outage_since(before));
                }
                Err(why) => self.unanswered(&why, self.clock.elapsed().saturating_sub(asked)),
            }
        }
    }

    /// Whether anybody waits for its end.
    pub fn is_probed(&self) -> bool {
        self.probing.try_lock().is_err()
    }

    /// What a job reports during an outage.
    pub fn waiting(&self) -> Option<Waiting> {
        self.with(|state| {
            let Down { since, until, why, .. } = state.down.as_ref()?;
            let since = since.strftime("%Y-%m-%dT%H:%M:%SZ");
            let reason = format!("Zoom has not answered since {since} ({why})");
            Some(Waiting { until: *until, reason })
        })
    }

    /// Notes that a probe was not answered for `took`.
    fn unanswered(&self, why: &str, took: Duration) {
        let (now, wall) = (self.clock.elapsed(), self.clock.now());
        let began = self.with(|state| {
            let began = state.down.is_none();
            state.outages += u64::from(began);
            let (since, counts_from, delay) = match &state.down {
                Some(down) => {
                    let paused = if took > LONG_AGO { took } else { Duration::ZERO };
                    (down.since, down.counts_from + paused, (down.delay * 2).min(LONGEST_DELAY))
                }
                None => (state.failing_since.unwrap_or(wall), now, FIRST_DELAY),
            };
            let until = wall + delay;
            let until = until.round(Unit::Second).unwrap_or(until);
            state.down =
                Some(Down { since, counts_from, delay, next: now + delay, until, why: why.to_owned() });
            began
        });
        if began {
            tracing::warn!(
                of = self.of,
                why,
                "Zoom does not answer; requests of this kind wait until it does"
            );
        }
    }

    fn given_up(&self) -> Failure {
        let why = self.with(|state| state.down.as_ref().map(|down| down.why.clone())).unwrap_or_default();
        let message = format!("Zoom did not answer within MAX_OUTAGE ({}): {why}", in_words(self.longest));
        Failure::without_answer(FailureKind::Unreachable, message)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let last = state.down.as_ref().map_or(Duration::ZERO, |down| down.next).max(state.failed_last);
        // Unless somebody is asking: a probe may wait for hours while the account is paused.
        if !self.is_probed() && self.clock.elapsed().saturating_sub(last) > LONG_AGO {
            state.failing.clear();
            (state.failing_since, state.down) = (None, None);
        }
        act(&mut state)
    }
}

/// Formats a duration as it is configured: `12h`, `90s`.
fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 3_600 && seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        seconds if seconds >= 60 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    fn outage(clock: &Arc<ManualClock>) -> Arc<Outage> {
        Arc::new(Outage::new("messages", Duration::from_secs(3_600), clock.clone()))
    }

    fn clock() -> Arc<ManualClock> {
        ManualClock::starting_at("2026-05-30T18:00:00Z".parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn different_requests_failing_in_a_row_are_suspicious_and_one_alone_only_at_its_end() {
        let outage = outage(&clock());
        let sent = outage.mark();
        for _ in 0..7 {
            assert!(!outage.failed("1", false, sent), "one request failing often is its own affair");
        }
        assert!(outage.failed("1", true, sent), "nothing was answered meanwhile: who knows?");
        for session in ["2", "3", "4"] {
            assert!(!outage.failed(session, false, sent));
        }
        assert!(outage.failed("5", false, sent));
        outage.answered();
        assert!(!outage.failed("1", true, sent), "others were answered meanwhile: it is this request");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_answered_ends_the_suspicion_without_a_pause() {
        let clock = clock();
        let outage = outage(&clock);
        outage.failed("1", true, outage.mark());
        assert!(!outage.wait_out(|| async { Ok(()) }).await.unwrap());
        assert_eq!(clock.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_prober_asks_with_growing_delay_and_everybody_goes_on_when_it_is_answered() {
        let clock = clock();
        let outage = outage(&clock);
        outage.failed("1", true, outage.mark());
        let probes = Arc::new(AtomicU32::new(0));
        let waiters: Vec<_> = (0..20)
            .map(|_| {
                let (outage, probes) = (outage.clone(), probes.clone());
                tokio::spawn(async move {
                    let probe = || async {
                        let number = probes.fetch_add(1, Relaxed);
                        if number < 12 { Err("could not connect".to_owned()) } else { Ok(()) }
                    };
                    outage.wait_out(probe).await
                })
            })
            .collect();
        clock.sleep(Duration::from_millis(10)).await;
        let waiting = outage.waiting().unwrap();
        assert!(
            waiting.reason.contains("since 2026-05-30T18:00:00Z (could not connect)"),
            "{}",
            waiting.reason
        );
        for waiter in waiters {
            assert!(waiter.await.unwrap().unwrap(), "there was an outage");
        }
        assert_eq!(probes.load(Relaxed), 13, "nobody asked beside the prober");
        // 1 + 2 + 4 + 8 + 16 + 32 + 6 * 60
        assert_eq!(clock.elapsed().as_secs(), 423);
        assert_eq!(outage.waiting(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_somebody_else_ends_it_too_and_a_cancelled_prober_is_replaced() {
        let clock = clock();
        let outage = outage(&clock);
        outage.failed("1", true, outage.mark());
        let spawn = || {
            let outage = outage.clone();
            tokio::spawn(async move { outage.wait_out(|| async { Err("503".to_owned()) }).await })
        };
        let (first, second) = (spawn(), spawn());
        clock.sleep(Duration::from_secs(100)).await;
        first.abort();
        clock.sleep(Duration::from_secs(100)).await;
        assert!(outage.is_on() && !second.is_finished());
        outage.answered();
        assert!(second.await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_fails_while_others_are_answered_shows_no_outage() {
        let outage = outage(&clock());
        outage.failed("1", true, outage.mark());
        let probe = || async {
            outage.answered();
            Err("it timed out".to_owned())
        };
        assert!(!outage.wait_out(probe).await.unwrap());
        assert!(!outage.is_on());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_forgotten_when_nobody_has_asked_for_long() {
        let clock = clock();
        let outage = outage(&clock);
        outage.failed("1", true, outage.mark());
        outage.unanswered("503", Duration::ZERO);
        clock.sleep(LONG_AGO).await;
        assert!(outage.is_on() && outage.failing() == 1);
        clock.sleep(FIRST_DELAY * 2).await;
        assert!(!outage.is_on() && outage.failing() == 0 && outage.waiting().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspicion_is_not_forgotten_while_a_probe_is_under_way() {
        let clock = clock();
        let outage = outage(&clock);
        outage.failed("1", true, outage.mark());
        let first = tokio::spawn({
            let outage = outage.clone();
            async move { outage.wait_out(std::future::pending).await }
        });
        clock.sleep(Duration::from_millis(10)).await;
        let probes = Arc::new(AtomicU32::new(0));
        let second = tokio::spawn({
            let (outage, probes) = (outage.clone(), probes.clone());
            async move {
                let probe = || async {
                    probes.fetch_add(1, Relaxed);
                    Ok(())
                };
                outage.wait_out(probe).await
            }
        });
        clock.sleep(LONG_AGO * 2).await;
        assert_eq!(outage.failing(), 1);
        first.abort();
        assert!(!second.await.unwrap().unwrap());
        assert_eq!(probes.load(Relaxed), 1);
    }

    /// A probe may have to wait until the account's pause is over.
    #[tokio::test(start_paused = true)]
    async fn the_time_that_a_probe_had_to_wait_is_no_outage() {
        let clock = clock();
        let outage = outage(&clock);
        outage.failed("1", true, outage.mark());
        let probes = AtomicU32::new(0);
        let probe = || async {
            match probes.fetch_add(1, Relaxed) {
                0 | 2 => clock.sleep(Duration::from_secs(20 * 3_600)).await,
                1 => {}
                _ => return Ok(()),
            }
            Err("503".to_owned())
        };
        assert!(outage.wait_out(probe).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_longest() {
        let clock = clock();
        let outage = outage(&clock);
        outage.failed("1", true, outage.mark());
        let failure = outage.wait_out(|| async { Err("503".to_owned()) }).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert_eq!(failure.message, "Zoom did not answer within MAX_OUTAGE (1h): 503");
        assert!((3_600..3_700).contains(&clock.elapsed().as_secs()));
    }
}
