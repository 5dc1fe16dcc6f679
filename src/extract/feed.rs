//! Decides which range is fetched next: the parts of a split first, else the oldest window, and in it the sessions that are
//! longest in others.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::capture::{CaptureError, PendingRange, RangeId, Reader, WindowId};

/// The ranges to fetch, in the order of windows, read in batches.
#[derive(Default)]
pub(super) struct Feed {
    queue: VecDeque<PendingRange>,
    /// The last range queued from each window.
    queued_up_to: HashMap<WindowId, RangeId>,
    /// Ranges queued before their turn.
    early: HashSet<RangeId>,
}

impl Feed {
    const AT_A_TIME: i64 = 1_000;

    /// Puts the parts of a range at the head of the queue, as they would be the last to end. The first part keeps the range's
    /// id; the others are new, but may have been read from the capture already, before the split was reported.
    pub fn put_first(&mut self, parts: Vec<PendingRange>) {
        for (index, part) in parts.into_iter().enumerate().rev() {
            let found = self.queued_up_to.get(&part.chain.window).is_some_and(|last| part.chain.id <= *last);
            if index == 0 || !found {
                self.early.insert(part.chain.id);
                self.queue.push_front(part);
            }
        }
    }

    pub async fn next(&mut self, reader: &mut Reader) -> Result<Option<PendingRange>, CaptureError> {
        while self.queue.is_empty() {
            let mut found = Vec::new();
            for (window, _) in reader.windows().await? {
                let after = self.queued_up_to.get(&window).copied().unwrap_or_default();
                found = reader.pending_ranges(window, after, Self::AT_A_TIME).await?;
                if let Some(last) = found.last() {
                    self.queued_up_to.insert(window, last.chain.id);
                    break;
                }
            }
            if found.is_empty() {
                return Ok(None);
            }
            // Sessions with many pages elsewhere are likely to be long here too, and would be the last to end.
            found.sort_by_key(|range| std::cmp::Reverse(range.pages_elsewhere));
            self.queue.extend(found.into_iter().filter(|range| !self.early.contains(&range.chain.id)));
        }
        Ok(self.queue.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{list, planned};
    use crate::days::DateRange;
    use jiff::civil::date;

    /// It is the one about to leave Zoom's reach.
    #[tokio::test]
    async fn the_oldest_window_comes_first_whichever_was_listed_first() {
        let windows = [3, 4].map(|month| DateRange::new(date(2026, month, 1), date(2026, month, 28)));
        let (_directory, location, writer) = planned(&windows).await;
        for number in [2, 1] {
            writer.commit(list(number, &["a"])).await.unwrap();
        }
        let mut reader = location.open_reader().await.unwrap();
        let (mut feed, mut fed) = (Feed::default(), Vec::new());
        while let Some(range) = feed.next(&mut reader).await.unwrap() {
            fed.push(range.chain.days);
        }
        assert_eq!(fed, windows);
        reader.close().await;
        writer.close().await;
    }
}
