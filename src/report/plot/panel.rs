//! A plotting area: frame, grid, tick labels, and where a pair of values lies in it.

use super::axis::{Axis, is_shown};
use super::scene::{At, Scene, Style, text_width};
use crate::report::theme::{GRID, INK, LABEL, SMALL, SOFT, TITLE};

/// Left edge of every plotting area: room for tick labels and the axis label.
pub(super) const LEFT: f64 = 92.0;
/// Right edge; the legend stands beyond it and so covers nothing.
pub(super) const RIGHT: f64 = 752.0;
/// Upper edge below title and subtitle.
pub(super) const TOP: f64 = 72.0;
/// Lower edge above tick labels and the axis label.
pub(super) const BOTTOM: f64 = 534.0;

/// Axes with a place.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    /// Left, top, right, bottom in points.
    pub(super) frame: (f64, f64, f64, f64),
    /// The horizontal axis.
    pub(super) x: Axis,
    /// The vertical axis.
    pub(super) y: Axis,
}

impl Panel {
    /// A panel that takes up the whole plotting area.
    pub(super) const fn new(x: Axis, y: Axis) -> Self {
        Self { frame: (LEFT, TOP, RIGHT, BOTTOM), x, y }
    }

    /// Where a pair of values lies; outside the axes it lies on the frame.
    pub(super) fn at(&self, x: f64, y: f64) -> At {
        let (left, top, right, bottom) = self.frame;
        (left + self.x.share(x) * (right - left), bottom - self.y.share(y) * (bottom - top))
    }

    /// The places of all pairs that a logarithmic axis can show.
    pub(super) fn points(&self, pairs: impl Iterator<Item = (f64, f64)>) -> Vec<At> {
        pairs.filter(|(x, y)| is_shown(*x) && is_shown(*y)).map(|(x, y)| self.at(x, y)).collect()
    }

    /// Grid lines; drawn before the data.
    pub(super) fn grid(&self, scene: &mut Scene) {
        let (left, top, right, bottom) = self.frame;
        for tick in self.x.ticks() {
            let x = self.at(tick.value, 1.0).0;
            scene.line(vec![(x, top), (x, bottom)], GRID, 1.0);
        }
        for tick in self.y.ticks() {
            let y = self.at(1.0, tick.value).1;
            scene.line(vec![(left, y), (right, y)], GRID, 1.0);
        }
    }

    /// Frame, ticks and labels; drawn after the data.
    pub(super) fn frame(&self, scene: &mut Scene) {
        self.frame_without_x(scene);
        self.x_ticks(scene);
        let (left, _, right, bottom) = self.frame;
        let below = (f64::midpoint(left, right), bottom + 46.0);
        scene.words(below, self.x.label.as_str(), Style::left(LABEL, INK).middle());
    }

    /// The same without the horizontal axis, for a panel that stands on another one.
    pub(super) fn frame_without_x(&self, scene: &mut Scene) {
        self.outline(scene);
        self.y_ticks(scene);
        self.y_label(scene);
    }

    fn outline(&self, scene: &mut Scene) {
        let (left, top, right, bottom) = self.frame;
        let corners = vec![(left, top), (right, top), (right, bottom), (left, bottom), (left, top)];
        scene.line(corners, SOFT, 1.0);
    }

    fn y_label(&self, scene: &mut Scene) {
        let middle = f64::midpoint(self.frame.1, self.frame.3);
        scene.words(
            (22.0, middle),
            self.y.label.as_str(),
            Style::left(LABEL, INK).middle().upwards(),
        );
    }

    fn x_ticks(&self, scene: &mut Scene) {
        let bottom = self.frame.3;
        for value in self.x.small_ticks() {
            let x = self.at(value, 1.0).0;
            scene.line(vec![(x, bottom), (x, bottom + 3.0)], SOFT, 1.0);
        }
        let mut free_from = f64::NEG_INFINITY;
        for tick in self.x.ticks() {
            let x = self.at(tick.value, 1.0).0;
            scene.line(vec![(x, bottom), (x, bottom + 6.0)], SOFT, 1.0);
            let half = text_width(&tick.text, SMALL) / 2.0;
            // A label that would touch its neighbour is left out; its tick stays.
            if x - half > free_from {
                scene.words((x, bottom + 19.0), tick.text, Style::left(SMALL, INK).middle());
                free_from = x + half + 6.0;
            }
        }
    }

    fn y_ticks(&self, scene: &mut Scene) {
        let left = self.frame.0;
        for value in self.y.small_ticks() {
            let y = self.at(1.0, value).1;
            scene.line(vec![(left - 3.0, y), (left, y)], SOFT, 1.0);
        }
        let mut free_below = f64::INFINITY;
        for tick in self.y.ticks() {
            let y = self.at(1.0, tick.value).1;
            scene.line(vec![(left - 6.0, y), (left, y)], SOFT, 1.0);
            if y + SMALL / 2.0 < free_below {
                scene.words((left - 10.0, y), tick.text, Style::left(SMALL, INK).right());
                free_below = y - SMALL / 2.0 - 2.0;
            }
        }
    }
}

/// Title and subtitle of a figure.
pub(super) fn title(scene: &mut Scene, title: &str, subtitle: &str) {
    /// Characters of a subtitle that fit the figure.
    const MOST: usize = 118;
    scene.words((20.0, 26.0), title, Style::left(TITLE, INK).bold());
    let shown: String = if subtitle.chars().count() > MOST {
        subtitle.chars().take(MOST - 1).chain(std::iter::once('…')).collect()
    } else {
        subtitle.to_owned()
    };
    scene.words((20.0, 51.0), shown, Style::left(SMALL, SOFT));
}

/// A sentence in the middle of the plotting area, when there is nothing to plot.
pub(super) fn nothing(scene: &mut Scene, reason: &str) {
    let middle = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
    scene.label(middle, reason, Style::left(LABEL, SOFT).middle());
}
