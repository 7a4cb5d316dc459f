//! Checkpoints beside the commits: a connection of the pool's copies the log into the database.
//! It takes the pen only for what is left then, so that the log can begin anew.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lead::Post;
use crate::error::Error;
use crate::events;
use crate::lend::lend;
use crate::permits::Claim;
use crate::shared::Shared;
use crate::sqlite::{Checkpointed, Sqlite, checkpoint, take_noted};
use crate::stats::count;

/// As which agent the pool itself borrows a connection for it.
pub(super) const AGENT: &str = "leasepool: checkpoint";
/// What may be left to be copied while no write can begin, in pages.
const SHORT: u32 = 64;
/// Copies without the pen, at most.
const PASSES: usize = 4;
/// How long to wait for a connection, and for the pen.
const WAIT: Duration = Duration::from_secs(5);

/// Looks at what the last commit on this thread noted, and sees to a checkpoint if the log is long.
pub(crate) fn noted(shared: &Arc<Shared<Sqlite>>) {
    if let Some(pages) = take_noted()
        && let Some(wal) = shared.backend.wal()
        && wal.grew_to(pages)
    {
        begin(shared);
    }
}

/// Tries again, if the last one could not finish.
pub(super) fn retry(shared: &Arc<Shared<Sqlite>>) {
    if shared
        .backend
        .wal()
        .is_some_and(|wal| wal.wants_another_try())
    {
        begin(shared);
    }
}

/// Lets a thread of the pool's run one.
fn begin(shared: &Arc<Shared<Sqlite>>) {
    let theirs = Arc::clone(shared);
    shared.backend.writes.hands.take(Box::new(move || {
        // A checkpoint that fails now is tried again when the log has grown.
        if let Err(error) = run(&theirs) {
            events::checkpoint_failed(&theirs.options.name, &error);
        }
    }));
}

fn run(shared: &Arc<Shared<Sqlite>>) -> Result<(), Error> {
    let Some(wal) = shared.backend.wal() else {
        return Ok(());
    };
    let Some(running) = wal.begin() else {
        return Ok(());
    };
    let lease = lend(shared, AGENT, Some(WAIT), Location::caller())?;
    // Each pass copies what was written during the one before; it says how long the log was when it began.
    let mut before = 0;
    for _ in 0..PASSES {
        let result = checkpoint(&lease)?;
        if result.busy || result.log.saturating_sub(before) <= SHORT {
            break;
        }
        before = result.log;
    }
    let result = finish(shared, &lease)?;
    count(&shared.counters.checkpoints);
    if result.left() == 0 {
        running.is_over();
    }
    if running.ended(result) {
        let holders = shared.cache.ledger.holders(Instant::now());
        let holder = holders.into_iter().find(|holder| holder.agent != AGENT);
        count(&shared.counters.checkpoints_pinned);
        events::wal_pinned(
            &shared.options.name,
            result.log,
            result.done,
            holder.as_ref(),
        );
    }
    Ok(())
}

/// Copies the rest while no write of the pool's can begin: the next one then finds all copied, and begins
/// the log anew.
fn finish(shared: &Arc<Shared<Sqlite>>, lease: &crate::Lease) -> Result<Checkpointed, Error> {
    let post = Post::of(shared);
    let now = Instant::now();
    let claim = Claim::new(AGENT, now, Location::caller());
    let pen = post.pen(&claim, now + WAIT)?;
    let result = checkpoint(lease);
    drop(pen);
    Ok(result?)
}
