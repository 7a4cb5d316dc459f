//! The chat server, from the outside: real HTTP, real signals.

mod client;
mod requests;
mod server;
mod soak;
