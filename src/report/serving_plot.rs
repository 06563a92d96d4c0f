//! Plots of a deployment: throughput and cost against speed per user, cost against utilisation,
//! memory. Each SVG stands beside the CSV that it was drawn from.

use std::fmt::Write;
use std::path::Path;

use plotters::prelude::*;

use crate::files::csv::text_cell;
use crate::files::write_atomic;
use crate::plan::size::{Choice, SizeAnswer, SizeInputs};
use crate::{Error, Result};

/// Plans in one plot; more cannot be told apart.
const PLANS: usize = 6;
/// Colours that differ for colour-blind readers too (Okabe and Ito).
const COLOURS: [RGBColor; PLANS] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// A named line.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// What a plot shows.
struct Plot<'a> {
    file: &'a str,
    title: &'a str,
    x: &'a str,
    y: &'a str,
    lines: Vec<Line>,
}

/// Writes all plots of a size with their CSV files into a folder.
///
/// # Errors
/// [`Error::Io`] when a file cannot be written.
pub fn write_all(folder: &Path, inputs: &SizeInputs, answer: &SizeAnswer) -> Result<()> {
    let plans: Vec<&Choice> =
        std::iter::once(&answer.best).chain(&answer.others).take(PLANS).collect();
    let plots = [
        Plot {
            file: "throughput",
            title: "Throughput against speed per user",
            x: "output tokens/s per user",
            y: "output tokens/s per GPU",
            lines: lines(&plans, |c, batch| {
                let (rate, each) = c.curve.throughput(batch);
                Some((1.0 / each.0, rate / c.layout.devices() as f64))
            }),
        },
        Plot {
            file: "cost",
            title: "Cost against speed per user (all on output, full engine)",
            x: "output tokens/s per user",
            y: "$ per million output tokens",
            lines: lines(&plans, |c, batch| {
                let (rate, each) = c.curve.throughput(batch);
                let per_s = c.layout.devices() as f64 * c.price.0 / 3600.0;
                Some((1.0 / each.0, per_s / rate * 1e6))
            }),
        },
        Plot {
            file: "utilisation",
            title: "Cost against utilisation (all on output)",
            x: "utilisation",
            y: "$ per million output tokens",
            lines: utilisation(&plans, inputs),
        },
    ];
    for plot in &plots {
        write_line_plot(folder, plot)?;
    }
    memory(folder, &answer.best)
}

/// One line per plan over its batch sizes.
fn lines(plans: &[&Choice], point: impl Fn(&Choice, usize) -> Option<(f64, f64)>) -> Vec<Line> {
    plans
        .iter()
        .map(|c| {
            let mut batch = 1;
            let mut points = Vec::new();
            while batch <= c.curve.cap() {
                points.extend(point(c, batch));
                batch = (batch * 5 / 4).max(batch + 1);
            }
            Line { name: format!("{} {}", c.device, c.layout), points }
        })
        .collect()
}

fn utilisation(plans: &[&Choice], inputs: &SizeInputs) -> Vec<Line> {
    plans
        .iter()
        .map(|c| {
            let full = c.capacity * inputs.lengths.output;
            let per_s = c.layout.devices() as f64 * c.price.0 / 3600.0;
            let points =
                (2..=20).map(|i| f64::from(i) / 20.0).map(|u| (u, per_s / (full * u) * 1e6));
            Line { name: format!("{} {}", c.device, c.layout), points: points.collect() }
        })
        .collect()
}

fn write_line_plot(folder: &Path, plot: &Plot) -> Result<()> {
    let mut csv = format!("plan,{},{}\n", text_cell(plot.x), text_cell(plot.y));
    for line in &plot.lines {
        for (x, y) in &line.points {
            let _ = writeln!(csv, "{},{x},{y}", text_cell(&line.name));
        }
    }
    write_atomic(&folder.join(format!("{}.csv", plot.file)), csv.as_bytes(), true)?;
    let mut svg = String::new();
    draw(&mut svg, plot).map_err(|e| Error::unfit(plot.title, e))?;
    write_atomic(&folder.join(format!("{}.svg", plot.file)), svg.as_bytes(), true)
}

/// Text is measured with a font of the program's own: a server has none installed.
fn register_font() -> Result<(), String> {
    plotters::style::register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the embedded font cannot be read".into())
}

fn draw(svg: &mut String, plot: &Plot) -> Result<(), String> {
    register_font()?;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let all = || plot.lines.iter().flat_map(|l| &l.points);
    let most = |value: fn(&(f64, f64)) -> f64| all().map(value).fold(0.0, f64::max) * 1.05;
    let (right, top) = (most(|p| p.0), most(|p| p.1));
    if !(right.is_finite() && top.is_finite() && right > 0.0 && top > 0.0) {
        return Err("nothing to draw".into());
    }
    let root = SVGBackend::with_string(svg, (760, 480)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| text(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)
        .map_err(|e| text(&e))?;
    chart
        .configure_mesh()
        .x_desc(plot.x)
        .y_desc(plot.y)
        .light_line_style(WHITE)
        .draw()
        .map_err(|e| text(&e))?;
    for (line, colour) in plot.lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))
            .map_err(|e| text(&e))?
            .label(line.name.clone())
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
            });
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|e| text(&e))?;
    root.present().map_err(|e| text(&e))
}

/// One stacked bar: what a device's memory holds.
fn memory(folder: &Path, best: &Choice) -> Result<()> {
    let gib = |bytes: f64| bytes / f64::from(1 << 30);
    let cache = best.cache_per_sequence.0 * best.max_batch as f64 / best.layout.attention_dp as f64;
    let cache = cache.min(best.memory.usable().0 - best.weights.0);
    let parts = [
        ("weights", gib(best.weights.0)),
        ("cache at the batch limit", gib(cache)),
        ("free", gib((best.memory.usable().0 - best.weights.0 - cache).max(0.0))),
        ("reserved", gib(best.memory.reserve.0)),
    ];
    let mut csv = String::from("part,gib\n");
    for (name, size) in parts {
        let _ = writeln!(csv, "{name},{size}");
    }
    write_atomic(&folder.join("memory.csv"), csv.as_bytes(), true)?;
    let mut svg = String::new();
    draw_memory(&mut svg, &parts).map_err(|e| Error::unfit("memory plot", e))?;
    write_atomic(&folder.join("memory.svg"), svg.as_bytes(), true)
}

fn draw_memory(svg: &mut String, parts: &[(&str, f64)]) -> Result<(), String> {
    register_font()?;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let total: f64 = parts.iter().map(|p| p.1).sum();
    let root = SVGBackend::with_string(svg, (760, 280)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| text(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Memory of one GPU", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .build_cartesian_2d(0.0..total, 0.0..1.0)
        .map_err(|e| text(&e))?;
    chart
        .configure_mesh()
        .disable_y_axis()
        .disable_y_mesh()
        .x_desc("GiB")
        .light_line_style(WHITE)
        .draw()
        .map_err(|e| text(&e))?;
    let mut from = 0.0;
    for ((name, size), colour) in parts.iter().zip(COLOURS) {
        let bar = Rectangle::new([(from, 0.08), (from + size, 0.42)], colour.filled());
        chart
            .draw_series(std::iter::once(bar))
            .map_err(|e| text(&e))?
            .label(format!("{name} {size:.1}"))
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        from += size;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .draw()
        .map_err(|e| text(&e))?;
    root.present().map_err(|e| text(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_holds_its_lines_and_an_empty_one_is_refused() {
        let line = Line { name: "H100 SXM tp2".into(), points: vec![(1.0, 2.0), (2.0, 1.0)] };
        let plot = |lines| Plot { file: "p", title: "T", x: "x", y: "y", lines };
        let mut svg = String::new();
        draw(&mut svg, &plot(vec![line])).unwrap();
        assert!(svg.contains("H100 SXM tp2") && svg.contains("</svg>"));
        assert!(draw(&mut String::new(), &plot(Vec::new())).is_err());
    }
}
