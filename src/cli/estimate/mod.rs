//! `estimate`: what one deployment, or every row of a file of measured points, is predicted to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::Result;
use crate::calibrate::predict::Chosen;
use crate::calibrate::{Calibration, Group, Prior, own, pool};
use crate::cli::Output;
use crate::cli::calibrate::own_file;
use crate::cli::parse::{concurrency, positive_whole, rate, tokens};
use crate::cli::profile::{ProfileArgs, Sources};
use crate::config::DeviceSpec;
use crate::plan::points::{self, Point};
use crate::workload::RoutingKind;

mod file;
mod one;
mod serving;

pub(crate) use serving::ServingArgs;

/// Predicts TTFT, TPOT, throughput, memory and cost of a deployment.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  moe-frontier estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 32 --isl 1000 \\
      --osl 200
  moe-frontier estimate --points points.csv --cross-validate")]
pub struct EstimateArgs {
    /// CSV of measured points: one prediction per row and a summary of errors.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "model", "device", "concurrency", "rate", "tp", "ep", "dp", "weights", "cache", "mtp", "prefix_hit", "routing", "isl", "osl", "price",
    ])]
    pub points: Option<PathBuf>,
    /// With --points: predict each row with a prior that was fitted without its model on its device.
    #[arg(long, requires = "points", conflicts_with = "calibrate")]
    pub cross_validate: bool,
    /// Own runs: a CSV of measured points, or what `calibrate --out` wrote.
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
    /// How the server is run.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Routing of tokens over experts: uniform, zipf:S, power-law:A, hot:SHARE, balanced, trace:FILE.
    #[arg(long, default_value_t = RoutingKind::TYPICAL, value_name = "KIND")]
    pub routing: RoutingKind,
    /// Closed-loop concurrency.
    #[arg(long, value_parser = concurrency, conflicts_with = "rate")]
    pub concurrency: Option<f64>,
    /// Requests per second, arriving at random.
    #[arg(long, value_parser = rate)]
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
    /// Print the parts of a step, sources and the basis of the dollars; with --points every group.
    #[arg(long)]
    pub details: bool,
}

/// Runs the command.
///
/// # Errors
/// Bad flags and files, tables that cannot answer, a model that does not fit; see [`crate::Error`].
pub fn run(args: &EstimateArgs, output: Output) -> Result<()> {
    let sources = Sources::read(&args.source)?;
    let calibrations = match &args.calibrate {
        Some(path) => calibrations(path, &sources)?,
        None => Vec::new(),
    };
    match &args.points {
        Some(path) => file::run(path, args, &sources, &calibrations, output),
        None => one::run(args, &sources, &calibrations, output),
    }
}

/// What `--calibrate` names: a file that `calibrate` wrote, or points to fit.
pub(crate) fn calibrations(path: &Path, sources: &Sources) -> Result<Vec<Calibration>> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return own_file::read(path);
    }
    calibrate_all(&points::read(path)?, sources)
}

/// Fits every group of rows of a file, each from the prior and its own rows alone.
pub(crate) fn calibrate_all(points: &[Point], sources: &Sources) -> Result<Vec<Calibration>> {
    let latency = sources.latency_of();
    let rows = pool::prepare(points, &latency)?;
    let prior = Prior::shipped()?;
    let groups: BTreeSet<&Group> = rows.iter().map(|r| &r.group).collect();
    let fit = |group: &Group| {
        let mine: Vec<&pool::Prepared> = rows.iter().filter(|r| r.group == *group).collect();
        own::fit(group, &mine, prior, &|i| points[i].id.clone())
    };
    Ok(groups.into_iter().map(fit).collect())
}

/// What the engine of `sources` adds for a model on a device, with its error: own runs where the group
/// has some, else the prior; this program's own kernels cost what their profile says.
pub(crate) fn resolve(
    sources: &Sources,
    calibrations: &[Calibration],
    serving: &ServingArgs,
    (model, device): (&str, &DeviceSpec),
) -> Result<Chosen> {
    let engine = sources.engine().to_owned();
    let group = Group { engine, model: model.to_owned(), gpu: device.name.clone() };
    let mut chosen = Chosen::of(&group, calibrations)?;
    if group.engine == "none" {
        chosen.default = sources.costs()?;
    }
    chosen.default = serving.applied(model, &chosen.default.on(&group.engine, device))?;
    Ok(chosen)
}
