//! Figures as pictures, and the size of their type.
//!
//! Pictures are drawn larger than they are shown and averaged down, because the drawing library fills
//! without smoothing.

use plotters::backend::BitMapBackend;
use plotters::drawing::IntoDrawingArea;

use super::scene::{Scene, Typesetting, failed, size};
use crate::Result;

/// Pixels per point of the PNG.
const PNG_SCALE: u32 = 2;
/// Drawn pixels per PNG pixel along each side.
const SMOOTH: u32 = 2;

/// The library's size is the height of a line, 1.164 sizes in the embedded font, and its middle lies
/// a quarter of a size too high.
const PNG_TYPE: Typesetting = Typesetting { size: 1.164, lower: 0.24 };

impl Scene {
    /// The raster form; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Io`] when the drawing library fails.
    pub(super) fn png(&self, name: &str) -> Result<Vec<u8>> {
        let (width, height) = size(PNG_SCALE * SMOOTH);
        let mut pixels = vec![0; width as usize * height as usize * 3];
        {
            let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
            self.draw(&root, f64::from(PNG_SCALE * SMOOTH), &PNG_TYPE)
                .map_err(|reason| failed(name, &reason))?;
        }
        let pixels = averaged(&pixels, width as usize, SMOOTH as usize);
        encode(&pixels, size(PNG_SCALE)).map_err(|reason| failed(name, &reason))
    }
}

/// Every `n` by `n` pixels become their mean.
fn averaged(pixels: &[u8], width: usize, n: usize) -> Vec<u8> {
    let row = width * 3;
    let count = n * n;
    let mut out = Vec::with_capacity(pixels.len() / count);
    for rows in pixels.chunks_exact(row * n) {
        for x in (0..row).step_by(3 * n) {
            for channel in 0..3 {
                let sum: usize = (0..n)
                    .flat_map(|dy| (0..n).map(move |dx| (dy, dx)))
                    .map(|(dy, dx)| usize::from(rows[dy * row + x + 3 * dx + channel]))
                    .sum();
                out.push(u8::try_from((sum + count / 2) / count).unwrap_or(u8::MAX));
            }
        }
    }
    out
}

fn encode(pixels: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Flat colours: repeating rows and runs are found best without a filter.
    encoder.set_compression(png::Compression::Default);
    encoder.set_filter(png::FilterType::NoFilter);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(pixels).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::scene::{font, text_width};
    use super::*;

    #[test]
    fn averaging_keeps_flat_colours_and_mixes_edges() {
        assert_eq!(averaged(&[7; 4 * 4 * 3], 4, 2), [7; 2 * 2 * 3]);
        let edge = [[0, 0, 0], [255, 255, 255], [0, 0, 0], [255, 255, 255]].concat();
        assert_eq!(averaged(&edge, 2, 2), [128; 3]);
    }

    #[test]
    fn widths_are_those_of_the_embedded_font() {
        crate::report::theme::register_fonts().unwrap();
        for text in ["$ per million output tokens", "4 experts, P 0.27", "loss-optimal, µs"] {
            // The library answers in whole units.
            let (width, _) = font(1000.0 * PNG_TYPE.size, false).box_size(text).unwrap();
            let said = text_width(text, 1000.0);
            assert!((said / f64::from(width) - 1.0).abs() < 0.02, "{text}: {said}, not {width}");
        }
    }
}
