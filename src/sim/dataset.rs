//! The simulated account's content: sessions and their items, computed from the seed and never stored.
//!
//! Tests compare archives with it: [`Dataset::items`] is the exact text of everything a query serves, in order.

use std::sync::Arc;

use jiff::ToSpan;
use jiff::civil::Date;

use super::calendar::{end_of_day_ms, push_instant, start_of_day_ms};
use super::encoding::{push_hex, push_json_string, push_number};
use super::feed::{Cursor, Feed, FeedQuery, ItemKind, SlotPlan, Step};
use super::hostile;
use super::noise::Noise;
use super::render::{ItemOf, push_item};
use super::settings::{FaultLevel, SimSettings};
use super::sizes::{self, SessionSize};
use super::words;

/// Which items and members a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemOptions {
    pub edited: bool,
    pub deleted: bool,
    pub bot_messages: bool,
    pub reactions: bool,
    pub custom_emoji_reactions: bool,
    /// Modifications are selected by their own time.
    pub all_modifications: bool,
}

impl Default for ItemOptions {
    fn default() -> Self {
        Self {
            edited: true,
            deleted: true,
            bot_messages: true,
            reactions: true,
            custom_emoji_reactions: true,
            all_modifications: false,
        }
    }
}

/// A session as the simulator knows it.
#[derive(Clone, Debug)]
pub struct SimSession {
    pub index: u32,
    pub id: String,
    pub name: String,
    pub group: bool,
    /// The number of messages not deleted, over all days.
    pub messages: u64,
}

/// The properties of a session that its items' texts depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionShape {
    pub group: bool,
    pub members: u64,
}

/// The content of one account. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dataset(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    account: Noise,
    hostile: bool,
    text_scale: u32,
    newest_first: bool,
    first_day: Date,
    last_day: Date,
    sizes: Vec<SessionSize>,
    faults: FaultLevel,
}

impl Dataset {
    /// Returns the account that a simulator with these settings serves on that day.
    pub fn new(settings: &SimSettings, today: Date) -> Self {
        let account = Noise::new(settings.seed);
        let months = i64::from(settings.months.clamp(1, 6));
        let first_day = today.saturating_sub(months.months());
        let last_day = today.saturating_sub(1.day()).max(first_day);
        let sizes = sizes::plan(
            account.with(1),
            settings.sessions,
            settings.messages,
            settings.heaviest_share,
            start_of_day_ms(first_day),
            end_of_day_ms(last_day),
        );
        Self(Arc::new(Inner {
            account,
            hostile: settings.hostile,
            text_scale: settings.text_scale,
            newest_first: settings.newest_first,
            first_day,
            last_day,
            sizes,
            faults: settings.faults,
        }))
    }

    pub fn session_count(&self) -> u32 {
        self.0.sizes.len() as u32
    }

    pub fn first_day(&self) -> Date {
        self.0.first_day
    }

    pub fn last_day(&self) -> Date {
        self.0.last_day
    }

    pub fn session(&self, index: u32) -> SimSession {
        let inner = &*self.0;
        SimSession {
            index,
            id: inner.id(index),
            name: inner.name(index),
            group: inner.shape(index).group,
            messages: inner.sizes[index as usize].live,
        }
    }

    pub fn index_of(&self, id: &str) -> Option<u32> {
        let inner = &*self.0;
        // Ordinary ids begin with their index, XORed with a value derived from the seed; special ones are the first few.
        let veiled = id.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let ordinary = veiled.and_then(|veiled| u32::try_from(veiled ^ inner.account.with(5).value()).ok());
        let special = (1..).take_while(|index| inner.special(hostile::IDS, *index).is_some());
        let mut candidates = ordinary.into_iter().chain(special);
        candidates.find(|index| *index < self.session_count() && inner.id(*index) == id)
    }

    /// Sessions with anything sent, edited or deleted in the range, in list order.
    pub fn sessions_listed(&self, from: Date, to: Date) -> impl Iterator<Item = u32> + use<> {
        let data = self.clone();
        (0..self.session_count()).filter(move |index| data.is_listed(*index, from, to))
    }

    pub(super) fn is_listed(&self, index: u32, from: Date, to: Date) -> bool {
        self.0.plan(index).is_active(start_of_day_ms(from), end_of_day_ms(to))
    }

    /// The exact text of everything a query of these days serves, in order.
    pub fn items(
        &self,
        session: u32,
        from: Date,
        to: Date,
        options: ItemOptions,
    ) -> impl Iterator<Item = (ItemKind, String)> + use<> {
        let inner = self.0.clone();
        let mut feed = inner.feed(session, from, to, options);
        let shape = inner.shape(session);
        let steps = std::iter::from_fn(move || {
            let step = feed.peek()?;
            feed.take(&step);
            Some(step)
        });
        steps.flat_map(move |step| inner.items_of(session, &shape, &step, options))
    }

    /// The least number of requests that it takes to list these days and to read every listed session with full pages.
    pub fn least_requests(&self, from: Date, to: Date, options: ItemOptions) -> u64 {
        let inner = &*self.0;
        let (mut listed, mut pages) = (0_u64, 0);
        for session in self.sessions_listed(from, to) {
            listed += 1;
            let mut feed = inner.feed(session, from, to, options);
            loop {
                feed.take_page(100, |_| {});
                pages += 1;
                if feed.peek().is_none() {
                    break;
                }
            }
        }
        listed.div_ceil(300).max(1) + pages
    }

    /// Appends one page's texts to the three arrays and returns where the next page begins.
    pub(super) fn page(
        &self,
        session: u32,
        (from, to): (Date, Date),
        options: ItemOptions,
        (page_size, cursor): (u32, Option<Cursor>),
        arrays: &mut [String; 3],
    ) -> Option<Cursor> {
        let inner = &*self.0;
        let mut feed = inner.feed(session, from, to, options);
        if let Some(cursor) = cursor {
            feed = feed.resume(cursor);
        }
        let shape = inner.shape(session);
        feed.take_page(page_size, |step| {
            for (kind, text) in inner.items_of(session, &shape, &step, options) {
                let array = &mut arrays[kind as usize];
                if !array.is_empty() {
                    array.push(',');
                }
                array.push_str(&text);
            }
        });
        feed.peek().map(|_| feed.cursor())
    }

    /// The JSON text of a session in a list response.
    pub fn info_json(&self, index: u32) -> String {
        let inner = &*self.0;
        let (noise, shape) = (inner.session_noise(index), inner.shape(index));
        let mut out = String::with_capacity(300);
        out.push_str("{\"id\":");
        push_json_string(&mut out, &inner.id(index));
        out.push_str(if shape.group { ",\"type\":\"Group\"" } else { ",\"type\":\"1:1\"" });
        out.push_str(",\"name\":");
        push_json_string(&mut out, &inner.name(index));
        if shape.group {
            out.push_str(",\"channel_id\":\"");
            push_hex(&mut out, noise.with(6).value(), 16);
            out.push('"');
        } else {
            out.push_str(",\"member_emails\":[\"");
            for member in 0..2 {
                if member > 0 {
                    out.push_str("\",\"");
                }
                words::push_email(&mut out, inner.account, words::person_of(inner.plan(index).noise, member));
            }
            out.push_str("\"]");
        }
        // Zoom's API description gives only groups a status.
        if shape.group {
            out.push_str(if noise.with(7).one_in(15) {
                ",\"status\":\"deleted\""
            } else {
                ",\"status\":\"active\""
            });
        }
        if !noise.with(8).one_in(4) {
            out.push_str(",\"has_external_member\":");
            out.push_str(if noise.with(9).one_in(5) { "true" } else { "false" });
        }
        let plan = inner.plan(index);
        if plan.size.slots > 0 {
            out.push_str(",\"last_message_sent_time\":\"");
            push_instant(&mut out, plan.sent_ms(plan.size.slots - 1));
            out.push('"');
        }
        if noise.with(10).one_in(6) {
            out.push_str(",\"x_sim_session\":{ \"n\":12345678901234567890123 , \"f\":1.10}");
        }
        out.push('}');
        out
    }

    /// In a nasty account: the session whose messages can never be read.
    pub fn always_failing_session(&self) -> Option<u32> {
        self.0.ordinary(0)
    }

    /// In a nasty account: the session that is listed but gone.
    pub fn gone(&self) -> Option<u32> {
        self.0.ordinary(1)
    }

    /// In a nasty account: the days that cannot be listed.
    pub fn unlistable_days(&self) -> Option<(Date, Date)> {
        let inner = &*self.0;
        if inner.faults != FaultLevel::Nasty {
            return None;
        }
        let second_month = inner.first_day.last_of_month().saturating_add(1.day()).saturating_add(1.month());
        if second_month.last_of_month() < inner.last_day {
            return Some((second_month, second_month.last_of_month()));
        }
        let from = inner.first_day.saturating_add(20.days());
        Some((from, from.saturating_add(9.days())))
    }
}

impl Inner {
    fn session_noise(&self, index: u32) -> Noise {
        self.account.with(3).with(u64::from(index))
    }

    fn plan(&self, index: u32) -> SlotPlan {
        SlotPlan {
            noise: self.session_noise(index),
            size: self.sizes[index as usize],
            end_ms: end_of_day_ms(self.last_day),
        }
    }

    fn shape(&self, index: u32) -> SessionShape {
        let noise = self.session_noise(index);
        let has_special_name = self.special(hostile::NAMES, index).is_some();
        let group = index == 0 || has_special_name || noise.with(11).below(10) < 4;
        SessionShape { group, members: if group { noise.with(12).between(3, 60) } else { 2 } }
    }

    /// The session's entry in a table of `hostile`, if it has one.
    fn special(&self, table: &'static [&'static str], index: u32) -> Option<&'static str> {
        let entry = table.get((index as usize).checked_sub(1)?)?;
        self.hostile.then_some(entry)
    }

    fn id(&self, index: u32) -> String {
        let noise = self.session_noise(index);
        let digits = |digits: u32| {
            let mut out = String::new();
            push_hex(&mut out, noise.with(4).value(), digits);
            out
        };
        match self.special(hostile::IDS, index) {
            Some(hostile::LONG_ID) => {
                digits(16).repeat(hostile::LONG_ID_LENGTH / 16 + 1)[..hostile::LONG_ID_LENGTH].to_owned()
            }
            Some(pattern) => pattern.replace("{}", &digits(12)),
            None => {
                let mut out = String::with_capacity(64);
                push_hex(&mut out, u64::from(index) ^ self.account.with(5).value(), 16);
                for part in 0..3 {
                    push_hex(&mut out, noise.with(13).with(part).value(), 16);
                }
                out
            }
        }
    }

    fn name(&self, index: u32) -> String {
        if !self.shape(index).group {
            return String::new();
        }
        let noise = self.session_noise(index);
        match self.special(hostile::NAMES, index) {
            Some(hostile::LONG_NAME) => "long näme ".repeat(hostile::LONG_NAME_LENGTH / 10),
            Some(name) => name.to_owned(),
            None => {
                let mut name = noise
                    .with(14)
                    .pick(&[
                        "Projekt Ä",
                        "Sales",
                        "Инженеры",
                        "設計チーム",
                        "War room",
                        "Lunch & more",
                        "Ops/On-call",
                    ])
                    .to_owned();
                name.push(' ');
                push_number(&mut name, u64::from(index));
                name
            }
        }
    }

    /// The nth session, from 0, that has no special id, holds at least five messages and spans the whole period.
    fn ordinary(&self, nth: usize) -> Option<u32> {
        if self.faults != FaultLevel::Nasty {
            return None;
        }
        let whole_time = self.sizes.first()?.span_ms;
        (1..self.sizes.len() as u32)
            .filter(|index| self.special(hostile::IDS, *index).is_none())
            .filter(|index| {
                let size = &self.sizes[*index as usize];
                size.live >= 5 && size.span_ms == whole_time
            })
            .nth(nth)
    }

    fn feed(&self, session: u32, from: Date, to: Date, options: ItemOptions) -> Feed {
        let query = FeedQuery {
            from_ms: start_of_day_ms(from),
            until_ms: end_of_day_ms(to),
            options,
            newest_first: self.newest_first,
        };
        Feed::new(self.plan(session), query)
    }

    fn items_of(
        &self,
        session: u32,
        shape: &SessionShape,
        step: &Step,
        options: ItemOptions,
    ) -> impl Iterator<Item = (ItemKind, String)> + use<> {
        let text = |kind, action_ms| {
            let mut out = String::with_capacity(1_000);
            let (account, plan, hostile) = (self.account, self.plan(session), self.hostile);
            let text_scale = self.text_scale;
            let item = ItemOf { account, shape, plan, slot: step.slot, kind, action_ms, hostile, text_scale };
            push_item(&mut out, &item, options);
            (kind, out)
        };
        let message = step.message.then(|| text(ItemKind::Message, None));
        let modification = step.modification.map(|found| text(found.kind, Some(found.action_ms)));
        message.into_iter().chain(modification)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use serde_json::value::RawValue;

    fn dataset(sessions: u32, messages: u64) -> Dataset {
        let settings = SimSettings { sessions, messages, months: 3, ..SimSettings::default() };
        Dataset::new(&settings, date(2026, 11, 24))
    }

    #[test]
    fn all_messages_are_there_and_every_item_is_json() {
        let data = dataset(80, 9_000);
        let mut messages = 0;
        for session in 0..data.session_count() {
            for (kind, text) in data.items(session, data.first_day(), data.last_day(), ItemOptions::default())
            {
                serde_json::from_str::<&RawValue>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                messages += u64::from(kind == ItemKind::Message);
            }
        }
        assert_eq!(messages, 9_000);
    }

    #[test]
    fn days_one_by_one_give_the_same_items_as_the_whole() {
        for all_modifications in [false, true] {
            let data = dataset(20, 3_000);
            let options = ItemOptions { all_modifications, ..ItemOptions::default() };
            for session in 0..data.session_count() {
                let mut whole: Vec<_> =
                    data.items(session, data.first_day(), data.last_day(), options).collect();
                let mut parts = Vec::new();
                for day in data.first_day().series(1.day()).take_while(|day| *day <= data.last_day()) {
                    parts.extend(data.items(session, day, day, options));
                }
                if all_modifications {
                    whole.sort_by(|a, b| a.1.cmp(&b.1));
                    parts.sort_by(|a, b| a.1.cmp(&b.1));
                }
                assert_eq!(whole, parts, "session {session}");
            }
        }
    }

    #[test]
    fn pages_joined_are_the_items() {
        let data = dataset(10, 4_000);
        for all_modifications in [false, true] {
            let options = ItemOptions { all_modifications, ..ItemOptions::default() };
            let (from, to) = (date(2026, 9, 10), date(2026, 10, 9));
            let mut arrays: [Vec<String>; 3] = Default::default();
            let mut cursor = None;
            loop {
                let mut page: [String; 3] = Default::default();
                cursor = data.page(0, (from, to), options, (100, cursor), &mut page);
                for (array, text) in arrays.iter_mut().zip(page) {
                    let items: Vec<Box<RawValue>> = serde_json::from_str(&format!("[{text}]")).unwrap();
                    array.extend(items.iter().map(|item| item.get().to_owned()));
                }
                if cursor.is_none() {
                    break;
                }
            }
            let mut expected: [Vec<String>; 3] = Default::default();
            for (kind, text) in data.items(0, from, to, options) {
                expected[kind as usize].push(text);
            }
            assert_eq!(arrays, expected);
        }
    }

    #[test]
    fn every_id_leads_back_to_its_session() {
        let data = dataset(300, 1_000);
        for index in 0..data.session_count() {
            assert_eq!(data.index_of(&data.session(index).id), Some(index));
            serde_json::from_str::<&RawValue>(&data.info_json(index)).unwrap();
        }
        assert_eq!(data.index_of("nobody"), None);
    }
}
