//! Joins what the packages of the bench `versus` printed with `--json`: a table of medians as Markdown on standard output,
//! and a chart for each kind of work as SVG.
//!
//! ```sh
//! cargo run --release -p versus-table -- FOLDER FILE...
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use versus_table::{Line, chart};
use versus_workload::{Round, Sync, What, medians, table};

/// What a chart shows: the rates of all contenders by the number of clients.
type Case = (What, Sync, i64);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments
        .next()
        .ok_or("give a folder for the charts, and files of rounds")?;
    let mut rounds = Vec::new();
    for file in arguments {
        for line in std::fs::read_to_string(&file)?.lines() {
            rounds.push(serde_json::from_str::<Round>(line)?);
        }
    }
    let rounds = medians(&rounds);
    print!("{}", table(&rounds));
    std::fs::create_dir_all(&folder)?;
    let mut cases: BTreeMap<Case, Vec<&Round>> = BTreeMap::new();
    for round in &rounds {
        let case = (round.what, round.sync, round.agents);
        cases.entry(case).or_default().push(round);
    }
    for (case, rounds) in cases {
        let clients: Vec<usize> = rounds.iter().map(|round| round.clients).collect();
        if clients.iter().any(|n| *n != clients[0]) {
            draw(&folder, case, &rounds)?;
        }
    }
    Ok(())
}

fn draw(
    folder: &Path,
    (what, sync, agents): Case,
    rounds: &[&Round],
) -> Result<(), Box<dyn Error>> {
    let name = format!("{what:?}-{sync:?}-{agents}").to_lowercase();
    let path = folder.join(name).with_extension("svg");
    let mut lines: BTreeMap<&str, Line<'_>> = BTreeMap::new();
    for round in rounds {
        let contender = round.contender.as_str();
        let line = lines
            .entry(contender)
            .or_insert_with(|| Line::new(contender));
        line.points.push((round.clients as f64, round.per_second));
    }
    let mut lines: Vec<_> = lines.into_values().collect();
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        line.bold = line.label.starts_with("leasepool");
    }
    let title = match what {
        What::Checkout | What::Read => format!("{what:?}, {agents} agents"),
        _ => format!("{what:?}, {}, {agents} agents", sync.name()),
    };
    chart(&path, [&title, "clients", "per second"], &lines)
}
