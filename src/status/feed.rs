//! Feed: looks at the pool at a steady pace, remembers the last minutes, and tells the watching clients.
//! It keeps only numbers that the pool has.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{Either, select};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::snapshot::{Full, Now, Sample};
use crate::pool::Pool;
use crate::pool::pooled::Backend;

/// How often watching clients get news.
const PACE: Duration = Duration::from_millis(500);
/// One of this many looks goes into the history: one a second.
const SAMPLE_EVERY: u64 = 2;
/// Five minutes of samples.
const HISTORY: usize = 300;
/// How many clients may watch at once.
const WATCHERS: usize = 64;

type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct Feed<B: Backend> {
    pool: Pool<B>,
    /// Distinguishes a restarted server from the one before.
    started: SystemTime,
    begun: Instant,
    history: Mutex<VecDeque<Sample>>,
    /// The latest numbers as JSON. `None`: nothing more will come.
    news: watch::Sender<Option<Arc<str>>>,
    watchers: AtomicUsize,
    /// The task that looks at the pool takes it when it starts.
    shutdown: Mutex<Option<Shutdown>>,
}

/// A client that watches.
pub(super) struct Listener<B: Backend> {
    feed: Arc<Feed<B>>,
    news: watch::Receiver<Option<Arc<str>>>,
}

impl<B: Backend> Feed<B> {
    pub(super) fn new(pool: Pool<B>, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Feed {
            pool,
            started: SystemTime::now(),
            begun: Instant::now(),
            history: Mutex::default(),
            news: watch::Sender::new(Some(Arc::from(""))),
            watchers: AtomicUsize::new(0),
            shutdown: Mutex::new(Some(shutdown)),
        })
    }

    /// Starts the task that looks at the pool, unless it has started or there is no runtime. The task ends
    /// with the feed or with the shutdown.
    pub(super) fn start(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let Some(mut shutdown) = self.shutdown.lock().take() else {
            return;
        };
        let weak = Arc::downgrade(self);
        runtime.spawn(async move {
            for turn in 0_u64.. {
                match weak.upgrade() {
                    Some(feed) => feed.look(turn.is_multiple_of(SAMPLE_EVERY)),
                    None => return,
                }
                let pause = Box::pin(tokio::time::sleep(PACE));
                if let Either::Right(_) = select(pause, &mut shutdown).await {
                    break;
                }
            }
            if let Some(feed) = weak.upgrade() {
                feed.news.send_replace(None);
            }
        });
    }

    fn look(&self, remember: bool) {
        if !remember && self.news.receiver_count() == 0 {
            return;
        }
        let now = self.now();
        if remember {
            let mut history = self.history.lock();
            if history.len() >= HISTORY {
                history.pop_front();
            }
            history.push_back(now.sample.clone());
        }
        if self.news.receiver_count() > 0 {
            // It consists of strings and numbers, so it always becomes JSON.
            let news = serde_json::to_string(&now).unwrap_or_default();
            self.news.send_replace(Some(Arc::from(news)));
        }
    }

    pub(super) fn pool(&self) -> &Pool<B> {
        &self.pool
    }

    fn now(&self) -> Now {
        Now::of(&self.pool, self.started, self.begun.elapsed())
    }

    pub(super) fn full(&self) -> Full {
        Full {
            now: self.now(),
            history: self.history.lock().iter().cloned().collect(),
        }
    }

    /// A place among the watching clients, if one is left.
    pub(super) fn listen(self: &Arc<Self>) -> Option<Listener<B>> {
        // The listener counts from here on, also if it is one too many.
        let before = self.watchers.fetch_add(1, AcqRel);
        let mut news = self.news.subscribe();
        // A new client gets the latest numbers at once; after the end, it gets the end.
        news.mark_changed();
        let listener = Listener {
            news,
            feed: Arc::clone(self),
        };
        (before < WATCHERS).then_some(listener)
    }
}

impl<B: Backend> Listener<B> {
    /// The next news; `None` when nothing more will come.
    pub(super) async fn next(&mut self) -> Option<Arc<str>> {
        loop {
            self.news.changed().await.ok()?;
            match &*self.news.borrow_and_update() {
                Some(news) if news.is_empty() => {}
                news => return news.clone(),
            }
        }
    }
}

impl<B: Backend> Drop for Listener<B> {
    fn drop(&mut self) {
        self.feed.watchers.fetch_sub(1, AcqRel);
    }
}
