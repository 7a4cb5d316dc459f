//! What the `metrics` facade is told, kept for a test to look at.
//! Knows nothing of leasepool; a series is `NAME LABEL=VALUE ...`, with its labels sorted.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata,
    SharedString, Unit,
};

/// The latest value of each counter and gauge.
type Values = HashMap<String, f64>;
/// All that was recorded in each histogram.
type Recorded = HashMap<String, Vec<f64>>;

#[derive(Default, Clone)]
pub(crate) struct Recorder(
    Arc<Mutex<(Values, Recorded)>>,
    Arc<Mutex<HashSet<String>>>,
    Arc<Mutex<Option<Call>>>,
);

type Call = Box<dyn FnOnce() + Send>;

impl Recorder {
    pub(crate) fn seen(&self) -> (Values, Recorded) {
        self.0.lock().unwrap().clone()
    }

    /// Whether the name was described.
    pub(crate) fn is_described(&self, name: &str) -> bool {
        self.1.lock().unwrap().contains(name)
    }

    /// Makes the recorder run `call` when it is asked for a gauge.
    pub(crate) fn call_once(&self, call: impl FnOnce() + Send + 'static) {
        *self.2.lock().unwrap() = Some(Box::new(call));
    }

    fn describe(&self, name: &KeyName) {
        self.1.lock().unwrap().insert(name.as_str().to_owned());
    }

    fn series(&self, key: &Key) -> Arc<Series> {
        let labels = key.labels();
        let mut labels: Vec<_> = labels
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        Arc::new(Series {
            name: format!("{} {}", key.name(), labels.join(" ")),
            recorder: self.clone(),
        })
    }
}

struct Series {
    name: String,
    recorder: Recorder,
}

impl Series {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let (values, _) = &mut *self.recorder.0.lock().unwrap();
        let value = values.entry(self.name.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Series {
    fn increment(&self, by: u64) {
        self.change(|value| value + by as f64);
    }

    fn absolute(&self, total: u64) {
        self.change(|value| value.max(total as f64));
    }
}

impl GaugeFn for Series {
    fn increment(&self, by: f64) {
        self.change(|value| value + by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| value - by);
    }

    fn set(&self, to: f64) {
        self.change(|_| to);
    }
}

impl HistogramFn for Series {
    fn record(&self, value: f64) {
        let (_, recorded) = &mut *self.recorder.0.lock().unwrap();
        recorded.entry(self.name.clone()).or_default().push(value);
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&name);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&name);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&name);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let call = self.2.lock().unwrap().take();
        if let Some(call) = call {
            call();
        }
        Gauge::from_arc(self.series(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.series(key))
    }
}
