//! Shared: the core and what the kind of connection has beside it (SQLite: the writer), with the thread that maintains
//! both. A lease ends in the core first; then what is beside it is told.
//! It decides nothing itself.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::lease::Lease;
use super::pooled::Pooled;
use super::work::HandedOver;
use crate::core::Core;
use crate::core::guard::Handle;
use crate::core::request::Request;
use crate::error::Error;
use crate::observe::claim::Claim;
use crate::observe::health::{Health, Signs};
#[cfg(feature = "metrics")]
use crate::observe::metrics::Publisher;
use crate::observe::stats::{Stats, Waiting};
use crate::observe::windows::{Recent, Windows};
use crate::sqlite::Sqlite;
use crate::sync::oneshot::Oneshot;
use crate::sync::runners::Runners;
use crate::sync::ticker::Ticker;
use crate::sync::unwind::wake;
#[cfg(feature = "tokio")]
use crate::sync::virtual_time::{self, Threads};
use crate::sync::wait::block_on;

/// The state that all handles and leases of a pool share.
pub struct Shared<B: Pooled> {
    pub(crate) core: Arc<Core<B>>,
    pub(crate) beside: B::Beside,
    /// The threads that do the work of `run` and `read_async`.
    pub(super) runners: Arc<Runners<dyn HandedOver>>,
    #[cfg(feature = "metrics")]
    published: Publisher,
    /// Work that must be interrupted until it ends.
    interrupts: parking_lot::Mutex<Vec<RetryInterrupt>>,
    recent: Recent,
    /// When maintenance was last done.
    maintained: parking_lot::Mutex<Instant>,
    ticker: Ticker,
}

impl<B: Pooled> Handle<B> for Arc<Shared<B>> {
    #[inline]
    fn core(&self) -> &Core<B> {
        &self.core
    }
}

/// Interrupts some work; returns whether that work still exists.
pub(super) type RetryInterrupt = Box<dyn Fn() -> bool + Send>;

/// How often such work is interrupted.
const INTERRUPTING: Duration = Duration::from_millis(1);

impl<B: Pooled> Shared<B> {
    /// Makes the shared state and starts the maintenance thread.
    pub(super) fn start(core: Arc<Core<B>>, beside: B::Beside) -> Result<Arc<Self>, Error> {
        let most = core.options.max_connections;
        let runners = Runners::new("leasepool-run", most);
        // Work over a server waits for the server nearly all the time.
        let runners = match B::IS_REMOTE {
            true => runners.with_useful(most),
            false => runners,
        };
        let runners = Arc::new(runners);
        let shared = Arc::new(Shared {
            runners,
            #[cfg(feature = "metrics")]
            published: Publisher::default(),
            interrupts: parking_lot::Mutex::default(),
            recent: Recent::new(Instant::now()),
            maintained: parking_lot::Mutex::new(Instant::now()),
            ticker: Ticker::default(),
            core,
            beside,
        });
        let weak: Weak<Self> = Arc::downgrade(&shared);
        let period = shared.core.maintenance_period();
        let started = shared
            .ticker
            .start("leasepool-maintenance", period, move || {
                weak.upgrade().map(|shared| shared.maintain(period))
            });
        started.map_err(Error::no_thread)?;
        Ok(shared)
    }

    #[inline]
    pub(super) fn lease(self: &Arc<Self>, request: &Request<'_>) -> Result<Lease<B>, Error> {
        Ok(Lease::new(self.core.checkout(self, request)?))
    }

    /// `None`: the caller would have to wait for another borrower.
    pub(super) fn lease_unless_busy(
        self: &Arc<Self>,
        request: &Request<'_>,
    ) -> Result<Option<Lease<B>>, Error> {
        let checkout = self.core.checkout_unless_busy(self, request)?;
        Ok(checkout.map(Lease::new))
    }

    pub(super) async fn lease_async(
        self: &Arc<Self>,
        request: Request<'_>,
    ) -> Result<Lease<B>, Error> {
        let checkout = self.core.checkout_async(self, request);
        Ok(Lease::new(self.in_time(checkout).await?))
    }

    /// Awaits a future that the pool's threads complete. Every wait of an async caller goes through here.
    #[cfg(feature = "tokio")]
    pub(super) async fn in_time<F: Future>(&self, future: F) -> F::Output {
        let threads = || {
            let mut threads: Vec<&dyn Threads> = B::threads(&self.beside);
            threads.extend([&**self.core.workers() as &dyn Threads, &*self.runners]);
            threads
        };
        virtual_time::await_threads(future, threads).await
    }

    #[cfg(not(feature = "tokio"))]
    pub(super) async fn in_time<F: Future>(&self, future: F) -> F::Output {
        future.await
    }

    pub(super) fn close(&self, timeout: Duration) -> Result<(), Error> {
        self.core.check_reentrancy()?;
        block_on(self.closing(timeout))
    }

    async fn closing(&self, timeout: Duration) -> Result<(), Error> {
        let asked_at = Instant::now();
        let deadline = asked_at + timeout;
        B::drain(&self.beside, deadline).await;
        self.refuse();
        let closed = self.core.close(asked_at, deadline).await;
        #[cfg(feature = "metrics")]
        self.publish_now();
        closed
    }

    /// If the future is dropped, the closing goes on.
    pub(super) async fn close_async(self: &Arc<Self>, timeout: Duration) -> Result<(), Error> {
        self.core.check_reentrancy()?;
        let (shared, answer) = (Arc::clone(self), Arc::new(Oneshot::new()));
        let theirs = Arc::clone(&answer);
        self.core.workers().spawn(async move {
            theirs.answer(shared.closing(timeout).await);
        });
        self.in_time(answer.received()).await
    }

    /// The last handle is gone: closes idle connections.
    pub(super) fn close_now(&self) {
        B::refuse(&self.beside);
        self.refuse();
        self.core.wind_up_at_end();
    }

    fn maintain(&self, period: Duration) -> Duration {
        let due = {
            let mut last = self.maintained.lock();
            let due = last.elapsed() >= period;
            if due {
                *last = Instant::now();
            }
            due
        };
        // While work is being interrupted, this function runs far more often.
        if due {
            self.core.maintain();
            B::maintain(&self.beside);
            self.recent.tick(Instant::now(), || self.stats());
            #[cfg(feature = "metrics")]
            if self.published.is_due(Instant::now()) {
                self.publish_now();
            }
        }
        let mut interrupts = self.interrupts.lock();
        interrupts.retain(|interrupt| interrupt());
        match interrupts.is_empty() {
            true => period,
            false => INTERRUPTING,
        }
    }

    /// Interrupts again and again until the work has ended: SQLite forgets an interrupt as soon as the
    /// statement has ended, and the work may run more statements.
    pub(super) fn retry_interrupt(&self, interrupt: RetryInterrupt) {
        self.interrupts.lock().push(interrupt);
        self.ticker.call();
    }

    pub(crate) fn stats(&self) -> Stats {
        if self.core.is_forked() {
            return Stats::default();
        }
        let mut stats = self.core.stats();
        stats.waiting += self.queued().len();
        B::add_to(&self.beside, &mut stats);
        stats
    }

    pub(super) fn windows(&self) -> Windows {
        match self.core.is_forked() {
            true => Windows::default(),
            false => self.recent.windows(),
        }
    }

    pub(super) fn health(&self) -> Health {
        self.signs().verdict()
    }

    /// What the verdict is made of.
    pub(super) fn signs(&self) -> Signs {
        let mut signs = Signs {
            forked: self.core.is_forked(),
            ..Signs::default()
        };
        // Another thread may have held any lock at the fork.
        if !signs.forked {
            signs.recent = self.recent.ten_seconds();
            self.core.tell(&mut signs);
            let now = Instant::now();
            for claim in self.queued() {
                let waited = now.saturating_duration_since(claim.asked_at);
                signs.longest_wait = signs.longest_wait.max(waited);
                signs.waiting += 1;
            }
            B::tell(&self.beside, &mut signs);
        }
        signs
    }

    pub(super) fn ready(&self) -> Result<(), Error> {
        self.core.ready()?;
        B::check_ready(&self.beside)
    }

    /// Refuses new leases and all callers that wait.
    fn refuse(&self) {
        self.core.refuse();
        self.refuse_queued();
    }

    /// Refuses the calls whose work no thread has taken yet, and that have no connection.
    pub(super) fn refuse_queued(&self) {
        for call in self.runners.queued() {
            if let Some(waker) = call.refuse() {
                wake(waker);
            }
        }
    }

    /// The callers that wait for a thread which leases a connection for them.
    fn queued(&self) -> Vec<Claim> {
        let queued = self.runners.queued();
        queued.iter().filter_map(|call| call.claim()).collect()
    }

    pub(super) fn waiting(&self) -> Vec<Waiting> {
        if self.core.is_forked() {
            return Vec::new();
        }
        let now = Instant::now();
        let queued = self.queued();
        let mut waiting: Vec<_> = queued.iter().map(|claim| claim.waiting(now)).collect();
        waiting.extend(self.core.waiting());
        waiting
    }

    #[cfg(feature = "status")]
    pub(crate) fn families(&self) -> Vec<crate::observe::families::Family> {
        self.core.families(&self.stats(), &self.signs())
    }

    #[cfg(feature = "metrics")]
    fn publish_now(&self) {
        self.published.publish(&self.core.options.name, || {
            let stats = self.stats();
            let mut families = self.core.families(&stats, &self.signs());
            if self.core.options.opentelemetry {
                families.extend(crate::observe::families::of_opentelemetry(&stats));
            }
            families
        });
    }
}

impl Shared<Sqlite> {
    pub(super) fn close_writes(&self, timeout: Duration) -> Result<(), Error> {
        self.core.check_reentrancy_of_writes()?;
        block_on(self.closing_writes(timeout))
    }

    async fn closing_writes(&self, timeout: Duration) -> Result<(), Error> {
        let asked_at = Instant::now();
        let deadline = asked_at + timeout;
        let writer = &self.beside.writer;
        writer.close_to_writes(asked_at, deadline).await
    }

    /// If the future is dropped, the closing goes on.
    pub(super) async fn close_writes_async(
        self: &Arc<Self>,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.core.check_reentrancy_of_writes()?;
        let (shared, answer) = (Arc::clone(self), Arc::new(Oneshot::new()));
        let theirs = Arc::clone(&answer);
        self.core.workers().spawn(async move {
            theirs.answer(shared.closing_writes(timeout).await);
        });
        self.in_time(answer.received()).await
    }
}
