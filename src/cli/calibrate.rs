//! `calibrate`: constants of an engine from own runs, which runs to make, and the prior that ships.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::ask::calibrate_all;
use crate::ask::sources::Sources;
use crate::calibrate::pool::prepare;
use crate::calibrate::prior::RowSource;
use crate::calibrate::{Calibration, Group, Prior, judge, own_file};
use crate::cli::Output;
use crate::cli::parse::positive_whole;
use crate::cli::profile::ProfileArgs;
use crate::files::{check_writable, read_capped, sha256_hex, write_atomic};
use crate::plan::points;
use crate::{Error, Result};

mod runs;

/// Longest file of rows that is read, in bytes.
const CAP: u64 = 256 << 20;

/// Fits an engine's constants to own runs, or names the runs to make.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  moe-frontier calibrate --plan --model mixtral-8x7b --device h100 --engine vllm
  moe-frontier calibrate runs.csv --out own.json
  moe-frontier estimate --calibrate own.json --model mixtral-8x7b --device h100 --tp 2 --concurrency 32")]
pub struct CalibrateArgs {
    /// Measured points, as `import vllm-bench` writes them.
    #[arg(value_name = "CSV", required_unless_present = "plan")]
    pub runs: Vec<PathBuf>,
    /// Name the runs that shrink the interval most, as command lines, and the interval to expect.
    #[arg(long, conflicts_with_all = ["runs", "out", "overwrite", "prior"], requires = "model", requires = "device")]
    pub plan: bool,
    /// Runs to name.
    #[arg(long, default_value = "5", value_parser = positive_whole, requires = "plan")]
    pub count: usize,
    /// Model preset or a config.json of the Hub.
    #[arg(long, value_name = "NAME|FILE", requires = "plan")]
    pub model: Option<String>,
    /// Device preset or a TOML file.
    #[arg(long, value_name = "NAME|FILE", requires = "plan")]
    pub device: Option<String>,
    /// Fit the whole tree of groups: the prior that ships with the program.
    #[arg(long, requires = "out", hide = true)]
    pub prior: bool,
    /// File to write for `--calibrate`.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Overwrite it.
    #[arg(long)]
    pub overwrite: bool,
    /// Where latencies come from.
    #[command(flatten)]
    pub source: ProfileArgs,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: &'static str,
    schema_version: &'static str,
    calibrations: &'a [Calibration],
    held_out_tpot_median_ape: Option<f64>,
    held_out_rows: usize,
    out: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Bad files and flags; see [`Error`].
pub fn run(args: &CalibrateArgs, output: Output) -> Result<()> {
    let sources = Sources::read(&args.source.options())?;
    if args.plan {
        return runs::run(args, &sources, output);
    }
    if let Some(out) = &args.out {
        check_writable(out, args.overwrite)?;
    }
    if args.prior {
        return remake(args, &sources, output);
    }
    let mut all = Vec::new();
    for path in &args.runs {
        all.extend(points::read(path)?);
    }
    let calibrations = calibrate_all(&all, &sources)?;
    if calibrations.is_empty() {
        let reason = "no row can be fitted: each needs a known model and device, a load and a TPOT";
        return Err(Error::unfit("calibrate", reason));
    }
    let held_out = held_out(&all, &sources)?;
    if let Some(out) = &args.out {
        own_file::write(out, &calibrations, args.overwrite)?;
    }
    let document = Document {
        schema: "moe-frontier/calibrate",
        schema_version: "1.0",
        calibrations: &calibrations,
        held_out_tpot_median_ape: median(&held_out),
        held_out_rows: held_out.len(),
        out: args.out.as_ref().map(|p| p.display().to_string()),
    };
    output.result(&document, || text(&document))
}

/// Absolute errors of rows of which five others of their source were fitted.
fn held_out(all: &[points::Point], sources: &Sources) -> Result<Vec<f64>> {
    let rows = prepare(all, &sources.latency_of())?;
    // Without the shipped groups, which may hold these very rows.
    let prior = Prior { groups: Vec::new(), ..Prior::shipped()?.clone() };
    let judged = judge::own_rows(&rows, &prior, &|i| all[i].id.clone());
    Ok(judged.iter().map(|j| j.tpot.exp_m1().abs()).collect())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    crate::stats::quantile(&sorted, 0.5)
}

fn remake(args: &CalibrateArgs, sources: &Sources, output: Output) -> Result<()> {
    let Some(out) = &args.out else { return Err(Error::usage("--out", "is needed")) };
    let latency = sources.latency_of();
    let (mut all, mut files) = (Vec::new(), Vec::new());
    for path in &args.runs {
        let rows = points::read(path)?;
        files.push(RowSource {
            name: path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into()),
            sha256: sha256_hex(&read_capped(path, CAP)?),
            rows: prepare(&rows, &latency)?.len(),
        });
        all.extend(rows);
    }
    let (prior, judgement) = judge::remake(&all, files, &latency)?;
    let json =
        serde_json::to_vec_pretty(&prior).map_err(|e| Error::unfit("prior", e.to_string()))?;
    write_atomic(out, &json, args.overwrite)?;
    let group = |i: usize| Group::of(&all[i]);
    let new = judge::coverage(&judgement.new_group, &group);
    let own = judge::coverage(&judgement.own_rows, &group);
    output.result(&prior, || {
        let line = |name: &str, rows: &[judge::Judged], c: (judge::Held, judge::Held)| {
            let errors: Vec<f64> = rows.iter().map(|j| j.tpot.exp_m1().abs()).collect();
            let first: Vec<f64> =
                rows.iter().filter_map(|j| Some(j.ttft?.exp_m1().abs())).collect();
            let percent = |v: Option<f64>| v.map_or(f64::NAN, |v| v * 100.0);
            format!(
                "{name}: {} rows, TPOT median {:.1} %, MAPE {:.1} %, TTFT median {:.1} %; intervals hold {:.1} % of TPOT, {:.1} % of TTFT (by groups {:.1} %, {:.1} %)\n",
                rows.len(),
                percent(median(&errors)),
                errors.iter().sum::<f64>() / errors.len().max(1) as f64 * 100.0,
                percent(median(&first)),
                c.0.rows * 100.0,
                c.1.rows * 100.0,
                c.0.groups * 100.0,
                c.1.groups * 100.0
            )
        };
        line("whole groups out", &judgement.new_group, new)
            + &line("five own rows", &judgement.own_rows, own)
    })
}

fn text(d: &Document) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for c in d.calibrations {
        let _ = writeln!(text, "{}: {} rows", c.group, c.rows);
        for id in &c.left_out {
            let _ = writeln!(text, "  left out: {id}: more than half off what the other rows say");
        }
        for f in &c.fitted {
            let _ = writeln!(text, "  {} {:.3} ({:.3} to {:.3})", f.name, f.value, f.lo, f.hi);
        }
    }
    let _ = match d.held_out_tpot_median_ape {
        Some(error) => writeln!(
            text,
            "held out: TPOT median {:.1} % over {} rows that were not fitted",
            error * 100.0,
            d.held_out_rows
        ),
        None => writeln!(text, "held out: too few rows of one source to leave any out"),
    };
    if let Some(out) = &d.out {
        let _ = writeln!(text, "wrote {out}; use it with --calibrate {out}");
    }
    text
}
