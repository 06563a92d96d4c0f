//! Latency of one MoE layer against the tokens that enter it: a line per expert count with intervals at
//! some of its points, marks that say measured or modelled, and the roofline below.

use super::axis::{Axis, is_shown};
use super::legend::{Legend, stroke};
use super::panel::{self, Panel};
use super::scene::Scene;
use crate::latency::Source;
use crate::plan::outcome::{LatencyCurve, RankReport};
use crate::plan::summary::name;
use crate::report::theme::{INK, Looks, SOFT};

/// Radius of a mark on a curve.
const SMALL_MARK: f64 = 4.0;

/// Draws the figure.
pub(super) fn draw(report: &RankReport, looks: &Looks) -> Scene {
    let mut scene = Scene::default();
    let curves = &report.layer_latency;
    panel::title(
        &mut scene,
        "Latency of one MoE layer",
        &format!("layer of the best candidate of each expert count; {}", report.profile.device),
    );
    let points = || curves.iter().flat_map(|c| &c.points);
    let panel = Panel::new(
        Axis::around("tokens entering the layer", points().map(|p| p.tokens)),
        Axis::around(
            "layer latency, µs",
            points().flat_map(|p| [p.latency_us, p.lo_us, p.hi_us, p.roofline_us]),
        ),
    );
    panel.grid(&mut scene);
    for (place, curve) in curves.iter().enumerate() {
        whiskers(&mut scene, &panel, curve, (place, curves.len()), looks);
    }
    for curve in curves {
        lines(&mut scene, &panel, curve, looks);
    }
    panel.frame(&mut scene);
    if curves.is_empty() {
        panel::nothing(&mut scene, "no layer has a latency");
    }
    legend(&mut scene, curves, looks);
    scene
}

/// Intervals of every n-th point of the curve number `place` of `n`, so that those of two curves stand
/// beside each other; bands of five curves would hide all.
fn whiskers(
    scene: &mut Scene,
    panel: &Panel,
    curve: &LatencyCurve,
    (place, n): (usize, usize),
    looks: &Looks,
) {
    let colour = looks.of(curve.experts).colour.strength(0.75);
    for (index, p) in curve.points.iter().enumerate() {
        let is_whole = is_shown(p.tokens) && is_shown(p.lo_us) && is_shown(p.hi_us);
        if is_whole && index % n == place {
            let (low, high) = (panel.at(p.tokens, p.lo_us), panel.at(p.tokens, p.hi_us));
            scene.line(vec![low, high], colour, 1.4);
            for (x, y) in [low, high] {
                scene.line(vec![(x - 4.0, y), (x + 4.0, y)], colour, 1.4);
            }
        }
    }
}

fn lines(scene: &mut Scene, panel: &Panel, curve: &LatencyCurve, looks: &Looks) {
    let look = looks.of(curve.experts);
    let roofline = panel.points(curve.points.iter().map(|p| (p.tokens, p.roofline_us)));
    scene.dashed(&roofline, look.colour.strength(0.8), 1.6, (4.0, 4.0));
    let measured = panel.points(curve.points.iter().map(|p| (p.tokens, p.latency_us)));
    scene.line(measured, look.colour, 2.2);
    for p in curve.points.iter().filter(|p| is_shown(p.tokens) && is_shown(p.latency_us)) {
        let hollow = p.source != Source::Measured;
        scene.mark(panel.at(p.tokens, p.latency_us), look, SMALL_MARK, hollow);
    }
}

fn legend(scene: &mut Scene, curves: &[LatencyCurve], looks: &Looks) {
    let mut legend = Legend::new();
    legend.heading(scene, "hidden x inter");
    for curve in curves {
        let look = looks.of(curve.experts);
        let words = format!("{}\n{} x {}", name(curve.experts), curve.hidden, curve.inter);
        legend.entry(scene, &words, |scene, at| {
            scene.line(stroke(at), look.colour, 2.2);
            scene.mark(at, look, SMALL_MARK, false);
        });
    }
    legend.heading(scene, "reading");
    legend.entry(scene, "roofline: what\nthe ceilings allow", |scene, at| {
        scene.dashed(&stroke(at), SOFT, 1.6, (4.0, 4.0));
    });
    legend.entry(scene, "95 % interval, at\nsome points", |scene, (x, y)| {
        scene.line(vec![(x, y - 8.0), (x, y + 8.0)], INK, 1.4);
        for end in [y - 8.0, y + 8.0] {
            scene.line(vec![(x - 4.0, end), (x + 4.0, end)], INK, 1.4);
        }
    });
    legend.note(scene, "solid mark: measured\nhollow: interpolated,\ntransferred or roofline");
}
