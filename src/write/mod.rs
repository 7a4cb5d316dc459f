//! Writes: one queue for all writers of the process, and many writes in one transaction.
//! `call` waits for the answer, `group_commit` does the work. It begins only the transactions of groups and leases.
//!
//! # Who does the work
//! If no write is in progress, a blocking caller does its own write, on its own thread: no other thread is
//! woken, and the caller waits for none. That is the difference between a blocking and an awaiting client in
//! `cargo bench -p leasepool-benches --bench write -- --clients 1`: about 16 µs and 60 µs for a write. Every
//! other write queues.
//! One thread serves the queue, and commits the writes that have come in meanwhile as one group. That thread
//! is already running when the next group forms. A caller that led the next group would first have to be
//! woken, at the same time as all callers whose writes were just committed. Writes of awaiting callers always
//! queue, because their threads must not block.

mod call;
mod checkpoint;
mod group_commit;
mod job;
mod queue;
mod writer;

pub(crate) use writer::{Limits, Writer};
