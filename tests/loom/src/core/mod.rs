//! `crate::core`, as far as it is checked.

#[path = "../../../../src/core/lot/mod.rs"]
pub(crate) mod lot;
