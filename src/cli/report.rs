//! `report`: plots and page again from a stored ranking.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::Result;
use crate::cli::Output;
use crate::files::{ResultFolder, read_capped};
use crate::plan::outcome::RankReport;
use crate::report::write_all;

/// Longest `rank.json` that is read, in bytes.
const CAP: u64 = 64 << 20;

/// Draw the plots and the page of a rank.json again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: moe-frontier report out/rank.json --out page")]
pub struct Args {
    /// The ranking, as `rank` wrote it.
    #[arg(value_name = "RANK_JSON")]
    pub rank: PathBuf,

    /// Folder for report.html, plots and CSV files [default: beside the ranking].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Also use a folder that holds files of others.
    #[arg(long)]
    pub overwrite: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Written {
    schema: &'static str,
    schema_version: &'static str,
    files: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// [`crate::Error::BadFile`] when the file is no ranking of this program, [`crate::Error::Io`] when
/// something cannot be read or written.
pub fn run(args: &Args, output: Output) -> Result<()> {
    let report = RankReport::from_bytes(&args.rank, &read_capped(&args.rank, CAP)?)?;
    let files = if let Some(out) = &args.out {
        let folder = ResultFolder::begin(out, &["report.html"], args.overwrite)?;
        let files = write_all(&report, None, folder.path())?;
        let out = folder.finish()?;
        files.iter().filter_map(|path| Some(out.join(path.file_name()?))).collect()
    } else {
        let beside = args.rank.parent().filter(|p| !p.as_os_str().is_empty());
        write_all(&report, None, beside.unwrap_or_else(|| Path::new(".")))?
    };
    let files: Vec<String> = files.iter().map(|p| p.display().to_string()).collect();
    let lines = files.join("\n") + "\n";
    let written = Written { schema: "moe-frontier/report", schema_version: "1.0", files };
    output.verbatim(&written, &lines)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::plan::sample;

    #[test]
    fn a_page_stands_beside_its_ranking_or_where_it_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let rank = folder.path().join("rank.json");
        fs::write(&rank, sample::report().to_bytes().unwrap()).unwrap();
        run(&Args { rank: rank.clone(), out: None, overwrite: false }, Output::new(true)).unwrap();
        assert!(folder.path().join("report.html").is_file());
        let out = folder.path().join("page");
        run(&Args { rank, out: Some(out.clone()), overwrite: false }, Output::new(true)).unwrap();
        assert!(out.join("cost_frontier.png").is_file());
    }

    #[test]
    fn a_bad_file_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (rank, out) = (folder.path().join("rank.json"), folder.path().join("page"));
        let args = || Args { rank: rank.clone(), out: Some(out.clone()), overwrite: false };
        let attempt = || run(&args(), Output::new(true));
        assert_eq!(attempt().unwrap_err().exit_code(), 7);
        let bytes = sample::report().to_bytes().unwrap();
        fs::write(&rank, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(attempt().unwrap_err().exit_code(), 3);
        assert!(!out.exists());
    }
}
