//! What the pool tells the log: the one place that knows the feature `tracing`.
//! It never decides anything, and costs nothing where the feature is off.
#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use crate::error::Error;
use crate::stats::Holder;

/// A lease is held for too long. Told once for each lease.
pub(crate) fn overdue(holder: &Holder) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        agent = holder.agent,
        borrowed_at = %holder.borrowed_at,
        age = ?holder.age,
        "lease overdue"
    );
}

/// A lease that was reported as overdue has ended.
pub(crate) fn overdue_returned(holder: &Holder) {
    #[cfg(feature = "tracing")]
    tracing::info!(
        agent = holder.agent,
        borrowed_at = %holder.borrowed_at,
        age = ?holder.age,
        "overdue lease returned"
    );
}

/// A connection was closed before its time.
pub(crate) fn discarded(reason: &'static str) {
    #[cfg(feature = "tracing")]
    tracing::debug!(reason, "connection discarded");
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

/// The linked SQLite serialises the page caches of all connections.
pub(crate) fn memory_management() {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        "SQLite is compiled with SQLITE_ENABLE_MEMORY_MANAGEMENT, which puts the page caches of all \
         connections behind one mutex; build with LIBSQLITE3_FLAGS=-USQLITE_ENABLE_MEMORY_MANAGEMENT"
    );
}

/// The keeper's thread could not be started.
pub(crate) fn no_keeper(error: &std::io::Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "no maintenance thread: idle connections stay parked");
}
