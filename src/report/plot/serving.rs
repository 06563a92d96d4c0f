//! The figures of a deployment: throughput and cost against speed per user, cost against utilisation, and
//! what a device's memory holds. Each comes with the CSV of its points.

use std::fmt::Write;

use super::Figure;
use super::axis::{Axis, even_steps, is_shown, number};
use super::legend::{Legend, stroke};
use super::panel::{self, BOTTOM, LEFT, Panel, RIGHT, TOP};
use super::scene::{Scene, Style, text_width};
use crate::Result;
use crate::files::csv::text_cell;
use crate::plan::size::{Choice, Metric, SizeAnswer, SizeInputs};
use crate::report::theme::{self, GRID, INK, LABEL, MARK, SMALL, SOFT, look};
use crate::units::nearest_whole;

/// Plans in one figure; more cannot be told apart.
const PLANS: usize = 6;
/// Characters of a legend's line.
const LEGEND_LINE: usize = 18;

/// A figure with the CSV that it was drawn from.
pub(in crate::report) struct WithData {
    pub(in crate::report) figure: Figure,
    pub(in crate::report) csv: String,
}

/// One plan: its points, and the one at the load asked about.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    here: Option<(f64, f64)>,
}

/// A figure of lines.
struct Plot {
    name: &'static str,
    caption: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// What stands before the values along y.
    prefix: &'static str,
    lines: Vec<Line>,
    /// Promised limits along x, with their names.
    limits: Vec<(f64, String)>,
}

/// Draws all figures of a size.
///
/// # Errors
/// [`crate::Error::Io`] when a figure cannot be encoded.
pub(in crate::report) fn figures(
    inputs: &SizeInputs,
    answer: &SizeAnswer,
) -> Result<Vec<WithData>> {
    theme::register_fonts()?;
    let plans: Vec<&Choice> =
        std::iter::once(&answer.best).chain(&answer.others).take(PLANS).collect();
    let mut all = Vec::new();
    for plot in plots(inputs, &plans) {
        all.push(finished(plot.name, plot.caption, &draw(&plot), csv(&plot))?);
    }
    let parts = memory_parts(&answer.best);
    let mut data = String::from("part,gib\n");
    for (name, size) in &parts {
        // Writing to a string cannot fail.
        let _ = writeln!(data, "{name},{size}");
    }
    let caption = "What the memory of one device holds.";
    all.push(finished("memory", caption, &draw_memory(&parts, &answer.best), data)?);
    Ok(all)
}

fn finished(
    name: &'static str,
    caption: &'static str,
    scene: &Scene,
    csv: String,
) -> Result<WithData> {
    let figure = Figure { name, caption, svg: scene.svg(name)?, png: scene.png(name)? };
    Ok(WithData { figure, csv })
}

fn plots(inputs: &SizeInputs, plans: &[&Choice]) -> [Plot; 3] {
    let per_s = |c: &Choice| c.layout.devices() as f64 * c.price.0 / 3600.0;
    let limits: Vec<(f64, String)> = inputs
        .limits
        .iter()
        .filter(|limit| limit.metric == Metric::Tpot)
        .map(|limit| {
            (
                1.0 / limit.most.0,
                format!("{} {}", limit.to_string().replacen("tpot_", "TPOT ", 1), limit.most),
            )
        })
        .collect();
    [
        Plot {
            name: "throughput",
            caption: "Throughput per device against speed per user, a line for each plan.",
            title: "Throughput against speed per user",
            x: "output tokens/s per user",
            y: "output tokens/s per GPU",
            prefix: "",
            lines: lines(plans, |c, batch| {
                let (rate, each) = c.curve.throughput(batch);
                (1.0 / each.0, rate / c.layout.devices() as f64)
            }),
            limits: limits.clone(),
        },
        Plot {
            name: "cost",
            caption: "Cost of output tokens against speed per user with full batches.",
            title: "Cost against speed per user, all dollars on output, full batches",
            x: "output tokens/s per user",
            y: "$ per million output tokens",
            prefix: "$",
            lines: lines(plans, |c, batch| {
                let (rate, each) = c.curve.throughput(batch);
                (1.0 / each.0, per_s(c) / rate * 1e6)
            }),
            limits,
        },
        Plot {
            name: "utilisation",
            caption: "Cost of output tokens against the share of the capacity that is used.",
            title: "Cost against utilisation, all dollars on output",
            x: "utilisation, share of the capacity",
            y: "$ per million output tokens",
            prefix: "$",
            lines: plans
                .iter()
                .map(|c| {
                    let full = c.capacity * inputs.lengths.output;
                    let at = |u: f64| (u, per_s(c) / (full * u) * 1e6);
                    Line {
                        name: format!("{} {}", c.device, c.layout),
                        points: (2..=20).map(|i| at(f64::from(i) / 20.0)).collect(),
                        here: Some(at(c.utilisation(inputs))),
                    }
                })
                .collect(),
            limits: Vec::new(),
        },
    ]
}

/// One line per plan over its batch sizes.
fn lines(plans: &[&Choice], point: impl Fn(&Choice, usize) -> (f64, f64)) -> Vec<Line> {
    let line = |c: &&Choice| {
        let mut batch = 1;
        let mut points = Vec::new();
        while batch <= c.curve.cap() {
            points.push(point(c, batch));
            batch = (batch * 5 / 4).max(batch + 1);
        }
        let here = nearest_whole(c.mean_load.mean_batch).clamp(1, c.curve.cap().max(1));
        Line { name: format!("{} {}", c.device, c.layout), points, here: Some(point(c, here)) }
    };
    plans.iter().map(line).collect()
}

fn csv(plot: &Plot) -> String {
    let mut csv = format!("plan,{},{}\n", text_cell(plot.x), text_cell(plot.y));
    for line in &plot.lines {
        for (x, y) in &line.points {
            let _ = writeln!(csv, "{},{x},{y}", text_cell(&line.name));
        }
    }
    csv
}

fn draw(plot: &Plot) -> Scene {
    let mut scene = Scene::default();
    panel::title(
        &mut scene,
        plot.title,
        "both axes are logarithmic; the mark is the load asked about",
    );
    let all = || plot.lines.iter().flat_map(|l| l.points.iter().chain(&l.here));
    let ends = plot.limits.iter().map(|l| l.0);
    let panel = Panel::new(
        Axis::around(plot.x, all().map(|p| p.0).chain(ends)),
        Axis::around(plot.y, all().map(|p| p.1)).with_prefix(plot.prefix),
    );
    panel.grid(&mut scene);
    for (x, name) in plot.limits.iter().filter(|l| is_shown(l.0)) {
        let at = panel.at(*x, 1.0).0;
        scene.dashed(&[(at, TOP), (at, BOTTOM)], INK, 1.4, (6.0, 4.0));
        // Where it fits: limits near the right end have their name to the left.
        let style = Style::left(SMALL, INK);
        let (place, style) =
            if at > 0.7 * RIGHT { (at - 8.0, style.right()) } else { (at + 8.0, style) };
        scene.label((place, BOTTOM - 14.0), name, style);
    }
    for (slot, line) in plot.lines.iter().enumerate() {
        scene.line(panel.points(line.points.iter().copied()), look(slot).colour, 2.4);
    }
    for (slot, line) in plot.lines.iter().enumerate() {
        for at in panel.points(line.here.iter().copied()) {
            scene.mark(at, look(slot), MARK, false);
        }
    }
    panel.frame(&mut scene);
    if plot.lines.is_empty() {
        panel::nothing(&mut scene, "no plan to draw");
    }
    let mut legend = Legend::new();
    legend.heading(&mut scene, "plan");
    for (slot, line) in plot.lines.iter().enumerate() {
        legend.entry(&mut scene, &in_lines(&line.name), |scene, at| {
            scene.line(stroke(at), look(slot).colour, 2.4);
            scene.mark(at, look(slot), MARK, false);
        });
    }
    if !plot.limits.is_empty() {
        legend.heading(&mut scene, "reading");
        legend.entry(&mut scene, "service level:\nslower to its left", |scene, at| {
            scene.dashed(&stroke(at), INK, 1.4, (6.0, 4.0));
        });
    }
    scene
}

/// A name broken at spaces into lines of a legend.
fn in_lines(name: &str) -> String {
    let mut lines = vec![String::new()];
    for word in name.split_whitespace() {
        let last = lines.last_mut().map_or(0, |l| l.len());
        if last > 0 && last + 1 + word.len() > LEGEND_LINE {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// What one device's memory holds, in GiB.
fn memory_parts(best: &Choice) -> [(&'static str, f64); 4] {
    let gib = |bytes: f64| bytes / f64::from(1 << 30);
    let cache = best.cache_per_sequence.0 * best.max_batch as f64 / best.layout.attention_dp as f64;
    let cache = cache.min(best.memory.usable().0 - best.weights.0);
    [
        ("weights", gib(best.weights.0)),
        ("cache at the batch limit", gib(cache)),
        ("free", gib((best.memory.usable().0 - best.weights.0 - cache).max(0.0))),
        ("reserved", gib(best.memory.reserve.0)),
    ]
}

/// One stacked bar.
fn draw_memory(parts: &[(&'static str, f64)], best: &Choice) -> Scene {
    const BAR: (f64, f64) = (250.0, 350.0);
    let mut scene = Scene::default();
    panel::title(
        &mut scene,
        "Memory of one device",
        &format!("{} {}, batches of at most {}", best.device, best.layout, best.max_batch),
    );
    let total: f64 = parts.iter().map(|p| p.1.max(0.0)).sum();
    let at = |gib: f64| LEFT + (RIGHT - LEFT) * if total > 0.0 { gib / total } else { 0.0 };
    let axis = BAR.1 + 24.0;
    for tick in even_steps(0.0, total) {
        scene.line(vec![(at(tick), BAR.0 - 24.0), (at(tick), axis)], GRID, 1.0);
        let style = Style::left(SMALL, INK).middle();
        scene.words((at(tick), axis + 16.0), number(tick), style);
    }
    let mut from = 0.0;
    let mut legend = Legend::new();
    legend.heading(&mut scene, "part, GiB");
    for (slot, &(name, gib)) in parts.iter().enumerate() {
        let colour = look(slot + 1).colour;
        scene.rectangle((at(from), BAR.0), (at(from + gib.max(0.0)), BAR.1), colour, 1.0);
        let text = format!("{gib:.1}");
        if at(from + gib) - at(from) > text_width(&text, LABEL) + 8.0 {
            let middle = (f64::midpoint(at(from), at(from + gib)), f64::midpoint(BAR.0, BAR.1));
            scene.label(middle, &text, Style::left(LABEL, INK).middle());
        }
        legend.entry(&mut scene, &format!("{}\n{gib:.1}", in_lines(name)), |scene, at| {
            scene.rectangle((at.0 - 14.0, at.1 - 7.0), (at.0 + 14.0, at.1 + 7.0), colour, 1.0);
        });
        from += gib.max(0.0);
    }
    scene.line(vec![(LEFT, axis), (RIGHT, axis)], SOFT, 1.0);
    let label = Style::left(LABEL, INK).middle();
    scene.words((f64::midpoint(LEFT, RIGHT), axis + 44.0), "memory, GiB", label);
    scene
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(lines: Vec<Line>, limits: Vec<(f64, String)>) -> Plot {
        Plot {
            name: "p",
            caption: "c",
            title: "T",
            x: "output tokens/s per user",
            y: "$ per million output tokens",
            prefix: "$",
            lines,
            limits,
        }
    }

    #[test]
    fn a_plot_has_its_lines_units_and_promised_limit() {
        theme::register_fonts().unwrap();
        let line = Line {
            name: "H100 SXM of a name that is long tp2".into(),
            points: vec![(1.0, 2.0), (2.0, 1.0)],
            here: Some((1.5, 1.5)),
        };
        let plot = plot(vec![line], vec![(1.2, "TPOT p99 60 ms".into())]);
        let svg = draw(&plot).svg("p").unwrap();
        for word in
            ["H100 SXM of a name", "tp2", "TPOT p99 60 ms", "per user", "$1", "service level:"]
        {
            assert!(svg.contains(word), "{word}");
        }
        assert_eq!(csv(&plot).lines().count(), 3);
    }

    #[test]
    fn nothing_and_values_without_a_place_are_drawn_calmly() {
        theme::register_fonts().unwrap();
        let empty = draw(&plot(vec![], vec![])).svg("p").unwrap();
        assert!(empty.contains("no plan to draw"), "{empty}");
        let odd = Line {
            name: "x".into(),
            points: vec![(0.0, f64::NAN)],
            here: Some((f64::INFINITY, -1.0)),
        };
        let svg = draw(&plot(vec![odd], vec![(f64::INFINITY, "l".into())])).svg("p").unwrap();
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
