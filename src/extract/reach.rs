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
    learning: tokio::sync::Mutex<()>,
}

/// Held by the one chain that is finding out; others wait for it.
#[derive(Debug)]
pub(super) struct Learning<'a> {
    reach: &'a Reach,
    _one_at_a_time: tokio::sync::MutexGuard<'a, ()>,
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

    pub async fn learn(&self) -> Learning<'_> {
        Learning { reach: self, _one_at_a_time: self.learning.lock().await }
    }
}

impl Learning<'_> {
    pub fn is(self, oldest: Date) {
        *self.reach.told.lock().unwrap_or_else(PoisonError::into_inner) = oldest;
    }
}
