//! The crate's documentation, and what it exports. Nothing else is here.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Tests may unwrap; no reachable path of the library may.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

// Who may import whom, each only what stands before it: histogram, stats, error, events, backend, hands, offload, registry,
// permits, gate, waits, queue, slot, ledger, cache, keeper, shared, sqlite, lease, lend, pool, write, builder.
mod backend;
mod builder;
mod cache;
mod error;
mod events;
#[cfg(test)]
mod fake;
mod gate;
pub mod guide;
mod hands;
mod histogram;
mod keeper;
mod lease;
mod ledger;
mod lend;
mod life;
#[cfg(any(feature = "metrics", feature = "status"))]
mod meters;
mod offload;
mod permits;
mod pool;
#[cfg(feature = "metrics")]
mod publish;
mod queue;
mod registry;
#[cfg(feature = "tokio")]
mod run;
mod shared;
mod slot;
mod sqlite;
mod stats;
#[cfg(feature = "status")]
pub mod status;
mod waits;
#[cfg(any(feature = "tower", feature = "actix"))]
pub mod web;
mod write;

pub use backend::{Backend, Ending, Fate, NotClosed};
pub use builder::Builder;
pub use error::{Error, FileState, Wanted};
pub use histogram::Histogram;
pub use lease::{InterruptHandle, Lease};
pub use pool::Pool;
pub use sqlite::{AgentIds, Database, Sqlite, Synchronous};
pub use stats::{Holder, Stats, Waiting};
pub use waits::SlowWait;

pub use rusqlite;
