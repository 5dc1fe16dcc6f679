//! The least CPU time that a page costs: each step of the work measured in isolation, one after the other.

use sha2::{Digest, Sha256};
use zoom_chat_reports::capture::{Segment, inflate};
use zoom_chat_reports::clock::{Clock, SystemClock};
use zoom_chat_reports::sim::{Dataset, ItemKind, ItemOptions, SimSettings};
use zoom_chat_reports::zoom::wire::{MESSAGES, Page};

/// Messages on a page.
const PAGE: usize = 100;
/// The compression level used without a rate limit.
const LEVEL: u32 = 1;

/// Seconds per megabyte of messages of this length: parsed as pages, compressed, inflated, hashed once for each of the two
/// files that contain them, and hashed in compressed form as often for the archive, which contains both files.
pub fn seconds_for_a_megabyte(text_scale: u32) -> f64 {
    let messages = 40_000 / u64::from(text_scale);
    let settings = SimSettings { sessions: 1, messages, text_scale, ..SimSettings::default() };
    let clock = SystemClock::new();
    let data = Dataset::new(&settings, clock.today());
    let items = data.items(0, data.first_day(), data.last_day(), ItemOptions::default());
    let texts: Vec<String> =
        items.filter(|(kind, _)| *kind == ItemKind::Message).map(|(_, text)| text).collect();
    let bodies: Vec<String> =
        texts.chunks(PAGE).map(|page| format!("{{\"messages\":[{}]}}", page.join(","))).collect();
    let bytes: usize = bodies.iter().map(String::len).sum();
    let started = clock.elapsed();
    for body in &bodies {
        let page = Page::read(body.as_bytes(), MESSAGES).unwrap();
        let items: Vec<&str> = page.arrays[0].iter().map(|item| item.get()).collect();
        let segment = Segment::of_items(&items, LEVEL).unwrap();
        let raw = inflate(&segment.data, segment.raw_len, segment.crc32).unwrap();
        for bytes in [&raw[..], &segment.data[..]] {
            for _ in 0..2 {
                std::hint::black_box(Sha256::digest(std::hint::black_box(bytes)));
            }
        }
    }
    (clock.elapsed() - started).as_secs_f64() / (bytes as f64 / 1e6)
}
