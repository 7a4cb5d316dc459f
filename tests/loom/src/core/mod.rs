//! `crate::core`, as far as it is checked.

#[path = "../../../../src/core/lot.rs"]
pub(crate) mod lot;
