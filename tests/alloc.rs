//! A warm lease allocates nothing. In a binary of its own, for its allocator counts all that is allocated.

use leasepool::{Database, Pool};

fn pool() -> (tempfile::TempDir, Pool) {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::builder(Database::file(folder.path().join("agents.db")))
        .max_connections(4)
        .idle_timeout(None)
        .overdue_after(None)
        .build()
        .unwrap();
    (folder, pool)
}

/// Of this thread; the pool's other threads allocate now and then.
fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

#[test]
fn a_warm_lease_allocates_nothing() {
    let (_folder, pool) = pool();
    let agents = ["a", "b", "c", "d"];
    for agent in agents {
        drop(pool.lease(agent).unwrap());
    }
    // The counter counts.
    assert!(allocations(|| drop(std::hint::black_box(Box::new(1)))) >= 1);
    let made = allocations(|| {
        for i in 0..10_000 {
            drop(pool.lease(agents[i % 4]).unwrap());
        }
    });
    assert_eq!(made, 0, "allocations in 10,000 leases");
    assert_eq!(pool.stats().hits, 10_000);
    // An id that must be made text, as long as a UUID's, and no agent at all. The first round makes them known.
    let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let lease = |i: u64| match i % 3 {
        0 => pool.lease(u64::MAX),
        1 => pool.lease(format_args!("{uuid}")),
        _ => pool.get(),
    };
    (0..3).for_each(|i| drop(lease(i).unwrap()));
    let made = allocations(|| (0..10_000).for_each(|i| drop(lease(i).unwrap())));
    assert!(made < 100, "{made} allocations in 10,000 leases");
    assert_eq!(pool.stats().hits, 20_000);
}

/// Nor does one of an agent that is known and lost its connection to another: it reclaims one, which is reset. With these
/// features, a reset lists what is registered.
#[cfg(not(any(feature = "functions", feature = "collation", feature = "vtab")))]
#[test]
fn a_miss_of_a_known_agent_allocates_nothing() {
    let (_folder, pool) = pool();
    let agents: Vec<String> = (0..64).map(|i| format!("agent-{i}")).collect();
    let round = || {
        for agent in &agents {
            drop(pool.lease(agent).unwrap());
        }
    };
    round();
    let before = pool.stats();
    let made = allocations(|| (0..100).for_each(|_| round()));
    let stats = pool.stats();
    assert_eq!(stats.hits - before.hits, 0);
    assert_eq!(stats.resets - before.resets, 6_400);
    assert_eq!(made, 0, "allocations in 6,400 misses");
}
