//! The metrics of several pools as one text: each family once, with the samples of all.
//! It does not know what a family means.

/// A text may have each `# HELP` and `# TYPE` only once, and all samples of a family together.
pub(super) fn merge(texts: Vec<String>) -> String {
    let mut texts = texts.into_iter();
    let first = texts.next().unwrap_or_default();
    let Some(second) = texts.next() else {
        return first;
    };
    let mut families: Vec<Family> = Vec::new();
    for text in [first, second].into_iter().chain(texts) {
        add(&mut families, &text);
    }
    families.into_iter().map(|f| f.head + &f.samples).collect()
}

struct Family {
    name: String,
    /// The lines that begin with `#`.
    head: String,
    samples: String,
}

fn add(families: &mut Vec<Family>, text: &str) {
    let mut current = None;
    for line in text.split_inclusive('\n') {
        let comment = line
            .strip_prefix("# HELP ")
            .or_else(|| line.strip_prefix("# TYPE "));
        if let Some(rest) = comment {
            let name = rest.split_whitespace().next().unwrap_or_default();
            let place = families.iter().position(|family| family.name == name);
            let place = place.unwrap_or_else(|| {
                families.push(Family {
                    name: name.to_owned(),
                    head: String::new(),
                    samples: String::new(),
                });
                families.len() - 1
            });
            current = Some(place);
        }
        let Some(family) = current.and_then(|place| families.get_mut(place)) else {
            continue;
        };
        if line.starts_with('#') {
            if !family.head.contains(line) {
                family.head.push_str(line);
            }
        } else {
            family.samples.push_str(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_there_once_with_all_samples() {
        let text = |pool: &str| {
            format!(
                "# HELP a_total As.\n# TYPE a_total counter\na_total{{pool=\"{pool}\"}} 1\n\
                 # HELP b Bs.\n# TYPE b gauge\nb{{pool=\"{pool}\"}} 2\n"
            )
        };
        assert_eq!(merge(vec![text("x")]), text("x"));
        let merged = merge(vec![text("x"), text("y")]);
        let wanted = "# HELP a_total As.\n# TYPE a_total counter\na_total{pool=\"x\"} 1\na_total{pool=\"y\"} 1\n\
                      # HELP b Bs.\n# TYPE b gauge\nb{pool=\"x\"} 2\nb{pool=\"y\"} 2\n";
        assert_eq!(merged, wanted);
        assert_eq!(merge(Vec::new()), "");
    }
}
