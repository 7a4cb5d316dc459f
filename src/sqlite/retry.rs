//! Trying again while another connection holds a lock.
//! It does not use SQLite's busy handler: its pauses grow to 100 ms, and nothing can end them early.

use std::time::{Duration, Instant};

use rusqlite::ffi::ErrorCode;

use crate::sync::jitter::fraction;

/// The pause before the next try, and how much it varies, so that two processes do not stay in step.
const PAUSE: Duration = Duration::from_micros(500);
const JITTER: Duration = Duration::from_millis(1);

/// Tries until `attempt` succeeds, fails for a reason other than a lock, or `patience` says that no time is
/// left.
pub(crate) fn while_busy<T>(
    mut patience: impl FnMut() -> bool,
    mut attempt: impl FnMut() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && patience() => pause(),
            done => return done,
        }
    }
}

/// The patience of a caller that waits until `deadline`.
pub(crate) fn until(deadline: Instant) -> impl FnMut() -> bool {
    move || Instant::now() < deadline
}

pub(super) fn pause() {
    std::thread::sleep(PAUSE + JITTER.mul_f64(fraction()));
}

/// The error that SQLite returns where another connection holds a lock.
pub(crate) fn busy(message: Option<&str>) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(code, message.map(str::to_owned))
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}
