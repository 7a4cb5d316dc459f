//! Joins what the packages of the bench `versus` printed with `--json`: a table of medians as Markdown on standard output,
//! and a chart for each kind of work as SVG.
//!
//! ```sh
//! cargo run --release -p versus-table -- FOLDER FILE...
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use versus_workload::{Round, Sync, What, medians, table};

const SIZE: (u32, u32) = (900, 460);

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
            chart(&folder, case, &rounds)?;
        }
    }
    Ok(())
}

fn chart(
    folder: &Path,
    (what, sync, agents): Case,
    rounds: &[&Round],
) -> Result<(), Box<dyn Error>> {
    let name = format!("{what:?}-{sync:?}-{agents}").to_lowercase();
    let path = folder.join(name).with_extension("svg");
    let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for round in rounds {
        let points = lines.entry(&round.contender).or_default();
        points.push((round.clients as f64, round.per_second));
    }
    let most = rounds
        .iter()
        .map(|round| round.per_second)
        .fold(1.0, f64::max);
    let clients = rounds
        .iter()
        .map(|round| round.clients)
        .max()
        .unwrap_or(1)
        .max(2);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let title = match what {
        What::Checkout | What::Read => format!("{what:?}, {agents} agents"),
        _ => format!("{what:?}, {}, {agents} agents", sync.name()),
    };
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((1.0..clients as f64).log_scale(), 0.0..most * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("clients")
        .y_desc("per second")
        .x_label_formatter(&|clients| format!("{clients:.0}"))
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .draw()?;
    for (index, (contender, mut points)) in lines.into_iter().enumerate() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let color = Palette99::pick(index).to_rgba();
        let width = if contender.starts_with("leasepool") {
            3
        } else {
            1
        };
        let style = color.stroke_width(width);
        let marks = points.clone();
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(contender)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        let circles = marks
            .into_iter()
            .map(|at| Circle::new(at, 3, color.filled()));
        chart.draw_series(circles)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
