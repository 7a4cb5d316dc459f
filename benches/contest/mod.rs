//! What the benches that compare have in common: how a contender did in a round, and the table at the end.

use std::time::Duration;

use serde_json::{Value, json};

/// How one contender did in one round.
pub(crate) struct Round {
    rate: f64,
    /// In nanoseconds, sorted.
    latencies: Vec<u64>,
    /// Processor time for each request, of the server or of the whole program, in microseconds, where that was looked at.
    cpu: Option<f64>,
}

impl Round {
    pub(crate) fn new(mut latencies: Vec<u64>, took: Duration, cpu: Option<Duration>) -> Self {
        latencies.sort_unstable();
        let count = latencies.len() as f64;
        Round {
            rate: count / took.as_secs_f64(),
            latencies,
            cpu: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / count),
        }
    }

    fn micros(&self, quantile: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * quantile).ceil() as usize;
        let rank = rank.clamp(1, self.latencies.len().max(1));
        self.latencies
            .get(rank - 1)
            .map_or(f64::NAN, |ns| *ns as f64 / 1e3)
    }
}

type Column = (&'static str, fn(&Round) -> f64);

const LATENCIES: [Column; 4] = [
    ("p50 µs", |round| round.micros(0.5)),
    ("p99 µs", |round| round.micros(0.99)),
    ("p99.9 µs", |round| round.micros(0.999)),
    ("max µs", |round| round.micros(1.0)),
];

fn median(rounds: &[Round], value: fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The medians of all rounds; ratios against the first contender.
pub(crate) fn table(what: &str, contenders: &[(&str, Vec<Round>)]) {
    let mut columns = LATENCIES.to_vec();
    let mut all = contenders.iter().flat_map(|(_, rounds)| rounds);
    if all.all(|round| round.cpu.is_some()) {
        columns.push(("CPU µs", |round| round.cpu.unwrap_or(f64::NAN)));
    }
    print!("{:<32} {what:>11} {:>11}", "", "x leasepool");
    columns.iter().for_each(|(title, _)| print!(" {title:>9}"));
    println!();
    let mut base = None;
    for (contender, rounds) in contenders {
        let rate = median(rounds, |round| round.rate);
        let ratio = rate / *base.get_or_insert(rate);
        print!("{contender:<32} {rate:>11.0} {ratio:>11.2}");
        for (_, value) in &columns {
            print!(" {:>9.0}", median(rounds, *value));
        }
        println!();
    }
}

/// The same medians, one object for each contender.
#[allow(dead_code, reason = "not every bench has them")]
pub(crate) fn json(contenders: &[(&str, Vec<Round>)]) -> Vec<Value> {
    let of = |(contender, rounds): &(&str, Vec<Round>)| {
        let mut object = json!({
            "contender": contender,
            "per_second": median(rounds, |round| round.rate),
        });
        for (title, value) in LATENCIES {
            object[title] = json!(median(rounds, value));
        }
        object
    };
    contenders.iter().map(of).collect()
}
