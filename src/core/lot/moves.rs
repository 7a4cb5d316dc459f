//! Moves: what changes when a slot becomes another agent's, or nobody's. Under the lot's lock.
//! It holds no slots.

use std::sync::atomic::Ordering::Relaxed;

use super::known::{Entry, NONE};

pub(super) struct Moves {
    /// How many slots are in the free list: as a rule none, and then it need not be asked.
    pub(super) free: usize,
    /// Which slot the search for a victim looked at last.
    hand: usize,
    /// Searches while others were lent.
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
    /// Of so many slots, all of them free.
    pub(super) fn new(slots: usize) -> Self {
        Moves {
            free: slots,
            hand: 0,
            searches: 0,
            links: vec![ALONE; slots].into(),
        }
    }

    /// Where the hand is next. It goes downward, since the free list gives the last slot first: so the first round
    /// follows the order in which agents came.
    pub(super) fn turn(&mut self) -> usize {
        let before = self.hand.checked_sub(1);
        self.hand = before.unwrap_or_else(|| self.links.len().saturating_sub(1));
        self.hand
    }

    /// Whether a search while others are lent takes the slot parked last. Not always: agents that came back often, and
    /// then stopped, must not keep theirs for ever.
    pub(super) fn prefers_warm(&mut self) -> bool {
        self.searches = self.searches.wrapping_add(1);
        !self.searches.is_multiple_of(4)
    }

    /// The slot is the agent's from now on.
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

    /// The slot is the agent's no more.
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

    /// The next of its owner's slots.
    pub(super) fn after(&self, index: usize) -> usize {
        self.links.get(index).map_or(NONE, |links| links.after)
    }
}
