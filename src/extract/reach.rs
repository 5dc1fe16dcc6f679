//! How far back Zoom answers: by the calendar, and as learned from its answers.

use std::sync::{Mutex, PoisonError};

use jiff::civil::Date;

use super::windows;
use crate::clock::SharedClock;

#[derive(Debug)]
pub(super) struct Reach {
    clock: SharedClock,
    /// The oldest day that Zoom was found to answer for, if that is later than six months ago.
    told: Mutex<Date>,
    /// Held by the one chain that is finding out; others wait for it.
    learning: tokio::sync::Mutex<()>,
}

impl Reach {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, told: Mutex::new(Date::MIN), learning: tokio::sync::Mutex::default() }
    }

    /// The oldest day that Zoom still answers for.
    pub fn oldest(&self) -> Date {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        self.by_the_calendar().max(told)
    }

    pub fn by_the_calendar(&self) -> Date {
        windows::oldest_reachable(self.clock.today())
    }

    pub async fn learn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.learning.lock().await
    }

    /// Remembers that Zoom answers from this day on.
    pub fn begins(&self, oldest: Date) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = oldest;
    }
}
