//! Claim: which agent asks for something, since when, and from which line.
//! It decides nothing.

use std::sync::Arc;
use std::time::Instant;

use super::call_site::CallSite;
use super::stats::{Holder, Waiting};
use crate::sync::thread;

#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) agent: Arc<str>,
    pub(crate) asked_at: Instant,
    pub(crate) place: CallSite,
    /// The thread that asked and blocks while it waits; `None` for a caller that awaits.
    pub(crate) thread: Option<u64>,
}

impl Claim {
    pub(crate) fn new(agent: Arc<str>, asked_at: Instant, place: CallSite) -> Self {
        Claim {
            agent,
            asked_at,
            place,
            thread: None,
        }
    }

    /// Marks the claim as one of a caller that blocks this thread.
    pub(crate) fn blocking(mut self) -> Self {
        self.thread = Some(thread::number());
        self
    }

    pub(crate) fn waiting(&self, now: Instant) -> Waiting {
        Waiting {
            agent: self.agent.as_ref().to_owned(),
            asked_at: self.place.line,
            request: self.place.request(),
            age: now.saturating_duration_since(self.asked_at),
        }
    }

    /// The claim as a holder of what it was granted.
    pub(crate) fn holder(&self, now: Instant) -> Holder {
        Holder {
            agent: self.agent.as_ref().to_owned(),
            borrowed_at: self.place.line,
            request: self.place.request(),
            age: now.saturating_duration_since(self.asked_at),
        }
    }
}
