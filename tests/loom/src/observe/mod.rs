//! What the lot knows of `observe`, as it is.

#[path = "../../../../src/observe/call_site.rs"]
pub(crate) mod call_site;
#[path = "../../../../src/observe/reserved.rs"]
pub(crate) mod reserved;
