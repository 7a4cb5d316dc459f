//! Feed: looks at the pools at a steady pace, remembers the last minutes, and tells the watching clients.
//! It keeps only numbers that the pools have.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{Either, select};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::kernel::{Compared, Kernel};
use super::library::compile_options;
use super::snapshot::{Full, Named, Now, Privacy, Sample};
use super::watch::Watched;

/// How often watching clients get news.
const PACE: Duration = Duration::from_millis(500);
/// One of this many looks goes into the history: one a second.
const SAMPLE_EVERY: u64 = 2;
/// Five minutes of samples.
const HISTORY: usize = 300;
/// A client that has taken no news for so long does not read, and loses its place.
const STALLED: Duration = Duration::from_secs(10);
/// A stream ends after so long. A client that is still there begins another one.
const LIFETIME: Duration = Duration::from_secs(60);

pub(super) type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct Feed {
    pools: Vec<Shown>,
    privacy: Privacy,
    /// Distinguishes a restarted server from the one before.
    started: SystemTime,
    begun: Instant,
    places: Places,
    /// The task that looks at the pools takes it when it starts.
    shutdown: Mutex<Option<Shutdown>>,
}

/// A pool that is shown.
struct Shown {
    pool: Arc<dyn Watched>,
    history: Mutex<VecDeque<Sample>>,
    kernel: Kernel,
    /// The latest numbers as JSON. `None`: nothing more will come.
    news: watch::Sender<Option<Arc<str>>>,
}

/// The places of clients that watch.
struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// When each client last took news.
    by: HashMap<u64, Instant>,
    next: u64,
}

impl Places {
    /// A place, if one is free or belongs to a client that does not read.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut taken = self.taken.lock();
        if taken.by.len() >= self.most {
            taken
                .by
                .retain(|_, last| now.saturating_duration_since(*last) < STALLED);
        }
        if taken.by.len() >= self.most {
            return None;
        }
        let place = taken.next;
        taken.next += 1;
        taken.by.insert(place, now);
        Some(place)
    }

    /// The client takes news. Returns whether the place is still its own.
    fn keep(&self, place: u64, now: Instant) -> bool {
        match self.taken.lock().by.get_mut(&place) {
            Some(last) => {
                *last = now;
                true
            }
            None => false,
        }
    }

    fn leave(&self, place: u64) {
        self.taken.lock().by.remove(&place);
    }
}

/// A client that watches.
pub(super) struct Listener {
    feed: Arc<Feed>,
    place: u64,
    begun: Instant,
    news: watch::Receiver<Option<Arc<str>>>,
}

impl Feed {
    pub(super) fn new(
        pools: Vec<Arc<dyn Watched>>,
        privacy: Privacy,
        watchers: usize,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let shown = |pool| Shown {
            pool,
            history: Mutex::default(),
            kernel: Kernel::default(),
            news: watch::Sender::new(Some(Arc::from(""))),
        };
        Arc::new(Feed {
            pools: pools.into_iter().map(shown).collect(),
            privacy,
            started: SystemTime::now(),
            begun: Instant::now(),
            places: Places {
                most: watchers,
                taken: Mutex::default(),
            },
            shutdown: Mutex::new(Some(shutdown)),
        })
    }

    /// Starts the task that looks at the pools, unless it has started or there is no runtime. The task ends
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
                for shown in &feed.pools {
                    shown.news.send_replace(None);
                }
            }
        });
    }

    fn look(&self, remember: bool) {
        for shown in &self.pools {
            if !remember && shown.news.receiver_count() == 0 {
                continue;
            }
            let now = self.now(shown);
            if remember {
                let mut history = shown.history.lock();
                if history.len() >= HISTORY {
                    history.pop_front();
                }
                history.push_back(now.sample.clone());
            }
            if shown.news.receiver_count() > 0 {
                // It consists of strings and numbers, so it always becomes JSON.
                let news = serde_json::to_string(&now).unwrap_or_default();
                shown.news.send_replace(Some(Arc::from(news)));
            }
        }
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &Arc<dyn Watched>> {
        self.pools.iter().map(|shown| &shown.pool)
    }

    fn now(&self, shown: &Shown) -> Now {
        let uptime = self.begun.elapsed();
        shown.pool.now(&self.privacy, self.started, uptime)
    }

    /// All of a pool's numbers; `None` if there is no such pool.
    pub(super) fn full(&self, pool: usize) -> Option<Full> {
        let shown = self.pools.get(pool)?;
        let named = |pool: &Arc<dyn Watched>| Named {
            name: pool.name().to_owned(),
            state: pool.health().name(),
        };
        Some(Full {
            now: self.now(shown),
            pools: self.pools().map(named).collect(),
            history: shown.history.lock().iter().cloned().collect(),
            sqlite_options: compile_options(),
        })
    }

    /// A pool's descriptors by its books and by the kernel; `None` if there is no such pool.
    pub(super) async fn compare(&self, pool: usize) -> Option<Compared> {
        let shown = self.pools.get(pool)?;
        Some(shown.kernel.compare(&shown.pool).await)
    }

    /// A place among the clients that watch a pool, if one is left.
    pub(super) fn listen(self: &Arc<Self>, pool: usize) -> Option<Listener> {
        let shown = self.pools.get(pool)?;
        let begun = Instant::now();
        let place = self.places.take(begun)?;
        let mut news = shown.news.subscribe();
        // A new client gets the latest numbers at once; after the end, it gets the end.
        news.mark_changed();
        Some(Listener {
            news,
            place,
            begun,
            feed: Arc::clone(self),
        })
    }
}

impl Listener {
    /// The next news; `None` when nothing more will come on this stream.
    pub(super) async fn next(&mut self) -> Option<Arc<str>> {
        loop {
            let now = Instant::now();
            let old = now.saturating_duration_since(self.begun) >= LIFETIME;
            if old || !self.feed.places.keep(self.place, now) {
                return None;
            }
            self.news.changed().await.ok()?;
            match &*self.news.borrow_and_update() {
                Some(news) if news.is_empty() => {}
                news => return news.clone(),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.feed.places.leave(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_loses_its_place_to_one_that_asks() {
        let places = Places {
            most: 2,
            taken: Mutex::default(),
        };
        let start = Instant::now();
        let idle = places.take(start).unwrap();
        let reads = places.take(start).unwrap();
        assert_eq!(places.take(start), None);
        let later = start + STALLED;
        assert!(places.keep(reads, later - PACE));
        // Until another client asks for it, it keeps its place.
        let third = places.take(later).unwrap();
        assert!(!places.keep(idle, later));
        assert!(places.keep(reads, later) && places.keep(third, later));
        assert_eq!(places.take(later), None);
        // Who lost its place gives none back.
        places.leave(idle);
        assert_eq!(places.take(later), None);
        places.leave(third);
        assert!(places.take(later).is_some());
    }
}
