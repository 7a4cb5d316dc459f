//! The crate's documentation, and what it exports. Nothing else is here.
//!
#![doc = include_str!("../docs/front-page.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Tests may unwrap; no reachable path of the library may.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

// A folder imports only from those below it in this list; `.ci/layers` checks it.
mod core;
#[cfg(any(feature = "managed", feature = "bb8"))]
mod managed;
mod observe;
mod pool;
mod sqlite;
mod sync;
mod write;

#[cfg(feature = "status")]
pub mod status;
#[cfg(any(feature = "tower", feature = "actix"))]
pub mod web;

// Every folder may import these.
mod error;
pub mod guide;

pub use error::{Error, FileState, Wanted};
#[cfg(feature = "bb8")]
pub use managed::Awaited;
#[cfg(feature = "managed")]
pub use managed::Managed;
#[cfg(any(feature = "managed", feature = "bb8"))]
pub use managed::Remote;
pub use observe::health::{Health, Reason};
pub use observe::histogram::Histogram;
pub use observe::slow_waits::SlowWait;
pub use observe::stats::{Holder, Stats, Waiting};
pub use observe::windows::{Spread, Window, Windows};
pub use pool::Pool;
pub use pool::agent::Agent;
pub use pool::builder::Builder;
pub use pool::lease::{InterruptHandle, Lease};
pub use pool::pooled::Backend;
pub use sqlite::{AgentIds, Backup, BackupProgress, Database, Owner, Sqlite, Synchronous};

#[cfg(feature = "bb8")]
pub use bb8;
#[cfg(feature = "managed")]
pub use r2d2;
pub use rusqlite;
