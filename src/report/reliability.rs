//! Forecasts against what happened, as a figure with the CSV that it was drawn from.

use std::fmt::Write;
use std::path::Path;

use crate::Result;
use crate::files::write_atomic;
use crate::report::plot::reliability::figure;

/// Forecasts of a tenth of probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenth {
    /// How many there are.
    pub forecasts: usize,
    /// Their mean; not a number without any.
    pub mean_p_best: f64,
    /// Share of them that happened; not a number without any.
    pub share_that_happened: f64,
}

/// Writes `reliability.svg`, `.png` and `.csv` into a folder that exists, replacing older ones.
///
/// # Errors
/// [`crate::Error::Io`] when a file cannot be written.
pub fn write_reliability(tenths: &[Tenth], subtitle: &str, folder: &Path) -> Result<()> {
    let figure = figure(tenths, subtitle)?;
    let file = |ending: &str| folder.join(format!("{}.{ending}", figure.name));
    write_atomic(&file("svg"), figure.svg.as_bytes(), true)?;
    write_atomic(&file("png"), &figure.png, true)?;
    write_atomic(&file("csv"), csv(tenths).as_bytes(), true)
}

fn csv(tenths: &[Tenth]) -> String {
    let mut text = String::from("forecasts,mean_p_best,share_that_happened\n");
    for t in tenths {
        let cell = |v: f64| if v.is_finite() { format!("{v:.3}") } else { String::new() };
        let (p, share) = (cell(t.mean_p_best), cell(t.share_that_happened));
        let _ = writeln!(text, "{},{p},{share}", t.forecasts);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_files_are_written_and_an_empty_tenth_leaves_its_cells_empty() {
        let folder = tempfile::tempdir().unwrap();
        let full = Tenth { forecasts: 40, mean_p_best: 0.25, share_that_happened: 0.3 };
        let none = Tenth { forecasts: 0, mean_p_best: f64::NAN, share_that_happened: f64::NAN };
        write_reliability(&[full, none], "two tenths", folder.path()).unwrap();
        let csv = std::fs::read_to_string(folder.path().join("reliability.csv")).unwrap();
        assert_eq!(csv.lines().skip(1).collect::<Vec<_>>(), ["40,0.250,0.300", "0,,"]);
        let svg = std::fs::read_to_string(folder.path().join("reliability.svg")).unwrap();
        assert!(svg.contains("\n40\n") && !svg.contains("NaN"));
    }
}
