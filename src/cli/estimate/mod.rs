//! `estimate`: what one deployment, or every row of a file of measured points, is predicted to do.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::cli::Output;
use crate::cli::parse::{positive_whole, quantity, tokens};
use crate::cli::profile::{ProfileArgs, Sources};
use crate::plan::calibrate::{self, Calibration};
use crate::plan::points::{self, Point};
use crate::serving::EngineCosts;
use crate::workload::RoutingKind;

mod file;
mod one;

/// Predicts TTFT, TPOT, throughput, memory and cost of a deployment.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  moe-frontier estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 32 --isl 1000 \\
      --osl 200
  moe-frontier estimate --points points.csv --cross-validate")]
pub struct EstimateArgs {
    /// CSV of measured points: one prediction per row and a summary of errors.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "device", "concurrency", "rate"])]
    pub points: Option<PathBuf>,
    /// With --points: predict each row with constants fitted to the others (by device and model,
    /// else by number of devices, else by lengths).
    #[arg(long, requires = "points", conflicts_with = "calibrate")]
    pub cross_validate: bool,
    /// Fit the engine's constants to a CSV of measured points first.
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Where latencies come from.
    #[command(flatten)]
    pub source: ProfileArgs,
    /// Model preset or a config.json of the Hub.
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// Device preset or a TOML file; by default the device of the profile.
    #[arg(long, value_name = "NAME|FILE")]
    pub device: Option<String>,
    /// Tensor-parallel ranks of the attention.
    #[arg(long, default_value = "1", value_parser = positive_whole)]
    pub tp: usize,
    /// Expert-parallel ranks.
    #[arg(long, default_value = "1", value_parser = positive_whole)]
    pub ep: usize,
    /// Attention data-parallel groups.
    #[arg(long, default_value = "1", value_parser = positive_whole)]
    pub dp: usize,
    /// Weights: bf16, fp16, fp8, int8, int4, mxfp4 or nvfp4; by default as published.
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<String>,
    /// Routing of tokens over experts: uniform, zipf:S, power-law:A, hot:SHARE, balanced, trace:FILE.
    #[arg(long, default_value_t = RoutingKind::TYPICAL, value_name = "KIND")]
    pub routing: RoutingKind,
    /// Closed-loop concurrency.
    #[arg(long, value_parser = quantity, conflicts_with = "rate")]
    pub concurrency: Option<f64>,
    /// Requests per second, arriving at random.
    #[arg(long, value_parser = quantity)]
    pub rate: Option<f64>,
    /// Prompt tokens per request.
    #[arg(long, default_value = "1000", value_parser = tokens)]
    pub isl: f64,
    /// Output tokens per request.
    #[arg(long, default_value = "200", value_parser = tokens)]
    pub osl: f64,
    /// Dollars per device and hour, or a published tier; by default the device's first published
    /// price.
    #[arg(long, value_name = "USD|tier:NAME", value_parser = crate::cli::parse::price)]
    pub price: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Bad flags and files, tables that cannot answer, a model that does not fit; see [`crate::Error`].
pub fn run(args: &EstimateArgs, output: Output) -> Result<()> {
    let sources = Sources::read(&args.source)?;
    let calibrations = match &args.calibrate {
        Some(path) => calibrate_all(&points::read(path)?, &sources)?,
        None => Vec::new(),
    };
    match &args.points {
        Some(path) => file::run(path, args, &sources, &calibrations, output),
        None => one::run(args, &sources, &calibrations, output),
    }
}

/// Fits every group of rows of a file.
pub(crate) fn calibrate_all(points: &[Point], sources: &Sources) -> Result<Vec<Calibration>> {
    let latency = sources.latency_of();
    calibrate::groups(points)
        .iter()
        .map(|(group, members)| {
            let rows: Vec<&Point> = members.iter().map(|&i| &points[i]).collect();
            calibrate::fit(group, &rows, &latency)
        })
        .collect()
}

/// The constants for an engine: those fitted to the most rows of it, else the defaults.
pub(crate) fn costs_of<'a>(
    engine: &str,
    calibrations: &'a [Calibration],
) -> Option<&'a Calibration> {
    let of_engine =
        |c: &&Calibration| c.group.split(' ').next() == Some(engine) && !c.fitted.is_empty();
    calibrations.iter().filter(of_engine).max_by_key(|c| c.rows)
}

/// What the engine of `sources` adds: its calibration, if there is one, else its defaults.
pub(crate) fn resolve(sources: &Sources, calibrations: &[Calibration]) -> Result<EngineCosts> {
    match costs_of(sources.engine(), calibrations) {
        Some(calibration) => Ok(calibration.costs.clone()),
        None => sources.costs(),
    }
}
