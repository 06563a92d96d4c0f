//! Total cost against lifetime output tokens: the costs themselves above, and below how many times
//! the cheapest each expert count costs, because differences of a tenth vanish over eight decades.

use super::axis::{Axis, is_shown};
use super::legend::{Legend, stroke};
use super::panel::{self, BOTTOM, LEFT, Panel, RIGHT, TOP};
use super::scene::{Scene, Style, text_width};
use crate::plan::outcome::{RankReport, TotalCostCurve};
use crate::plan::summary::name;
use crate::report::theme::{INK, Looks, SMALL, SOFT};
use crate::report::view::lifetime;

/// Largest ratio to the cheapest that is drawn.
const MOST_TIMES: f64 = 4.0;
/// Where the upper panel ends.
const UPPER_BOTTOM: f64 = 284.0;
/// Where the lower panel starts.
const LOWER_TOP: f64 = 306.0;

/// Draws the figure.
pub(super) fn draw(report: &RankReport, looks: &Looks) -> Scene {
    let mut scene = Scene::default();
    let curves = &report.total_cost;
    panel::title(
        &mut scene,
        "Total cost over the model's life",
        "training plus serving, each expert count with its cheapest size at every lifetime",
    );
    let ratios = ratios(curves);
    let (upper, lower) = panels(curves, &ratios);
    for panel in [&upper, &lower] {
        panel.grid(&mut scene);
        crossovers(&mut scene, panel, report);
        here(&mut scene, panel, report);
    }
    for (curve, ratio) in curves.iter().zip(&ratios) {
        let colour = looks.of(curve.experts).colour;
        let points = upper.points(curve.points.iter().map(|p| (p.lifetime_tokens, p.total_usd)));
        scene.line(points, colour, 2.4);
        for part in ratio.split(|(_, r)| *r > MOST_TIMES) {
            scene.line(lower.points(part.iter().copied()), colour, 2.6);
        }
    }
    frames(&mut scene, &upper, &lower);
    changes(&mut scene, &upper, report);
    if curves.is_empty() {
        panel::nothing(&mut scene, "no expert count can be trained and served");
    }
    legend(&mut scene, report, looks);
    scene
}

fn panels(curves: &[TotalCostCurve], ratios: &[Vec<(f64, f64)>]) -> (Panel, Panel) {
    let points = || curves.iter().flat_map(|c| &c.points);
    let x = Axis::around("lifetime output tokens", points().map(|p| p.lifetime_tokens));
    let cost = Axis::around("total cost, $", points().map(|p| p.total_usd)).with_prefix("$");
    let shown = ratios.iter().flatten().map(|(_, r)| *r).filter(|r| *r <= MOST_TIMES);
    let times = Axis::around("times the cheapest", shown.chain([1.0, 1.5]));
    let upper = Panel { frame: (LEFT, TOP, RIGHT, UPPER_BOTTOM), x: x.clone(), y: cost };
    let lower = Panel { frame: (LEFT, LOWER_TOP, RIGHT, BOTTOM), x, y: times };
    (upper, lower)
}

/// For each curve the ratio of its cost to the lowest at the same lifetime.
fn ratios(curves: &[TotalCostCurve]) -> Vec<Vec<(f64, f64)>> {
    let lowest = |lifetime: f64| {
        let same = curves.iter().flat_map(|c| &c.points).filter(|p| {
            (p.lifetime_tokens - lifetime).abs() <= 1e-9 * lifetime.abs() && is_shown(p.total_usd)
        });
        same.map(|p| p.total_usd).fold(f64::INFINITY, f64::min)
    };
    curves
        .iter()
        .map(|curve| {
            let shown = curve.points.iter().filter(|p| is_shown(p.total_usd));
            shown.map(|p| (p.lifetime_tokens, p.total_usd / lowest(p.lifetime_tokens))).collect()
        })
        .collect()
}

/// A line at each crossover.
fn crossovers(scene: &mut Scene, panel: &Panel, report: &RankReport) {
    let (_, top, _, bottom) = panel.frame;
    for change in &report.crossovers {
        let x = panel.at(change.lifetime_tokens, 1.0).0;
        scene.dashed(&[(x, top), (x, bottom)], SOFT, 1.4, (4.0, 3.0));
    }
}

/// A line at the lifetime that the answer is for.
fn here(scene: &mut Scene, panel: &Panel, report: &RankReport) {
    let (_, top, _, bottom) = panel.frame;
    if is_shown(lifetime(report)) && !report.total_cost.is_empty() {
        let x = panel.at(lifetime(report), 1.0).0;
        scene.line(vec![(x, top), (x, bottom)], INK, 1.6);
    }
}

fn frames(scene: &mut Scene, upper: &Panel, lower: &Panel) {
    lower.frame(scene);
    // The upper panel shares the horizontal axis of the lower one.
    upper.frame_without_x(scene);
}

/// The interval of each crossover as a bar, and beside it which counts change places; one row each,
/// from the top, where costs are lowest and leave room.
fn changes(scene: &mut Scene, panel: &Panel, report: &RankReport) {
    let (_, top, right, bottom) = panel.frame;
    for (row, change) in report.crossovers.iter().enumerate() {
        let y = top + 16.0 + 21.0 * row as f64;
        if y > bottom - 10.0 {
            return;
        }
        let at = (panel.at(change.lifetime_tokens, 1.0).0, y);
        let ends = change
            .interval
            .map_or((at.0, at.0), |i| (panel.at(i.lo, 1.0).0, panel.at(i.hi, 1.0).0));
        bar(scene, ends, at);
        let text = format!("{} → {}", short(change.from_experts), short(change.to_experts));
        let width = text_width(&text, SMALL) + 10.0;
        if ends.1 + width < right {
            scene.label((ends.1.max(at.0 + 4.0) + 8.0, y), &text, Style::left(SMALL, INK));
        } else {
            scene.label((ends.0.min(at.0 - 4.0) - 8.0, y), &text, Style::left(SMALL, INK).right());
        }
    }
}

fn bar(scene: &mut Scene, (low, high): (f64, f64), at: (f64, f64)) {
    scene.line(vec![(low, at.1), (high, at.1)], INK, 1.6);
    for x in [low, high] {
        scene.line(vec![(x, at.1 - 4.0), (x, at.1 + 4.0)], INK, 1.6);
    }
    scene.rectangle((at.0 - 3.5, at.1 - 3.5), (at.0 + 3.5, at.1 + 3.5), INK, 1.0);
}

fn short(experts: usize) -> String {
    if experts == 1 { "dense".into() } else { experts.to_string() }
}

fn legend(scene: &mut Scene, report: &RankReport, looks: &Looks) {
    let mut legend = Legend::new();
    legend.heading(scene, "cheapest size of");
    for curve in &report.total_cost {
        let colour = looks.of(curve.experts).colour;
        legend.entry(scene, &name(curve.experts), |scene, at| scene.line(stroke(at), colour, 2.8));
    }
    legend.heading(scene, "reading");
    let upright = |at: (f64, f64)| vec![(at.0, at.1 - 8.0), (at.0, at.1 + 8.0)];
    legend.entry(scene, "your lifetime", |scene, at| scene.line(upright(at), INK, 1.6));
    if !report.crossovers.is_empty() {
        legend.entry(scene, "crossover", |scene, at| {
            scene.dashed(&upright(at), SOFT, 1.4, (4.0, 3.0));
        });
    }
    if report.crossovers.iter().any(|c| c.interval.is_some()) {
        legend.entry(scene, "its 95 % interval", |scene, at| {
            bar(scene, (at.0 - 12.0, at.0 + 12.0), at);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::outcome::TotalCostPoint;

    #[test]
    fn ratios_are_taken_at_the_same_lifetime() {
        let curve = |experts, costs: &[(f64, f64)]| TotalCostCurve {
            experts,
            points: costs
                .iter()
                .map(|&(lifetime_tokens, total_usd)| TotalCostPoint { lifetime_tokens, total_usd })
                .collect(),
        };
        let found = ratios(&[curve(4, &[(1e9, 2.0), (1e10, 6.0)]), curve(8, &[(1e10, 3.0)])]);
        assert_eq!(found, [vec![(1e9, 1.0), (1e10, 2.0)], vec![(1e10, 1.0)]]);
    }
}
