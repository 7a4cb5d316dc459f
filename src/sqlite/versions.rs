//! Versions: what rusqlite 0.40 and the versions after it want in different ways, said once so that each compiles it.
//! It decides nothing.
//!
//! Since 0.41, to set a WAL hook or a trace function may fail, and a WAL hook gets `&mut Wal`, where it got `&Wal`
//! (<https://docs.rs/rusqlite/0.40/rusqlite/struct.Connection.html#method.wal_hook>,
//! <https://docs.rs/rusqlite/0.41/rusqlite/struct.Connection.html#method.wal_hook>). A crate cannot ask which version it
//! is compiled with, but a name can mean one thing or another: what a glob import brings goes before what is outside.

use rusqlite::Connection;
use rusqlite::hooks::Wal;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::wal::Hook;

/// What a WAL hook gets: `&Wal`, or since rusqlite 0.41 `&mut Wal`.
pub(super) type WalRef<'a> = <ThisVersion as Version>::Wal<'a>;

pub(super) trait Version {
    type Wal<'a>;
}

pub(super) struct ThisVersion;

/// Stands for the enum of that name which only rusqlite 0.40 has in its module `hooks`.
#[allow(dead_code, reason = "used since rusqlite 0.41")]
pub(super) struct CheckpointMode;

/// Since 0.41.
impl Version for CheckpointMode {
    type Wal<'a> = &'a mut Wal;
}

/// In 0.40: its `CheckpointMode` is `Copy`, and the one here is not.
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

/// What came of a call that cannot fail in every version.
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
