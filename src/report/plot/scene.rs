//! A figure as a list of shapes in points, and its vector form.
//!
//! The drawing library works in whole pixels, so figures are drawn at several pixels per point.

use std::io;

use plotters::backend::{DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{PathElement, Polygon, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontDesc, FontFamily, FontStyle, FontTransform, RGBAColor, ShapeStyle, TextStyle,
};

use crate::report::theme::{FONT, HEIGHT, Look, PAPER, Rgb, WIDTH};
use crate::{Error, Result};

/// Pixels per point of the SVG, whose coordinates are whole numbers.
const SVG_SCALE: u32 = 4;
/// Radius of a hollow mark's inside, relative to its outside.
const HOLLOW: f64 = 0.58;

/// A place in points from the upper left corner.
pub(super) type At = (f64, f64);

/// One thing to draw.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// A line through points.
    Line { points: Vec<At>, colour: Rgb, alpha: f64, width: f64 },
    /// A filled outline.
    Fill { points: Vec<At>, colour: Rgb, alpha: f64 },
    /// A line of text.
    Words { at: At, text: String, style: Style },
}

/// How text looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Size in points.
    pub(super) size: f64,
    /// Colour.
    pub(super) colour: Rgb,
    /// Which side of the text lies at its place.
    pub(super) side: Side,
    /// Whether it is bold.
    pub(super) bold: bool,
    /// Whether it runs upwards.
    pub(super) upwards: bool,
}

/// Which part of a text lies at its place; vertically it is always the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Its left end.
    Left,
    /// Its middle.
    Middle,
    /// Its right end.
    Right,
}

impl Style {
    /// Text that starts at its place.
    pub(super) const fn left(size: f64, colour: Rgb) -> Self {
        Self { size, colour, side: Side::Left, bold: false, upwards: false }
    }

    /// The same, centred.
    pub(super) const fn middle(self) -> Self {
        Self { side: Side::Middle, ..self }
    }

    /// The same, ending at its place.
    pub(super) const fn right(self) -> Self {
        Self { side: Side::Right, ..self }
    }

    /// The same in bold.
    pub(super) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// The same, running upwards.
    pub(super) const fn upwards(self) -> Self {
        Self { upwards: true, ..self }
    }
}

/// How one backend sets type: its size per size of the type, and how far text has to be lowered, in
/// sizes, until its middle lies at its place.
pub(super) struct Typesetting {
    pub(super) size: f64,
    pub(super) lower: f64,
}

/// The library divides by 1.24 and aligns the middle of small letters.
const SVG_TYPE: Typesetting = Typesetting { size: 1.24, lower: 0.08 };
/// Shapes in drawing order.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    shapes: Vec<Shape>,
}

impl Scene {
    /// Adds a line; fewer than two points draw nothing.
    pub(super) fn line(&mut self, points: Vec<At>, colour: Rgb, width: f64) {
        if points.len() > 1 {
            self.shapes.push(Shape::Line { points, colour, alpha: 1.0, width });
        }
    }

    /// Adds a line in dashes of a length with gaps of another.
    pub(super) fn dashed(&mut self, points: &[At], colour: Rgb, width: f64, dash: (f64, f64)) {
        for piece in dashes(points, dash) {
            self.line(piece, colour, width);
        }
    }

    /// Adds a filled outline.
    pub(super) fn fill(&mut self, points: Vec<At>, colour: Rgb, alpha: f64) {
        if points.len() > 2 {
            self.shapes.push(Shape::Fill { points, colour, alpha });
        }
    }

    /// Adds a filled rectangle between two corners.
    pub(super) fn rectangle(&mut self, a: At, b: At, colour: Rgb, alpha: f64) {
        self.fill(vec![a, (b.0, a.1), b, (a.0, b.1)], colour, alpha);
    }

    /// Adds text.
    pub(super) fn words(&mut self, at: At, text: impl Into<String>, style: Style) {
        self.shapes.push(Shape::Words { at, text: text.into(), style });
    }

    /// Adds text on a pale background, so that it can be read over lines.
    pub(super) fn label(&mut self, at: At, text: &str, style: Style) {
        let (half, high) = (text_width(text, style.size) / 2.0 + 4.0, style.size * 0.75);
        let centre = match style.side {
            Side::Left => at.0 + half - 4.0,
            Side::Middle => at.0,
            Side::Right => at.0 - half + 4.0,
        };
        self.rectangle((centre - half, at.1 - high), (centre + half, at.1 + high), PAPER, 0.85);
        self.words(at, text, style);
    }

    /// Adds the mark of an expert count: solid for measured latencies, hollow for modelled ones.
    pub(super) fn mark(&mut self, at: At, look: Look, radius: f64, hollow: bool) {
        let outline = |radius: f64| {
            look.mark.corners(radius).iter().map(|c| (at.0 + c.0, at.1 + c.1)).collect()
        };
        // Two fills instead of a stroke: the library leaves gaps where thick lines meet in a corner.
        self.fill(outline(radius), look.colour, 1.0);
        if hollow {
            self.fill(outline(radius * HOLLOW), PAPER, 1.0);
        }
    }

    /// The vector form; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Io`] when the drawing library fails.
    pub(super) fn svg(&self, name: &str) -> Result<String> {
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, size(SVG_SCALE)).into_drawing_area();
            self.draw(&root, f64::from(SVG_SCALE), &SVG_TYPE)
                .map_err(|reason| failed(name, &reason))?;
        }
        let (drawn, shown) = (size(SVG_SCALE), size(1));
        let attributes = |(width, height)| format!("<svg width=\"{width}\" height=\"{height}\"");
        // Drawn large because its coordinates are whole numbers, shown at its size in points.
        Ok(text.replacen(&attributes(drawn), &attributes(shown), 1))
    }

    pub(super) fn draw<B: DrawingBackend>(
        &self,
        root: &DrawingArea<B, Shift>,
        scale: f64,
        face: &Typesetting,
    ) -> Result<(), String> {
        root.fill(&colour_of(PAPER, 1.0)).map_err(|e| e.to_string())?;
        for shape in &self.shapes {
            draw_shape(root, shape, scale, face)?;
        }
        root.present().map_err(|e| e.to_string())
    }
}

fn draw_shape<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    shape: &Shape,
    scale: f64,
    face: &Typesetting,
) -> Result<(), String> {
    let pixel = |at: &At| (whole(at.0 * scale), whole(at.1 * scale));
    match shape {
        Shape::Line { points, colour, alpha, width } => {
            let style = ShapeStyle {
                color: colour_of(*colour, *alpha),
                filled: false,
                stroke_width: whole(width * scale).max(1).unsigned_abs(),
            };
            let points: Vec<_> = points.iter().map(pixel).collect();
            root.draw(&PathElement::new(points, style))
        }
        Shape::Fill { points, colour, alpha } => {
            let points: Vec<_> = points.iter().map(pixel).collect();
            root.draw(&Polygon::new(points, colour_of(*colour, *alpha).filled()))
        }
        Shape::Words { at, text, style } => {
            let clean: String =
                text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let down = face.lower * style.size;
            let at = if style.upwards { (at.0 + down, at.1) } else { (at.0, at.1 + down) };
            let font = font(style.size * scale * face.size, style.bold);
            root.draw(&Text::new(clean, pixel(&at), text_style(font, style)))
        }
    }
    .map_err(|e| e.to_string())
}

pub(super) fn font(size: f64, bold: bool) -> FontDesc<'static> {
    let weight = if bold { FontStyle::Bold } else { FontStyle::Normal };
    FontDesc::new(FontFamily::Name(FONT), size, weight)
}

fn text_style(font: FontDesc<'static>, style: &Style) -> TextStyle<'static> {
    let font = if style.upwards { font.transform(FontTransform::Rotate270) } else { font };
    let side = match style.side {
        Side::Left => HPos::Left,
        Side::Middle => HPos::Center,
        Side::Right => HPos::Right,
    };
    let color = colour_of(style.colour, 1.0).to_backend_color();
    TextStyle { font, color, pos: Pos::new(side, VPos::Center) }
}

fn colour_of(colour: Rgb, alpha: f64) -> RGBAColor {
    RGBAColor(colour.0, colour.1, colour.2, alpha)
}

pub(super) const fn size(scale: u32) -> (u32, u32) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the two constants are small whole numbers"
    )]
    let (width, height) = (WIDTH as u32, HEIGHT as u32);
    (width * scale, height * scale)
}

#[expect(clippy::cast_possible_truncation, reason = "the cast saturates, far outside the figure")]
fn whole(value: f64) -> i32 {
    value.round() as i32
}

/// Advances of the pictures' font (`DejaVu Sans`) from the space to the tilde, in thousandths of its size.
const ADVANCES: [u16; 95] = [
    318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318, 337, 636, 636, 636,
    636, 636, 636, 636, 636, 636, 636, 337, 337, 838, 838, 838, 531, 1000, 684, 686, 698, 770, 632,
    575, 775, 752, 295, 295, 656, 557, 863, 748, 787, 603, 787, 695, 635, 611, 732, 684, 989, 685,
    611, 685, 390, 337, 390, 838, 500, 500, 613, 635, 550, 635, 615, 352, 635, 634, 278, 278, 579,
    278, 974, 634, 612, 635, 635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636, 337, 636, 838,
];
/// Advance of any other letter, in thousandths: that of digits.
const OTHER_ADVANCE: u16 = 636;

/// How wide a text is in the font of the pictures, in points.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let advance = |c: char| {
        let index = u32::from(c).checked_sub(32).map(|i| i as usize);
        index.and_then(|i| ADVANCES.get(i)).copied().unwrap_or(OTHER_ADVANCE)
    };
    text.chars().map(|c| f64::from(advance(c))).sum::<f64>() / 1000.0 * size
}

/// The dashes of a line, each a line of its own.
fn dashes(points: &[At], (dash, gap): (f64, f64)) -> Vec<Vec<At>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<At> = points.first().copied().into_iter().collect();
    let (mut on, mut left) = (true, dash);
    for pair in points.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let length = (b.0 - a.0).hypot(b.1 - a.1);
        let mut done = 0.0;
        while length - done > left {
            done += left;
            let share = done / length;
            let at = (a.0 + share * (b.0 - a.0), a.1 + share * (b.1 - a.1));
            if on {
                piece.push(at);
                pieces.push(std::mem::take(&mut piece));
            } else {
                piece = vec![at];
            }
            on = !on;
            left = if on { dash } else { gap };
        }
        left -= length - done;
        if on {
            piece.push(b);
        }
    }
    if on {
        pieces.push(piece);
    }
    pieces
}

pub(super) fn failed(name: &str, reason: &str) -> Error {
    Error::io("draw", name, io::Error::other(reason.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_cover_their_share_of_the_line() {
        let pieces = dashes(&[(0.0, 0.0), (30.0, 0.0), (30.0, 30.0)], (6.0, 4.0));
        let length: f64 = pieces
            .iter()
            .flat_map(|p| p.windows(2))
            .map(|w| (w[1].0 - w[0].0).hypot(w[1].1 - w[0].1))
            .sum();
        assert!((length - 36.0).abs() < 1e-9, "{length}");
        assert_eq!(pieces.len(), 6);
        assert!(dashes(&[], (6.0, 4.0)).iter().all(Vec::is_empty));
    }
}
