//! Charts of lines, as SVG.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 460);

/// A line of a chart.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// What it is called.
    pub label: &'a str,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
    /// Whether it stands out.
    pub bold: bool,
}

impl<'a> Line<'a> {
    /// A line of no points yet.
    pub fn new(label: &'a str) -> Self {
        Line {
            label,
            points: Vec::new(),
            bold: false,
        }
    }
}

/// Draws lines. The horizontal axis is logarithmic. `titles`: of the chart, and of what goes across and up.
///
/// # Errors
/// If the file cannot be written.
pub fn chart(path: &Path, titles: [&str; 3], lines: &[Line<'_>]) -> Result<(), Box<dyn Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let first = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let last = points().map(|point| point.0).fold(2.0, f64::max);
    let most = points().map(|point| point.1).fold(1.0, f64::max);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let [title, across, up] = titles;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((first..last).log_scale(), 0.0..most * 1.05)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(across).y_desc(up);
    mesh.x_label_formatter(&|x| format!("{x:.0}"));
    mesh.y_label_formatter(&|y| format!("{y:.0}"));
    mesh.draw()?;
    for (index, line) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let style = color.stroke_width(if line.bold { 3 } else { 1 });
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        let mark = |at: &(f64, f64)| Circle::new(*at, 3, color.filled());
        chart.draw_series(line.points.iter().map(mark))?;
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperLeft);
    labels.background_style(WHITE.mix(0.8)).border_style(BLACK);
    labels.draw()?;
    area.present()?;
    Ok(())
}
