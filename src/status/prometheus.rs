//! Prometheus' text format, version 0.0.4.
//! It does not decide the names of the numbers.

use std::collections::{BTreeSet, HashSet};
use std::fmt::{self, Write};
use std::time::Duration;

use crate::observe::families::{Family, Numbers, Sample};
use crate::observe::histogram::Histogram;

/// Where the buckets of histograms end: each where an internal one does, in order.
pub(super) struct Buckets(Vec<Duration>);

impl Buckets {
    /// Buckets that end at about these durations.
    pub(super) fn near(bounds: impl IntoIterator<Item = Duration>) -> Self {
        let ends = bounds.into_iter().map(Histogram::end_of_bucket);
        Buckets(ends.collect::<BTreeSet<_>>().into_iter().collect())
    }
}

impl Default for Buckets {
    fn default() -> Self {
        const MICROS: [u64; 14] = [
            1, 10, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
            30_000_000, 60_000_000,
        ];
        Buckets::near(MICROS.map(Duration::from_micros))
    }
}

/// A duration in seconds, exactly.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = format!("{}.{:09}", self.0.as_secs(), self.0.subsec_nanos());
        f.write_str(all.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// The numbers of a pool, with its name.
pub(super) type Numbered = (String, Vec<Family>);

/// Each family once, with the samples of all pools: a text may have `# HELP` and `# TYPE` only once for a name.
pub(super) fn text(pools: &[Numbered], buckets: &Buckets) -> String {
    let mut text = String::new();
    let mut written = HashSet::new();
    for family in pools.iter().flat_map(|(_, families)| families) {
        if written.insert(family.name) {
            // Writing to a string cannot fail.
            let _ = write_family(&mut text, pools, family, buckets);
        }
    }
    text
}

fn write_family(
    text: &mut String,
    pools: &[Numbered],
    family: &Family,
    buckets: &Buckets,
) -> fmt::Result {
    let Family { name, help, .. } = family;
    let kind = match family.numbers {
        Numbers::Counter(_) => "counter",
        Numbers::Gauge(_) => "gauge",
        Numbers::Histogram(_) => "histogram",
    };
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for (pool, families) in pools {
        for family in families.iter().filter(|family| family.name == *name) {
            let pool = format!("{}=\"{}\"", family.pool_label, Escaped(pool));
            write_samples(text, &pool, family, buckets)?;
        }
    }
    Ok(())
}

fn write_samples(text: &mut String, pool: &str, family: &Family, buckets: &Buckets) -> fmt::Result {
    let name = family.name;
    match &family.numbers {
        Numbers::Counter(samples) => write_each(text, pool, name, samples),
        Numbers::Gauge(samples) => write_each(text, pool, name, samples),
        Numbers::Histogram(histogram) => write_histogram(text, pool, name, histogram, buckets),
    }
}

fn write_each<T: fmt::Display>(
    text: &mut String,
    pool: &str,
    name: &str,
    samples: &[Sample<T>],
) -> fmt::Result {
    for Sample { labels, value } in samples {
        write!(text, "{name}{{{pool}")?;
        for (label, of) in labels {
            write!(text, ",{label}=\"{}\"", Escaped(of))?;
        }
        writeln!(text, "}} {value}")?;
    }
    Ok(())
}

fn write_histogram(
    text: &mut String,
    pool: &str,
    name: &str,
    histogram: &Histogram,
    buckets: &Buckets,
) -> fmt::Result {
    for &end in &buckets.0 {
        let (within, le) = (histogram.count_up_to(end), Seconds(end));
        writeln!(text, "{name}_bucket{{{pool},le=\"{le}\"}} {within}")?;
    }
    let (count, sum) = (histogram.count(), Seconds(histogram.sum()));
    writeln!(text, "{name}_bucket{{{pool},le=\"+Inf\"}} {count}")?;
    writeln!(text, "{name}_sum{{{pool}}} {sum}")?;
    writeln!(text, "{name}_count{{{pool}}} {count}")
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

    fn text_of(pools: &[Numbered]) -> String {
        text(pools, &Buckets::default())
    }

    #[test]
    fn buckets_end_where_internal_ones_do_and_are_written_exactly() {
        let near = |nanos: &[u64]| {
            let buckets = Buckets::near(nanos.iter().copied().map(Duration::from_nanos));
            buckets
                .0
                .into_iter()
                .map(|end| Seconds(end).to_string())
                .collect::<Vec<_>>()
        };
        assert!(near(&[]).is_empty());
        // In any order, and each once.
        let ends = near(&[1_000_000, 0, 1_000_001, u64::MAX, 63]);
        assert_eq!(ends, ["0.000000063", "0.001048575", "140737.488355327"]);
        for nanos in (0..40).map(|power| 3_u64.pow(power)) {
            for end in near(&[nanos, nanos + 1, nanos * 2]) {
                let (seconds, fraction) = end.split_once('.').unwrap();
                let written = format!("{seconds}{fraction:0<9}").parse::<u64>().unwrap();
                let end = Histogram::end_of_bucket(Duration::from_nanos(written));
                assert_eq!(end, Duration::from_nanos(written));
            }
        }
        assert_eq!(Seconds(Duration::from_secs(30)).to_string(), "30");
        assert_eq!(Seconds(Duration::ZERO).to_string(), "0");
    }

    #[test]
    fn each_family_is_there_once_with_all_samples() {
        let numbered = |pool: &str| {
            let family = |name, help, numbers| Family {
                name,
                help,
                pool_label: "pool",
                numbers,
            };
            let (labels, value) = (Vec::new(), 1);
            let counter = Numbers::Counter(vec![Sample { labels, value }]);
            let (labels, value) = (vec![("of", "a\"b")], 2.5);
            let gauge = Numbers::Gauge(vec![Sample { labels, value }]);
            let families = vec![family("a_total", "As.", counter), family("b", "Bs.", gauge)];
            (pool.to_owned(), families)
        };
        let alone = "# HELP a_total As.\n# TYPE a_total counter\na_total{pool=\"x\"} 1\n\
                     # HELP b Bs.\n# TYPE b gauge\nb{pool=\"x\",of=\"a\\\"b\"} 2.5\n";
        assert_eq!(text_of(&[numbered("x")]), alone);
        let merged = text_of(&[numbered("x"), numbered("y")]);
        let wanted = "# HELP a_total As.\n# TYPE a_total counter\na_total{pool=\"x\"} 1\na_total{pool=\"y\"} 1\n\
                      # HELP b Bs.\n# TYPE b gauge\nb{pool=\"x\",of=\"a\\\"b\"} 2.5\nb{pool=\"y\",of=\"a\\\"b\"} 2.5\n";
        assert_eq!(merged, wanted);
        assert_eq!(text_of(&[]), "");
    }
}
