//! The feature `metrics`: the maintenance thread passes a pool's numbers to the `metrics` facade.
//! No lease and no return pays for it.

use std::time::{Duration, Instant};

use metrics::{
    Label, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::families::{Family, Labelled, Numbers};
use super::histogram::Histogram;

/// How often the numbers are passed on. Counting descriptors costs a microsecond for each descriptor of the
/// process.
const EVERY: Duration = Duration::from_secs(1);

/// The numbers that the facade got last.
#[derive(Default)]
pub(crate) struct Published {
    at: Option<Instant>,
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
        let first = self.at.replace(now).is_none();
        for Family {
            name,
            help,
            numbers,
        } in families
        {
            match numbers {
                Numbers::Counter(labelled) => {
                    if first {
                        describe_counter!(name, help);
                    }
                    for (labels, value) in labelled.with_labels(pool) {
                        counter!(name, labels).absolute(value);
                    }
                }
                Numbers::Gauge(labelled) => {
                    if first {
                        describe_gauge!(name, help);
                    }
                    for (labels, value) in labelled.with_labels(pool) {
                        gauge!(name, labels).set(value as f64);
                    }
                }
                Numbers::Histogram(now) => {
                    if first {
                        describe_histogram!(name, metrics::Unit::Seconds, help);
                    }
                    self.add(pool, name, now);
                }
            }
        }
    }

    fn add(&mut self, pool: &str, name: &'static str, now: Histogram) {
        let place = self.histograms.iter().position(|(n, _)| *n == name);
        let before = match place {
            Some(place) => self.histograms.swap_remove(place).1,
            None => Histogram::default(),
        };
        let handle = histogram!(name, "pool" => pool.to_owned());
        for (duration, n) in now.since(&before) {
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            handle.record_many(duration.as_secs_f64(), n);
        }
        self.histograms.push((name, now));
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
