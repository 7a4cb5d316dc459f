//! Checkpoints: a separate connection of the pool copies the log into the database and does not block commits.
//! It takes the write lock only for the rest of the log, so that the log can begin anew; or for all of it, where SQLite
//! is too old for several passes. Where another process runs the checkpoints, the pool runs one only in an emergency,
//! and never takes that lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group_commit::QueueHandle;
use super::writer::Writer;
use crate::core::request::Request;
use crate::error::Error;
use crate::observe::call_site::CallSite;
use crate::observe::claim::Claim;
use crate::observe::events;
use crate::observe::reserved::CHECKPOINT;
use crate::observe::stats::{add, count};
use crate::sqlite::{Checkpointed, Mode, Noted, Passes, Wal, checkpoint};

/// How many pages may be left to copy while no write can begin.
const SHORT: u32 = 64;
/// The largest number of copies without the write lock.
const PASSES: usize = 4;
/// How long to wait for readers while holding the write lock; most reads end within microseconds.
const MOMENT: Duration = Duration::from_millis(3);
const PAUSE: Duration = Duration::from_micros(50);
/// How long to wait for a connection, and for the write lock.
const WAIT: Duration = Duration::from_secs(5);

/// Looks at the length of the log after a commit, and starts a checkpoint if the log is too long.
pub(super) fn noted(writer: &Arc<Writer>, noted: Noted) {
    if noted.emergencies > 0 {
        let counters = &writer.core.counters;
        add(&counters.emergency_checkpoints, noted.emergencies.into());
        events::emergency_checkpoint(&writer.core.options.name, noted.pages);
    }
    if let Some(wal) = writer.core.backend.wal()
        && wal.grew_to(noted.pages)
    {
        begin(writer, wal);
    }
}

/// Starts a checkpoint of a log that has become too long although commits have noted nothing.
pub(super) fn overlong(writer: &Arc<Writer>) {
    if let Some(wal) = writer.core.backend.wal() {
        begin(writer, wal);
    }
}

/// Tries again, if the last checkpoint could not finish, or if a long lease notes nothing.
pub(super) fn retry(writer: &Arc<Writer>) {
    let backend = &writer.core.backend;
    if let Some(wal) = backend.wal()
        && (wal.wants_another_try() || backend.is_log_far_too_long())
    {
        begin(writer, wal);
    }
}

/// Lets threads of the writer run a checkpoint. None waits for the connection, or for the write lock.
fn begin(writer: &Arc<Writer>, wal: &Wal) {
    if !wal.begin() {
        return;
    }
    let theirs = Arc::clone(writer);
    writer.workers.spawn(async move {
        let Some(wal) = theirs.core.backend.wal() else {
            return;
        };
        // A checkpoint that fails is tried again when the log has grown.
        if let Err(error) = run(&theirs, wal).await {
            events::checkpoint_failed(&theirs.core.options.name, &error);
        }
    });
}

async fn run(writer: &Arc<Writer>, wal: &Wal) -> Result<(), Error> {
    let running = wal.run();
    let core = &writer.core;
    let request = Request::new(CHECKPOINT, Some(WAIT), CallSite::here()).awaiting_for_a_thread();
    let checkout = core.checkout_async(core, request).await?;
    let _paused = core.backend.pause_read_lock();
    if wal.is_external() {
        let result = checkpoint(checkout.connection(), Mode::Passive)?;
        count(&core.counters.emergency_checkpoints);
        running.ended(Checkpointed {
            // The process that reads the log is the one that should run the checkpoints, so this is no pinned
            // log.
            busy: false,
            ..result
        });
        events::emergency_checkpoint(&core.options.name, result.log);
        return Ok(());
    }
    let passes = core.backend.passes();
    if passes == Passes::Several {
        copy(checkout.connection(), wal)?;
    }
    let result = {
        let handle = QueueHandle::of_async(writer, CHECKPOINT).await?;
        let begun = Instant::now();
        let claim = Claim::new(Arc::from(CHECKPOINT), begun, CallSite::here());
        let _lock = handle.write_lock(&claim, begun + WAIT).await?;
        finish(checkout.connection(), passes)?
    };
    count(&core.counters.checkpoints);
    if !result.busy {
        running.is_over();
    }
    if running.ended(result) {
        let holders = core.borrowers();
        let holder = holders
            .into_iter()
            .find(|holder| holder.agent != CHECKPOINT);
        count(&core.counters.checkpoints_pinned);
        events::wal_pinned(&core.options.name, result.log, holder.as_ref());
    }
    Ok(())
}

/// Copies most of the log while others commit. Each pass copies what was written during the pass before, and
/// reports the length of the log at its beginning.
fn copy(connection: &rusqlite::Connection, wal: &Wal) -> Result<(), Error> {
    let mut before = 0;
    for _ in 0..PASSES {
        let result = checkpoint(connection, Mode::Passive)?;
        let written = result.log.saturating_sub(before);
        if result.busy || written <= SHORT || wal.is_far_too_long(result.log) {
            break;
        }
        before = result.log;
    }
    Ok(())
}

/// Copies the rest while no write of the pool can begin, and waits a moment for connections that still read
/// from the log: then the next write begins the log anew.
fn finish(connection: &rusqlite::Connection, passes: Passes) -> Result<Checkpointed, Error> {
    // While this thread waits for a lock here, all writers wait.
    connection.busy_timeout(match passes {
        Passes::Several => Duration::ZERO,
        // SQLite waits within its one pass: for readers, and for writers outside of the pool's queue.
        Passes::One => MOMENT,
    })?;
    let begun = Instant::now();
    loop {
        let result = checkpoint(connection, Mode::Restart)?;
        if !result.busy || passes == Passes::One || begun.elapsed() >= MOMENT {
            return Ok(result);
        }
        std::thread::sleep(PAUSE);
    }
}
