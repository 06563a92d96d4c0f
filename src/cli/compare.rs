//! `compare`: two stored profiles, or two commands in turns, a verdict per cell.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::output::warn;
use crate::cli::parse::duration;
use crate::cli::{Output, output};
use crate::error::{shown, tidy};
use crate::latency::measured::compare::{CellComparison, Comparison, compare};
use crate::latency::measured::format;
use crate::latency::measured::validate::doubts;
use crate::report::grid::{Column, grid, hanging};
use crate::stats::paired::Verdict;
use crate::units::Seconds;
use crate::{Error, Result};

mod turns;

/// Compare two stored profiles, or two commands in turns: FASTER, SLOWER, SAME or AMBIGUOUS per cell.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: moe-frontier compare old.json new.json --fail-on slower\nExample: moe-frontier \
                  compare --run 'moe-frontier preset list' 'moe-frontier preset list --json'"
)]
pub struct Args {
    /// The profile that the other is compared with.
    #[arg(required_unless_present = "run")]
    pub old: Option<PathBuf>,

    /// The profile whose cells are called faster or slower.
    #[arg(required_unless_present = "run")]
    pub new: Option<PathBuf>,

    /// Run two shell commands in turns (A B B A, then B A A B) and compare the cells of the profiles that they
    /// print (`measure --json`), or else how long they take.
    #[arg(long, num_args = 2, value_names = ["CMD_A", "CMD_B"], conflicts_with_all = ["old", "new"])]
    pub run: Option<Vec<String>>,

    /// Time for the rounds of --run, which end before it once every interval is narrower than 2 %, or than a
    /// third of the difference, on either side.
    #[arg(long, default_value = "120s", value_parser = duration, requires = "run")]
    pub time_budget: Seconds,

    /// End with exit code 1 when any cell has this verdict.
    #[arg(long, value_name = "VERDICT")]
    pub fail_on: Option<FailOn>,

    /// Print every cell, the unchanged ones too.
    #[arg(long)]
    pub details: bool,
}

/// Verdicts that a run can be made to fail on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Any cell that is SLOWER.
    Slower,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: &'static str,
    schema_version: &'static str,
    paired: bool,
    device: &'a str,
    bound_rel: f64,
    biased: Option<&'a str>,
    faster: usize,
    slower: usize,
    same: usize,
    ambiguous: usize,
    cells: &'a [CellComparison],
    only_in_old: &'a [String],
    only_in_new: &'a [String],
}

/// Runs the command.
///
/// # Errors
/// What reading a profile reports; [`Error::Unfit`] when device or recipe differ, or a command fails;
/// [`Error::Gate`] when `--fail-on` finds what it looks for, after the result was printed.
pub fn run(args: &Args, output: Output) -> Result<()> {
    let (slower, cells) = match (&args.run, &args.old, &args.new) {
        (Some(pair), _, _) => turns::run(pair, args.time_budget, args.details, output)?,
        (None, Some(old), Some(new)) => stored(old, new, args.details, output)?,
        _ => return Err(Error::usage("compare", "name two profiles, or two commands with --run")),
    };
    match args.fail_on {
        Some(FailOn::Slower) if slower > 0 => {
            Err(Error::Gate(format!("{slower} of {cells} cells are slower")))
        }
        _ => Ok(()),
    }
}

/// Compares two stored profiles. Returns how many cells are slower, and of how many.
fn stored(old: &Path, new: &Path, details: bool, output: Output) -> Result<(usize, usize)> {
    let (old, new) = (format::read(old)?, format::read(new)?);
    for (which, profile) in [("old", &old), ("new", &new)] {
        for doubt in doubts(profile) {
            warn(&format!("the {which} profile: {doubt}"));
        }
    }
    let comparison = compare(&old, &new)?;
    output.result(&document(&comparison), || text(&comparison, output::width(), details))?;
    Ok((comparison.count(Verdict::Slower), comparison.cells.len()))
}

fn document(comparison: &Comparison) -> Document<'_> {
    Document {
        schema: "moe-frontier/compare",
        schema_version: "1.0",
        paired: comparison.paired,
        device: &comparison.device,
        bound_rel: comparison.bound_rel,
        biased: comparison.biased.as_deref(),
        faster: comparison.count(Verdict::Faster),
        slower: comparison.count(Verdict::Slower),
        same: comparison.count(Verdict::Same),
        ambiguous: comparison.count(Verdict::Ambiguous),
        cells: &comparison.cells,
        only_in_old: &comparison.only_in_old,
        only_in_new: &comparison.only_in_new,
    }
}

/// Cells in the table without `--details`.
const SHOWN: usize = 12;

/// How many cells changed, then those that did, the largest change first; all with `details`.
fn text(comparison: &Comparison, width: usize, details: bool) -> String {
    let count = |verdict| comparison.count(verdict);
    let answer = format!(
        "{} faster, {} slower, {} same, {} ambiguous on {}, new against old (paired: false; bound {:.1} %)",
        count(Verdict::Faster),
        count(Verdict::Slower),
        count(Verdict::Same),
        count(Verdict::Ambiguous),
        shown(&comparison.device),
        comparison.bound_rel * 100.0
    );
    let mut text = hanging("Answer  ", &answer, width);
    if let Some(reason) = &comparison.biased {
        text += &hanging("", &format!("all verdicts are AMBIGUOUS: {}", tidy(reason)), width);
    }
    let cells = changed_first(&comparison.cells, details);
    let rows: Vec<_> = cells.iter().map(|c| row(c)).collect();
    if !rows.is_empty() {
        text += &grid(&columns(), &rows, width);
    }
    let mut line = |line: String| text += &hanging("", &line, width);
    let same = comparison.cells.iter().filter(|c| c.same_kernel).count();
    if same > 0 {
        line(format!("{same} of {} cells ran the same kernel", comparison.cells.len()));
    }
    let left = comparison.cells.len() - cells.len();
    if left > 0 {
        line(format!("{left} more cells: --details"));
    }
    for (which, cells) in [("old", &comparison.only_in_old), ("new", &comparison.only_in_new)] {
        for cell in cells {
            line(format!("only in the {which} profile: {}", tidy(cell)));
        }
    }
    text
}

/// All cells in their order with `details`; else those that are not the same, the largest change first.
fn changed_first(cells: &[CellComparison], details: bool) -> Vec<&CellComparison> {
    if details {
        return cells.iter().collect();
    }
    let mut changed: Vec<&CellComparison> =
        cells.iter().filter(|c| c.verdict != Some(Verdict::Same)).collect();
    let effect = |c: &CellComparison| c.effect_rel.map_or(0.0, f64::abs);
    let is_open =
        |c: &CellComparison| !matches!(c.verdict, Some(Verdict::Faster | Verdict::Slower));
    changed
        .sort_by(|a, b| is_open(a).cmp(&is_open(b)).then_with(|| effect(b).total_cmp(&effect(a))));
    changed.truncate(SHOWN);
    changed
}

fn columns() -> [Column; 11] {
    [
        Column::numbers("experts"),
        Column::numbers("top_k").left_out(1),
        Column::numbers("hidden x inter").left_out(2),
        Column::numbers("bits").left_out(5),
        Column::words("routing").left_out(6),
        Column::words("mode").left_out(4),
        Column::numbers("tokens"),
        Column::numbers("old us").left_out(3),
        Column::numbers("new us").left_out(3),
        Column::numbers("change"),
        Column::words("verdict"),
    ]
}

fn row(c: &CellComparison) -> Vec<String> {
    let us = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
    let change = c.effect_rel.map_or_else(|| "-".to_owned(), |e| format!("{:+.1}%", e * 100.0));
    let verdict = c.verdict.map(|v| v.to_string());
    vec![
        c.experts.to_string(),
        c.top_k.to_string(),
        format!("{} x {}", c.hidden, c.inter),
        c.weight_bits.to_string(),
        c.routing.clone(),
        c.timing.label().to_owned(),
        c.tokens.to_string(),
        us(c.old_us),
        us(c.new_us),
        change,
        verdict.or_else(|| c.no_verdict.clone()).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::latency::measured::synthetic;
    use crate::record::{Profile, sha256_hex};

    /// A profile whose times are the made-up truth on a device slower by `by`.
    fn stored(folder: &Path, name: &str, by: u64) -> PathBuf {
        let mut profile: Profile = synthetic::profile(&[(512, 1536)], 0.002);
        profile.cells.truncate(3);
        for cell in &mut profile.cells {
            cell.kernel_sha256 = sha256_hex(name);
            for block in &mut cell.blocks {
                block.median_ps *= by;
            }
            if let crate::record::LatencyRecord::Interval(i) = &mut cell.latency {
                let sorted: Vec<u64> = cell.blocks.iter().map(|b| b.median_ps).collect();
                i.median_ps = u64::midpoint(sorted[2], sorted[3]);
                (i.lo_ps, i.hi_ps) = (sorted[0], sorted[5]);
            }
        }
        let path = folder.join(name);
        format::write(&path, &profile, false).unwrap();
        path
    }

    #[test]
    fn the_gate_fails_only_when_asked_for_and_slower() {
        let folder = tempfile::tempdir().unwrap();
        let (fast, slow) =
            (stored(folder.path(), "fast.json", 1), stored(folder.path(), "slow.json", 2));
        let attempt = |old: &PathBuf, new: &PathBuf, fail_on| {
            let (old, new) = (Some(old.clone()), Some(new.clone()));
            let args =
                Args { old, new, run: None, time_budget: Seconds(1.0), fail_on, details: false };
            run(&args, Output::new(true))
        };
        assert!(attempt(&fast, &slow, None).is_ok());
        assert!(attempt(&slow, &fast, Some(FailOn::Slower)).is_ok());
        let error = attempt(&fast, &slow, Some(FailOn::Slower)).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("3 of 3 cells are slower"), "{error}");
        let missing = folder.path().join("no.json");
        assert_eq!(attempt(&missing, &slow, None).unwrap_err().exit_code(), 7);
    }

    #[test]
    fn the_text_has_a_verdict_per_cell_and_says_that_nothing_was_paired() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, by| format::read(&stored(folder.path(), name, by)).unwrap();
        let mut comparison = compare(&read("a.json", 1), &read("b.json", 2)).unwrap();
        comparison.only_in_new.push("a cell".into());
        let text = text(&comparison, 100, false);
        assert!(text.starts_with("Answer  0 faster, 3 slower, 0 same"), "{text}");
        insta::assert_snapshot!(super::text(&comparison, 80, true));
        assert_eq!(text.matches("SLOWER").count(), 3, "{text}");
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains("+100.0%") && flat.contains("paired: false"), "{text}");
        assert!(text.contains("only in the new profile: a cell"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
        let same = read("c.json", 1);
        let unchanged = compare(&same, &same).unwrap();
        let short = super::text(&unchanged, 100, false);
        assert!(short.contains("3 more cells: --details") && !short.contains("SAME"), "{short}");
        assert_eq!(super::text(&unchanged, 100, true).matches("SAME").count(), 3);
        let json = serde_json::to_string(&document(&comparison)).unwrap();
        assert!(json.starts_with("{\"schema\":\"moe-frontier/compare\",\"schema_version\""));
        assert!(json.contains("\"paired\":false") && json.contains("\"verdict\":\"SLOWER\""));
    }
}
