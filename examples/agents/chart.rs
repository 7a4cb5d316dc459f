//! Descriptors over time: a few lines in the terminal, or an SVG.

use std::fmt::Write;
use std::path::Path;

use crate::report::{Report, Sample};

/// An act with its samples.
pub(crate) struct Curve<'a> {
    pub(crate) report: &'a Report,
    pub(crate) samples: &'a [Sample],
}

const WIDTH: usize = 60;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One line for each act, from its start to its end; a full block is the descriptor limit.
pub(crate) fn terminal(curves: &[Curve<'_>]) -> String {
    let mut text = String::from("descriptors on the database over time (full height: the limit)\n");
    for Curve { report, samples } in curves {
        let limit = report.fd_limit.max(1);
        let line: String = (0..WIDTH)
            .map(|column| {
                let at = report.elapsed_s * (column + 1) as f64 / WIDTH as f64;
                // The peak belongs to the last column: an act may die between two samples.
                let found = match column + 1 == WIDTH {
                    true => Some(report.peak_all),
                    false => samples
                        .iter()
                        .rev()
                        .find(|sample| sample.at_s <= at)
                        .map(|sample| sample.descriptors.all()),
                };
                let level = found.unwrap_or(0) * BARS.len() as u64 / limit;
                match found {
                    None => ' ',
                    Some(_) => BARS[(level as usize).min(BARS.len() - 1)],
                }
            })
            .collect();
        let _ = writeln!(text, "  {:<7}{line} {:.2} s", report.act, report.elapsed_s);
    }
    text
}

pub(crate) fn write_svg(path: &Path, curves: &[Curve<'_>]) -> Result<(), String> {
    std::fs::write(path, svg(curves)).map_err(|error| format!("chart {}: {error}", path.display()))
}

fn svg(curves: &[Curve<'_>]) -> String {
    const LEFT: f64 = 50.0;
    const TOP: f64 = 40.0;
    const WIDE: f64 = 600.0;
    const HIGH: f64 = 260.0;
    let limit = curves.iter().map(|c| c.report.fd_limit).max().unwrap_or(1) as f64;
    let y = |n: f64| TOP + HIGH * (1.0 - (n / limit).min(1.0));
    let mut text = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 680 360\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"680\" height=\"360\" fill=\"#fff\"/>\n\
         <text x=\"50\" y=\"22\" font-size=\"14\">Descriptors on the database, from the start of each act \
         to its end</text>\n",
    );
    let mut level = |n: f64, label: &str, colour: &str| {
        let at = y(n);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\" \
             stroke-dasharray=\"4 3\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{label}</text>",
            LEFT + WIDE,
            LEFT + WIDE,
            at - 4.0
        );
    };
    level(limit, &format!("limit {limit}"), "#666");
    if let Some(ceiling) = curves.iter().find_map(|c| c.report.fd_ceiling) {
        level(ceiling as f64, &format!("ceiling {ceiling}"), "#0a7d4b");
    }
    for (i, Curve { report, samples }) in curves.iter().enumerate() {
        let colour = match report.act.as_str() {
            "owned" => "#c0392b",
            "pinned" => "#b9770e",
            _ => "#0a7d4b",
        };
        let mut points = format!("{LEFT:.1},{:.1}", y(0.0));
        for sample in *samples {
            let x = LEFT + WIDE * (sample.at_s / report.elapsed_s.max(1e-9)).min(1.0);
            let _ = write!(points, " {x:.1},{:.1}", y(sample.descriptors.all() as f64));
        }
        let _ = write!(
            points,
            " {:.1},{:.1}",
            LEFT + WIDE,
            y(report.peak.all() as f64)
        );
        let _ = writeln!(
            text,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}: {:.2} s, {} turns, {} errors</text>",
            LEFT + 210.0 * i as f64,
            TOP + HIGH + 30.0,
            report.act,
            report.elapsed_s,
            report.turns,
            report.errors,
        );
    }
    text.push_str("</svg>\n");
    text
}
