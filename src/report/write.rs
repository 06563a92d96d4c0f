//! All files of a report, each written as one step.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::files::{create_folder, write_atomic};
use crate::plan::outcome::RankReport;
use crate::plan::size::{SizeAnswer, SizeInputs};
use crate::report::live::{self, Live};
use crate::report::plot::serving::{WithData, figures};
use crate::report::{csv, html, plot};

/// Writes every plot (SVG and PNG), candidates and decision maps as CSV, and `report.html` into `out`, replacing
/// older ones; returns the paths written. With `live` the page computes. `rank.json` itself is not written here.
///
/// # Errors
/// [`crate::Error::Io`] when the folder cannot be created or a file cannot be written. Everything is
/// drawn before the first file is touched, and each file is whole.
pub fn write_all(report: &RankReport, live: Option<&Live>, out: &Path) -> Result<Vec<PathBuf>> {
    let figures = plot::figures(report)?;
    let parts = live.map(|live| live::parts(report, live)).transpose()?.flatten();
    let maps = &report.decision_map;
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("candidates.csv".into(), csv::candidates(&report.candidates).into_bytes()),
        ("decision_map_traffic.csv".into(), csv::decision_map(&maps.traffic).into_bytes()),
        ("decision_map_budget.csv".into(), csv::decision_map(&maps.budget).into_bytes()),
        ("report.html".into(), html::page(report, &figures, parts.as_ref()).into_bytes()),
    ];
    for figure in figures {
        files.push((format!("{}.svg", figure.name), figure.svg.into_bytes()));
        files.push((format!("{}.png", figure.name), figure.png));
    }
    create_folder(out)?;
    files
        .into_iter()
        .map(|(name, content)| {
            let path = out.join(name);
            write_atomic(&path, &content, true)?;
            Ok(path)
        })
        .collect()
}

/// Writes the figures of a size (SVG, PNG and the CSV of each) into a folder that exists.
///
/// # Errors
/// As [`write_all`].
pub fn write_size_plots(folder: &Path, inputs: &SizeInputs, answer: &SizeAnswer) -> Result<()> {
    for WithData { figure, csv } in figures(inputs, answer)? {
        let path = |ending: &str| folder.join(format!("{}.{ending}", figure.name));
        write_atomic(&path("csv"), csv.as_bytes(), true)?;
        write_atomic(&path("svg"), figure.svg.as_bytes(), true)?;
        write_atomic(&path("png"), &figure.png, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::plan::sample;

    #[test]
    fn all_files_are_written_and_older_ones_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new").join("folder");
        let first = write_all(&sample::empty(), None, &out).unwrap();
        let old = fs::read(out.join("report.html")).unwrap();
        let second = write_all(&sample::report(), None, &out).unwrap();
        assert_eq!(first, second);
        assert_eq!(second.len(), 14);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 14, "no temporary file stays");
        assert!(second.iter().all(|path| fs::metadata(path).unwrap().len() > 0));
        assert_ne!(fs::read(out.join("report.html")).unwrap(), old);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::write(&path, "").unwrap();
        assert_eq!(write_all(&sample::empty(), None, &path).unwrap_err().exit_code(), 7);
    }
}
