//! Watched: a pool as the status page sees it, whatever its connections are to.
//! It only asks; what is shown is decided by [`Privacy`].

use std::time::{Duration, SystemTime};

use super::snapshot::{Now, Privacy};
use crate::error::Error;
use crate::observe::families::Family;
use crate::observe::health::Health;
use crate::pool::Pool;
use crate::pool::pooled::Backend;

pub(super) trait Watched: Send + Sync {
    fn name(&self) -> &str;
    fn now(&self, privacy: &Privacy, started: SystemTime, uptime: Duration) -> Now;
    fn health(&self) -> Health;
    fn ready(&self) -> Result<(), Error>;
    fn families(&self) -> Vec<Family>;
    /// By the pool's books.
    fn counted_descriptors(&self) -> Option<usize>;
    /// By the kernel. Blocks.
    fn descriptors(&self) -> Option<usize>;
    fn fd_ceiling(&self) -> usize;
}

impl<B: Backend> Watched for Pool<B> {
    fn name(&self) -> &str {
        Pool::name(self)
    }

    fn now(&self, privacy: &Privacy, started: SystemTime, uptime: Duration) -> Now {
        Now::of(self, privacy, started, uptime)
    }

    fn health(&self) -> Health {
        Pool::health(self)
    }

    fn ready(&self) -> Result<(), Error> {
        Pool::ready(self)
    }

    fn families(&self) -> Vec<Family> {
        Pool::families(self)
    }

    fn counted_descriptors(&self) -> Option<usize> {
        Pool::counted_descriptors(self)
    }

    fn descriptors(&self) -> Option<usize> {
        Pool::descriptors(self)
    }

    fn fd_ceiling(&self) -> usize {
        Pool::fd_ceiling(self)
    }
}
