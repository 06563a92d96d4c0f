//! Plots of a law as files, each with the CSV that it was drawn from.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::files::{ResultFolder, write_atomic};
use crate::law::sweep::{BestAt, Sweep};
use crate::report::plot::law::figures;

/// Writes both figures (SVG and PNG) and their CSV into the folder `out` as one step, replacing an older
/// one; returns the paths. A folder with files of others is replaced only with `overwrite`.
///
/// # Errors
/// [`crate::Error::Io`] when the folder cannot be created or a file cannot be written. Everything is
/// drawn before the first file is touched.
pub fn write_law_plots(sweep: &Sweep, out: &Path, overwrite: bool) -> Result<Vec<PathBuf>> {
    let points = [&sweep.by_experts, &sweep.by_budget];
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for (figure, curves) in figures(sweep)?.into_iter().zip(points) {
        files.push((format!("{}.svg", figure.name), figure.svg.into_bytes()));
        files.push((format!("{}.png", figure.name), figure.png));
        files.push((format!("{}.csv", figure.name), csv(curves).into_bytes()));
    }
    let folder = ResultFolder::begin(out, &["law_loss_by_experts.csv"], overwrite)?;
    for (name, content) in &files {
        write_atomic(&folder.path().join(name), content, true)?;
    }
    let out = folder.finish()?;
    Ok(files.into_iter().map(|(name, _)| out.join(name)).collect())
}

fn csv(curves: &[Vec<BestAt>]) -> String {
    let mut text = String::from(
        "experts,train_flops,loss_nats,loss_nats_lo,loss_nats_hi,gain_nats,gain_nats_lo,\
         gain_nats_hi,n_active,n_active_lo,n_active_hi,\
         tokens,tokens_lo,tokens_hi,in_fit_range\n",
    );
    for p in curves.iter().flatten() {
        let _ = write!(text, "{},{:e}", p.experts, p.train_flops);
        for band in [p.loss_nats, p.gain_nats, p.n_active, p.tokens] {
            let _ = write!(text, ",{},{},{}", band.value, band.lo, band.hi);
        }
        let _ = writeln!(text, ",{}", p.in_fit_range);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::load_scaling;
    use crate::law::sweep::sweep;

    #[test]
    fn six_files_are_written_and_a_file_in_place_of_the_folder_is_refused() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let sweep = sweep(&law, "ludziejewski2025", &[1, 8], &[1e20, 1e21]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let written = write_law_plots(&sweep, folder.path(), false).unwrap();
        assert_eq!(written.len(), 6);
        assert!(written.iter().all(|path| std::fs::metadata(path).unwrap().len() > 100));
        let csv = std::fs::read_to_string(folder.path().join("law_loss_by_experts.csv")).unwrap();
        assert_eq!(csv.lines().count(), 1 + 4);
        assert!(csv.lines().all(|line| line.split(',').count() == 15), "{csv}");
        let taken = folder.path().join("taken");
        std::fs::write(&taken, "").unwrap();
        assert_eq!(write_law_plots(&sweep, &taken, false).unwrap_err().exit_code(), 7);
    }
}
