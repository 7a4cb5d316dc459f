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

use super::families::{Family, Labelled, Numbers};
use super::histogram::Histogram;

/// How often the numbers are passed on.
const EVERY: Duration = Duration::from_secs(1);

/// The numbers that the facade got last.
#[derive(Default)]
pub(crate) struct Published {
    at: Option<Instant>,
    /// A recorder was there the whole last time.
    heard: bool,
    histograms: Vec<(&'static str, Histogram)>,
}

impl Published {
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.at
            .is_none_or(|at| now.saturating_duration_since(at) >= EVERY)
    }

    /// Passes all numbers to the facade. For a histogram, these are the durations added since the last call,
    /// each as the end of its bucket.
    pub(crate) fn publish(&mut self, pool: &str, families: Vec<Family>, now: Instant) {
        self.at = Some(now);
        let (describe, mut heard) = (!self.heard, true);
        for Family {
            name,
            help,
            numbers,
        } in families
        {
            match numbers {
                Numbers::Counter(labelled) => {
                    if describe {
                        describe_counter!(name, help);
                    }
                    for (labels, value) in labelled.with_labels(pool) {
                        counter!(name, labels).absolute(value);
                    }
                }
                Numbers::Gauge(labelled) => {
                    if describe {
                        describe_gauge!(name, help);
                    }
                    for (labels, value) in labelled.with_labels(pool) {
                        heard &= is_taken(value as f64, |value| gauge!(name, labels).set(value));
                    }
                }
                Numbers::Histogram(now) => {
                    if describe {
                        describe_histogram!(name, metrics::Unit::Seconds, help);
                    }
                    self.add(pool, name, now);
                }
            }
        }
        self.heard = heard;
    }

    fn add(&mut self, pool: &str, name: &'static str, now: Histogram) {
        let place = self.histograms.iter().position(|(n, _)| *n == name);
        let before = match place {
            Some(place) => self.histograms.swap_remove(place).1,
            None => Histogram::default(),
        };
        let handle = histogram!(name, "pool" => pool.to_owned());
        let mut added = now.since(&before);
        let is_heard = added.all(|(duration, n)| {
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            is_taken(duration.as_secs_f64(), |value| {
                handle.record_many(value, n);
            })
        });
        drop(added);
        self.histograms
            .push((name, if is_heard { now } else { before }));
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

impl Labelled {
    fn with_labels(self, pool: &str) -> impl Iterator<Item = (Vec<Label>, u64)> {
        let Labelled { label, values } = self;
        values.into_iter().map(move |(value, number)| {
            let mut labels = vec![Label::new("pool", pool.to_owned())];
            labels.extend(label.map(|label| Label::new(label, value)));
            (labels, number)
        })
    }
}
