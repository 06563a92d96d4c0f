//! Training cost against serving cost at equal loss: a curve per expert count, the recommended
//! candidate with its intervals, and the Pareto set.

use super::axis::{Axis, is_shown};
use super::legend::{Legend, stroke};
use super::panel::{self, Panel};
use super::scene::{At, Scene};
use crate::latency::Source;
use crate::law::beyond::LISTED_TOKENS_PER_PARAM;
use crate::plan::outcome::{Candidate, RankReport};
use crate::plan::summary::name;
use crate::report::theme::{INK, Looks, MARK, Rgb, SOFT};

/// Colour of the band under the Pareto set.
const BAND: Rgb = Rgb(218, 221, 237);
/// Dashes of the extrapolated part.
const DASH: (f64, f64) = (5.0, 4.0);

/// Draws the figure.
pub(super) fn draw(report: &RankReport, looks: &Looks) -> Scene {
    let mut scene = Scene::default();
    let shown: Vec<&Candidate> =
        report.candidates.iter().filter(|c| c.is_equal_loss() && place(c).is_some()).collect();
    panel::title(
        &mut scene,
        "Training cost against serving cost at equal loss",
        &format!(
            "{:.4} nats per token; lower left is better; {}, {}",
            report.law.target_loss_nats, report.profile.device, report.law.id
        ),
    );
    let panel = axes(&shown);
    panel.grid(&mut scene);
    pareto(&mut scene, &panel, report);
    for (experts, look) in looks.iter() {
        let curve: Vec<&Candidate> =
            shown.iter().copied().filter(|c| c.experts == experts).collect();
        draw_curve(&mut scene, &panel, &curve, look.colour);
    }
    for candidate in shown.iter().filter(|c| c.best_of_experts) {
        draw_best(&mut scene, &panel, candidate, looks);
    }
    panel.frame(&mut scene);
    if shown.is_empty() {
        panel::nothing(&mut scene, "no candidate at equal loss can be served");
    }
    legend(&mut scene, &shown, looks);
    scene
}

fn place(c: &Candidate) -> Option<(f64, f64)> {
    let serve = c.serve_usd_per_million_output_tokens?;
    (is_shown(serve) && is_shown(c.train_usd)).then_some((c.train_usd, serve))
}

fn axes(shown: &[&Candidate]) -> Panel {
    let best = || shown.iter().filter(|c| c.best_of_experts);
    let train = best().filter_map(|c| c.train_usd_interval);
    let serve = best().filter_map(|c| c.serve_usd_interval);
    let places = || shown.iter().filter_map(|c| place(c));
    Panel::new(
        Axis::around(
            "training cost, $",
            places().map(|p| p.0).chain(train.flat_map(|i| [i.lo, i.hi])),
        )
        .with_prefix("$"),
        Axis::around(
            "serving cost, $ per million output tokens",
            places().map(|p| p.1).chain(serve.flat_map(|i| [i.lo, i.hi])),
        )
        .with_prefix("$"),
    )
}

fn pareto(scene: &mut Scene, panel: &Panel, report: &RankReport) {
    let set = report.frontier.iter().filter_map(|&i| place(report.candidates.get(i)?));
    let points = panel.points(set);
    for &(x, y) in &points {
        let disc = (0..24).map(|i| {
            let angle = f64::from(i) / 24.0 * std::f64::consts::TAU;
            (x + 9.0 * angle.cos(), y + 9.0 * angle.sin())
        });
        scene.fill(disc.collect(), BAND, 1.0);
    }
    scene.line(points, BAND, 10.0);
}

/// Solid where the law was fitted, dashed and lighter beyond.
fn draw_curve(scene: &mut Scene, panel: &Panel, curve: &[&Candidate], colour: Rgb) {
    for pair in curve.windows(2) {
        let (Some(a), Some(b)) = (place(pair[0]), place(pair[1])) else {
            continue;
        };
        let (a, b) = (panel.at(a.0, a.1), panel.at(b.0, b.1));
        let cut = inside(pair[0].tokens_per_param, pair[1].tokens_per_param);
        let middle = (a.0 + cut * (b.0 - a.0), a.1 + cut * (b.1 - a.1));
        if cut > 0.0 {
            scene.line(vec![a, middle], colour, 2.6);
        }
        if cut < 1.0 {
            scene.dashed(&[middle, b], colour.strength(0.7), 2.0, DASH);
        }
    }
}

/// Share of a step from one number of tokens per parameter to another that lies inside the listed runs;
/// beyond them a curve is an extrapolation and drawn as one.
fn inside(from: f64, to: f64) -> f64 {
    let limit = LISTED_TOKENS_PER_PARAM;
    match (from <= limit, to <= limit) {
        (true, true) => 1.0,
        (true, false) if is_shown(from) => (limit / from).ln() / (to / from).ln(),
        _ => 0.0,
    }
}

fn draw_best(scene: &mut Scene, panel: &Panel, c: &Candidate, looks: &Looks) {
    let Some((train, serve)) = place(c) else {
        return;
    };
    let look = looks.of(c.experts);
    if let Some(i) = c.train_usd_interval {
        error_bar(scene, [panel.at(i.lo, serve), panel.at(i.hi, serve)], look.colour);
    }
    if let Some(i) = c.serve_usd_interval {
        error_bar(scene, [panel.at(train, i.lo), panel.at(train, i.hi)], look.colour);
    }
    let hollow = c.latency_source != Some(Source::Measured);
    scene.mark(panel.at(train, serve), look, MARK, hollow);
}

fn error_bar(scene: &mut Scene, ends: [At; 2], colour: Rgb) {
    let colour = colour.strength(0.75);
    scene.line(ends.to_vec(), colour, 1.4);
    let across = if (ends[0].1 - ends[1].1).abs() < 1e-9 { (0.0, 4.0) } else { (4.0, 0.0) };
    for (x, y) in ends {
        let cap = vec![(x - across.0, y - across.1), (x + across.0, y + across.1)];
        scene.line(cap, colour, 1.4);
    }
}

fn legend(scene: &mut Scene, shown: &[&Candidate], looks: &Looks) {
    let mut legend = Legend::new();
    legend.heading(scene, "best of each");
    for c in shown.iter().filter(|c| c.best_of_experts) {
        let hollow = c.latency_source != Some(Source::Measured);
        let chance = c.p_best.map_or_else(String::new, |p| format!(", P {p:.2}"));
        legend.entry(scene, &format!("{}{chance}", name(c.experts)), |scene, at| {
            scene.mark(at, looks.of(c.experts), MARK, hollow);
        });
    }
    legend.heading(scene, "reading");
    legend.entry(scene, "inside the law's\nlisted runs", |scene, at| {
        scene.line(stroke(at), INK, 2.6);
    });
    let beyond = format!("over {LISTED_TOKENS_PER_PARAM} tokens\nper parameter:\nextrapolated");
    legend.entry(scene, &beyond, |scene, at| {
        scene.dashed(&stroke(at), SOFT, 2.0, DASH);
    });
    legend.entry(scene, "Pareto set", |scene, at| scene.line(stroke(at), BAND, 10.0));
    legend.entry(scene, "95 % interval", |scene, at| {
        error_bar(scene, [(at.0 - 12.0, at.1), (at.0 + 12.0, at.1)], INK);
    });
    legend.note(
        scene,
        "solid mark: measured\nhollow: interpolated,\ntransferred or roofline\nP: cheapest in all",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_cut_where_the_listed_runs_end() {
        let whole = |v: f64, expected: f64| assert!((v - expected).abs() < 1e-12, "{v}");
        whole(inside(10.0, 20.0), 1.0);
        whole(inside(100.0, 200.0), 0.0);
        whole(inside(LISTED_TOKENS_PER_PARAM / 2.0, LISTED_TOKENS_PER_PARAM * 2.0), 0.5);
    }
}
