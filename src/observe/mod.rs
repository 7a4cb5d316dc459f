//! What a pool has done and is doing, in numbers and names. Nothing here decides anything.

pub(crate) mod call_site;
pub(crate) mod claim;
pub(crate) mod events;
#[cfg(any(feature = "metrics", feature = "status"))]
pub(crate) mod families;
pub(crate) mod health;
pub(crate) mod histogram;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod reserved;
pub(crate) mod slow_waits;
pub(crate) mod spans;
pub(crate) mod stats;
pub(crate) mod windows;
