//! Moves: what changes when a slot goes to another agent, or to none. All of it happens under the lot's lock.
//! It holds no slots.

use std::sync::atomic::Ordering::Relaxed;

use super::known::{Entry, NONE};

pub(super) struct Moves {
    /// How many slots are in the free list. Usually zero, and then the list is not asked.
    pub(super) free: usize,
    /// The slot that the search for a victim looked at last.
    hand: usize,
    /// How many searches ran: while other slots were lent, or, where a miss costs much, all.
    searches: u32,
    /// By slot: its place in the list of its owner's slots, parked and lent.
    links: Box<[Links]>,
}

#[derive(Clone, Copy)]
struct Links {
    before: usize,
    after: usize,
}

const ALONE: Links = Links {
    before: NONE,
    after: NONE,
};

impl Moves {
    /// For `slots` slots, all of them free.
    pub(super) fn new(slots: usize) -> Self {
        Moves {
            free: slots,
            hand: 0,
            searches: 0,
            links: vec![ALONE; slots].into(),
        }
    }

    /// Moves the hand to the next slot. It goes downward, since the free list gives out the last slot first:
    /// so the first round follows the order in which agents came.
    pub(super) fn turn(&mut self) -> usize {
        let before = self.hand.checked_sub(1);
        self.hand = before.unwrap_or_else(|| self.links.len().saturating_sub(1));
        self.hand
    }

    /// Whether a search, while other slots are lent, takes a slot that was parked last. Not every time: an
    /// agent that came back often and then stopped must not keep its slot for ever.
    pub(super) fn prefers_warm(&mut self) -> bool {
        !self.search().is_multiple_of(4)
    }

    /// Counts a search.
    pub(super) fn search(&mut self) -> u32 {
        self.searches = self.searches.wrapping_add(1);
        self.searches
    }

    /// The slot belongs to the agent from now on.
    pub(super) fn link<L>(&mut self, index: usize, owner: &Entry<L>) {
        let first = owner.first.swap(index, Relaxed);
        if let Some(links) = self.links.get_mut(first) {
            links.before = index;
        }
        if let Some(links) = self.links.get_mut(index) {
            *links = Links {
                before: NONE,
                after: first,
            };
        }
    }

    /// The slot no longer belongs to the agent.
    pub(super) fn unlink<L>(&mut self, index: usize, owner: &Entry<L>) {
        let Some(links) = self.links.get_mut(index) else {
            return;
        };
        let Links { before, after } = std::mem::replace(links, ALONE);
        match self.links.get_mut(before) {
            Some(links) => links.after = after,
            None => owner.first.store(after, Relaxed),
        }
        if let Some(links) = self.links.get_mut(after) {
            links.before = before;
        }
    }

    /// The next slot of the same owner.
    pub(super) fn after(&self, index: usize) -> usize {
        self.links.get(index).map_or(NONE, |links| links.after)
    }
}
