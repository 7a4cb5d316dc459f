//! The events that the pool logs. Only this file and `spans` know the feature `tracing`.
//! It decides nothing, and costs nothing where the feature is off.
#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, reason = "then no event is logged")
)]

use super::claim::Claim;
use super::stats::Holder;
use crate::error::Error;

/// Why an agent was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Eviction {
    Size,
    Idle,
    Called,
}

/// Runs a subscriber's code. If that panics, the pool must lose nothing.
#[cfg(feature = "tracing")]
fn tell(event: impl FnOnce()) {
    _ = crate::sync::unwind::quietly(event);
}

/// An agent was forgotten, and a connection that was parked for it became free.
pub(crate) fn evicted(pool: &str, agent: &str, cause: Eviction) {
    #[cfg(feature = "tracing")]
    tell(|| tracing::debug!(pool, agent, ?cause, "agent evicted"));
}

/// Another agent took a connection that was parked for this agent.
pub(crate) fn reclaimed(pool: &str, agent: &str) {
    #[cfg(feature = "tracing")]
    tell(|| tracing::debug!(pool, agent, "connection reclaimed"));
}

/// The pool begins to close.
pub(crate) fn closing(pool: &str, lent: usize) {
    #[cfg(feature = "tracing")]
    tell(|| tracing::info!(pool, lent, "pool closing"));
}

/// The connection that would keep a read lock could not be opened.
pub(crate) fn no_read_lock(pool: &str, error: &Error) {
    #[cfg(feature = "tracing")]
    tell(|| tracing::warn!(pool, %error, "no connection to keep a read lock with"));
}

/// The last connection of a closed pool was closed.
pub(crate) fn closed(pool: &str) {
    #[cfg(feature = "tracing")]
    tell(|| tracing::info!(pool, "pool closed"));
}

/// An event about a lease.
#[cfg(feature = "tracing")]
macro_rules! tell_of_lease {
    ($level:ident, $pool:ident, $holder:ident, $what:literal) => {
        tell(|| {
            tracing::$level!(
                pool = $pool,
                agent = $holder.agent,
                borrowed_at = %$holder.borrowed_at,
                request = $holder.request,
                age = ?$holder.age,
                $what
            )
        })
    };
}

/// A lease has been held too long. Reported once for each lease.
pub(crate) fn overdue(pool: &str, holder: &Holder) {
    #[cfg(feature = "tracing")]
    tell_of_lease!(warn, pool, holder, "lease overdue");
}

/// A lease that was reported as overdue has ended.
pub(crate) fn overdue_returned(pool: &str, holder: &Holder) {
    #[cfg(feature = "tracing")]
    tell_of_lease!(info, pool, holder, "overdue lease returned");
}

/// A lease is held for longer than `max_hold`. Reported once for each lease.
pub(crate) fn interrupted(pool: &str, holder: &Holder) {
    #[cfg(feature = "tracing")]
    tell_of_lease!(
        warn,
        pool,
        holder,
        "lease held for longer than max_hold: its statements are interrupted until it is returned"
    );
}

/// An async task held a lease for long, and perhaps a thread of its executor with it.
pub(crate) fn slow_hold(pool: &str, holder: &Holder) {
    #[cfg(feature = "tracing")]
    tell_of_lease!(
        warn,
        pool,
        holder,
        "slow hold: an async task held its lease for long; let `run` do SQL that takes long, and hold no lease across an await"
    );
}

/// A connection was closed before its time.
pub(crate) fn discarded(pool: &str, reason: &'static str) {
    #[cfg(feature = "tracing")]
    tell(|| tracing::debug!(pool, reason, "connection discarded"));
}

/// Closing a connection reported an error.
pub(crate) fn close_failed(error: &Error, stuck: bool) {
    #[cfg(feature = "tracing")]
    tell(|| {
        tracing::error!(
            error = error as &dyn std::error::Error,
            stuck,
            "closing a connection failed"
        )
    });
}

/// A client got only a status for this error; the log gets the error.
#[cfg(any(feature = "axum", feature = "actix"))]
pub(crate) fn answered(status: u16, error: &Error) {
    #[cfg(feature = "tracing")]
    tell(|| match status {
        500 => tracing::error!(error = error as &dyn std::error::Error, "request failed"),
        _ => tracing::warn!(status, %error, "request refused"),
    });
}

/// The linked SQLite serialises the page caches of all connections.
pub(crate) fn memory_management() {
    #[cfg(feature = "tracing")]
    tell(|| {
        tracing::warn!(
            "SQLite is compiled with SQLITE_ENABLE_MEMORY_MANAGEMENT, which puts the page caches of all \
         connections behind one mutex; build with LIBSQLITE3_FLAGS=-USQLITE_ENABLE_MEMORY_MANAGEMENT"
        )
    });
}

/// The linked SQLite is too old for checkpoints that run while others commit.
pub(crate) fn old_sqlite(pool: &str, version: i32) {
    #[cfg(feature = "tracing")]
    tell(|| {
        let version = format!(
            "{}.{}.{}",
            version / 1_000_000,
            version / 1_000 % 1_000,
            version % 1_000
        );
        tracing::warn!(
            pool,
            version,
            "SQLite before 3.51.3 can corrupt a database when a checkpoint follows another while a connection commits: the \
             pool makes writes wait for each of its checkpoints; link a newer SQLite, or use the feature `bundled`"
        )
    });
}

/// A checkpoint could not be run.
pub(crate) fn checkpoint_failed(pool: &str, error: &Error) {
    #[cfg(feature = "tracing")]
    tell(|| {
        tracing::warn!(
            pool,
            error = error as &dyn std::error::Error,
            "checkpoint failed"
        )
    });
}

/// The log became far too long, and the pool ran the checkpoint that another process should have run.
pub(crate) fn emergency_checkpoint(pool: &str, pages: u32) {
    #[cfg(feature = "tracing")]
    tell(|| {
        tracing::warn!(
            pool,
            pages,
            "emergency checkpoint: the process that should run the checkpoints does not keep up"
        )
    });
}

/// Another process runs the checkpoints and takes the write lock for a moment. Writers wait no longer than
/// `busy_timeout`.
pub(crate) fn short_busy_timeout(pool: &str, busy_timeout: std::time::Duration) {
    #[cfg(feature = "tracing")]
    tell(|| {
        tracing::warn!(
            pool,
            ?busy_timeout,
            "busy_timeout is short for external checkpoints: writes may fail with SQLITE_BUSY while one runs"
        )
    });
}

/// A WAL hook that `on_open` set is never called.
pub(crate) fn wal_hook_replaced(target: &str) {
    #[cfg(feature = "tracing")]
    tell(|| {
        tracing::warn!(
            database = target,
            "the pool replaced the WAL hook that on_open set: it is never called"
        )
    });
}

/// The write-ahead log cannot shrink, because a connection reads from it: that of the oldest lease, as far as
/// the pool knows, or one of another process.
pub(crate) fn wal_pinned(pool: &str, pages: u32, holder: Option<&Holder>) {
    #[cfg(feature = "tracing")]
    tell(|| match holder {
        Some(holder) => tracing::warn!(
            pool,
            pages,
            agent = holder.agent,
            borrowed_at = %holder.borrowed_at,
            request = holder.request,
            age = ?holder.age,
            "the write-ahead log cannot shrink: a lease reads from it"
        ),
        None => tracing::warn!(
            pool,
            pages,
            "the write-ahead log cannot shrink: another process reads from it"
        ),
    });
}

/// Each thread that took one of these leases is waiting for another one.
pub(crate) fn deadlock(pool: &str, waiting: &[(Holder, Claim)]) {
    #[cfg(feature = "tracing")]
    tell(|| {
        let each = waiting.iter().map(|(holder, claim)| {
            format!("{holder} waits for {:?} at {}", claim.agent, claim.place)
        });
        let holders = each.collect::<Vec<_>>().join("; ");
        tracing::warn!(
            pool,
            holders,
            "all holders are waiting for another lease: return one before asking for the next"
        );
    });
}
