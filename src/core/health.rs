//! What the core tells for a verdict about the pool.
//! It judges nothing: [`Signs::verdict`] does.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::Core;
use super::backend::Backend;
use crate::error::Error;
use crate::observe::health::Signs;

impl<B: Backend> Core<B> {
    /// Looks at locks that leases take, so it is called for a verdict that was asked for, and once a second for metrics.
    pub(crate) fn tell(&self, signs: &mut Signs) {
        let now = Instant::now();
        signs.closed = self.is_closed();
        let lent = self.parking.lot.levels().lent;
        signs.max_connections = self.options.max_connections;
        signs.open = self.counters.open.load(Relaxed);
        signs.stuck = self.counters.stuck.load(Relaxed);
        // Connections that are open serve, whether another could be opened or not.
        if !(B::IS_REMOTE && signs.open > signs.stuck.max(lent)) {
            signs.cannot_open = self.backend.check().err().map(|error| match error {
                Error::FileReplaced { found, .. } => format!("the database file was {found}"),
                _ => "no connection can be opened".to_owned(),
            });
        }
        signs.lease_timeout = self.options.lease_timeout;
        let waiting = self.waiting_claims();
        signs.waiting = waiting.len();
        let waited = |asked_at| now.saturating_duration_since(asked_at);
        let longest = waiting.iter().map(|claim| waited(claim.asked_at)).max();
        signs.longest_wait = longest.unwrap_or_default();
        signs.overdue_after = self.options.overdue_after;
        if let Some(after) = self.options.overdue_after {
            let held = self.held(now);
            signs.overdue = held
                .iter()
                .filter(|held| held.has_connection && held.holder.age >= after)
                .count();
        }
        signs.deadlock = self.deadlock_reported.load(Relaxed);
        signs.short_of_descriptors = self.backend.is_short_of_descriptors();
        signs.backlog = self.workers.backlog();
    }
}
