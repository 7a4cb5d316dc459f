//! Pages of documentation, as modules. No code is here.
//!
//! - [`blocking_and_async`]: which call to use where, and what happens to futures that are dropped.
//! - [`web_frameworks`]: leases in axum, actix-web and tower.
//! - [`files_for_agents`]: a database for each agent.
//! - [`backup_and_replication`]: Litestream beside a pool.
//! - [`operating`]: what each number means, and what to do about it.

#[cfg_attr(not(feature = "tokio"), doc = "Shown with the feature `tokio`.")]
#[cfg_attr(feature = "tokio", doc = include_str!("../docs/async.md"))]
pub mod blocking_and_async {}

#[cfg_attr(not(feature = "axum"), doc = "Shown with the feature `axum`.")]
#[cfg_attr(feature = "axum", doc = include_str!("../docs/web.md"))]
pub mod web_frameworks {}

#[doc = include_str!("../docs/agents.md")]
pub mod files_for_agents {}

#[doc = include_str!("../docs/backup-and-replication.md")]
pub mod backup_and_replication {}

#[doc = include_str!("../docs/operating.md")]
pub mod operating {}
