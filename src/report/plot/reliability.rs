//! The reliability diagram of P(best): how often what was forecast with a probability happened.

use super::Figure;
use super::legend::{Legend, stroke};
use super::panel::{self, BOTTOM, LEFT, RIGHT, TOP};
use super::scene::{At, Scene, Style};
use crate::Result;
use crate::report::reliability::Tenth;
use crate::report::theme::{self, GRID, INK, LABEL, Looks, MARK, SMALL, SOFT};

/// Steps of the linear grid from 0 to 1.
const STEPS: u32 = 10;
/// Distance from the diagonal that the ranking's target allows.
const WITHIN: f64 = 0.1;
/// Dashes of the diagonal.
const DASH: (f64, f64) = (5.0, 4.0);

/// Draws the diagram.
///
/// # Errors
/// [`crate::Error::Io`] when it cannot be encoded.
pub(in crate::report) fn figure(tenths: &[Tenth], subtitle: &str) -> Result<Figure> {
    theme::register_fonts()?;
    let (name, caption) = ("reliability", "Share of forecasts that came true against P(best).");
    let scene = draw(tenths, subtitle);
    Ok(Figure { name, caption, svg: scene.svg(name)?, png: scene.png(name)? })
}

/// The place of a pair of shares.
fn at(x: f64, y: f64) -> At {
    (LEFT + x * (RIGHT - LEFT), BOTTOM - y * (BOTTOM - TOP))
}

fn draw(tenths: &[Tenth], subtitle: &str) -> Scene {
    let mut scene = Scene::default();
    panel::title(&mut scene, "P(best) against synthetic truths", subtitle);
    let band = [(0.0, 0.0), (0.0, WITHIN), (1.0 - WITHIN, 1.0), (1.0, 1.0), (1.0, 1.0 - WITHIN)];
    let corners = band.into_iter().chain([(WITHIN, 0.0)]).map(|(x, y)| at(x, y));
    scene.fill(corners.collect(), GRID, 0.7);
    axes(&mut scene);
    let diagonal = [at(0.0, 0.0), at(1.0, 1.0)];
    scene.dashed(&diagonal, SOFT, 1.6, DASH);
    let look = Looks::new([1].into_iter()).of(1);
    for tenth in tenths.iter().filter(|t| t.forecasts > 0) {
        let (x, y) = (tenth.mean_p_best, tenth.share_that_happened);
        let half = 1.96 * (y * (1.0 - y) / tenth.forecasts as f64).sqrt();
        let (low, high) = (at(x, (y - half).max(0.0)), at(x, (y + half).min(1.0)));
        scene.line(vec![low, high], look.colour, 2.0);
        scene.mark(at(x, y), look, MARK, false);
        let count = tenth.forecasts.to_string();
        scene.label((at(x, y).0, high.1 - 16.0), &count, Style::left(SMALL, SOFT).middle());
    }
    let mut legend = Legend::new();
    legend.entry(&mut scene, "forecasts of\na tenth, 95 %", |scene, at| {
        scene.line(stroke(at), look.colour, 2.0);
        scene.mark(at, look, MARK, false);
    });
    legend.entry(&mut scene, "as often\nas forecast", |scene, at| {
        scene.dashed(&stroke(at), SOFT, 1.6, DASH);
    });
    legend.note(&mut scene, "gray: within 10 points");
    legend.note(&mut scene, "numbers: forecasts");
    scene
}

/// Frame, grid, ticks and labels of two axes from 0 to 1.
fn axes(scene: &mut Scene) {
    for step in 0..=STEPS {
        let share = f64::from(step) / f64::from(STEPS);
        let text = format!("{share:.1}");
        let (x, y) = (at(share, 0.0), at(0.0, share));
        scene.line(vec![x, at(share, 1.0)], GRID, 1.0);
        scene.line(vec![y, at(1.0, share)], GRID, 1.0);
        scene.line(vec![x, (x.0, x.1 + 6.0)], SOFT, 1.0);
        scene.line(vec![(y.0 - 6.0, y.1), y], SOFT, 1.0);
        scene.words((x.0, x.1 + 19.0), text.as_str(), Style::left(SMALL, INK).middle());
        scene.words((y.0 - 10.0, y.1), text, Style::left(SMALL, INK).right());
    }
    let frame = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)];
    scene.line(frame.map(|(x, y)| at(x, y)).to_vec(), SOFT, 1.0);
    let below = (f64::midpoint(LEFT, RIGHT), BOTTOM + 46.0);
    scene.words(below, "forecast P(best)", Style::left(LABEL, INK).middle());
    let beside = (22.0, f64::midpoint(TOP, BOTTOM));
    scene.words(beside, "share that happened", Style::left(LABEL, INK).middle().upwards());
}
