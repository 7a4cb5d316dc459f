//! The feature `metrics`: the maintenance thread passes a pool's numbers to the `metrics` facade.
//! No lease and no return pays for it.
//!
//! A recorder may be installed after the pool was built. Until then the facade takes nothing: names are described again, and
//! durations are kept for it. The facade does not tell whether there is a recorder; but it converts a value only to pass it on.

use std::cell::Cell;
use std::time::{Duration, Instant};

use metrics::{
    IntoF64, Label, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use parking_lot::Mutex;

use super::families::{Family, Numbers, Sample};
use super::histogram::Histogram;
use crate::sync::thread;
use crate::sync::unwind::quietly;

/// How often the numbers are passed on.
const EVERY: Duration = Duration::from_secs(1);

/// Passes a pool's numbers on, one caller at a time. The recorder is foreign code: it may panic, or call the pool, so no lock
/// is held while it runs.
#[derive(Default)]
pub(crate) struct Publisher(Mutex<Publishing>);

#[derive(Default)]
struct Publishing {
    /// Not here while a thread passes numbers on.
    last: Published,
    /// That thread.
    thread: Option<u64>,
    /// Another thread asked for it meanwhile.
    again: bool,
}

impl Publisher {
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let state = self.0.lock();
        state.thread.is_none() && state.last.is_due(now)
    }

    /// Passes on what `numbers` says. If another thread does so just now, that thread does it once more. A recorder that
    /// asks for it itself is not heard.
    pub(crate) fn publish(&self, pool: &str, numbers: impl Fn() -> Vec<Family>) {
        let thread = thread::number();
        let mut last = {
            let mut state = self.0.lock();
            if let Some(other) = state.thread {
                state.again |= other != thread;
                return;
            }
            state.thread = Some(thread);
            std::mem::take(&mut state.last)
        };
        loop {
            _ = quietly(|| last.publish(pool, &numbers(), Instant::now()));
            let mut state = self.0.lock();
            if !std::mem::take(&mut state.again) {
                state.last = last;
                state.thread = None;
                return;
            }
        }
    }
}

/// The numbers that the facade got last.
#[derive(Default)]
struct Published {
    at: Option<Instant>,
    /// A recorder was there the whole last time.
    heard: bool,
    histograms: Vec<(&'static str, Histogram)>,
}

impl Published {
    fn is_due(&self, now: Instant) -> bool {
        self.at
            .is_none_or(|at| now.saturating_duration_since(at) >= EVERY)
    }

    /// Passes all numbers to the facade. For a histogram, these are the durations added since the last call, each as
    /// the end of its bucket.
    fn publish(&mut self, pool: &str, families: &[Family], now: Instant) {
        self.at = Some(now);
        let mut heard = true;
        for family in families {
            let name = family.name;
            let with_pool = |labels: &[(&'static str, &'static str)]| {
                let mut all = vec![Label::new(family.pool_label, pool.to_owned())];
                all.extend(labels.iter().map(|(name, of)| Label::new(*name, *of)));
                all
            };
            match &family.numbers {
                Numbers::Counter(samples) => {
                    for Sample { labels, value } in samples {
                        counter!(name, with_pool(labels)).absolute(*value);
                    }
                }
                Numbers::Gauge(samples) => {
                    for Sample { labels, value } in samples {
                        let gauge = gauge!(name, with_pool(labels));
                        heard &= is_taken(*value, |value| gauge.set(value));
                    }
                }
                Numbers::Histogram(now) => self.add(name, histogram!(name, with_pool(&[])), now),
            }
        }
        // After the numbers: a recorder that took all gauges is there for each description.
        if !self.heard {
            families.iter().for_each(describe);
        }
        self.heard = heard;
    }

    fn add(&mut self, name: &'static str, handle: metrics::Histogram, now: &Histogram) {
        let place = self.histograms.iter().position(|(n, _)| *n == name);
        let before = match place {
            Some(place) => self.histograms.swap_remove(place).1,
            None => Histogram::default(),
        };
        let mut added = now.since(&before);
        let is_heard = added.all(|(duration, n)| {
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            is_taken(duration.as_secs_f64(), |value| {
                handle.record_many(value, n);
            })
        });
        drop(added);
        let last = if is_heard { now.clone() } else { before };
        self.histograms.push((name, last));
    }
}

fn describe(family: &Family) {
    let (name, help) = (family.name, family.help);
    match family.numbers {
        Numbers::Counter(_) => describe_counter!(name, help),
        Numbers::Gauge(_) => describe_gauge!(name, help),
        Numbers::Histogram(_) => describe_histogram!(name, metrics::Unit::Seconds, help),
    }
}

/// Whether the facade passes the value on.
fn is_taken(value: f64, give: impl FnOnce(Given<'_>)) -> bool {
    let taken = Cell::new(false);
    give(Given {
        value,
        taken: &taken,
    });
    taken.get()
}

struct Given<'a> {
    value: f64,
    taken: &'a Cell<bool>,
}

impl IntoF64 for Given<'_> {
    fn into_f64(self) -> f64 {
        self.taken.set(true);
        self.value
    }
}
