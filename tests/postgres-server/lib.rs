//! A PostgreSQL server of a test's or an example's own, a standby of it, and a pgbouncer in front of it: on free ports, in
//! temporary folders, stopped and removed however the process ends.
//! It knows nothing of pools.

#![forbid(unsafe_code)]

mod bouncer;
mod guardian;
mod server;

pub use bouncer::{Bouncer, bouncer_installed};
pub use server::{Server, free_port, installed, is_installed};
