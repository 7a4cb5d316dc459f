//! Prometheus' text format, version 0.0.4.
//! It does not decide the names of the numbers.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::observe::families::{Family, Labelled, Numbers};
use crate::observe::histogram::Histogram;
use crate::pool::Pool;
use crate::pool::pooled::Backend;

/// About the upper bounds of the buckets, in microseconds: each bucket ends where an internal one does.
const BOUNDS: [u64; 14] = [
    1, 10, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    30_000_000, 60_000_000,
];

pub(super) fn text<B: Backend>(pool: &Pool<B>) -> String {
    let mut text = String::new();
    let name = Escaped(pool.name());
    for family in pool.families() {
        // Writing to a string cannot fail.
        let _ = write_family(&mut text, &name, &family);
    }
    text
}

fn write_family(text: &mut String, pool: &Escaped<'_>, family: &Family) -> fmt::Result {
    let Family {
        name,
        help,
        numbers,
    } = family;
    let kind = match numbers {
        Numbers::Counter(_) => "counter",
        Numbers::Gauge(_) => "gauge",
        Numbers::Histogram(_) => "histogram",
    };
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    match numbers {
        Numbers::Counter(labelled) | Numbers::Gauge(labelled) => {
            let Labelled { label, values } = labelled;
            for (value, number) in values {
                write!(text, "{name}{{pool=\"{pool}\"")?;
                if let Some(label) = label {
                    write!(text, ",{label}=\"{value}\"")?;
                }
                writeln!(text, "}} {number}")?;
            }
            Ok(())
        }
        Numbers::Histogram(histogram) => write_histogram(text, pool, name, histogram),
    }
}

fn write_histogram(
    text: &mut String,
    pool: &Escaped<'_>,
    name: &str,
    histogram: &Histogram,
) -> fmt::Result {
    for micros in BOUNDS {
        let end = Histogram::end_of_bucket(Duration::from_micros(micros));
        let (within, le) = (histogram.count_up_to(end), end.as_secs_f64());
        writeln!(
            text,
            "{name}_bucket{{pool=\"{pool}\",le=\"{le}\"}} {within}"
        )?;
    }
    let (count, sum) = (histogram.count(), histogram.sum().as_secs_f64());
    writeln!(text, "{name}_bucket{{pool=\"{pool}\",le=\"+Inf\"}} {count}")?;
    writeln!(text, "{name}_sum{{pool=\"{pool}\"}} {sum}")?;
    writeln!(text, "{name}_count{{pool=\"{pool}\"}} {count}")
}

/// The value of a label, escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
