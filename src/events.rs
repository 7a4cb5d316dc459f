//! What the pool tells the log: the one place that knows the feature `tracing`.
//! It never decides anything, and costs nothing where the feature is off.
#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use crate::error::Error;
use crate::stats::Holder;

/// Why a parked connection was given back.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Eviction {
    Size,
    Idle,
    Released,
    Replaced,
    Reclaimed,
}

/// A parked connection was given back.
pub(crate) fn evicted(pool: &str, agent: &str, cause: Eviction) {
    #[cfg(feature = "tracing")]
    match cause {
        Eviction::Reclaimed => tracing::debug!(pool, agent, "connection reclaimed"),
        _ => tracing::debug!(pool, agent, ?cause, "agent evicted"),
    }
}

/// The pool was told to close.
pub(crate) fn closing(pool: &str, lent: usize) {
    #[cfg(feature = "tracing")]
    tracing::info!(pool, lent, "pool closing");
}

/// The last connection of a closed pool was closed.
pub(crate) fn closed(pool: &str) {
    #[cfg(feature = "tracing")]
    tracing::info!(pool, "pool closed");
}

/// Waits in a span of its own.
pub(crate) fn wait<T>(pool: &str, agent: &str, wait: impl FnOnce() -> T) -> T {
    #[cfg(feature = "tracing")]
    let _span = wait_span(pool, agent).entered();
    wait()
}

/// Awaits in a span of its own.
pub(crate) async fn wait_async<T>(pool: &str, agent: &str, wait: impl Future<Output = T>) -> T {
    #[cfg(feature = "tracing")]
    return tracing::Instrument::instrument(wait, wait_span(pool, agent)).await;
    #[cfg(not(feature = "tracing"))]
    wait.await
}

#[cfg(feature = "tracing")]
fn wait_span(pool: &str, agent: &str) -> tracing::Span {
    tracing::debug_span!("lease wait", pool, agent)
}

/// A lease is held for too long. Told once for each lease.
pub(crate) fn overdue(pool: &str, holder: &Holder) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        pool,
        agent = holder.agent,
        borrowed_at = %holder.borrowed_at,
        age = ?holder.age,
        "lease overdue"
    );
}

/// A lease that was reported as overdue has ended.
pub(crate) fn overdue_returned(pool: &str, holder: &Holder) {
    #[cfg(feature = "tracing")]
    tracing::info!(
        pool,
        agent = holder.agent,
        borrowed_at = %holder.borrowed_at,
        age = ?holder.age,
        "overdue lease returned"
    );
}

/// A connection was closed before its time.
pub(crate) fn discarded(pool: &str, reason: &'static str) {
    #[cfg(feature = "tracing")]
    tracing::debug!(pool, reason, "connection discarded");
}

/// Closing a connection reported an error.
pub(crate) fn close_failed(error: &Error, stuck: bool) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        error = error as &dyn std::error::Error,
        stuck,
        "closing a connection failed"
    );
}

/// A client was told of an error by no more than a status.
#[cfg(any(feature = "axum", feature = "actix"))]
pub(crate) fn answered(status: u16, error: &Error) {
    #[cfg(feature = "tracing")]
    match status {
        500 => tracing::error!(error = error as &dyn std::error::Error, "request failed"),
        _ => tracing::warn!(status, %error, "request refused"),
    }
}

/// The linked SQLite serialises the page caches of all connections.
pub(crate) fn memory_management() {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        "SQLite is compiled with SQLITE_ENABLE_MEMORY_MANAGEMENT, which puts the page caches of all \
         connections behind one mutex; build with LIBSQLITE3_FLAGS=-USQLITE_ENABLE_MEMORY_MANAGEMENT"
    );
}

/// A checkpoint could not be run.
pub(crate) fn checkpoint_failed(pool: &str, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        pool,
        error = error as &dyn std::error::Error,
        "checkpoint failed"
    );
}

/// The write-ahead log cannot shrink, since somebody reads from it: the oldest lease, as far as is known, or
/// another process.
pub(crate) fn wal_pinned(pool: &str, pages: u32, holder: Option<&Holder>) {
    #[cfg(feature = "tracing")]
    match holder {
        Some(holder) => tracing::warn!(
            pool,
            pages,
            agent = holder.agent,
            borrowed_at = %holder.borrowed_at,
            age = ?holder.age,
            "the write-ahead log cannot shrink: a lease reads from it"
        ),
        None => tracing::warn!(
            pool,
            pages,
            "the write-ahead log cannot shrink: another process reads from it"
        ),
    }
}

/// The keeper's thread could not be started.
pub(crate) fn no_keeper(error: &std::io::Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "no maintenance thread: idle connections stay parked");
}
