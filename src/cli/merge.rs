//! `merge`: the shards of a sweep as one profile.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::cli::measure::shard::shards_in;
use crate::cli::measure::table;
use crate::cli::output::{self, Output, warn, write_stdout, write_text};
use crate::cli::store;
use crate::error::shown;
use crate::files::{check_writable, write_atomic};
use crate::latency::measured::format;
use crate::latency::measured::merge::{Merged, Share, Wanted, merge};
use crate::latency::measured::validate::validate;
use crate::measure::folder::{PLAN_FILE, PROFILE_FILE};
use crate::measure::plan::CellSpec;
use crate::measure::sweep::SweepPlan;
use crate::{Error, Result};

/// Lines of missing cells and of notes that are printed.
const MOST_LINES: usize = 40;

/// The shards of a sweep (`measure --plan`) as one profile.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: moe-frontier merge shards --out profile.json --complete
Example: moe-frontier merge /scratch/a /scratch/b --out profile.json")]
pub struct Args {
    /// Folders that shards of one plan were measured into.
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// File of the profile.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// End with exit code 1 when a cell of the plan is missing; the profile is written all the same.
    #[arg(long)]
    pub complete: bool,
    /// Replace a file that is another run's profile.
    #[arg(long)]
    pub overwrite: bool,
    /// Print every cell with its interval and its share of the roofline too.
    #[arg(long)]
    pub details: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Error::Unfit`] with what differs, when the shards were not measured alike; [`Error::Gate`] with
/// `--complete` when a cell is missing, after the profile was written; what reading and writing report.
pub fn run(args: &Args, output: Output) -> Result<()> {
    if args.out.is_dir() {
        check_writable(&args.out, true)?;
    }
    let wanted = wanted(&args.folders)?;
    let Merged { profile, missing, mut notes } = merge(shares(&args.folders)?, &wanted)?;
    let out = shown(&args.out.display().to_string());
    validate(&out, &profile)?;
    let document = format::to_bytes(&profile)?;
    let is_ours = args.overwrite || store::is_of_run(&args.out, &profile);
    write_atomic(&args.out, &document, is_ours)?;
    notes.extend(missing.iter().map(|key| format!("missing: {key}")));
    for note in notes.iter().take(MOST_LINES) {
        warn(note);
    }
    if notes.len() > MOST_LINES {
        warn(&format!("and {} more", notes.len() - MOST_LINES));
    }
    if output.is_json() {
        write_stdout(&String::from_utf8_lossy(&document))?;
    } else {
        let text = table::text(&profile, output::width(), args.details);
        write_text(&format!("{text}\nwritten to {out}\n"))?;
    }
    if args.complete && !missing.is_empty() {
        let reason = format!("{} of {} cells are missing", missing.len(), wanted.cells.len());
        return Err(Error::Gate(reason));
    }
    Ok(())
}

/// The plan that all folders hold.
fn wanted(folders: &[PathBuf]) -> Result<Wanted> {
    let mut plan: Option<(&Path, SweepPlan)> = None;
    for folder in folders {
        let read = SweepPlan::read(&folder.join(PLAN_FILE))?;
        match &plan {
            Some((first, before)) if before.sha256 != read.sha256 => {
                let hash = |plan: &SweepPlan| plan.sha256.chars().take(12).collect::<String>();
                return Err(Error::unfit(
                    "merge",
                    format!(
                        "plan `{}` in {}, `{}` in {}",
                        hash(before),
                        first.display(),
                        hash(&read),
                        folder.display()
                    ),
                ));
            }
            Some(_) => {}
            None => plan = Some((folder, read)),
        }
    }
    let (_, plan) = plan.ok_or_else(|| Error::usage("merge", "name a folder"))?;
    let cells = plan.plan.cells.iter().map(CellSpec::key).collect();
    Ok(Wanted { plan_sha256: plan.sha256.clone(), cells, anchors: plan.anchors() })
}

/// The profiles of all shards in the folders.
fn shares(folders: &[PathBuf]) -> Result<Vec<Share>> {
    let mut files = Vec::new();
    for folder in folders {
        let shards = shards_in(folder)?;
        if shards.is_empty() {
            let reason = "it holds no shard; `measure --plan FILE --out DIR` makes them";
            return Err(Error::unfit(folder.display().to_string(), reason));
        }
        for shard in shards {
            let file = shard.join(PROFILE_FILE);
            if file.exists() {
                files.push(file);
            } else {
                warn(&format!("{} was not finished: it has no profile", shard.display()));
            }
        }
    }
    files.sort();
    files.dedup();
    files
        .into_par_iter()
        .map(|file| Ok(Share { profile: format::read(&file)?, name: file.display().to_string() }))
        .collect()
}
