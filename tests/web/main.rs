//! Leases in web frameworks, over real HTTP on loopback: the same contract for axum and actix-web.

mod client;
mod contract;
mod load;
mod server;
