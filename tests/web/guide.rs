//! The programs in the guide on web frameworks compile with the frameworks as programs have them.
//! No code is here.
//!
#![doc = include_str!("../../docs/web.md")]
