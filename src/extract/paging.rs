//! Detects chains of pages, of a list or a range, that would never end: repeated page tokens, pages that bring nothing new,
//! endless restarts.

use std::collections::HashSet;

use crate::zoom::{Failure, FailureKind};

/// A chain may restart this many times without getting any further before it is given up.
const MAX_RESTARTS: u32 = 5;
/// A chain with more than this many consecutive pages that bring nothing new is considered endless.
const MAX_BARREN_PAGES: u32 = 200;

/// Watches one chain.
#[derive(Debug, Default)]
pub(super) struct Paging {
    tokens: HashSet<String>,
    /// The digests by which pages are recognised.
    pages: HashSet<u128>,
    barren: u32,
    /// Restarts since it last got further than ever before.
    restarts: u32,
    /// The most pages it had when it broke.
    furthest: i64,
}

impl Paging {
    /// Watches a chain that resumes with this token.
    pub fn resumed_with(token: &str) -> Self {
        Self { tokens: HashSet::from([token.to_owned()]), ..Self::default() }
    }

    /// Watches the chain, which broke after `pages` pages, from its first page on. False if it has restarted too often.
    pub fn begin_again(&mut self, pages: i64) -> bool {
        let (restarts, furthest) =
            if pages > self.furthest { (1, pages) } else { (self.restarts + 1, self.furthest) };
        *self = Self { restarts, furthest, ..Self::default() };
        restarts <= MAX_RESTARTS
    }

    /// Whether the chain, the last time it broke, had not got further than before.
    pub fn broke_early(&self) -> bool {
        self.restarts > 1
    }

    /// Returns what is wrong, if anything, after a page with this `next` token. `recognised_by` is the same for pages that
    /// begin alike, and `None` for a page with nothing that the previous one did not have.
    pub fn trouble_after(&mut self, next: Option<&str>, recognised_by: Option<u128>) -> Option<Failure> {
        let next = next?;
        let is_new = recognised_by.is_some_and(|page| self.pages.insert(page));
        self.barren = if is_new { 0 } else { self.barren + 1 };
        let (kind, message) = if !self.tokens.insert(next.to_owned()) {
            (FailureKind::PageTokenLoop, "Zoom gave the same page token twice in one chain of pages")
        } else if self.barren > MAX_BARREN_PAGES {
            (FailureKind::EndlessPages, "Zoom gave page after page with nothing new")
        } else {
            return None;
        };
        Some(Failure::in_chain(kind, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a chain of these pages ends, and after how many; each page has a token of its own.
    fn follow(pages: impl Iterator<Item = Option<u128>>) -> Option<(usize, FailureKind)> {
        let mut paging = Paging::default();
        pages.enumerate().take(10_000).find_map(|(nth, page)| {
            let trouble = paging.trouble_after(Some(&nth.to_string()), page)?;
            Some((nth + 1, trouble.kind))
        })
    }

    #[test]
    fn pages_that_go_round_in_a_circle_end() {
        let most = MAX_BARREN_PAGES as usize;
        for length in [1, 2, 3, 50, 500] {
            let ended = follow((0..length).map(Some).cycle());
            assert_eq!(ended, Some((length as usize + most + 1, FailureKind::EndlessPages)), "of {length}");
        }
        assert_eq!(follow(std::iter::repeat(None)), Some((most + 1, FailureKind::EndlessPages)));
    }

    #[test]
    fn pages_that_bring_something_now_and_then_go_on() {
        assert_eq!(follow((0..).map(Some)), None);
        let seldom = (0..).map(|nth: u128| nth.is_multiple_of(u128::from(MAX_BARREN_PAGES)).then_some(nth));
        assert_eq!(follow(seldom), None);
    }

    #[test]
    fn a_token_comes_once_unless_the_chain_begins_again() {
        let mut paging = Paging::resumed_with("a");
        assert!(paging.trouble_after(Some("b"), Some(1)).is_none());
        assert_eq!(paging.trouble_after(Some("a"), Some(2)).unwrap().kind, FailureKind::PageTokenLoop);
        assert!(paging.begin_again(2));
        for (token, page) in [("a", 1), ("b", 2)] {
            assert!(paging.trouble_after(Some(token), Some(page)).is_none());
        }
        assert!(paging.trouble_after(None, None).is_none(), "the last page");
    }

    #[test]
    fn a_chain_begins_again_as_long_as_it_comes_further() {
        let mut paging = Paging::default();
        assert!((1..50).all(|pages| paging.begin_again(pages)));
        assert!(!paging.broke_early());
        assert!((1..MAX_RESTARTS).all(|_| paging.begin_again(49) && paging.broke_early()));
        assert!(!paging.begin_again(49));
    }
}
