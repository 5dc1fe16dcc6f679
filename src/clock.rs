//! Injected time and randomness: everything that reads the time, waits, or needs a random number asks a [`Clock`].
//!
//! Owns the only uses of the system clock and of randomness in the service (`clippy.toml` forbids others), except for the keys
//! of `extract::digest`.
//! Wall time ([`Clock::now`]) may jump; pacing uses [`Clock::elapsed`], which is monotonic.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

/// A source of wall time, monotonic time, sleeping and randomness.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Wall time.
    fn now(&self) -> Timestamp;
    /// Monotonic time since this clock was made.
    fn elapsed(&self) -> Duration;
    /// Completes once `duration` has passed on this clock.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
    /// A random number in `[0, 1)`.
    fn random(&self) -> f64;
    /// Today's date in UTC, the calendar Zoom's report API counts in.
    fn today(&self) -> Date {
        self.now().to_zoned(TimeZone::UTC).date()
    }
    /// A new version 7 UUID, which begins with this clock's time.
    fn uuid(&self) -> Uuid {
        let now = self.now();
        let (seconds, nanos) = (now.as_second().max(0) as u64, now.subsec_nanosecond().unsigned_abs());
        Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos))
    }
}

/// The handle through which every component uses its clock.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub fn shared() -> SharedClock {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the source of chance")]
    fn random(&self) -> f64 {
        fastrand::f64()
    }
}

/// A clock for tests: it starts at a chosen instant, runs at the real (or tokio's paused) pace, and can be advanced, which
/// wakes every sleeper whose time has come. [`Clock::random`] always returns 0.5.
#[derive(Debug)]
pub struct ManualClock {
    base: Timestamp,
    real: SystemClock,
    advanced: watch::Sender<Duration>,
    /// The offset of the wall clock, in milliseconds.
    set_off_ms: AtomicI64,
}

impl ManualClock {
    pub fn starting_at(base: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            base,
            real: SystemClock::new(),
            advanced: watch::Sender::new(Duration::ZERO),
            set_off_ms: AtomicI64::new(0),
        })
    }

    /// Sets the wall clock forward or back, as an operator or a time server does; monotonic time is unaffected.
    pub fn set_wall(&self, by: SignedDuration) {
        self.set_off_ms.fetch_add(by.as_millis() as i64, Relaxed);
    }

    /// Advances both wall and monotonic time.
    pub fn advance(&self, by: Duration) {
        self.advanced.send_modify(|advanced| *advanced += by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.elapsed()).unwrap_or(SignedDuration::MAX);
        let set_off = SignedDuration::from_millis(self.set_off_ms.load(Relaxed));
        self.base.checked_add(passed.saturating_add(set_off)).unwrap_or(Timestamp::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.real.elapsed() + *self.advanced.borrow()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut advanced = self.advanced.subscribe();
        let start = *advanced.borrow_and_update();
        let real = self.real.sleep(duration);
        let real_start = self.real.elapsed();
        let clock = SystemClock { start: self.real.start };
        Box::pin(async move {
            tokio::pin!(real);
            loop {
                tokio::select! {
                    () = &mut real => return,
                    changed = advanced.changed() => {
                        let Ok(()) = changed else { return real.await };
                        let skipped = *advanced.borrow_and_update() - start;
                        let passed = clock.elapsed().saturating_sub(real_start) + skipped;
                        if passed >= duration { return }
                        real.set(clock.sleep(duration - passed));
                    }
                }
            }
        })
    }

    fn random(&self) -> f64 {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn advancing_a_manual_clock_wakes_sleepers_and_moves_the_date() {
        let clock = ManualClock::starting_at("2026-01-31T23:00:00Z".parse().unwrap());
        assert_eq!(clock.today(), jiff::civil::date(2026, 1, 31));
        let sleeper = tokio::spawn(clock.sleep(Duration::from_secs(7 * 86_400)));
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(6 * 86_400));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished(), "six of seven days have passed");
        clock.advance(Duration::from_secs(86_400));
        sleeper.await.unwrap();
        assert_eq!(clock.today(), jiff::civil::date(2026, 2, 7));
    }
}
