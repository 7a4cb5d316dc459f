//! The dashboard and the alert rules in the repository name only what a pool's metrics have.

use std::collections::HashSet;

use leasepool::{Database, Pool};

use crate::server::Server;

const FILES: [(&str, &str); 2] = [
    (
        "leasepool.json",
        include_str!("../../docs/grafana/leasepool.json"),
    ),
    ("alerts.yml", include_str!("../../docs/grafana/alerts.yml")),
];

/// The names that begin with `leasepool_`, each with the text behind it.
fn names(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices("leasepool_").map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        rest.split_at(end.unwrap_or(rest.len()))
    })
}

/// `label="value"` in the braces that follow, however the quotes are escaped.
fn matchers(behind: &str) -> Vec<String> {
    let Some(braced) = behind.strip_prefix('{') else {
        return Vec::new();
    };
    let braced = braced
        .split('}')
        .next()
        .unwrap_or_default()
        .replace('\\', "");
    let matchers = braced.split(',').filter(|matcher| !matcher.contains("=~"));
    matchers.map(str::to_owned).collect()
}

#[test]
fn dashboards_name_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::file(folder.path().join("a.db"));
    let pool = Pool::builder(database).build().unwrap();
    drop(pool.lease("a").unwrap());
    let server = Server::start(&pool, 0);
    let (_, text) = server.get("/status/metrics");
    let known: HashSet<&str> = names(&text).map(|(name, _)| name).collect();
    assert!(known.len() > 30, "{known:?}");
    let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for (file, text) in FILES {
        let mut found = 0;
        for (name, behind) in names(text) {
            assert!(known.contains(name), "{file}: no {name}");
            for matcher in matchers(behind) {
                let has = |line: &&str| line.starts_with(name) && line.contains(&matcher);
                assert!(series.iter().any(has), "{file}: no {name} has {matcher}");
            }
            found += 1;
        }
        assert!(found > 5, "{file}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(FILES[0].1).unwrap();
    assert_eq!(dashboard["panels"].as_array().unwrap().len(), 12);
    server.stop();
}

/// Prometheus compares only series whose labels are equal. A rule over two values of one label never fires without
/// `ignoring` or `on`, and nothing says so.
#[test]
fn rules_compare_what_can_be_compared() {
    let expressions = FILES[1]
        .1
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    let mut compared = 0;
    for expression in expressions {
        let sides: Vec<_> = names(expression)
            .map(|(_, behind)| matchers(behind))
            .collect();
        if sides.windows(2).any(|two| two[0] != two[1]) {
            let says = ["ignoring (", "on ("]
                .iter()
                .any(|word| expression.contains(word));
            assert!(says, "never fires: {expression}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

/// What `promtool check metrics` asks of names.
#[test]
fn names_follow_the_rules_of_prometheus() {
    let pool = Pool::builder(Database::memory()).build().unwrap();
    drop(pool.lease("a").unwrap());
    let server = Server::start(&pool, 0);
    let (_, text) = server.get("/status/metrics");
    let mut seen = HashSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(seen.insert(name), "{name} twice");
        assert!(
            name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'),
            "{name}"
        );
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} {kind}");
        // Durations are histograms, except those that are settings.
        let is_setting = name == "leasepool_lease_timeout_seconds";
        assert_eq!(
            name.ends_with("_seconds") && !is_setting,
            kind == "histogram",
            "{name} {kind}"
        );
        for unit in ["_ms", "_millis", "_micros", "_kb", "_percent"] {
            assert!(!name.contains(unit), "{name}");
        }
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
    assert!(seen.len() > 20);
    server.stop();
}
