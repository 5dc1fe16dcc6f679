//! The order in which one session's items are served, and where pages are cut.
//!
//! A feed is a pure function of (session, range, options, cursor) and costs only what it yields: the slots of a range
//! are found by arithmetic on timestamps that never decrease. Renders nothing.

use super::dataset::ItemOptions;
use super::noise::Noise;
use super::sizes::{BLOCK, LIVE_IN_BLOCK, SessionSize};

/// Which of the answer's arrays an item belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ItemKind {
    Message,
    Edited,
    Deleted,
}

/// A modification follows its message after a delay that is fixed for a session and class, so that each class's actions are in
/// the same order as the messages.
const CLASSES: usize = 4;
const MINUTE: u64 = 60_000;
const DAY: u64 = 1_440 * MINUTE;
const DELAYS: [(u64, u64); CLASSES] =
    [(MINUTE, 60 * MINUTE), (60 * MINUTE, 2 * DAY), (2 * DAY, 15 * DAY), (15 * DAY, 35 * DAY)];

/// One in `EDITED_RARITY` messages that were not deleted was edited.
const EDITED_RARITY: u64 = 30;

/// All that a session's slots are computed from.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotPlan {
    pub noise: Noise,
    pub size: SessionSize,
    /// The first millisecond after the data: nothing happens then or later.
    pub end_ms: i64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Modification {
    pub kind: ItemKind,
    pub action_ms: i64,
    class: usize,
}

impl SlotPlan {
    pub(super) fn slot_noise(&self, slot: u64) -> Noise {
        self.noise.with(20).with(slot)
    }

    /// When the slot's message was sent; never decreases from slot to slot.
    pub(super) fn sent_ms(&self, slot: u64) -> i64 {
        let SessionSize { slots, start_ms, span_ms, .. } = self.size;
        let (step, rest) = (span_ms / slots, span_ms % slots);
        let jitter = self.slot_noise(slot).with(0).below(step);
        let offset = slot * step + slot * rest / slots + jitter;
        start_ms.saturating_add_unsigned(offset)
    }

    /// The first slot sent at or after the instant; the number of slots when there is none.
    pub(super) fn first_slot_at(&self, instant_ms: i64) -> u64 {
        let SessionSize { slots, start_ms, span_ms, .. } = self.size;
        if slots == 0 || instant_ms <= start_ms {
            return 0;
        }
        let offset = u128::from(instant_ms.abs_diff(start_ms));
        let estimate = offset * u128::from(slots) / u128::from(span_ms);
        let mut slot = u64::try_from(estimate).unwrap_or(u64::MAX).min(slots);
        // The estimate is off by one or two at most, because a slot's jitter stays within its step.
        while slot > 0 && self.sent_ms(slot - 1) >= instant_ms {
            slot -= 1;
        }
        while slot < slots && self.sent_ms(slot) < instant_ms {
            slot += 1;
        }
        slot
    }

    pub(super) fn is_deleted(&self, slot: u64) -> bool {
        let block = slot / BLOCK;
        let full_blocks = self.size.live / LIVE_IN_BLOCK;
        let noise = self.noise.with(21).with(block);
        if block < full_blocks {
            noise.below(BLOCK) == slot % BLOCK
        } else {
            self.size.deleted_in_rest && noise.below(self.size.slots - full_blocks * BLOCK) == slot % BLOCK
        }
    }

    pub(super) fn modification(&self, slot: u64) -> Option<Modification> {
        let noise = self.slot_noise(slot);
        let kind = if self.is_deleted(slot) {
            ItemKind::Deleted
        } else if noise.with(1).one_in(EDITED_RARITY) {
            ItemKind::Edited
        } else {
            return None;
        };
        let class = match noise.with(2).below(8) {
            0..=3 => 0,
            4 | 5 => 1,
            6 => 2,
            _ => 3,
        };
        let sent_ms = self.sent_ms(slot);
        let action_ms = sent_ms.saturating_add_unsigned(self.delay_ms(class));
        if action_ms < self.end_ms {
            return Some(Modification { kind, action_ms, class });
        }
        // With a longer delay it would lie in the future. The shortest always fits: nothing is sent in the last two hours.
        Some(Modification { kind, action_ms: sent_ms.saturating_add_unsigned(self.delay_ms(0)), class: 0 })
    }

    fn delay_ms(&self, class: usize) -> u64 {
        let (low, high) = DELAYS[class];
        self.noise.with(22).with(class as u64).between(low, high)
    }

    /// Whether anything was sent, edited or deleted in `from_ms..until_ms`.
    pub(super) fn is_active(&self, from_ms: i64, until_ms: i64) -> bool {
        if self.size.slots == 0 {
            return false;
        }
        if self.first_slot_at(from_ms) < self.first_slot_at(until_ms) {
            return true;
        }
        (0..CLASSES).any(|class| {
            let (mut slot, end) = self.slots_acted_on(class, from_ms, until_ms);
            // Modifications are frequent: this typically ends within a few hundred slots, or the session is small.
            loop {
                if slot >= end {
                    break false;
                }
                if self.modification(slot).is_some_and(|modification| modification.class == class) {
                    break true;
                }
                slot += 1;
            }
        })
    }

    /// The slots (first, end) whose action of this class, if they have one, falls within the time range.
    fn slots_acted_on(&self, class: usize, from_ms: i64, until_ms: i64) -> (u64, u64) {
        let delay = self.delay_ms(class);
        (
            self.first_slot_at(from_ms.saturating_sub_unsigned(delay)),
            self.first_slot_at(until_ms.saturating_sub_unsigned(delay)),
        )
    }
}

/// What a feed is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeedQuery {
    pub from_ms: i64,
    pub until_ms: i64,
    pub options: ItemOptions,
    /// Serves the last slot first; has no effect when modifications are selected by their own time.
    pub newest_first: bool,
}

/// The position in a feed: the next slot to look at for messages (counted from the other end if newest first) and for each
/// class of modifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub message_slot: u64,
    pub class_slots: [u64; CLASSES],
}

/// One thing to serve: a message, a modification, or a message with its own modification.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub slot: u64,
    pub message: bool,
    pub modification: Option<Modification>,
}

#[derive(Clone, Debug)]
pub(super) struct Feed {
    plan: SlotPlan,
    query: FeedQuery,
    cursor: Cursor,
    message_first: u64,
    message_end: u64,
    class_ends: [u64; CLASSES],
}

impl Feed {
    pub(super) fn new(plan: SlotPlan, query: FeedQuery) -> Self {
        let mut class_slots = [0; CLASSES];
        let mut class_ends = [0; CLASSES];
        if query.options.all_modifications && (query.options.edited || query.options.deleted) {
            for class in 0..CLASSES {
                (class_slots[class], class_ends[class]) =
                    plan.slots_acted_on(class, query.from_ms, query.until_ms);
            }
        }
        let (message_first, message_end) =
            (plan.first_slot_at(query.from_ms), plan.first_slot_at(query.until_ms));
        let cursor = Cursor { message_slot: message_first, class_slots };
        Self { plan, query, cursor, message_first, message_end, class_ends }
    }

    /// Continues where a page ended; a cursor before the range's start is moved to it.
    pub(super) fn resume(mut self, cursor: Cursor) -> Self {
        self.cursor.message_slot = self.cursor.message_slot.max(cursor.message_slot);
        for (mine, theirs) in self.cursor.class_slots.iter_mut().zip(cursor.class_slots) {
            *mine = (*mine).max(theirs);
        }
        self
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn wants(&self, kind: ItemKind) -> bool {
        match kind {
            ItemKind::Message => true,
            ItemKind::Edited => self.query.options.edited,
            ItemKind::Deleted => self.query.options.deleted,
        }
    }

    /// The next step without taking it.
    pub(super) fn peek(&mut self) -> Option<Step> {
        if self.query.options.all_modifications { self.peek_by_time() } else { self.peek_by_slot() }
    }

    pub(super) fn take(&mut self, step: &Step) {
        match step.modification {
            Some(found) if self.query.options.all_modifications => {
                self.cursor.class_slots[found.class] = step.slot + 1;
            }
            _ => self.cursor.message_slot += 1,
        }
    }

    fn peek_by_slot(&mut self) -> Option<Step> {
        while self.cursor.message_slot < self.message_end {
            let nth = self.cursor.message_slot;
            let slot =
                if self.query.newest_first { self.message_first + self.message_end - 1 - nth } else { nth };
            let modification = self.plan.modification(slot);
            let message = modification.is_none_or(|modification| modification.kind != ItemKind::Deleted);
            let modification = modification.filter(|modification| self.wants(modification.kind));
            if message || modification.is_some() {
                return Some(Step { slot, message, modification });
            }
            self.cursor.message_slot += 1;
        }
        None
    }

    fn peek_by_time(&mut self) -> Option<Step> {
        while self.cursor.message_slot < self.message_end && self.plan.is_deleted(self.cursor.message_slot) {
            self.cursor.message_slot += 1;
        }
        let mut earliest = None;
        if self.cursor.message_slot < self.message_end {
            let slot = self.cursor.message_slot;
            let step = Step { slot, message: true, modification: None };
            earliest = Some((self.plan.sent_ms(slot), step));
        }
        for class in 0..CLASSES {
            let Some(step) = self.head_of_class(class) else {
                continue;
            };
            let action_ms = step.modification.map_or(i64::MAX, |modification| modification.action_ms);
            if earliest.as_ref().is_none_or(|(time, _)| action_ms < *time) {
                earliest = Some((action_ms, step));
            }
        }
        earliest.map(|(_, step)| step)
    }

    fn head_of_class(&mut self, class: usize) -> Option<Step> {
        while self.cursor.class_slots[class] < self.class_ends[class] {
            let slot = self.cursor.class_slots[class];
            let modification = self.plan.modification(slot);
            if modification.is_some_and(|found| found.class == class && self.wants(found.kind)) {
                return Some(Step { slot, message: false, modification });
            }
            self.cursor.class_slots[class] += 1;
        }
        None
    }

    /// Takes the steps of one page: up to `page_size` messages and the modifications among them, at most twice as many.
    pub(super) fn take_page(&mut self, page_size: u32, mut serve: impl FnMut(Step)) {
        let (mut messages, mut modifications) = (0, 0);
        while let Some(step) = self.peek() {
            if step.message && messages >= page_size {
                break;
            }
            if step.modification.is_some() && modifications >= 2 * page_size {
                break;
            }
            messages += u32::from(step.message);
            modifications += u32::from(step.modification.is_some());
            self.take(&step);
            serve(step);
        }
    }
}
