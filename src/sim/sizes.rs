//! How many messages each session holds and on which days it is active, computed once at the start.
//!
//! Heavy-tailed like real accounts: one giant, a few large sessions, many with a handful of messages, some with none.
//! Knows nothing of message content.

use super::calendar::DAY_MS;
use super::noise::Noise;

/// Every block of this many slots of a session holds exactly one deleted message, so that live messages can be
/// counted by arithmetic.
pub(super) const BLOCK: u64 = 50;
pub(super) const LIVE_IN_BLOCK: u64 = BLOCK - 1;

/// No message is sent in this last stretch of the data, so that a quick edit always fits.
const QUIET_END_MS: i64 = 2 * 3_600_000;

/// All that is stored of a session; everything else is computed from it. 40 bytes, so 100,000 sessions take 4 MB.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionSize {
    /// Messages that were not deleted.
    pub live: u64,
    /// All messages ever sent, the deleted ones included.
    pub slots: u64,
    /// Start of the session's active span, in milliseconds since 1970.
    pub start_ms: i64,
    /// Length of the active span; never 0.
    pub span_ms: u64,
    /// Whether the last, incomplete block has a deleted message too.
    pub deleted_in_rest: bool,
}

pub(super) fn plan(
    noise: Noise,
    sessions: u32,
    messages: u64,
    heaviest_share: f64,
    start_ms: i64,
    end_ms: i64,
) -> Vec<SessionSize> {
    let counts = message_counts(noise.with(1), sessions, messages, heaviest_share);
    counts
        .iter()
        .zip(0_u64..)
        .map(|(&live, index)| {
            let noise = noise.with(2).with(index);
            let rest = live % LIVE_IN_BLOCK;
            // A session without any message may still have one that was deleted.
            let deleted_in_rest = if live == 0 {
                noise.with(0).one_in(2) && messages > 0
            } else {
                noise.with(0).below(BLOCK) <= rest
            };
            let (start_ms, span_ms) = active_span(noise.with(1), index == 0, start_ms, end_ms - QUIET_END_MS);
            let slots = live / LIVE_IN_BLOCK * BLOCK + rest + u64::from(deleted_in_rest);
            SessionSize { live, slots, start_ms, span_ms, deleted_in_rest }
        })
        .collect()
}

/// Start and length: the whole period, a part of it, or a week.
fn active_span(noise: Noise, whole: bool, start_ms: i64, end_ms: i64) -> (i64, u64) {
    let total = u64::try_from(end_ms - start_ms).unwrap_or(1).max(1);
    let length = match noise.with(0).below(10) {
        _ if whole => total,
        0..=3 => total,
        4..=6 => total / 10 * noise.with(1).between(2, 8),
        _ => 7 * DAY_MS.unsigned_abs(),
    };
    let length = length.clamp(1, total);
    let offset = noise.with(2).below(total - length + 1);
    (start_ms + i64::try_from(offset).expect("an offset inside a span of dates fits"), length)
}

/// Message counts of all sessions, which add up to `messages` exactly.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares are approximate by nature; what rounding leaves over is handed out one by one"
)]
fn message_counts(noise: Noise, sessions: u32, messages: u64, heaviest_share: f64) -> Vec<u64> {
    let total = sessions as usize;
    if total <= 1 {
        return vec![messages; total];
    }
    let heaviest = ((messages as f64 * heaviest_share).round() as u64).min(messages);
    let rest = messages - heaviest;

    // Shuffles which session has which rank of the distribution, so that size does not depend on position.
    let mut order: Vec<u32> = (1..sessions).collect();
    for position in (1..order.len()).rev() {
        order.swap(position, noise.with(10).with(position as u64).index_below(position + 1));
    }

    let mut counts = vec![0_u64; total];
    counts[0] = heaviest;
    let mut small_total = 0;
    for (rank, &index) in order.iter().enumerate() {
        let noise = noise.with(11).with(rank as u64);
        let empty = rank > 4 && noise.with(0).one_in(25);
        // Skewed to the low end of 1..=20.
        let small = noise.with(1).between(1, 20).min(noise.with(2).between(1, 20));
        counts[index as usize] = if empty { 0 } else { small };
        small_total += counts[index as usize];
    }
    if small_total > rest {
        // Too few messages for everybody: the first in order get theirs.
        let mut left = rest;
        for &index in &order {
            let given = counts[index as usize].min(left);
            counts[index as usize] = given;
            left -= given;
        }
        return counts;
    }

    // The upper half shares the rest, decreasing with rank; flattened at the top so that session 0, the first
    // chat, usually stays the largest.
    let large = order.len().div_ceil(2);
    let weight = |rank: usize| 1.0 / (rank as f64 + 6.0).powf(1.5);
    let weights: f64 = (0..large).map(weight).sum();
    let spread = rest - small_total;
    let mut left = spread;
    for (rank, &index) in order.iter().take(large).enumerate() {
        if counts[index as usize] == 0 {
            continue;
        }
        let given = ((spread as f64 * weight(rank) / weights) as u64).min(left);
        counts[index as usize] += given;
        left -= given;
    }
    // Never empty: the first five ranks always get something.
    let takers: Vec<u32> =
        order.iter().copied().take(large).filter(|&index| counts[index as usize] > 0).collect();
    let (each, over) = (left / takers.len() as u64, left % takers.len() as u64);
    for (&index, position) in takers.iter().zip(0_u64..) {
        counts[index as usize] += each + u64::from(position < over);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_exactly() {
        for sessions in [1, 2, 3, 10, 60, 1_000] {
            for messages in [0, 1, 7, 100, 6_000, 1_000_003] {
                for share in [0.0, 0.15, 0.5, 1.0] {
                    let counts = message_counts(Noise::new(3), sessions, messages, share);
                    assert_eq!(counts.len(), sessions as usize);
                    assert_eq!(counts.iter().sum::<u64>(), messages, "{sessions} {messages} {share}");
                }
            }
        }
        assert!(message_counts(Noise::new(3), 0, 10, 0.1).is_empty());
    }

    #[test]
    fn sizes_are_heavy_tailed() {
        let counts = message_counts(Noise::new(1), 1_000, 1_000_000, 0.15);
        assert_eq!(counts[0], 150_000);
        assert_eq!(counts.iter().max(), Some(&150_000));
        let small = counts.iter().filter(|count| (1..=20).contains(*count)).count();
        assert!((400..700).contains(&small), "{small}");
        let empty = counts.iter().filter(|count| **count == 0).count();
        assert!((10..100).contains(&empty), "{empty}");
    }
}
