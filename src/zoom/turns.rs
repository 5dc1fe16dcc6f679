//! The line in which a job's callers wait for their turn at the account's budget.
//!
//! Owns the order. Chains of pages are begun as early as possible, because only then is it known which are long; of those that
//! would delay the end of the run, the longest goes first; and every fourth turn is for whoever has waited longest, so that
//! nobody starves.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::sync::lock;

/// How a call stands in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// Begins a chain of pages.
    First,
    /// Continues one.
    Further,
    /// The end of the run depends on it and on this many calls that can only follow it.
    Urgent(u32),
}

/// Whom a turn prefers.
#[derive(Debug, Clone, Copy)]
enum Preferred {
    First,
    Urgent,
    Oldest,
}

const ROUND: [Preferred; 8] = {
    use Preferred::{First, Oldest, Urgent};
    [First, Urgent, First, Oldest, First, Urgent, Urgent, Oldest]
};

#[derive(Debug, Default)]
pub struct TurnQueue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    taken: bool,
    turns: usize,
    /// In the order of arrival.
    waiting: Vec<(Rank, oneshot::Sender<Turn>)>,
}

/// Whoever holds this has the turn; dropping it passes the turn to the next caller.
#[derive(Debug)]
pub struct Turn(Arc<TurnQueue>);

impl TurnQueue {
    pub async fn turn(self: &Arc<Self>, rank: Rank) -> Turn {
        let turn = {
            let mut state = lock(&self.0);
            if !state.taken {
                state.taken = true;
                return Turn(self.clone());
            }
            let (caller, turn) = oneshot::channel();
            state.waiting.push((rank, caller));
            turn
        };
        turn.await.expect("a turn is handed on as long as anyone waits")
    }

    /// How many stand in line.
    pub fn waiting(&self) -> usize {
        lock(&self.0).waiting.len()
    }
}

impl State {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let preferred = ROUND[self.turns % ROUND.len()];
        self.turns += 1;
        let first = || self.waiting.iter().position(|(rank, _)| *rank == Rank::First);
        let urgent = || {
            let urgent = self.waiting.iter().enumerate().filter_map(|(at, (rank, _))| match rank {
                Rank::Urgent(further) => Some((*further, std::cmp::Reverse(at))),
                Rank::First | Rank::Further => None,
            });
            urgent.max().map(|(_, std::cmp::Reverse(at))| at)
        };
        let at = match preferred {
            Preferred::First => first().or_else(urgent),
            Preferred::Urgent => urgent().or_else(first),
            Preferred::Oldest => None,
        };
        (!self.waiting.is_empty()).then(|| self.waiting.remove(at.unwrap_or(0)).1)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0);
        match state.next() {
            Some(caller) => {
                drop(state);
                // If the caller is gone, the turn sent to it is dropped, and so passed on.
                drop(caller.send(Self(self.0.clone())));
            }
            None => state.taken = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// Puts callers of these ranks in line, and returns the order in which they get their turns.
    fn served(line: &Arc<TurnQueue>, ranks: &[Rank]) -> Vec<Rank> {
        let first = line.turn(Rank::First).now_or_never().expect("nobody is before it");
        let mut callers: Vec<_> = ranks.iter().map(|rank| (*rank, Box::pin(line.turn(*rank)))).collect();
        for (_, caller) in &mut callers {
            assert!(caller.now_or_never().is_none(), "the turn is taken");
        }
        drop(first);
        let mut order = Vec::new();
        while !callers.is_empty() {
            let turns: Vec<_> = callers.iter_mut().map(|(_, caller)| caller.now_or_never()).collect();
            let (at, turn) = turns.into_iter().enumerate().find_map(|(at, turn)| Some((at, turn?))).unwrap();
            order.push(callers.remove(at).0);
            drop(turn);
        }
        order
    }

    #[test]
    fn chains_begin_and_urgent_calls_go_first_and_nobody_waits_for_ever() {
        use Rank::{First, Further, Urgent};
        let in_a_round = |ranks: &[Rank]| {
            let ranks: Vec<_> = ranks.iter().flat_map(|rank| [*rank; 8]).collect();
            let order = served(&Arc::default(), &ranks);
            assert_eq!(order.len(), ranks.len());
            [First, Urgent(5), Further].map(|rank| order[..8].iter().filter(|turn| **turn == rank).count())
        };
        assert_eq!(in_a_round(&[Further, First, Urgent(5)]), [3, 3, 2]);
        assert_eq!(in_a_round(&[Further, Urgent(5)]), [0, 6, 2]);
        assert_eq!(in_a_round(&[Further, First]), [6, 0, 2]);
        assert_eq!(in_a_round(&[Further]), [0, 0, 8]);
    }

    #[test]
    fn of_urgent_calls_the_one_with_most_after_it_goes_first() {
        let ranks = [3, 9, 1, 9, 4].map(Rank::Urgent);
        assert_eq!(served(&Arc::default(), &ranks), [9, 9, 4, 3, 1].map(Rank::Urgent));
    }

    #[test]
    fn whoever_gives_up_holds_up_nobody() {
        let line = Arc::<TurnQueue>::default();
        let first = line.turn(Rank::First).now_or_never().unwrap();
        let mut before = Box::pin(line.turn(Rank::Urgent(1)));
        let mut served = Box::pin(line.turn(Rank::Urgent(1)));
        let mut after = Box::pin(line.turn(Rank::Urgent(1)));
        for caller in [&mut before, &mut served, &mut after] {
            assert!(caller.now_or_never().is_none());
        }
        drop(before);
        drop(first);
        // It was given the turn, but never polls for it.
        drop(served);
        assert!(after.now_or_never().is_some());
        assert!(line.turn(Rank::Further).now_or_never().is_some());
    }
}
