//! Guides, one module for each page of `docs/`. No code is here.
//!
//! To begin with:
//! - [`getting_started`]: from `cargo new` to a served HTTP request.
//! - [`how_it_works`]: the cycle of a connection, the write queue, the number of descriptors.
//! - [`rules`]: three rules for programs that use a pool.
//!
//! To use it:
//! - [`blocking_and_async`]: which call to use where, and what happens when a future is dropped.
//! - [`web_frameworks`]: leases in axum, actix-web and tower.
//! - [`files_for_agents`]: a database for each agent.
//! - [`scaling`]: from one file to a file for each agent, to many machines, to a server.
//! - [`encryption`]: encrypted files, logs and backups, with SQLCipher.
//! - [`servers`]: PostgreSQL and others, through the managers of r2d2 and bb8.
//! - [`testing`]: a pool for each test, time, faults.
//!
//! To choose and to move:
//! - [`comparison`]: leasepool beside other libraries.
//! - [`porting`]: from r2d2_sqlite, deadpool-sqlite, tokio-rusqlite, sqlx and `Arc<Mutex<Connection>>`.
//!
//! To run it:
//! - [`planning`]: how many connections, descriptors, and how much memory.
//! - [`operating`]: what each number means, and what to do about it.
//! - [`backup_and_replication`]: copies, and Litestream beside a pool.
//! - [`benchmarks`]: what it costs, and how to measure that.

// `.ci/getting-started` runs the page itself: its program needs more dependencies than this crate has.
#[cfg_attr(not(doctest), doc = include_str!("../docs/getting-started.md"))]
pub mod getting_started {}

#[doc = include_str!("../docs/how-it-works.md")]
pub mod how_it_works {}

#[doc = include_str!("../docs/rules.md")]
pub mod rules {}

// `tests/servers/guide.rs` compiles its programs, which need clients of a server.
#[cfg_attr(not(doctest), doc = include_str!("../docs/servers.md"))]
pub mod servers {}

#[doc = include_str!("../docs/async.md")]
pub mod blocking_and_async {}

// Its programs need all of axum: `tests/web/guide.rs` compiles them.
#[cfg_attr(not(feature = "axum"), doc = "Shown with the feature `axum`.")]
#[cfg_attr(all(feature = "axum", not(doctest)), doc = include_str!("../docs/web.md"))]
pub mod web_frameworks {}

#[doc = include_str!("../docs/agents.md")]
pub mod files_for_agents {}

#[doc = include_str!("../docs/scaling.md")]
pub mod scaling {}

#[doc = include_str!("../docs/encryption.md")]
pub mod encryption {}

#[cfg_attr(not(feature = "tokio"), doc = "Shown with the feature `tokio`.")]
#[cfg_attr(feature = "tokio", doc = include_str!("../docs/testing.md"))]
pub mod testing {}

#[doc = include_str!("../docs/comparison.md")]
pub mod comparison {}

#[doc = include_str!("../docs/porting.md")]
pub mod porting {}

#[doc = include_str!("../docs/planning.md")]
pub mod planning {}

#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

#[doc = include_str!("../docs/backup-and-replication.md")]
pub mod backup_and_replication {}

#[doc = include_str!("../docs/benchmarks.md")]
pub mod benchmarks {}

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
