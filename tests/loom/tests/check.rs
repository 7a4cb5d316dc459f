//! The models, with their bounds: chosen so that all of them take well under a minute. What is `ignore`d goes deeper.

use leasepool_loom::Overtaking::{self, Always, Never, Stale};
use leasepool_loom::hold;
use leasepool_loom::queue::{self, Then};
use leasepool_loom::slots::{self, Meanwhile};

const ORDERS: [Overtaking; 3] = [Never, Always, Stale];

#[test]
fn two_wait() {
    for order in ORDERS {
        queue::all_wait::<2>(order, None);
    }
}

#[test]
fn three_wait() {
    for order in ORDERS {
        queue::all_wait::<3>(order, Some(3));
    }
}

#[test]
fn several_permits() {
    for order in ORDERS {
        queue::several_permits(order, Some(3));
    }
}

#[test]
fn the_first_sleeps() {
    for order in ORDERS {
        queue::the_first_sleeps(order, Some(3));
    }
}

#[test]
fn one_gives_up() {
    for order in ORDERS {
        queue::one_gives_up(order, Some(3));
    }
}

#[test]
fn the_first_gives_up() {
    for order in ORDERS {
        queue::the_first_gives_up(order, Some(3));
    }
}

#[test]
fn closed_meanwhile() {
    for order in ORDERS {
        queue::closed_meanwhile(order, Then::Waits, Some(1));
        queue::closed_meanwhile(order, Then::Dropped, Some(1));
    }
}

#[test]
fn closed_after_the_grant() {
    for order in ORDERS {
        queue::closed_after_the_grant(order, Then::Waits, Some(3));
        queue::closed_after_the_grant(order, Then::Dropped, Some(3));
    }
}

#[test]
fn newcomer() {
    for order in ORDERS {
        queue::newcomer(order, Some(2));
    }
}

#[test]
fn newcomers() {
    for order in ORDERS {
        queue::newcomers(order, Some(1));
    }
}

#[test]
fn one_slot_for_two() {
    for order in ORDERS {
        slots::leases(1, ["a", "b"], order, Some(3));
    }
}

#[test]
fn one_slot_for_one_agent_twice() {
    for order in ORDERS {
        slots::leases(1, ["a", "a"], order, Some(3));
    }
}

#[test]
fn two_slots_for_three() {
    for order in [Never, Always] {
        slots::leases(2, ["a", "b", "c"], order, Some(2));
    }
}

#[test]
fn evicted_meanwhile() {
    slots::meanwhile(&["a", "b"], ["a", "b"], Meanwhile::Evict, Never, Some(2));
    slots::meanwhile(&["a", "a"], ["a", "b"], Meanwhile::Evict, Never, Some(2));
    slots::meanwhile(&["c", "d"], ["a", "a"], Meanwhile::Evict, Never, Some(2));
}

#[test]
fn idle_meanwhile() {
    slots::meanwhile(
        &["a", "b"],
        ["a", "b"],
        Meanwhile::EvictIdle,
        Never,
        Some(2),
    );
}

#[test]
fn tidied_meanwhile() {
    for order in [Never, Always] {
        slots::meanwhile(&["a", "b"], ["a", "c"], Meanwhile::Tidy, order, Some(2));
    }
}

#[test]
fn closed_pool() {
    for order in ORDERS {
        slots::meanwhile(&["a", "b"], ["a", "c"], Meanwhile::Close, order, Some(2));
    }
}

#[test]
fn evicted_while_closing() {
    for order in ORDERS {
        slots::evicted_while_closing(&["a"], order, Some(3));
        slots::evicted_while_closing(&["a", "a"], order, Some(2));
    }
}

#[test]
fn closed_pool_with_a_queue() {
    for order in ORDERS {
        slots::meanwhile(&["a"], ["a", "b"], Meanwhile::Close, order, Some(3));
    }
}

/// `cargo test --release -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn deeper() {
    for order in ORDERS {
        queue::all_wait::<3>(order, Some(4));
        queue::one_gives_up(order, Some(4));
        queue::the_first_gives_up(order, Some(4));
        queue::newcomer(order, Some(3));
        queue::newcomers(order, Some(2));
        queue::closed_meanwhile(order, Then::Waits, Some(2));
        queue::closed_meanwhile(order, Then::Dropped, Some(2));
        slots::leases(1, ["a", "b"], order, None);
        slots::leases(1, ["a", "a"], order, None);
        slots::leases(2, ["a", "b", "c"], order, Some(2));
        slots::meanwhile(&["a", "b"], ["a", "c"], Meanwhile::Tidy, order, Some(2));
        slots::meanwhile(&["a", "b"], ["a", "c"], Meanwhile::Close, order, Some(3));
    }
    for parked in [&["a", "b"], &["a", "a"], &["c", "d"]] {
        for leased in [["a", "a"], ["a", "b"]] {
            slots::meanwhile(parked, leased, Meanwhile::Evict, Never, Some(3));
            slots::meanwhile(parked, leased, Meanwhile::EvictIdle, Never, Some(3));
        }
    }
}

#[test]
fn search_beside_hits() {
    for order in ORDERS {
        slots::search_beside_hits(order, Some(2));
    }
}

#[test]
fn a_lease_is_interrupted_at_its_end() {
    hold::interrupted_at_its_end(None);
}
