//! Tells a call that is refused for its own reasons, though with 429, from calls that come too fast.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How the calls of an account have fared so far.
#[derive(Debug, Default)]
pub struct Fortunes {
    /// Answers other than 429.
    answered: AtomicU64,
    /// Calls that were refused with 429 when they were sent for the first time.
    refused: AtomicU64,
}

impl Fortunes {
    pub fn note_answer(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    fn so_far(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.refused.load(Relaxed))
    }
}

/// The 429s that a call has got, one after the other.
#[derive(Debug, Default)]
pub struct InARow {
    pub count: u32,
    /// How calls had fared when it got the first of them.
    before: (u64, u64),
}

impl InARow {
    pub fn note(&mut self, fortunes: &Fortunes) {
        self.count += 1;
        if self.count == 1 {
            fortunes.refused.fetch_add(1, Relaxed);
            self.before = fortunes.so_far();
        }
    }

    /// Whether the call is refused for its own reasons: since its first refusal others have been answered, and hardly any other
    /// has been refused.
    pub fn are_its_own(&self, fortunes: &Fortunes) -> bool {
        let (answered, refused) = fortunes.so_far();
        let (answered, refused) = (answered - self.before.0, refused - self.before.1);
        answered > 0 && refused * 10 <= answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_refused_for_its_own_reasons_while_others_are_answered() {
        let fortunes = Fortunes::default();
        let (mut own, mut other) = (InARow::default(), InARow::default());
        own.note(&fortunes);
        own.note(&fortunes);
        assert!(!own.are_its_own(&fortunes), "nobody is answered");
        fortunes.note_answer();
        assert!(own.are_its_own(&fortunes));
        other.note(&fortunes);
        assert!(!own.are_its_own(&fortunes), "half of the others are refused");
        (0..9).for_each(|_| fortunes.note_answer());
        assert!(own.are_its_own(&fortunes) && other.are_its_own(&fortunes));
    }
}
