//! Session: a connection to a server, with what the pool remembers of it.
//! It asks the server nothing.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use super::health::Health;

/// A connection to a server.
pub struct Session<C> {
    /// `None` after it was lost: then it is never lent again.
    connection: Option<C>,
    /// The lease's borrower has had access to the connection.
    used: AtomicBool,
    /// The borrower has reported an error that puts the connection in doubt.
    reported: AtomicBool,
    /// It was used since its manager was last asked whether it is broken.
    unchecked: bool,
    /// It was used since it was last reset.
    dirty: bool,
    /// When it was opened, last used, or last found to be sound.
    idle_since: Instant,
    /// The number of incidents that were known when it was opened or last found to be sound.
    sound_as_of: u64,
}

impl<C> Session<C> {
    /// A connection that has just been opened. `incidents`: the number that was known before.
    pub(super) fn new(connection: C, incidents: u64) -> Self {
        Session {
            connection: Some(connection),
            used: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            unchecked: false,
            dirty: false,
            idle_since: Instant::now(),
            sound_as_of: incidents,
        }
    }

    /// The end of a lease. Returns whether its borrower has had access to the connection.
    pub(super) fn end_use(&mut self) -> bool {
        let used = std::mem::take(self.used.get_mut());
        if used {
            self.unchecked = true;
            self.dirty = true;
            self.idle_since = Instant::now();
        }
        used
    }

    pub(super) fn report(&self) {
        self.reported.store(true, Relaxed);
    }

    pub(super) fn is_reported(&self) -> bool {
        self.reported.load(Relaxed)
    }

    /// Whether its borrower has had access to the connection.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn is_unchecked(&self) -> bool {
        self.unchecked
    }

    pub(super) fn checked(&mut self) {
        self.unchecked = false;
    }

    pub(super) fn was_reset(&mut self) {
        self.dirty = false;
    }

    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }

    /// It was found to be sound by a question that was asked when so many incidents were known.
    pub(super) fn is_sound_as_of(&mut self, incidents: u64) {
        self.sound_as_of = incidents;
        self.idle_since = Instant::now();
        self.unchecked = false;
    }

    pub(super) fn is_suspect(&self, health: &Health) -> bool {
        self.sound_as_of < health.incidents()
    }

    /// Whether it has not been found broken since it was last known to be sound: then that it is broken is news.
    pub(super) fn broke(&self, health: &Health) {
        if !self.is_suspect(health) {
            health.incident();
        }
    }

    /// The connection, without counting as its borrower.
    pub(super) fn inner_mut(&mut self) -> Option<&mut C> {
        self.connection.as_mut()
    }

    pub(super) fn take(&mut self) -> Option<C> {
        self.connection.take()
    }

    #[cfg_attr(
        not(feature = "bb8"),
        allow(dead_code, reason = "only tasks give it back")
    )]
    pub(super) fn put_back(&mut self, connection: C) {
        self.connection = Some(connection);
    }
}

impl<C> Deref for Session<C> {
    type Target = C;

    #[inline]
    fn deref(&self) -> &C {
        self.used.store(true, Relaxed);
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("a lost connection is never lent"),
        }
    }
}

impl<C> DerefMut for Session<C> {
    #[inline]
    fn deref_mut(&mut self) -> &mut C {
        *self.used.get_mut() = true;
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("a lost connection is never lent"),
        }
    }
}
