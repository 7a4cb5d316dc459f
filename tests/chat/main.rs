//! The chat server, from the outside: real HTTP, real signals.

mod client;
mod guards;
mod per_agent;
mod requests;
mod server;
mod soak;
