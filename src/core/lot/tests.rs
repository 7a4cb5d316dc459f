//! Which slot a permit holder finds.

use parking_lot::Mutex;

use super::*;

struct Slot(usize);

impl Token for Slot {
    fn index(&self) -> usize {
        self.0
    }
}

struct FreeSlots(Mutex<Vec<Slot>>);

impl FreeList<Slot> for FreeSlots {
    fn pop(&self) -> Option<Slot> {
        self.0.lock().pop()
    }

    fn push(&self, slot: Slot) {
        self.0.lock().push(slot);
    }
}

type SlotLot = Lot<Slot, FreeSlots, ()>;

/// An agent that is served often keeps its slot though others come once meanwhile; when it stops, it loses it.
#[test]
fn where_misses_are_dear_the_agents_served_seldom_lose_their_slots() {
    let lot = lot(4).with_dear_misses();
    let mut visitor = 0;
    let mut visit = |lot: &SlotLot| {
        visitor += 1;
        lease(lot, &format!("visitor-{visitor}"))
    };
    for _ in 0..4 {
        lease(&lot, "regular");
    }
    for _ in 0..100 {
        assert_ne!(visit(&lot), "regular");
        assert_ne!(visit(&lot), "regular");
        assert_eq!(lease(&lot, "regular"), "hit");
    }
    let visits = (1..).find(|_| visit(&lot) == "regular");
    assert!(
        visits.is_some_and(|visits| visits < 5 * 4 * 32),
        "{visits:?}"
    );
}

fn lot(slots: usize) -> SlotLot {
    let free = (0..slots).map(Slot).collect();
    Lot::new(slots, FreeSlots(Mutex::new(free)))
}

type Lent = (Slot, Arc<Entry<()>>);

/// Where the slot came from: "hit", "free", or the agent that lost it.
fn take(lot: &SlotLot, agent: &str, busy: bool) -> (Lent, String) {
    let loan = Loan::new(Instant::now(), CallSite::here());
    if let Some(lent) = lot.take_hinted(agent, loan) {
        return (lent, "hit".to_owned());
    }
    let known = lot.find(agent);
    let entry = known.unwrap_or_else(|| Entry::new(Arc::from(agent), None));
    let Taken { slot, entry, from } = lot.take(entry, loan, busy).unwrap();
    let from = match from {
        From::Agent => "hit".to_owned(),
        From::Free => "free".to_owned(),
        From::Other(loser) => loser.agent.to_string(),
    };
    ((slot, entry), from)
}

fn give_back(lot: &SlotLot, (slot, entry): Lent) -> bool {
    let returned = lot.give_back(slot, entry, true, Instant::now(), |_| false);
    returned.new.is_some()
}

/// A lease that ends at once.
fn lease(lot: &SlotLot, agent: &str) -> String {
    let (lent, from) = take(lot, agent, false);
    give_back(lot, lent);
    from
}

#[test]
fn agents_that_never_came_back_lose_theirs_in_the_order_in_which_they_came() {
    let lot = lot(3);
    for agent in ["a", "b", "c"] {
        assert_eq!(lease(&lot, agent), "free");
    }
    let losers: Vec<_> = ["d", "e", "f", "g"].map(|agent| lease(&lot, agent)).into();
    assert_eq!(losers, ["a", "b", "c", "d"].map(str::to_owned));
}

#[test]
fn an_agent_that_came_back_keeps_its_own_while_others_pass_by() {
    let lot = lot(3);
    for agent in ["regular", "b", "c"] {
        lease(&lot, agent);
    }
    for i in 0..20 {
        assert_eq!(lease(&lot, "regular"), "hit", "{i}");
        assert_ne!(lease(&lot, &format!("passer-by {i}")), "regular");
    }
    // It does not keep it for ever.
    let mut losers = (0..20).map(|i| lease(&lot, &format!("later {i}")));
    assert!(losers.any(|loser| loser == "regular"));
}

#[test]
fn while_others_are_lent_the_one_parked_last_is_taken_as_a_rule() {
    let lot = lot(4);
    for agent in ["a", "b", "c", "d"] {
        lease(&lot, agent);
    }
    let mut last = "d".to_owned();
    let (mut warm, mut others) = (0, 0);
    for i in 0..40 {
        let agent = format!("next {i}");
        let (lent, loser) = take(&lot, &agent, true);
        give_back(&lot, lent);
        if loser == last {
            warm += 1;
        } else {
            others += 1;
        }
        last = agent;
    }
    // The hand may also happen to take the slot that was parked last.
    assert!(warm >= 30 && others >= 5, "{warm} {others}");
}

#[test]
fn an_agent_finds_every_slot_that_is_parked_for_it() {
    let lot = lot(3);
    let lent: Vec<_> = (0..3).map(|_| take(&lot, "a", false).0).collect();
    let new = lent.into_iter().map(|lent| give_back(&lot, lent));
    // It becomes known once.
    assert_eq!(new.filter(|new| *new).count(), 1);
    let again: Vec<_> = (0..3).map(|_| take(&lot, "a", false)).collect();
    assert!(again.iter().all(|(_, from)| from == "hit"));
    for (lent, _) in again {
        give_back(&lot, lent);
    }
    let entry = lot.find("a").unwrap();
    assert_eq!(lot.evict(&entry), 3);
    assert!(!entry.has_slot());
    assert_eq!(lease(&lot, "a"), "free");
}

#[test]
fn what_an_evicted_agent_brings_back_becomes_free() {
    let lot = lot(2);
    lease(&lot, "a");
    let (lent, _) = take(&lot, "a", false);
    let (known, freed) = lot.evict_agent("a");
    assert!(known.is_some());
    assert_eq!(freed, 0);
    give_back(&lot, lent);
    assert_eq!(lot.levels().parked, 0);
    assert_eq!(lease(&lot, "a"), "free");
    // It is known again.
    assert_eq!(lease(&lot, "a"), "hit");
}

#[test]
fn only_what_has_been_parked_for_as_long_is_idle() {
    let lot = lot(3);
    let old = [take(&lot, "a", false).0, take(&lot, "b", false).0];
    let young = take(&lot, "a", false).0;
    let start = Instant::now();
    let later = start + Duration::from_secs(1);
    for (slot, entry) in old {
        lot.give_back(slot, entry, true, start, |_| false);
    }
    lot.give_back(young.0, young.1, true, later, |_| false);
    let (freed, idle) = lot.idle_since(start);
    let idle: Vec<_> = idle.iter().map(|entry| &*entry.agent).collect();
    // One slot of a is young, so a stays known, and its old slot becomes free.
    assert_eq!((freed, idle), (1, vec!["b"]));
    assert_eq!(lot.levels().parked, 2);
}

#[test]
fn more_slots_than_hints_can_name() {
    let lot = lot(70_000);
    let lent: Vec<_> = (0..70_000).map(|_| take(&lot, "a", false).0).collect();
    assert!(lent.iter().any(|(slot, _)| slot.index() > 0xFFFF));
    for lent in lent {
        give_back(&lot, lent);
    }
    assert_eq!(lot.levels().parked, 70_000);
    assert_eq!(take(&lot, "a", false).1, "hit");
}
