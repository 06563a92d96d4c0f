//! `accuracy`: the page that compares predictions with every measured point.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::ask::sources::{Item, Sources};
use crate::calibrate::predict::apply;
use crate::calibrate::{Group, judge, pool};
use crate::cli::Output;
use crate::cli::profile::ProfileArgs;
use crate::files::{check_writable, write_atomic};
use crate::latency::tables::{self, errors};
use crate::plan::accuracy::{
    Decomposition, Residuals, Scored, Summary, decompose, residuals, summarise,
};
use crate::plan::points::{self, LatencyOf, Point, Prediction};
use crate::report::accuracy::{Coverage, Page, TableErrors, Way, page};

/// Compares predictions with measured points and writes the accuracy page.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  moe-frontier accuracy --points points.csv --out reports/accuracy.md --overwrite"
)]
pub struct AccuracyArgs {
    /// CSV files of measured points.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub points: Vec<PathBuf>,
    /// Where latencies come from.
    #[command(flatten)]
    pub source: ProfileArgs,
    /// Imported tables of one device, whose own errors the page shows as well.
    #[arg(long, value_name = "FILE")]
    pub tables: Option<PathBuf>,
    /// Imported tables of another device, against which those are carried over.
    #[arg(long, value_name = "FILE", requires = "tables")]
    pub carried_to: Option<PathBuf>,
    /// Page to write.
    #[arg(long, value_name = "FILE", default_value = "reports/accuracy.md")]
    pub out: PathBuf,
    /// Overwrite it.
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: &'static str,
    schema_version: &'static str,
    out: String,
    zero_shot: &'a Summary,
    own_rows: &'a Summary,
    coverage: &'a [Coverage],
    decomposition: &'a Decomposition,
    residuals: Option<Residuals>,
}

/// Runs the command.
///
/// # Errors
/// Bad files; see [`crate::Error`].
pub fn run(args: &AccuracyArgs, output: Output) -> Result<()> {
    check_writable(&args.out, args.overwrite)?;
    let sources = Sources::read(&args.source.options())?;
    let mut points = Vec::new();
    for path in &args.points {
        points.extend(points::read(path)?);
    }
    let latency = sources.latency_of();
    let rows = pool::prepare(&points, &latency)?;
    let judgement = judge::judge(&rows, &|i| points[i].id.clone());
    let zero = new_groups(&points, &judgement, &latency);
    let own = own_rows(&points, &judgement, &latency);
    let ways = [
        way("Zero-shot, whole groups out", ZERO_SHOT, &points, &zero),
        way("Five own rows", OWN_ROWS, &points, &own),
    ];
    let names: Vec<String> = args
        .points
        .iter()
        .filter_map(|p| Some(format!("`{}`", p.file_name()?.to_string_lossy())))
        .collect();
    let name = names.join(" and ");
    let from = kernel_times(&sources);
    let scored: Vec<Scored> = points.iter().zip(&zero).map(|(p, r)| (p, r.as_ref().ok())).collect();
    let residuals = residuals(&scored);
    let decomposition = decompose(&scored);
    let group = |i: usize| Group::of(&points[i]);
    let coverage = [
        Coverage::of("a group without rows", &judgement.new_group, &group),
        Coverage::of("five own rows", &judgement.own_rows, &group),
    ];
    let text = page(&Page {
        points: &name,
        latencies: &from,
        ways: &ways,
        residuals,
        decomposition: &decomposition,
        coverage: &coverage,
        tables: &table_errors(args)?,
        not_counted: &not_counted(&points, &zero),
    });
    write_atomic(&args.out, text.as_bytes(), args.overwrite)?;
    let document = Document {
        schema: "moe-frontier/accuracy",
        schema_version: "2.0",
        out: args.out.display().to_string(),
        zero_shot: &ways[0].summary,
        own_rows: &ways[1].summary,
        coverage: &coverage,
        decomposition: &decomposition,
        residuals,
    };
    output.result(&document, || {
        let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.1} %", v * 100.0));
        ways.iter()
            .map(|w| {
                format!(
                    "{}: TPOT MAPE {} over {} rows, TTFT median {}\n",
                    w.name,
                    percent(w.summary.all.tpot_mape),
                    w.summary.all.n_tpot,
                    percent(w.summary.all.ttft_median_ape)
                )
            })
            .chain([format!("wrote {}\n", document.out)])
            .collect()
    })
}

/// How well imported tables answer: their own cells, each MoE shape from the others, and another
/// device's cells.
fn table_errors(args: &AccuracyArgs) -> Result<Vec<TableErrors<'static>>> {
    let Some(path) = &args.tables else { return Ok(Vec::new()) };
    let from = tables::read(path)?;
    let mut all = vec![
        TableErrors {
            name: "Kernel tables: own cells",
            how: format!("Each measured cell of {} asked of the tables that hold it.", from.device),
            rows: errors::cell_errors(&from, &from)?,
        },
        TableErrors {
            name: "Kernel tables: a MoE shape that was left out",
            how: format!("Each MoE shape of {} answered without its own series.", from.device),
            rows: errors::shape_errors(&from)?,
        },
        TableErrors {
            name: "Kernel tables: exchanges over a number of nodes that was left out",
            how: format!(
                "Each expert exchange of {} answered from those over fewer and over more nodes; the \
                 fewest and the most nodes have none to one side and get no answer.",
                from.device
            ),
            rows: errors::node_errors(&from)?,
        },
    ];
    if let Some(path) = &args.carried_to {
        let truth = tables::read(path)?;
        all.push(TableErrors {
            name: "Kernel tables: carried to another device",
            how: format!("Cells of {} answered from tables of {}.", truth.device, from.device),
            rows: errors::cell_errors(&from, &truth)?,
        });
    }
    Ok(all)
}

/// Where kernel times come from, in words.
fn kernel_times(sources: &Sources) -> String {
    if sources.items().is_empty() {
        return "the shipped tables of each device".into();
    }
    sources.items().iter().map(Item::name).collect::<Vec<_>>().join(", then ")
}

/// Every row with a prior that was fitted without its model on its device.
fn new_groups(
    points: &[Point],
    judgement: &judge::Judgement,
    latency: &LatencyOf,
) -> Vec<Result<Prediction, String>> {
    let one = |point: &Point| {
        point.setup.as_ref().map_err(Clone::clone)?;
        let group = Group::of(point).ok_or("model or device is not known")?;
        apply(point, &judge::held_out_costs(judgement, &group), latency)
    };
    points.iter().map(one).collect()
}

/// Rows of sources of which five others were fitted.
fn own_rows(
    points: &[Point],
    judgement: &judge::Judgement,
    latency: &LatencyOf,
) -> Vec<Result<Prediction, String>> {
    let mut all: Vec<Result<Prediction, String>> =
        points.iter().map(|_| Err("own row, or too few rows of its source".to_owned())).collect();
    for (calibration, rest) in &judgement.own {
        let costs = calibration.costs();
        for &i in rest {
            all[i] = apply(&points[i], &costs, latency);
        }
    }
    all
}

const ZERO_SHOT: &str = "Each row is predicted with constants that were fitted to the rows of other \
groups (a group is a model on a device under an engine), pooled over engines; the engines' defaults that \
the pooling starts from were set once with open rows in view.";
const OWN_ROWS: &str = "Of each source with at least ten rows of a group, five settings that lie far apart \
in load, lengths, layout and format are chosen without looking at a time; they are fitted as own runs \
from a prior without the group, and rows of other settings are predicted.";

fn way<'a>(
    name: &'a str,
    how: &'a str,
    points: &'a [Point],
    results: &'a [Result<Prediction, String>],
) -> Way<'a> {
    let rows: Vec<Scored> = points.iter().zip(results).map(|(p, r)| (p, r.as_ref().ok())).collect();
    let summary = summarise(&rows);
    Way { name, how, rows, summary }
}

/// Rows by the reason that keeps them out of the errors.
fn not_counted(points: &[Point], results: &[Result<Prediction, String>]) -> Vec<(String, usize)> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (point, result) in points.iter().zip(results) {
        let why = point.excluded.as_ref().or(result.as_ref().err());
        if let Some(why) = why {
            let kind = why.split(':').next().unwrap_or(why);
            *reasons.entry(kind.to_owned()).or_default() += 1;
        } else if point.measured.tpot.is_none() {
            *reasons.entry("throughput only, no TPOT".into()).or_default() += 1;
        }
    }
    reasons.into_iter().collect()
}
