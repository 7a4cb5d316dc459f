//! The model test: random actions against a pool and against a plain model of it, compared after each
//! with the stats and with the kernel (P1, P2, P4, P18).

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use leasepool::{Lease, Pool, Synchronous};
use proptest::prelude::*;

use crate::common::*;

in_both_modes! {
    a_pool_does_what_the_model_does,
}

#[derive(Debug, Clone)]
enum Action {
    Lease(u8),
    /// A lease that belongs to no agent.
    Get,
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
        2 => Just(Action::Get),
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
struct Model {
    mode: Mode,
    connections: usize,
    /// By agent, how many connections were parked and not seen again. Which of them other agents have reclaimed is the
    /// pool's choice, and shows when the agent comes back.
    unreclaimed: HashMap<u8, usize>,
    /// How many of them others have reclaimed.
    reclaimed: usize,
    free: usize,
    hits: u64,
    misses: u64,
    reclaims: u64,
    released: u64,
    /// By agent; all of them count as one if they share a file.
    rows: HashMap<u8, i64>,
}

struct Held {
    lease: Lease,
    agent: u8,
    /// The agent was evicted meanwhile: the connection will be free.
    evicted: bool,
}

impl Model {
    fn new(mode: Mode, connections: usize) -> Self {
        Model {
            mode,
            connections,
            unreclaimed: HashMap::new(),
            reclaimed: 0,
            free: connections,
            hits: 0,
            misses: 0,
            reclaims: 0,
            released: 0,
            rows: HashMap::new(),
        }
    }

    fn rows(&mut self, agent: u8) -> &mut i64 {
        let file = self.mode.either(0, agent);
        self.rows.entry(file).or_default()
    }

    /// What is parked, of all agents.
    fn parked(&self) -> usize {
        self.unreclaimed.values().sum::<usize>() - self.reclaimed
    }

    /// A lease, which was served with what was parked for the agent or was not.
    fn lease(&mut self, agent: u8, hit: bool) {
        let own = self.unreclaimed.remove(&agent).unwrap_or(0);
        if hit {
            assert!(own > 0, "a hit, and nothing was parked for the agent");
            self.unreclaimed.insert(agent, own - 1);
            self.hits += 1;
            return;
        }
        self.found_reclaimed(own);
        self.misses += 1;
        if self.free > 0 {
            self.free -= 1;
        } else if self.parked() > 0 {
            self.reclaimed += 1;
            self.reclaims += 1;
        }
    }

    /// Evicts the agent, for which so many connections turned out to be parked.
    fn evict(&mut self, agent: u8, freed: u64) {
        let own = self.unreclaimed.remove(&agent).unwrap_or(0);
        let reclaimed = (own as u64)
            .checked_sub(freed)
            .expect("freed more than was parked");
        self.found_reclaimed(reclaimed as usize);
        self.free += freed as usize;
        self.released += freed;
    }

    fn found_reclaimed(&mut self, n: usize) {
        let rest = self.reclaimed.checked_sub(n);
        self.reclaimed = rest.expect("what was parked is gone, and nobody reclaimed it");
    }
}

/// Free slots of r2d2 may be vacant or open; which is an r2d2 matter. The model counts slots.
fn run(mode: Mode, actions: Vec<Action>) {
    let connections = mode.either(3, 4);
    let fixture = mode.fixture();
    let pool: Pool = fixture
        .builder(connections)
        .idle_timeout(None)
        // Maintenance comes by every 10 ms.
        .overdue_after(mode.either(LONG, Duration::from_millis(40)))
        .synchronous(Synchronous::Off)
        .build()
        .unwrap();
    let mut model = Model::new(mode, connections);
    let mut held: Vec<Held> = Vec::new();
    for action in actions {
        match action {
            Action::Get if mode == Mode::PerAgent => {
                let refused = pool.try_get().unwrap_err();
                assert!(matches!(refused, leasepool::Error::Unsupported { .. }));
            }
            Action::Lease(_) | Action::Get => match lease(&pool, &action) {
                (agent, Ok(lease)) => {
                    model.lease(agent, pool.stats().hits > model.hits);
                    // A lease is usable, whatever happened before.
                    assert_eq!(count(&lease), *model.rows(agent));
                    assert!(lease.is_autocommit());
                    assert!(mode == Mode::Shared || held.iter().all(|held| held.agent != agent));
                    held.push(Held {
                        lease,
                        agent,
                        evicted: false,
                    });
                }
                (agent, Err(leasepool::Error::Exhausted { holders, .. })) => {
                    assert_eq!(holders.len(), held.len());
                    // An agent has one of its own at a time.
                    let lent = held.iter().any(|held| held.agent == agent);
                    assert!(held.len() == connections || mode == Mode::PerAgent && lent);
                }
                (_, Err(other)) => panic!("{other}"),
            },
            Action::Drop(i) if i < held.len() => {
                let Held {
                    lease,
                    agent,
                    evicted,
                } = held.remove(i);
                drop(lease);
                give_back(&mut model, agent, evicted);
            }
            Action::Panic(i) if i < held.len() => {
                let Held {
                    lease,
                    agent,
                    evicted,
                } = held.remove(i);
                let panicked = catch_unwind(AssertUnwindSafe(move || {
                    lease.execute_batch("BEGIN").unwrap();
                    insert(&lease);
                    std::panic::resume_unwind(Box::new("user code"));
                }));
                assert!(panicked.is_err());
                give_back(&mut model, agent, evicted);
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
                *model.rows(held[i].agent) += 1;
            }
            Action::Release(agent) => {
                let was_parked = pool.evict(agent.to_string());
                let freed = pool.stats().evicted_by_call - model.released;
                assert_eq!(was_parked, freed > 0);
                model.evict(agent, freed);
                for held in held.iter_mut().filter(|held| held.agent == agent) {
                    held.evicted = true;
                }
            }
            // Of agents' own it would be that of one of them.
            Action::Vacuum if held.is_empty() && mode == Mode::Shared => {
                pool.vacuum().unwrap();
                model.lease(u8::MAX, false);
                model.free += 1;
                model.released += 1;
            }
            _ => continue,
        }
        compare(&fixture, &pool, &model, &held);
    }
    drop(held);
    assert_whole(&pool);
    pool.close_within(LONG).unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}

/// Those that belong to no agent count as one.
const NO_AGENT: u8 = 100;

fn lease(pool: &Pool, action: &Action) -> (u8, Result<Lease, leasepool::Error>) {
    match action {
        Action::Lease(agent) => (*agent, pool.try_lease(agent)),
        _ => (NO_AGENT, pool.try_get()),
    }
}

fn give_back(model: &mut Model, agent: u8, evicted: bool) {
    if evicted {
        model.free += 1;
    } else {
        *model.unreclaimed.entry(agent).or_default() += 1;
    }
}

fn compare(fixture: &Fixture, pool: &Pool, model: &Model, held: &[Held]) {
    // Evicted connections are closed only while two permits are free: no lease is refused for that.
    if model.mode == Mode::PerAgent && held.len() + 2 <= model.connections {
        let used = held.len() + model.parked();
        eventually("all evicted are closed", || pool.stats().open == used);
    }
    let stats = pool.stats();
    assert_eq!(stats.lent, held.len(), "{stats:?}");
    assert_eq!(stats.parked, model.parked(), "{stats:?}");
    assert_eq!(
        model.free + stats.parked + stats.lent,
        model.connections,
        "{stats:?}"
    );
    assert_eq!(
        (stats.hits, stats.misses),
        (model.hits, model.misses),
        "{stats:?}"
    );
    assert_eq!(
        (stats.reclaims, stats.evicted_by_call),
        (model.reclaims, model.released),
        "{stats:?}"
    );
    assert_eq!(stats.opens - stats.closes, stats.open as u64, "{stats:?}");
    assert!(stats.open <= model.connections, "{stats:?}");
    // Every open connection has read the file, and so has a descriptor on its WAL.
    let found = fixture.descriptors();
    assert_eq!(found.wal, stats.open, "{found:?} {stats:?}");
    if model.mode == Mode::PerAgent {
        assert_eq!((found.db, found.shm), (stats.open, stats.open), "{found:?}");
        assert_eq!(stats.files, stats.open, "{stats:?}");
    }
    assert!(found.all() <= pool.fd_ceiling(), "{found:?}");
    let mut holders: HashMap<String, usize> = HashMap::new();
    for holder in pool.holders() {
        *holders.entry(holder.agent).or_default() += 1;
    }
    let mut expected: HashMap<String, usize> = HashMap::new();
    for held in held {
        let agent = match held.agent {
            NO_AGENT => "leasepool: get".to_owned(),
            agent => agent.to_string(),
        };
        *expected.entry(agent).or_default() += 1;
    }
    assert_eq!(holders, expected);
}

fn a_pool_does_what_the_model_does(mode: Mode) {
    let config = ProptestConfig {
        cases: asked("PROPTEST_CASES", 60),
        max_shrink_iters: 2_000,
        source_file: Some(file!()),
        test_name: Some(mode.either("shared", "per_agent")),
        ..ProptestConfig::default()
    };
    proptest!(config, |(actions in prop::collection::vec(action(), 1..60))| run(mode, actions));
}
