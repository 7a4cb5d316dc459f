//! The promises of the crate, each with tests that fail when it is broken.

mod awaiting;
mod backup;
mod cap;
mod checkpoints;
mod clean;
mod close;
mod common;
mod deadlock;
mod errors;
mod example;
mod exits;
mod fairness;
mod hand_over;
mod health;
mod hostile;
mod hosting;
mod in_time;
mod kill;
mod litestream;
#[cfg(feature = "r2d2_sqlite")]
mod manager;
mod max_hold;
mod model;
mod opening;
mod options;
mod panics;
mod per_agent;
mod processes;
mod quota;
mod read_lock;
mod reads;
#[cfg(feature = "metrics")]
mod recorder;
mod regression;
mod replaced;
mod run;
mod seeing;
mod shell;
#[cfg(feature = "sqlcipher")]
mod sqlcipher;
mod starts;
mod stress;
mod surface;
#[cfg(feature = "tokio")]
mod virtual_time;
mod write;
