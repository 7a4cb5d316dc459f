//! Versions: what rusqlite 0.40 and later versions want in different ways, in one place, so that each
//! compiles it.
//! It decides nothing.
//!
//! Since 0.41, setting a WAL hook or a trace function may fail, and a WAL hook gets `&mut Wal` instead of
//! `&Wal` (<https://docs.rs/rusqlite/0.40/rusqlite/struct.Connection.html#method.wal_hook>,
//! <https://docs.rs/rusqlite/0.41/rusqlite/struct.Connection.html#method.wal_hook>). A crate cannot ask which
//! version it is compiled with. But a name can resolve differently: an item of a glob import wins over an
//! item outside of the block.

use rusqlite::Connection;
use rusqlite::hooks::Wal;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::wal::Hook;

/// The argument of a WAL hook: `&Wal`, or since rusqlite 0.41 `&mut Wal`.
pub(super) type WalRef<'a> = <ThisVersion as Version>::Wal<'a>;

pub(super) trait Version {
    type Wal<'a>;
}

pub(super) struct ThisVersion;

/// Stands for the enum of the same name, which only rusqlite 0.40 has in its module `hooks`.
#[allow(dead_code, reason = "used since rusqlite 0.41")]
pub(super) struct CheckpointMode;

/// Since 0.41.
impl Version for CheckpointMode {
    type Wal<'a> = &'a mut Wal;
}

/// In 0.40: rusqlite's `CheckpointMode` is `Copy`, and the one here is not.
impl<T: Copy> Version for T {
    type Wal<'a> = &'a Wal;
}

const _: () = {
    #[allow(unused_imports, reason = "unused since rusqlite 0.41")]
    use rusqlite::hooks::*;

    impl Version for ThisVersion {
        type Wal<'a> = <CheckpointMode as Version>::Wal<'a>;
    }
};

/// The result of a call that can fail only in some versions.
trait Outcome {
    fn outcome(self) -> rusqlite::Result<()>;
}

impl Outcome for () {
    fn outcome(self) -> rusqlite::Result<()> {
        Ok(())
    }
}

impl Outcome for rusqlite::Result<()> {
    fn outcome(self) -> rusqlite::Result<()> {
        self
    }
}

#[allow(clippy::unit_arg, reason = "it is one only in rusqlite 0.40")]
pub(super) fn set_wal_hook(
    connection: &mut Connection,
    hook: Option<Hook>,
) -> rusqlite::Result<()> {
    Outcome::outcome(connection.wal_hook(hook))
}

#[allow(clippy::unit_arg, reason = "it is one only in rusqlite 0.40")]
pub(super) fn remove_trace(connection: &mut Connection) -> rusqlite::Result<()> {
    const NONE: Option<fn(TraceEvent<'_>)> = None;
    Outcome::outcome(connection.trace_v2(TraceEventCodes::empty(), NONE))
}

/// Closes a connection, which may be in a transaction. SQLite then rolls back, and calls the rollback hook; since 0.41,
/// what that hook holds is SQLite's (`sqlite3_set_clientdata`), which by then has freed it. 0.40 takes the hooks off before.
#[allow(
    clippy::result_large_err,
    reason = "it is rusqlite's own, taken apart at once"
)]
pub(super) fn close(mut connection: Connection) -> Result<(), (Connection, rusqlite::Error)> {
    // It fails only for a connection that is not owned, and SQLite does not close those.
    let _ = remove_rollback_hook(&mut connection);
    connection.close()
}

fn remove_rollback_hook(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.rollback_hook(None::<fn()>)
}
