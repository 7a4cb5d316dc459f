//! `crate::core`, as far as it is checked.

#[path = "../../../../src/core/lot/mod.rs"]
pub(crate) mod lot;
#[path = "../../../../src/core/max_hold.rs"]
pub(crate) mod max_hold;
