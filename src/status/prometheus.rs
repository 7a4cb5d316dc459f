//! Prometheus' text format, version 0.0.4.
//! It does not decide the names of the numbers.

use std::collections::HashSet;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::observe::families::{Family, Labelled, Numbers};
use crate::observe::histogram::Histogram;

/// About the upper bounds of the buckets, in microseconds: each bucket ends where an internal one does.
const BOUNDS: [u64; 14] = [
    1, 10, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    30_000_000, 60_000_000,
];

/// The numbers of a pool, with its name.
pub(super) type Numbered = (String, Vec<Family>);

/// Each family once, with the samples of all pools: a text may have `# HELP` and `# TYPE` only once for a name.
pub(super) fn text(pools: &[Numbered]) -> String {
    let mut text = String::new();
    let mut written = HashSet::new();
    for family in pools.iter().flat_map(|(_, families)| families) {
        if written.insert(family.name) {
            // Writing to a string cannot fail.
            let _ = write_family(&mut text, pools, family);
        }
    }
    text
}

fn write_family(text: &mut String, pools: &[Numbered], family: &Family) -> fmt::Result {
    let Family { name, help, .. } = family;
    let kind = match family.numbers {
        Numbers::Counter(_) => "counter",
        Numbers::Gauge(_) => "gauge",
        Numbers::Histogram(_) => "histogram",
    };
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for (pool, families) in pools {
        for family in families.iter().filter(|family| family.name == *name) {
            write_samples(text, &Escaped(pool), family)?;
        }
    }
    Ok(())
}

fn write_samples(text: &mut String, pool: &Escaped<'_>, family: &Family) -> fmt::Result {
    let name = family.name;
    match &family.numbers {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_there_once_with_all_samples() {
        let numbered = |pool: &str| {
            let one = |value| Labelled {
                label: None,
                values: vec![("", value)],
            };
            let family = |name, help, numbers| Family {
                name,
                help,
                numbers,
            };
            let families = vec![
                family("a_total", "As.", Numbers::Counter(one(1))),
                family("b", "Bs.", Numbers::Gauge(one(2))),
            ];
            (pool.to_owned(), families)
        };
        let alone = "# HELP a_total As.\n# TYPE a_total counter\na_total{pool=\"x\"} 1\n\
                     # HELP b Bs.\n# TYPE b gauge\nb{pool=\"x\"} 2\n";
        assert_eq!(text(&[numbered("x")]), alone);
        let merged = text(&[numbered("x"), numbered("y")]);
        let wanted = "# HELP a_total As.\n# TYPE a_total counter\na_total{pool=\"x\"} 1\na_total{pool=\"y\"} 1\n\
                      # HELP b Bs.\n# TYPE b gauge\nb{pool=\"x\"} 2\nb{pool=\"y\"} 2\n";
        assert_eq!(merged, wanted);
        assert_eq!(text(&[]), "");
    }
}
