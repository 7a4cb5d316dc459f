//! Checkpoints beside the commits: a connection of the pool's copies the log into the database.
//! It takes the pen only for what is left then, so that the log can begin anew.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lead::Post;
use crate::error::Error;
use crate::events;
use crate::lease::Lease;
use crate::lend::lend;
use crate::permits::Claim;
use crate::shared::Shared;
use crate::sqlite::{Checkpointed, Mode, Sqlite, Wal, checkpoint, take_noted};
use crate::stats::count;

/// As which agent the pool itself borrows a connection for it.
pub(super) const AGENT: &str = "leasepool: checkpoint";
/// What may be left to be copied while no write can begin, in pages.
const SHORT: u32 = 64;
/// Copies without the pen, at most.
const PASSES: usize = 4;
/// How long to wait, with the pen, for readers; most are done within microseconds.
const MOMENT: Duration = Duration::from_millis(3);
const PAUSE: Duration = Duration::from_micros(50);
/// How long to wait for a connection, and for the pen.
const WAIT: Duration = Duration::from_secs(5);

/// Looks at what the last commit on this thread noted, and sees to a checkpoint if the log is long.
pub(crate) fn noted(shared: &Arc<Shared<Sqlite>>) {
    if let Some(pages) = take_noted()
        && let Some(wal) = shared.backend.wal()
        && wal.grew_to(pages)
    {
        begin(shared, wal);
    }
}

/// Tries again, if the last one could not finish.
pub(super) fn retry(shared: &Arc<Shared<Sqlite>>) {
    if let Some(wal) = shared.backend.wal()
        && wal.wants_another_try()
    {
        begin(shared, wal);
    }
}

/// Lets a thread of the pool's run one.
fn begin(shared: &Arc<Shared<Sqlite>>, wal: &Wal) {
    if !wal.begin() {
        return;
    }
    let theirs = Arc::clone(shared);
    shared.backend.writes.hands.take(Box::new(move || {
        let Some(wal) = theirs.backend.wal() else {
            return;
        };
        // One that fails is tried again when the log has grown.
        if let Err(error) = run(&theirs, wal) {
            events::checkpoint_failed(&theirs.options.name, &error);
        }
    }));
}

fn run(shared: &Arc<Shared<Sqlite>>, wal: &Wal) -> Result<(), Error> {
    let running = wal.run();
    let lease = lend(shared, AGENT, Some(WAIT), Location::caller())?;
    // Each pass copies what was written during the one before; it says how long the log was when it began.
    let mut before = 0;
    for _ in 0..PASSES {
        let result = checkpoint(&lease, Mode::Passive)?;
        let written = result.log.saturating_sub(before);
        if result.busy || written <= SHORT || wal.is_far_too_long(result.log) {
            break;
        }
        before = result.log;
    }
    let result = finish(shared, &lease)?;
    count(&shared.counters.checkpoints);
    if !result.busy {
        running.is_over();
    }
    if running.ended(result) {
        let holders = shared.cache.ledger.holders(Instant::now());
        let holder = holders.into_iter().find(|holder| holder.agent != AGENT);
        count(&shared.counters.checkpoints_pinned);
        events::wal_pinned(&shared.options.name, result.log, holder.as_ref());
    }
    Ok(())
}

/// Copies the rest while no write of the pool's can begin, and waits a moment for those who still read from
/// the log: the next write then begins it anew.
fn finish(shared: &Arc<Shared<Sqlite>>, lease: &Lease) -> Result<Checkpointed, Error> {
    // Whoever waits for a lock here lets all writers wait.
    lease.busy_timeout(Duration::ZERO)?;
    let begun = Instant::now();
    let claim = Claim::new(AGENT, begun, Location::caller());
    let post = Post::of(shared, AGENT)?;
    let _pen = post.pen(&claim, begun + WAIT)?;
    let begun = Instant::now();
    loop {
        let result = checkpoint(lease, Mode::Restart)?;
        if !result.busy || begun.elapsed() >= MOMENT {
            return Ok(result);
        }
        std::thread::sleep(PAUSE);
    }
}
