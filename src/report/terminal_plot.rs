//! The frontier of a ranking in letters: serving cost upwards, training cost to the right, both
//! logarithmic.

use std::collections::BTreeSet;

use crate::plan::outcome::{Candidate, RankReport};
use crate::report::view::{experts, serving};
use crate::units::Usd;

/// How a plot is drawn in a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TerminalPlot {
    /// Not at all.
    None,
    /// One letter per expert count for each candidate.
    #[default]
    Ascii,
    /// Candidates as Braille dots, recommended ones as letters.
    Braille,
}

impl TerminalPlot {
    /// Every kind with its name.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::None, "none"), (Self::Ascii, "ascii"), (Self::Braille, "braille")];
}

/// Dots of a Braille cell across and upwards.
const DOTS: (usize, usize) = (2, 4);
/// Bits of the dots of a cell, `[row][column]`, from the top.
const BITS: [[u32; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
/// First character of the Braille block.
const EMPTY: u32 = 0x2800;
/// Steps to either side in which a letter looks for a free cell.
const ASIDE: usize = 3;

/// Candidates are shown up to this many times the most expensive recommended one.
const NEAR: f64 = 2.0;

/// A candidate with a place.
struct Point {
    letter: usize,
    train: f64,
    serve: f64,
    is_best: bool,
}

/// The plot with its title and its axis in `height + 2` lines of at most `width` columns; nothing where
/// fewer than two candidates can be served.
pub(super) fn frontier(
    report: &RankReport,
    kind: TerminalPlot,
    width: usize,
    height: usize,
) -> Vec<String> {
    let counts: BTreeSet<usize> = report.candidates.iter().map(|c| c.experts).collect();
    let counts: Vec<usize> = counts.into_iter().collect();
    let mut points: Vec<Point> =
        report.candidates.iter().filter_map(|c| point(c, &counts)).collect();
    near_best(&mut points);
    if kind == TerminalPlot::None || points.len() < 2 || height < 2 {
        return Vec::new();
    }
    let (x, y) =
        (Scale::of(points.iter().map(|p| p.train)), Scale::of(points.iter().map(|p| p.serve)));
    let ends = [serving(y.high), serving(y.low)];
    let label = ends.iter().map(String::len).max().unwrap_or(0);
    let columns = width.saturating_sub(label + 2).max(2);
    let mut cells = vec![vec![' '; columns]; height];
    match kind {
        TerminalPlot::Braille => dots(&mut cells, &points, (&x, &y)),
        _ => letters(&mut cells, points.iter().filter(|p| !p.is_best), (&x, &y)),
    }
    letters(&mut cells, points.iter().filter(|p| p.is_best), (&x, &y));
    let mut lines = vec![title(&counts, &points, width)];
    for (row, cells) in cells.iter().enumerate() {
        let end = match row {
            0 => ends[0].as_str(),
            _ if row + 1 == height => ends[1].as_str(),
            _ => "",
        };
        let line: String = cells.iter().collect();
        lines.push(format!("{end:>label$} |{}", line.trim_end()));
    }
    lines.push(axis(&x, label + 2, columns));
    lines
}

fn point(c: &Candidate, counts: &[usize]) -> Option<Point> {
    let serve = c.serve_usd_per_million_output_tokens?;
    let is_shown = |v: f64| v.is_finite() && v > 0.0;
    if !c.is_equal_loss() || !is_shown(serve) || !is_shown(c.train_usd) {
        return None;
    }
    let letter = counts.iter().position(|&e| e == c.experts)?;
    Some(Point { letter, train: c.train_usd, serve, is_best: c.best_of_experts })
}

/// Leaves out what lies far beyond every recommended candidate and would press them together.
fn near_best(points: &mut Vec<Point>) {
    let most = |of: fn(&Point) -> f64| {
        points.iter().filter(|p| p.is_best).map(of).fold(f64::NAN, f64::max) * NEAR
    };
    let (train, serve) = (most(|p| p.train), most(|p| p.serve));
    points.retain(|p| !(p.train > train || p.serve > serve));
}

/// The letter of an expert count.
fn letter(index: usize, is_best: bool) -> char {
    let small = u8::try_from(index).ok().filter(|i| *i < 26).map_or('*', |i| char::from(b'a' + i));
    if is_best { small.to_ascii_uppercase() } else { small }
}

fn title(counts: &[usize], points: &[Point], width: usize) -> String {
    let named: Vec<String> = counts
        .iter()
        .enumerate()
        .filter(|(i, _)| points.iter().any(|p| p.letter == *i))
        .map(|(i, &e)| format!("{} {}", letter(i, true), experts(e)))
        .collect();
    let long = format!("serving $/M out over training $; {}", named.join(", "));
    let line = if long.len() + 22 <= width { long + "; capital: recommended" } else { long };
    line.chars().take(width).collect()
}

/// The ends of the training cost below the plot.
fn axis(x: &Scale, indent: usize, columns: usize) -> String {
    let (low, high) = (Usd(x.low).to_string(), Usd(x.high).to_string());
    let rule = columns.saturating_sub(low.len() + high.len() + 2);
    format!("{:indent$}{low} {} {high}", "", "-".repeat(rule))
}

/// Draws letters, each in its cell or the nearest free one beside it; what finds none is left out.
fn letters<'a>(
    cells: &mut [Vec<char>],
    points: impl Iterator<Item = &'a Point>,
    (x, y): (&Scale, &Scale),
) {
    let (height, columns) = (cells.len(), cells[0].len());
    for p in points {
        let (column, row) = (x.cell(p.train, columns), height - 1 - y.cell(p.serve, height));
        let own = letter(p.letter, p.is_best);
        let aside = if p.is_best { ASIDE } else { 0 };
        let nearby = (0..=aside).flat_map(|step| [column.checked_sub(step), Some(column + step)]);
        let is_free = |c: &usize| {
            cells[row].get(*c).is_some_and(|&there| {
                there == own || there == ' ' || (p.is_best && !there.is_ascii_uppercase())
            })
        };
        if let Some(free) = nearby.flatten().find(is_free) {
            cells[row][free] = own;
        }
    }
}

fn dots(cells: &mut [Vec<char>], points: &[Point], (x, y): (&Scale, &Scale)) {
    let (columns, height) = (cells[0].len() * DOTS.0, cells.len() * DOTS.1);
    for p in points {
        let (column, row) = (x.cell(p.train, columns), height - 1 - y.cell(p.serve, height));
        let cell = &mut cells[row / DOTS.1][column / DOTS.0];
        let before = if *cell == ' ' { EMPTY } else { u32::from(*cell) };
        let bits = before | BITS[row % DOTS.1][column % DOTS.0];
        *cell = char::from_u32(bits).unwrap_or(' ');
    }
}

/// A logarithmic scale.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) =
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
        Self { low, high }
    }

    /// The cell of a value among `cells`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of cells; a NaN becomes 0"
    )]
    fn cell(&self, value: f64, cells: usize) -> usize {
        let span = (self.high / self.low).ln();
        let share = if span > 0.0 { (value / self.low).ln() / span } else { 0.5 };
        let last = cells.saturating_sub(1);
        ((share.clamp(0.0, 1.0) * last as f64).round() as usize).min(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::plan::sample;

    #[test]
    fn every_recommended_candidate_has_a_capital() {
        let report = sample::report();
        for (kind, _) in TerminalPlot::ALL {
            let text = frontier(&report, kind, 60, 6).join("\n");
            assert_eq!(text.is_empty(), kind == TerminalPlot::None);
            if kind != TerminalPlot::None {
                assert_eq!(text.lines().count(), 8, "{text}");
                let body: String = text.lines().skip(1).collect();
                // The third count cannot be served.
                assert!(body.contains('A') && body.contains('B') && !body.contains('C'), "{text}");
                assert!(text.contains("A dense, B 4") && text.contains("training $"), "{text}");
            }
        }
        let dotted = frontier(&report, TerminalPlot::Braille, 60, 6).join("");
        assert!(dotted.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "{dotted}");
        assert!(frontier(&sample::empty(), TerminalPlot::Ascii, 60, 6).is_empty());
    }

    #[test]
    fn marks_that_meet_stand_beside_each_other() {
        let mut report = sample::report();
        for c in &mut report.candidates {
            (c.train_usd, c.serve_usd_per_million_output_tokens) = (10.0, Some(1.0));
        }
        let text = frontier(&report, TerminalPlot::Ascii, 60, 6)[1..].join("\n");
        for capital in ['A', 'B', 'C'] {
            assert!(text.contains(capital), "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_has_the_size_it_is_told(
            report in sample::arbitrary(), width in 40_usize..160, height in 2_usize..9,
        ) {
            for (kind, _) in TerminalPlot::ALL {
                let lines = frontier(&report, kind, width, height);
                prop_assert!(lines.is_empty() || lines.len() == height + 2);
                for line in &lines {
                    prop_assert!(line.width() <= width, "{line}");
                }
            }
        }
    }
}
