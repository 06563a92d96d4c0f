//! Figures of a law: loss against experts, and best size and tokens against the training budget.

use super::Figure;
use super::axis::{Axis, is_shown, number};
use super::legend::{Legend, stroke};
use super::panel::{self, BOTTOM, LEFT, Panel, RIGHT, TOP};
use super::scene::Scene;
use crate::Result;
use crate::law::sweep::{Band, BestAt, Sweep};
use crate::plan::summary::name;
use crate::report::theme::{self, INK, Look, Looks, Rgb};

/// Where the upper panel ends.
const UPPER_BOTTOM: f64 = 294.0;
/// Where the lower panel starts.
const LOWER_TOP: f64 = 312.0;
/// Radius of a mark on a curve.
const SMALL_MARK: f64 = 5.0;
/// Smallest gain in nats that the axis makes room for.
const LEAST_GAIN: f64 = 1e-3;
/// Strength of a band.
const BAND: f64 = 0.18;

/// What of a model runs along an axis.
type Value = fn(&BestAt) -> f64;
/// What of a model is drawn with its band.
type Banded = fn(&BestAt) -> Band;

/// Draws both figures.
///
/// # Errors
/// [`crate::Error::Io`] when a figure cannot be encoded.
pub(in crate::report) fn figures(sweep: &Sweep) -> Result<[Figure; 2]> {
    theme::register_fonts()?;
    let figure = |name, caption, scene: Scene| -> Result<Figure> {
        Ok(Figure { name, caption, svg: scene.svg(name)?, png: scene.png(name)? })
    };
    Ok([
        figure(
            "law_loss_by_experts",
            "Lowest loss of a training budget against the number of experts.",
            by_experts(sweep),
        )?,
        figure(
            "law_optimum_by_budget",
            "Best size and training tokens against the training budget.",
            by_budget(sweep),
        )?,
    ])
}

/// Loss against experts above, and below what is gained over the first expert count, whose bands the
/// range of losses would hide; one curve a budget.
fn by_experts(sweep: &Sweep) -> Scene {
    let mut scene = Scene::default();
    panel::title(
        &mut scene,
        &format!("Lowest loss against the number of experts: {}", sweep.law),
        &sweep.bands,
    );
    let points = || sweep.by_experts.iter().flatten();
    let first = points().next().map_or(1, |p| p.experts);
    let counts = Axis::around("experts per layer (1 is dense)", points().map(|p| p.experts as f64));
    let losses = Axis::around("loss, nats", points().flat_map(|p| ends(p.loss_nats)));
    let gains = points().filter(|p| p.experts != first).flat_map(|p| ends(p.gain_nats));
    // A band that reaches to nothing gained ends at the frame.
    let gains = gains.filter(|v| *v > LEAST_GAIN);
    let gains = Axis::around(format!("nats below {}", name(first)), gains);
    let upper = Panel { frame: (LEFT, TOP, RIGHT, UPPER_BOTTOM), x: counts.clone(), y: losses };
    let lower = Panel { frame: (LEFT, LOWER_TOP, RIGHT, BOTTOM), x: counts, y: gains };
    // Budgets take the looks of the powers of two from four on, in their order.
    let slot = |i: usize| 1_usize << ((i + 2) % 8);
    let looks = Looks::new((0..sweep.by_experts.len()).map(slot));
    let parts: [(&Panel, Banded); 2] = [(&upper, |p| p.loss_nats), (&lower, |p| p.gain_nats)];
    for (panel, of) in parts {
        panel.grid(&mut scene);
        for (i, curve) in sweep.by_experts.iter().enumerate() {
            band(&mut scene, panel, curve, (|p| p.experts as f64, of), looks.of(slot(i)).colour);
        }
        for (i, curve) in sweep.by_experts.iter().enumerate() {
            marked(&mut scene, panel, curve, of, looks.of(slot(i)));
        }
    }
    upper.frame_without_x(&mut scene);
    lower.frame(&mut scene);
    let mut legend = Legend::new();
    legend.heading(&mut scene, "training FLOPs");
    for (i, curve) in sweep.by_experts.iter().enumerate() {
        let Some(first) = curve.first() else { continue };
        let look = looks.of(slot(i));
        legend.entry(&mut scene, &number(first.train_flops), |scene, at| {
            scene.line(stroke(at), look.colour, 2.2);
            scene.mark(at, look, SMALL_MARK, false);
        });
    }
    legend.heading(&mut scene, "the law's runs");
    let look = looks.of(slot(0));
    for (words, hollow) in [("inside", false), ("outside", true)] {
        legend.entry(&mut scene, words, |scene, at| scene.mark(at, look, SMALL_MARK, hollow));
    }
    legend.note(&mut scene, "band: see subtitle");
    scene
}

/// A line with a mark at each model, hollow outside the law's runs.
fn marked(scene: &mut Scene, panel: &Panel, curve: &[BestAt], of: Banded, look: Look) {
    let shown: Vec<&BestAt> = curve.iter().filter(|p| is_shown(of(p).value)).collect();
    let at = panel.points(shown.iter().map(|p| (p.experts as f64, of(p).value)));
    scene.line(at.clone(), look.colour, 2.2);
    for (at, point) in at.into_iter().zip(shown) {
        scene.mark(at, look, SMALL_MARK, !point.in_fit_range);
    }
}

/// Size above, tokens below, one curve an expert count.
fn by_budget(sweep: &Sweep) -> Scene {
    let mut scene = Scene::default();
    panel::title(
        &mut scene,
        &format!("Best size and tokens against the training budget: {}", sweep.law),
        &sweep.bands,
    );
    let points = || sweep.by_budget.iter().flatten();
    let budgets = Axis::around("training FLOPs", points().map(|p| p.train_flops));
    let sizes = Axis::around("active parameters", points().flat_map(|p| ends(p.n_active)));
    let tokens = Axis::around("training tokens", points().flat_map(|p| ends(p.tokens)));
    let upper = Panel { frame: (LEFT, TOP, RIGHT, UPPER_BOTTOM), x: budgets.clone(), y: sizes };
    let lower = Panel { frame: (LEFT, LOWER_TOP, RIGHT, BOTTOM), x: budgets, y: tokens };
    let counts = sweep.by_budget.iter().filter_map(|c| c.first()).map(|p| p.experts);
    let looks = Looks::new(counts);
    let parts: [(&Panel, Banded); 2] = [(&upper, |p| p.n_active), (&lower, |p| p.tokens)];
    for (panel, of) in parts {
        panel.grid(&mut scene);
        for curve in &sweep.by_budget {
            let colour = colour(&looks, curve);
            band(&mut scene, panel, curve, (|p| p.train_flops, of), colour);
        }
        for curve in &sweep.by_budget {
            line(&mut scene, panel, curve, of, colour(&looks, curve));
        }
    }
    upper.frame_without_x(&mut scene);
    lower.frame(&mut scene);
    let mut legend = Legend::new();
    legend.heading(&mut scene, "experts");
    for curve in &sweep.by_budget {
        let Some(first) = curve.first() else { continue };
        let colour = colour(&looks, curve);
        legend.entry(&mut scene, &name(first.experts), |scene, at| {
            scene.line(stroke(at), colour, 2.4);
        });
    }
    legend.heading(&mut scene, "the law's runs");
    legend.entry(&mut scene, "inside", |scene, at| scene.line(stroke(at), INK, 2.4));
    legend.entry(&mut scene, "outside", |scene, at| {
        scene.dashed(&stroke(at), INK, 2.0, (6.0, 4.0));
    });
    legend.note(&mut scene, "band: see subtitle");
    scene
}

fn colour(looks: &Looks, curve: &[BestAt]) -> Rgb {
    looks.of(curve.first().map_or(1, |p| p.experts)).colour
}

const fn ends(band: Band) -> [f64; 3] {
    [band.lo, band.value, band.hi]
}

/// A filled band along a curve.
fn band(scene: &mut Scene, panel: &Panel, curve: &[BestAt], (x, of): (Value, Banded), colour: Rgb) {
    let shown: Vec<&BestAt> = curve.iter().filter(|p| is_shown(of(p).value)).collect();
    // A low end at or below zero lies on the frame.
    let mut outline: Vec<_> = shown.iter().map(|p| panel.at(x(p), of(p).hi)).collect();
    outline.extend(shown.iter().rev().map(|p| panel.at(x(p), of(p).lo)));
    scene.fill(outline, colour, BAND);
}

/// Solid inside the law's runs, dashed outside.
fn line(scene: &mut Scene, panel: &Panel, curve: &[BestAt], of: Banded, colour: Rgb) {
    for pair in curve.chunk_by(|a, b| a.in_fit_range == b.in_fit_range) {
        // A part reaches to the first point of the next one, so that no gap is left.
        let last = pair.last().map_or(0.0, |p| p.train_flops);
        let next = curve.iter().find(|p| p.train_flops > last);
        let points = pair.iter().chain(next).map(|p| (p.train_flops, of(p).value));
        let points = panel.points(points);
        if pair.first().is_some_and(|p| p.in_fit_range) {
            scene.line(points, colour, 2.6);
        } else {
            scene.dashed(&points, colour, 2.0, (6.0, 4.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::load_scaling;
    use crate::law::sweep::sweep;

    fn drawn(experts: &[usize], budgets: &[f64]) -> [Figure; 2] {
        let law = load_scaling("ludziejewski2025").unwrap();
        figures(&sweep(&law, "ludziejewski2025", experts, budgets).unwrap()).unwrap()
    }

    #[test]
    fn both_figures_name_axes_units_budgets_and_expert_counts() {
        let [loss, optimum] = drawn(&[1, 4, 32], &[1e20, 1e21]);
        for word in
            ["experts per layer", "loss, nats", "nats below dense", "10²⁰", "10²¹", "outside"]
        {
            assert!(loss.svg.contains(word), "{word}");
        }
        for word in ["training FLOPs", "active parameters", "training tokens", "32 experts"] {
            assert!(optimum.svg.contains(word), "{word}");
        }
        for figure in [loss, optimum] {
            assert!(figure.png.starts_with(b"\x89PNG") && !figure.caption.is_empty());
            assert!(!figure.svg.contains("NaN") && !figure.svg.contains("inf"));
        }
    }

    #[test]
    fn one_expert_count_at_one_budget_is_drawn() {
        for figure in drawn(&[8], &[1e21]) {
            assert!(figure.svg.trim_end().ends_with("</svg>"), "{}", figure.name);
        }
    }
}
