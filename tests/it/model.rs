//! The model test: random actions against a pool and against a plain model of it, compared after each
//! with the stats and with the kernel (P1, P2, P4, P18).

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use leasepool::{Lease, Pool, Synchronous};
use proptest::prelude::*;

use crate::common::*;

const CONNECTIONS: usize = 3;

#[derive(Debug, Clone)]
enum Action {
    Lease(u8),
    Drop(usize),
    Discard(usize),
    /// Ends the lease by a panic, in a transaction.
    Panic(usize),
    /// Leaves a temporary table, which costs the connection at the next change of agents.
    Soil(usize),
    Write(usize),
    Release(u8),
    Vacuum,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0_u8..6).prop_map(Action::Lease),
        4 => (0_usize..4).prop_map(Action::Drop),
        1 => (0_usize..4).prop_map(Action::Discard),
        1 => (0_usize..4).prop_map(Action::Panic),
        1 => (0_usize..4).prop_map(Action::Soil),
        3 => (0_usize..4).prop_map(Action::Write),
        1 => (0_u8..6).prop_map(Action::Release),
        1 => Just(Action::Vacuum),
    ]
}

/// What the pool should be like.
#[derive(Default)]
struct Model {
    /// By agent, in the order they were parked.
    parked: Vec<u8>,
    free: usize,
    hits: u64,
    misses: u64,
    reclaims: u64,
    released: u64,
    replaced: u64,
    rows: i64,
}

struct Held {
    lease: Lease,
    agent: u8,
    place: Place,
}

/// Where the connection goes when its lease ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To its agent's place in the cache, instead of whatever has that place then.
    New,
    /// Back to its agent's place in the cache.
    Kept,
    /// To r2d2: the agent was evicted, or its place given to another of its connections.
    Lost,
}

impl Model {
    fn lease(&mut self, agent: u8) -> Place {
        if let Some(at) = self.parked.iter().position(|parked| *parked == agent) {
            self.parked.remove(at);
            self.hits += 1;
            return Place::Kept;
        }
        self.misses += 1;
        self.take_any();
        Place::New
    }

    fn take_any(&mut self) {
        if self.free > 0 {
            self.free -= 1;
        } else if !self.parked.is_empty() {
            self.parked.remove(0);
            self.reclaims += 1;
        }
    }
}

/// Free slots of r2d2 may be vacant or open; which is an r2d2 matter. The model counts slots.
fn run(actions: Vec<Action>) {
    let fixture = Fixture::new();
    let pool: Pool = fixture
        .builder(CONNECTIONS)
        .idle_timeout(None)
        .synchronous(Synchronous::Off)
        .build()
        .unwrap();
    let mut model = Model {
        free: CONNECTIONS,
        ..Model::default()
    };
    let mut held: Vec<Held> = Vec::new();
    for action in actions {
        match action {
            Action::Lease(agent) => match pool.try_lease(agent.to_string()) {
                Ok(lease) => {
                    let place = model.lease(agent);
                    // A lease is usable, whatever happened before.
                    assert_eq!(count(&lease), model.rows);
                    assert!(lease.is_autocommit());
                    held.push(Held {
                        lease,
                        agent,
                        place,
                    });
                }
                Err(leasepool::Error::Exhausted { holders, .. }) => {
                    assert_eq!(holders.len(), CONNECTIONS);
                    assert_eq!(held.len(), CONNECTIONS);
                }
                Err(other) => panic!("{other}"),
            },
            Action::Drop(i) if i < held.len() => {
                let Held {
                    lease,
                    agent,
                    place,
                } = held.remove(i);
                drop(lease);
                give_back(&mut model, &mut held, agent, place);
            }
            Action::Panic(i) if i < held.len() => {
                let Held {
                    lease,
                    agent,
                    place,
                } = held.remove(i);
                let panicked = catch_unwind(AssertUnwindSafe(move || {
                    lease.execute_batch("BEGIN").unwrap();
                    insert(&lease);
                    std::panic::resume_unwind(Box::new("user code"));
                }));
                assert!(panicked.is_err());
                give_back(&mut model, &mut held, agent, place);
            }
            Action::Discard(i) if i < held.len() => {
                let gone = held.remove(i);
                Lease::discard(gone.lease);
                // The entry ends with the connection; a resident one leaves the cache.
                model.free += 1;
            }
            Action::Soil(i) if i < held.len() => {
                held[i]
                    .lease
                    .execute_batch("CREATE TEMP TABLE IF NOT EXISTS soil (x)")
                    .unwrap();
            }
            Action::Write(i) if i < held.len() => {
                insert(&held[i].lease);
                model.rows += 1;
            }
            Action::Release(agent) => {
                let parked = model.parked.iter().position(|parked| *parked == agent);
                assert_eq!(pool.release(agent.to_string()), parked.is_some());
                if let Some(at) = parked {
                    model.parked.remove(at);
                    model.free += 1;
                    model.released += 1;
                }
                for held in held.iter_mut().filter(|held| held.agent == agent) {
                    held.place = Place::Lost;
                }
            }
            Action::Vacuum if held.is_empty() => {
                pool.vacuum().unwrap();
                model.lease(u8::MAX);
                model.free += 1;
                model.released += 1;
            }
            _ => continue,
        }
        compare(&fixture, &pool, &model, &held);
    }
    drop(held);
    assert_whole(&pool);
    pool.close_timeout(Duration::ZERO).unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}

fn give_back(model: &mut Model, held: &mut [Held], agent: u8, place: Place) {
    match place {
        Place::Lost => {
            model.free += 1;
            return;
        }
        Place::Kept => {}
        Place::New => {
            if let Some(at) = model.parked.iter().position(|parked| *parked == agent) {
                model.parked.remove(at);
                model.free += 1;
                model.replaced += 1;
            }
            for other in held.iter_mut() {
                if other.agent == agent && other.place == Place::Kept {
                    other.place = Place::Lost;
                }
            }
        }
    }
    model.parked.push(agent);
}

fn compare(fixture: &Fixture, pool: &Pool, model: &Model, held: &[Held]) {
    let stats = pool.stats();
    assert_eq!(stats.lent, held.len(), "{stats:?}");
    assert_eq!(stats.parked, model.parked.len(), "{stats:?}");
    assert_eq!(
        model.free + stats.parked + stats.lent,
        CONNECTIONS,
        "{stats:?}"
    );
    assert_eq!(
        (stats.hits, stats.misses),
        (model.hits, model.misses),
        "{stats:?}"
    );
    assert_eq!(
        (stats.reclaims, stats.released, stats.replaced),
        (model.reclaims, model.released, model.replaced),
        "{stats:?}"
    );
    assert_eq!(stats.opens - stats.closes, stats.open as u64, "{stats:?}");
    assert!(stats.open <= CONNECTIONS, "{stats:?}");
    // Every open connection has read the file, and so has a descriptor on its WAL.
    let found = fixture.descriptors();
    assert_eq!(found.wal, stats.open, "{found:?} {stats:?}");
    assert!(found.all() <= pool.fd_ceiling(), "{found:?}");
    let mut holders: HashMap<String, usize> = HashMap::new();
    for holder in pool.holders() {
        *holders.entry(holder.agent).or_default() += 1;
    }
    let mut expected: HashMap<String, usize> = HashMap::new();
    for held in held {
        *expected.entry(held.agent.to_string()).or_default() += 1;
    }
    assert_eq!(holders, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_does_what_the_model_does(actions in prop::collection::vec(action(), 1..60)) {
        run(actions);
    }
}
