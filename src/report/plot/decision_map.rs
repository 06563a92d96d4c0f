//! Who wins where: cells coloured by the cheapest expert count, stronger the more probable it is,
//! with the user's own point.

use super::axis::{Axis, is_shown};
use super::legend::Legend;
use super::panel::{self, Panel, RIGHT};
use super::scene::{At, Scene, Style, text_width};
use crate::plan::outcome::{DecisionMap, RankReport};
use crate::plan::summary::name;
use crate::report::theme::{INK, LABEL, Looks, PAPER, Rgb, SMALL, VEIL, VOID};

/// Lifetimes that get a diagonal, in years; beyond the last the map is grey.
const YEARS: [f64; 3] = [1.0, 3.0, 10.0];
/// Seconds of a year.
const YEAR_S: f64 = 365.25 * 86_400.0;
/// Probabilities whose shades the legend shows.
const SHADES: [f64; 4] = [0.25, 0.5, 0.75, 1.0];

/// Draws the map over request rate and lifetime.
pub(super) fn draw_traffic(report: &RankReport, looks: &Looks) -> Scene {
    let title = "Cheapest expert count over traffic and lifetime";
    let steps = "steps along the rate are whole replicas; the last column counts fractions";
    draw(&report.decision_map.traffic, title, &format!("{}; {steps}", subtitle(report)), looks)
}

/// Draws the map over training budget and latency limit.
pub(super) fn draw_budget(report: &RankReport, looks: &Looks) -> Scene {
    let title = "Cheapest expert count over training budget and latency limit";
    draw(&report.decision_map.budget, title, &subtitle(report), looks)
}

fn subtitle(report: &RankReport) -> String {
    format!("equal loss; {}, {}", report.profile.device, report.law.id)
}

fn draw(map: &DecisionMap, title: &str, subtitle: &str, looks: &Looks) -> Scene {
    let mut scene = Scene::default();
    panel::title(&mut scene, title, subtitle);
    let (x_edges, y_edges) = (edges(&map.x), edges(&map.y));
    let panel = Panel::new(
        Axis::exactly(map.x_label.as_str(), &x_edges),
        Axis::exactly(map.y_label.as_str(), &y_edges),
    );
    let grid = Grid { map, panel: &panel, x: x_edges, y: y_edges };
    grid.cells(&mut scene, looks);
    grid.borders(&mut scene);
    grid.years(&mut scene);
    if map.last_is_at_scale {
        grid.at_scale(&mut scene);
    }
    grid.names(&mut scene, looks);
    panel.frame(&mut scene);
    if map.winner.iter().flatten().all(Option::is_none) {
        panel::nothing(&mut scene, "nothing is feasible anywhere on this map");
    }
    your_point(&mut scene, &panel, map);
    legend(&mut scene, map, looks);
    scene
}

/// The map with the edges of its cells.
struct Grid<'a> {
    map: &'a DecisionMap,
    panel: &'a Panel,
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Grid<'_> {
    fn winner(&self, column: usize, row: usize) -> Option<usize> {
        *self.map.winner.get(row)?.get(column)?
    }

    fn chance(&self, column: usize, row: usize) -> f64 {
        let rows = &self.map.p_best;
        rows.get(row).and_then(|r| r.get(column)).copied().unwrap_or(0.0)
    }

    /// A dashed line before the last column, which is the limit of a large fleet, with its name.
    fn at_scale(&self, scene: &mut Scene) {
        let [.., left, right] = self.x[..] else { return };
        let (low, high) = (self.y[0], self.y[self.y.len() - 1]);
        let (from, to) = (self.panel.at(left, low), self.panel.at(left, high));
        scene.dashed(&[from, to], INK, 1.4, (6.0, 4.0));
        let middle = f64::midpoint(from.0, self.panel.at(right, low).0);
        scene.label((middle, to.1 - 6.0), "at scale", Style::left(SMALL, INK).right());
    }

    /// Lines of equal lifetime, and a grey veil where tokens take longer than the last of them at the rate.
    fn years(&self, scene: &mut Scene) {
        let Some(per_request) = self.map.output_tokens_per_request else { return };
        // The last column has no rate.
        let columns = self.x.len().saturating_sub(if self.map.last_is_at_scale { 2 } else { 1 });
        let (Some(&left), Some(&right)) = (self.x.first(), self.x.get(columns)) else { return };
        let (Some(&low), Some(&high)) = (self.y.first(), self.y.last()) else { return };
        let per_year = per_request * YEAR_S;
        let last = YEARS[YEARS.len() - 1];
        let (top_left, bottom_right) = (self.panel.at(left, high), self.panel.at(right, low));
        if let Some((from, to)) = clipped(last * per_year, (left, right), (low, high)) {
            let line = [self.panel.at(from.0, from.1), self.panel.at(to.0, to.1)];
            veil(scene, top_left, bottom_right.0, line);
        } else if left * last * per_year < low {
            // All of it takes longer.
            veil(scene, top_left, bottom_right.0, [bottom_right, bottom_right]);
        }
        for years in YEARS {
            if let Some((from, to)) = clipped(years * per_year, (left, right), (low, high)) {
                let ends = [self.panel.at(from.0, from.1), self.panel.at(to.0, to.1)];
                scene.dashed(&ends, INK, 1.2, (2.0, 3.0));
                let text = if years > 1.0 { format!("{years} years") } else { "1 year".into() };
                let at = along(ends, 0.8);
                scene.label(at, &text, Style::left(SMALL, INK).middle());
            }
        }
    }

    /// Every cell: column, row.
    fn all(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.map.y.len()).flat_map(|row| (0..self.map.x.len()).map(move |column| (column, row)))
    }

    /// Neighbouring cells of one colour become one rectangle, so that no seams show between them.
    fn cells(&self, scene: &mut Scene, looks: &Looks) {
        for row in 0..self.map.y.len() {
            let colour = |column: usize| {
                self.winner(column, row)
                    .map_or(VOID, |e| shade(looks.of(e).colour, self.chance(column, row)))
            };
            let mut start = 0;
            for end in 1..=self.map.x.len() {
                if end == self.map.x.len() || colour(end) != colour(start) {
                    let low = self.panel.at(self.x[start], self.y[row]);
                    let (right, top) = self.panel.at(self.x[end], self.y[row + 1]);
                    // Half a point under the next cell, or the paper shines through the seam.
                    let high = (right + 0.5, top - 0.5);
                    scene.rectangle(low, high, colour(start), 1.0);
                    start = end;
                }
            }
        }
    }

    /// A line wherever the winner changes.
    fn borders(&self, scene: &mut Scene) {
        let at = |column: usize, row: usize| self.panel.at(self.x[column], self.y[row]);
        for (column, row) in self.all() {
            let own = self.winner(column, row);
            if column + 1 < self.map.x.len() && self.winner(column + 1, row) != own {
                scene.line(vec![at(column + 1, row), at(column + 1, row + 1)], INK, 1.6);
            }
            if row + 1 < self.map.y.len() && self.winner(column, row + 1) != own {
                scene.line(vec![at(column, row + 1), at(column + 1, row + 1)], INK, 1.6);
            }
        }
    }

    /// The name of each winner in the widest part of its region, or its number where that is all
    /// that fits.
    fn names(&self, scene: &mut Scene, looks: &Looks) {
        for (experts, look) in looks.iter() {
            let own = self.all().filter(|&(c, r)| self.winner(c, r) == Some(experts));
            let clear = own.filter(|&cell| !self.is_beside_point(self.middle(cell)));
            let widest = clear.max_by_key(|&cell| {
                let (first, end) = self.run(cell);
                (self.depth(cell), end - first)
            });
            let Some(cell) = widest else { continue };
            let width = self.width(cell);
            let fits = |text: &String| text_width(text, LABEL) * 1.1 + 8.0 <= width;
            let short = if experts > 1 { experts.to_string() } else { name(experts) };
            let Some(text) = [name(experts), short].into_iter().find(fits) else { continue };
            let below = shade(look.colour, self.chance(cell.0, cell.1));
            let colour = if below.is_light() { INK } else { PAPER };
            scene.words(self.middle(cell), text, Style::left(LABEL, colour).middle().bold());
        }
    }

    /// The middle of a cell's run.
    fn middle(&self, cell: (usize, usize)) -> At {
        let (first, end) = self.run(cell);
        let a = self.panel.at(self.x[first], self.y[cell.1]);
        let b = self.panel.at(self.x[end], self.y[cell.1 + 1]);
        (f64::midpoint(a.0, b.0), f64::midpoint(a.1, b.1))
    }

    /// The width of a cell's run in points.
    fn width(&self, cell: (usize, usize)) -> f64 {
        let (first, end) = self.run(cell);
        self.panel.at(self.x[end], 1.0).0 - self.panel.at(self.x[first], 1.0).0
    }

    /// Whether a name here would touch the user's point or its label.
    fn is_beside_point(&self, at: At) -> bool {
        let here = self.panel.at(self.map.here.0, self.map.here.1);
        (at.0 - here.0).abs() < 150.0 && (at.1 - here.1 + 8.0).abs() < 30.0
    }

    /// The columns around a cell that have its winner in its row: first, and one past the last.
    fn run(&self, (column, row): (usize, usize)) -> (usize, usize) {
        let own = self.winner(column, row);
        let other = |&c: &usize| self.winner(c, row) != own;
        let first = (0..column).rev().find(other).map_or(0, |c| c + 1);
        (first, (column..self.map.x.len()).find(other).unwrap_or(self.map.x.len()))
    }

    /// How many cells away the nearest cell of another winner or the edge of the map is.
    fn depth(&self, (column, row): (usize, usize)) -> usize {
        let own = self.winner(column, row);
        let edge =
            (column + 1).min(row + 1).min(self.map.x.len() - column).min(self.map.y.len() - row);
        let other = self
            .all()
            .filter(|&(c, r)| self.winner(c, r) != own)
            .map(|(c, r)| c.abs_diff(column).max(r.abs_diff(row)))
            .min();
        other.map_or(edge, |distance| distance.min(edge))
    }
}

/// Stronger the more probable; a probability of a fifth or less is palest.
fn shade(colour: Rgb, chance: f64) -> Rgb {
    colour.strength(0.22 + 0.78 * ((chance - 0.2) / 0.8).clamp(0.0, 1.0))
}

/// Hatches what lies above a rising line, from the left edge to at most `right`: colours below stay to be
/// guessed, and no expert count looks like it.
fn veil(scene: &mut Scene, (left, top): At, right: f64, [from, to]: [At; 2]) {
    const STEP: f64 = 7.0;
    if left >= right {
        return;
    }
    let mut y = top + STEP / 2.0;
    while y < from.1 {
        let end = if y > to.1 {
            from.0 + (to.0 - from.0) * (from.1 - y) / (from.1 - to.1)
        } else {
            right
        };
        scene.line(vec![(left, y), (end.clamp(left, right), y)], VEIL, 0.75 * STEP);
        y += STEP;
    }
}

/// A place on a line, by its share of the way.
fn along([a, b]: [At; 2], share: f64) -> At {
    (a.0 + share * (b.0 - a.0), a.1 + share * (b.1 - a.1))
}

/// The ends of the line `y = slope * x` inside a rectangle, from left to right.
fn clipped(
    slope: f64,
    (left, right): (f64, f64),
    (low, high): (f64, f64),
) -> Option<((f64, f64), (f64, f64))> {
    let (from, to) = (left.max(low / slope), right.min(high / slope));
    (is_shown(from) && is_shown(to) && from < to)
        .then_some(((from, from * slope), (to, to * slope)))
}

/// Edges of cells around grid values: half-way between neighbours in the logarithm.
fn edges(values: &[f64]) -> Vec<f64> {
    let between = |a: f64, b: f64| (a * b).sqrt();
    let mut edges: Vec<f64> = values.windows(2).map(|w| between(w[0], w[1])).collect();
    match values {
        [] => {}
        [only] => edges.extend([only / 1.2, only * 1.2]),
        [first, second, ..] => {
            let (last, before) = (values[values.len() - 1], values[values.len() - 2]);
            edges.insert(0, first * between(first / second, 1.0));
            edges.push(last * between(last / before, 1.0));
        }
    }
    edges
}

fn your_point(scene: &mut Scene, panel: &Panel, map: &DecisionMap) {
    if !is_shown(map.here.0) || !is_shown(map.here.1) {
        return;
    }
    let at = panel.at(map.here.0, map.here.1);
    cross(scene, at);
    let style = Style::left(SMALL, INK);
    if at.0 > 0.8 * RIGHT {
        scene.label((at.0 - 16.0, at.1 - 15.0), "your point", style.right());
    } else {
        scene.label((at.0 + 16.0, at.1 - 15.0), "your point", style);
    }
}

fn cross(scene: &mut Scene, (x, y): (f64, f64)) {
    let arms = [
        vec![(x - 9.0, y - 9.0), (x + 9.0, y + 9.0)],
        vec![(x - 9.0, y + 9.0), (x + 9.0, y - 9.0)],
    ];
    for (colour, width) in [(PAPER, 7.0), (INK, 3.2)] {
        for arm in &arms {
            scene.line(arm.clone(), colour, width);
        }
    }
}

fn legend(scene: &mut Scene, map: &DecisionMap, looks: &Looks) {
    let mut legend = Legend::new();
    legend.heading(scene, "cheapest in all");
    let won = |experts: usize| map.winner.iter().flatten().any(|w| *w == Some(experts));
    for (experts, look) in looks.iter().filter(|&(e, _)| won(e)) {
        legend.entry(scene, &name(experts), |scene, at| swatch(scene, at, look.colour));
    }
    if map.winner.iter().flatten().any(Option::is_none) {
        legend.entry(scene, "no feasible answer", |scene, at| {
            scene.rectangle((at.0 - 14.0, at.1 - 7.0), (at.0 + 14.0, at.1 + 7.0), VOID, 1.0);
        });
    }
    legend.entry(scene, "your point", |scene, (x, y)| cross(scene, (x, y)));
    if map.output_tokens_per_request.is_some() {
        legend.entry(scene, "over 10 years\nat that rate", |scene, at| {
            veil(scene, (at.0 - 14.0, at.1 - 10.5), at.0 + 14.0, [(at.0, at.1 + 10.5); 2]);
        });
    }
    legend.heading(scene, "shade: P(best)");
    let winners: Vec<Rgb> = looks.iter().filter(|&(e, _)| won(e)).map(|(_, l)| l.colour).collect();
    for chance in SHADES {
        let words = if chance <= 0.25 { format!("{chance} or less") } else { chance.to_string() };
        let shades: Vec<Rgb> = winners.iter().map(|&colour| shade(colour, chance)).collect();
        legend.entry(scene, &words, |scene, at| strip(scene, at, &shades));
    }
    legend.note(scene, "pale: no clear winner");
}

/// One swatch divided among several colours.
fn strip(scene: &mut Scene, at: (f64, f64), colours: &[Rgb]) {
    let width = 28.0 / colours.len().max(1) as f64;
    for (index, &colour) in colours.iter().enumerate() {
        let left = at.0 - 14.0 + width * index as f64;
        scene.rectangle((left, at.1 - 7.0), (left + width, at.1 + 7.0), colour, 1.0);
    }
}

fn swatch(scene: &mut Scene, at: (f64, f64), colour: Rgb) {
    scene.rectangle((at.0 - 14.0, at.1 - 7.0), (at.0 + 14.0, at.1 + 7.0), colour, 1.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_lie_half_way_between_grid_values() {
        let found = edges(&[1.0, 100.0, 10_000.0]);
        let expected = [0.1, 10.0, 1000.0, 100_000.0];
        assert_eq!(found.len(), 4);
        assert!(found.iter().zip(expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-12), "{found:?}");
        assert!(edges(&[]).is_empty());
        assert_eq!(edges(&[5.0]).len(), 2);
    }

    #[test]
    fn a_line_of_equal_lifetime_is_cut_at_the_map() {
        let (from, to) = clipped(10.0, (1.0, 100.0), (50.0, 400.0)).unwrap();
        assert_eq!((from, to), ((5.0, 50.0), (40.0, 400.0)));
        assert_eq!(clipped(10.0, (1.0, 100.0), (5000.0, 9000.0)), None);
    }

    #[test]
    fn a_more_probable_winner_is_darker() {
        let blue = Rgb(0, 114, 178);
        assert_eq!(shade(blue, 1.0), blue);
        assert!(shade(blue, 0.3).0 > shade(blue, 0.8).0);
    }
}
