//! Legends, in a column beside the plotting area, where they cover no data.

use super::panel::{RIGHT, TOP};
use super::scene::{At, Scene, Style};
use crate::report::theme::{INK, SMALL, SOFT};

/// Distance between two lines.
const LINE: f64 = 18.0;
/// Left edge of the samples.
const LEFT: f64 = RIGHT + 18.0;
/// Left edge of the words.
const WORDS: f64 = LEFT + 38.0;
/// Lowest line that still lies inside the figure.
const LOWEST: f64 = 584.0;

/// A legend that grows downwards.
pub(super) struct Legend {
    y: f64,
}

impl Legend {
    /// A legend that starts at the top of the plotting area.
    pub(super) const fn new() -> Self {
        Self { y: TOP + 8.0 }
    }

    /// Leaves a gap and writes a heading.
    pub(super) fn heading(&mut self, scene: &mut Scene, text: &str) {
        if self.y > TOP + 8.0 {
            self.y += LINE * 0.5;
        }
        self.put(scene, LEFT, text, Style::left(SMALL, INK).bold());
    }

    /// One entry: `sample` draws at the given centre, over 28 points of width; the words may have
    /// several lines.
    pub(super) fn entry(
        &mut self,
        scene: &mut Scene,
        words: &str,
        sample: impl FnOnce(&mut Scene, At),
    ) {
        if self.y <= LOWEST {
            sample(scene, (LEFT + 14.0, self.y));
        }
        for line in words.lines() {
            self.put(scene, WORDS, line, Style::left(SMALL, INK));
        }
        self.y += 4.0;
    }

    /// Words alone.
    pub(super) fn note(&mut self, scene: &mut Scene, words: &str) {
        for line in words.lines() {
            self.put(scene, LEFT, line, Style::left(SMALL, SOFT));
        }
    }

    /// What lies below the figure is left out rather than cut in half.
    fn put(&mut self, scene: &mut Scene, x: f64, text: &str, style: Style) {
        if self.y <= LOWEST {
            scene.words((x, self.y), text, style);
        }
        self.y += LINE;
    }
}

/// The ends of a horizontal sample around its centre.
pub(super) fn stroke(at: At) -> Vec<At> {
    vec![(at.0 - 14.0, at.1), (at.0 + 14.0, at.1)]
}
