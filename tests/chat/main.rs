//! The chat server, from the outside: real HTTP, real signals.

mod browser;
mod client;
#[path = "../status/driver.rs"]
mod driver;
mod guards;
mod per_agent;
mod requests;
mod server;
mod soak;
