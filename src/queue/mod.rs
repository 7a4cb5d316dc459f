//! The queue of those who want to write to one database, and how each of them waits and is answered.
//! It begins no transaction: whoever leads a lane does.

mod job;
mod lane;
mod ticket;

pub(crate) use job::{Answer, Job, Write};
pub(crate) use lane::{Joined, Lane, Refused};
