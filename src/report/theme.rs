//! Colours, marks, sizes and fonts of every figure.
//!
//! The palette is Okabe and Ito's ("Color Universal Design", 2008), told apart with every common
//! form of colour blindness; a mark shape per expert count says the same a second time.

#[cfg(feature = "native")]
use std::sync::OnceLock;

#[cfg(feature = "native")]
use plotters::style::{FontStyle, register_font};

#[cfg(feature = "native")]
use crate::{Error, Result};

/// Family that figures ask for: drawn with an embedded font in PNG, and with whatever sans-serif
/// the reader has in SVG.
pub(super) const FONT: &str = "sans-serif";

/// Width of every figure in points.
pub(super) const WIDTH: f64 = 960.0;
/// Height of every figure in points.
pub(super) const HEIGHT: f64 = 600.0;
/// Size of a figure's title in points.
pub(super) const TITLE: f64 = 19.0;
/// Size of axis labels in points.
pub(super) const LABEL: f64 = 15.0;
/// Size of tick labels and legends in points.
pub(super) const SMALL: f64 = 13.5;
/// Radius of a mark in points.
pub(super) const MARK: f64 = 6.5;

/// Text and frames.
pub(super) const INK: Rgb = Rgb(34, 34, 34);
/// Secondary text.
pub(super) const SOFT: Rgb = Rgb(95, 95, 95);
/// Grid lines.
pub(super) const GRID: Rgb = Rgb(226, 226, 226);
/// Cells where nothing is feasible.
pub(super) const VOID: Rgb = Rgb(238, 238, 238);
/// What cannot be: lifetimes that outlast the service.
pub(super) const VEIL: Rgb = Rgb(205, 205, 205);
/// The paper.
pub(super) const PAPER: Rgb = Rgb(255, 255, 255);

/// A colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rgb(pub(super) u8, pub(super) u8, pub(super) u8);

impl Rgb {
    /// Mixed with white: 1 is the colour itself, 0 is white.
    pub(super) fn strength(self, share: f64) -> Self {
        let share = share.clamp(0.0, 1.0);
        Self(lighter(self.0, share), lighter(self.1, share), lighter(self.2, share))
    }

    /// Whether black text on it is easier to read than white text.
    pub(super) fn is_light(self) -> bool {
        0.299 * f64::from(self.0) + 0.587 * f64::from(self.1) + 0.114 * f64::from(self.2) > 140.0
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 255 by construction"
)]
fn lighter(channel: u8, share: f64) -> u8 {
    (255.0 - (255.0 - f64::from(channel)) * share).round() as u8
}

/// The shape that stands for an expert count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A circle.
    Circle,
    /// A triangle on its side of the base.
    Triangle,
    /// A square.
    Square,
    /// A square on its tip.
    Diamond,
    /// A triangle on its tip.
    Down,
    /// A pentagon.
    Pentagon,
    /// A hexagon.
    Hexagon,
    /// A five-pointed star.
    Star,
}

impl Mark {
    /// Corners around the origin for a mark of this radius; y points down.
    pub(super) fn corners(self, radius: f64) -> Vec<(f64, f64)> {
        // (corners, angle of the first one in turns, radius relative to a circle of equal area)
        let (n, turn, size) = match self {
            Self::Circle => (28, 0.0, 1.0),
            Self::Triangle => (3, -0.25, 1.35),
            Self::Square => (4, 0.125, 1.25),
            Self::Diamond => (4, 0.0, 1.25),
            Self::Down => (3, 0.25, 1.35),
            Self::Pentagon => (5, -0.25, 1.15),
            Self::Hexagon => (6, 0.0, 1.1),
            Self::Star => (10, -0.25, 1.5),
        };
        let star = self == Self::Star;
        let full = std::f64::consts::TAU;
        (0..n)
            .map(|i| {
                let inner = if star && i % 2 == 1 { 0.45 } else { 1.0 };
                let angle = (turn + f64::from(i) / f64::from(n)) * full;
                (radius * size * inner * angle.cos(), radius * size * inner * angle.sin())
            })
            .collect()
    }
}

/// How an expert count looks in every figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Its colour.
    pub(super) colour: Rgb,
    /// Its mark.
    pub(super) mark: Mark,
}

/// Slots in the order in which expert counts without a place of their own take them.
const LOOKS: [(Rgb, Mark); 8] = [
    (Rgb(0, 0, 0), Mark::Circle),
    (Rgb(86, 180, 233), Mark::Hexagon),
    (Rgb(0, 114, 178), Mark::Triangle),
    (Rgb(230, 159, 0), Mark::Square),
    (Rgb(0, 158, 115), Mark::Diamond),
    (Rgb(204, 121, 167), Mark::Down),
    (Rgb(213, 94, 0), Mark::Pentagon),
    (Rgb(240, 228, 66), Mark::Star),
];

/// The looks of all expert counts of a report. Powers of two keep theirs across reports.
#[derive(Clone, Debug)]
pub(super) struct Looks(Vec<(usize, Look)>);

impl Looks {
    /// Looks for these expert counts, in any order and with repetitions.
    pub(super) fn new(experts: impl Iterator<Item = usize>) -> Self {
        let mut experts: Vec<usize> = experts.collect();
        experts.sort_unstable();
        experts.dedup();
        let mut free = [true; LOOKS.len()];
        for slot in experts.iter().filter_map(|&e| home(e)) {
            free[slot] = false;
        }
        let mut spare = (0..LOOKS.len()).filter(|&slot| free[slot]).chain(LOOKS.len()..);
        let looks = experts.iter().map(|&e| {
            let slot = home(e).or_else(|| spare.next()).unwrap_or(0);
            (e, look(slot))
        });
        Self(looks.collect())
    }

    /// The look of one expert count.
    pub(super) fn of(&self, experts: usize) -> Look {
        self.0.iter().find(|(e, _)| *e == experts).map_or_else(|| look(0), |(_, look)| *look)
    }

    /// All expert counts with their looks, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Look)> + '_ {
        self.0.iter().copied()
    }
}

/// Slot of the expert counts 1, 2, 4 ... 128.
fn home(experts: usize) -> Option<usize> {
    (0..LOOKS.len()).find(|&slot| experts == 1 << slot)
}

/// Beyond the last slot colours come again with another mark.
pub(super) fn look(slot: usize) -> Look {
    let n = LOOKS.len();
    Look { colour: LOOKS[slot % n].0, mark: LOOKS[(slot + slot / n) % n].1 }
}

/// Makes the embedded font known to the drawing library, once per process.
///
/// # Errors
/// [`Error::Io`] if the embedded font is damaged, which a test excludes.
#[cfg(feature = "native")]
pub(super) fn register_fonts() -> Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let fine = *DONE.get_or_init(|| {
        register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).is_ok()
            && register_font(FONT, FontStyle::Bold, dejavu::sans::bold()).is_ok()
    });
    let damaged = || std::io::Error::other("the embedded font is damaged");
    if fine { Ok(()) } else { Err(Error::io("load", "DejaVu Sans", damaged())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_expert_count_has_a_colour_and_a_mark_of_its_own() {
        for counts in [vec![1, 4, 8, 16, 32], vec![3, 5, 6, 7, 9, 10, 11, 12], (1..=60).collect()] {
            let looks = Looks::new(counts.iter().copied());
            let all: Vec<Look> = looks.iter().map(|(_, look)| look).collect();
            assert_eq!(all.len(), counts.len());
            for (i, a) in all.iter().enumerate() {
                assert!(!all[..i].contains(a), "{counts:?}: {a:?} twice");
            }
        }
    }

    #[test]
    fn powers_of_two_look_the_same_in_every_report() {
        let (few, many) = (Looks::new([8, 4].into_iter()), Looks::new(1..=64));
        assert_eq!(few.of(8), many.of(8));
        assert_eq!(few.of(4), many.of(4));
    }

    #[test]
    fn the_embedded_fonts_load() {
        register_fonts().unwrap();
    }

    #[test]
    fn strength_runs_from_white_to_the_colour() {
        let blue = Rgb(0, 114, 178);
        assert_eq!(blue.strength(0.0), PAPER);
        assert_eq!(blue.strength(1.0), blue);
        assert!(PAPER.is_light() && !INK.is_light());
    }
}
