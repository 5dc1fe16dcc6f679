//! The steps that a page passes through, each in isolation: `cargo bench --bench micro`.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop loudly")]

use std::sync::LazyLock;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use jiff::civil::date;
use tempfile::TempDir;
use zoom_chat_reports::capture::{
    Change, ListId, ListedSession, Location, MessagesPage, PagePosition, PageToken, RangeId, Segment, Then,
    inflate,
};
use zoom_chat_reports::clock::SystemClock;
use zoom_chat_reports::days::DateRange;
use zoom_chat_reports::sim::{Dataset, ItemKind, ItemOptions, SimSettings};
use zoom_chat_reports::zoom::Budget;
use zoom_chat_reports::zoom::wire::{MESSAGES, Page};

fn main() {
    divan::main();
}

/// A page of 100 messages as the simulator sends it.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let settings = SimSettings { sessions: 1, messages: 1_000, ..SimSettings::default() };
    let data = Dataset::new(&settings, date(2026, 11, 24));
    let items = data.items(0, data.first_day(), data.last_day(), ItemOptions::default());
    let messages: Vec<String> =
        items.filter(|(kind, _)| *kind == ItemKind::Message).take(100).map(|(_, text)| text).collect();
    format!("{{\"next_page_token\":\"x\",\"messages\":[{}]}}", messages.join(","))
});

fn items() -> Vec<&'static str> {
    Page::read(PAGE.as_bytes(), MESSAGES).unwrap().arrays[0].iter().map(|item| item.get()).collect()
}

#[divan::bench]
fn page_parsing(bencher: Bencher<'_, '_>) {
    bencher
        .counter(BytesCount::new(PAGE.len()))
        .bench_local(|| Page::read(black_box(PAGE.as_bytes()), MESSAGES).unwrap().arrays[0].len());
}

#[divan::bench(args = [1, 3, 6])]
fn segment_compression(bencher: Bencher<'_, '_>, level: u32) {
    let items = items();
    bencher
        .counter(BytesCount::new(PAGE.len()))
        .bench_local(|| Segment::of_items(black_box(&items), level).unwrap().data.len());
}

#[divan::bench]
fn segment_inflation(bencher: Bencher<'_, '_>) {
    let segment = Segment::of_items(&items(), 1).unwrap();
    bencher
        .counter(BytesCount::new(PAGE.len()))
        .bench_local(|| inflate(black_box(&segment.data), segment.raw_len, segment.crc32).unwrap().len());
}

#[divan::bench]
fn budget_hand_out(bencher: Bencher<'_, '_>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let budget = Budget::new(Some(1e9), SystemClock::shared());
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| runtime.block_on(budget.take()));
}

/// Thirty-two chains that each commit a page at the same time, as in a run: one group commit, one sync.
#[divan::bench(sample_count = 20)]
fn capture_commit(bencher: Bencher<'_, '_>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let directory = TempDir::new().unwrap();
    let writer = runtime.block_on(Location::in_directory(directory.path()).open_writer()).unwrap();
    let windows = vec![DateRange::new(date(2026, 11, 1), date(2026, 11, 24))];
    runtime.block_on(writer.commit(Change::Plan { windows, meta: Vec::new() })).unwrap();
    // A range for each of 32 sessions.
    let sessions =
        (0..32).map(|id| ListedSession { zoom_id: id.to_string(), info: "{}".to_owned() }).collect();
    let page = PagePosition { chain: ListId(1), seq: 0, unknown: Vec::new() };
    runtime.block_on(writer.commit(Change::ListPage { page, next: None, sessions })).unwrap();
    let segment = Segment::of_items(&items(), 1).unwrap();
    let next = PageToken { token: "x".repeat(60), at: "2026-11-24T12:00:00Z".parse().unwrap() };
    let mut seq = 0;
    bencher.counter(ItemsCount::new(32_u32)).bench_local(|| {
        seq += 1;
        let commits = (1..=32).map(RangeId).map(|chain| {
            let page = PagePosition { chain, seq, unknown: Vec::new() };
            let segments = [Some(segment.clone()), None, None];
            writer.commit(Change::MessagesPage(MessagesPage::new(page, Then::Next(next.clone()), segments)))
        });
        runtime.block_on(futures_util::future::try_join_all(commits)).unwrap().len()
    });
}
