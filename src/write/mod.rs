//! Writes: one queue for all writers of the process, and many writes in one transaction.
//! `call` waits for the answer, `group_commit` does the work. It begins no transaction but a group's and a lease's.
//!
//! # Who does the work
//! A caller that blocks and finds nobody at work does its own write, on its own thread: no other thread is
//! woken, and nothing is waited for. That is the difference between a client that blocks and one that awaits
//! in `cargo bench -p leasepool-benches --bench write -- --clients 1`: about 16 µs and 60 µs for a write.
//! Everybody else queues, and is served by one thread, which commits what has come in the meantime as one group. It is already
//! running when the next group is there; a caller that led the next group would first have to be woken, when
//! all those whose writes were just committed want to run, too. Callers that await always queue: their
//! threads are not to be blocked.

mod call;
mod checkpoint;
mod group_commit;
mod job;
mod queue;
mod writer;

pub(crate) use writer::{Limits, Writer};
