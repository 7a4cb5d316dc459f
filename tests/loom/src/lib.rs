//! Every schedule of a few small cases: loom checks the semaphore, the lot and the limit of holds, the files that order
//! the threads of a pool.
//!
//! `src/sync/semaphore.rs` and `src/core/lot` and `src/core/max_hold.rs` are compiled here as they are, in modules of the same names, with
//! loom's lock and atomics in the place of `sync::prim`. `cargo test --release` in this directory runs the models.
//!
//! # Bounds
//! loom explores all schedules with at most so many preemptions: points where a thread loses the processor though
//! it could go on. A thread that blocks or ends costs nothing. Each check names its bound in `tests/check.rs`:
//! none at all for two threads at the semaphore, two or three for three threads, one for four. `-- --ignored` goes one
//! step further, in four minutes. `LOOM_MAX_PREEMPTIONS` overrides every bound.
//!
//! # What is not seen
//! - The clock is real. What the models pass as "now" is the same in every schedule, and the times that the
//!   semaphore reads itself follow the order of the schedule; so a schedule decides everything.
//! - `compare_exchange_weak` never fails without a reason.
//! - The links and hints of a lot are the standard library's: to loom, each is exact at once. Links are written under
//!   the lot's lock; a hint is a guess, and checked under a lock.

#![allow(
    clippy::arc_with_non_send_sync,
    reason = "loom runs its threads one at a time, and checks what they share by itself"
)]
#![allow(
    dead_code,
    reason = "the pool uses more of these files than a model does"
)]

// What the lot knows as the crate `foldhash` is this crate: see `quality`.
extern crate self as foldhash;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

mod core;
pub mod hold;
mod observe;
pub mod quality;
pub mod queue;
pub mod slots;
mod sync;
mod time;

pub use time::Overtaking;

/// Runs a model in every schedule with at most so many preemptions.
fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 10_000;
    let (schedules, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let seen = Arc::clone(&schedules);
    builder.check(move || {
        seen.fetch_add(1, Relaxed);
        model();
    });
    let bound = builder.preemption_bound;
    let schedules = schedules.load(Relaxed);
    println!(
        "{schedules} schedules, bound {bound:?}, in {:.1?}",
        begun.elapsed()
    );
}

/// Runs each on a thread of its own, the last one on this; and waits for all.
fn together<const N: usize>(mut parts: [Option<Box<dyn FnOnce()>>; N]) {
    let own = parts.last_mut().and_then(Option::take);
    let others: Vec<_> = parts
        .into_iter()
        .flatten()
        .map(loom::thread::spawn)
        .collect();
    if let Some(own) = own {
        own();
    }
    join(others);
}

fn join(others: impl IntoIterator<Item = loom::thread::JoinHandle<()>>) {
    for other in others {
        other.join().unwrap();
    }
}

fn part(run: impl FnOnce() + 'static) -> Option<Box<dyn FnOnce()>> {
    Some(Box::new(run))
}
