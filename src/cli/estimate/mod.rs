//! `estimate`: what one deployment, or every row of a file of measured points, is predicted to do.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::Output;
use crate::cli::parse::{positive_whole, quantity};
use crate::latency::KernelTimes;
use crate::latency::tables::engine_tables::{self, EngineTables};
use crate::plan::calibrate::{self, Calibration};
use crate::plan::points::{self, Point};
use crate::serving::EngineCosts;
use crate::{Error, Result};

mod file;
mod one;
mod times;

pub(crate) use one::load_model;
pub(crate) use times::TimesCache;

/// Predicts TTFT, TPOT, throughput, memory and cost of a deployment.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  moe-frontier estimate --model mixtral-8x7b --device h100 --tp 2 --concurrency 32 --isl 1000 \\
      --osl 200 --profile h100.tables.json
  moe-frontier estimate --points points.csv --profile h100.tables.json --cross-validate")]
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
    /// Kernel times: a file that `import` wrote. Without it all times are rooflines.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Allow kernel times of another device, carried over by their share of the roofline.
    #[arg(long)]
    pub transfer: bool,
    /// Model preset or a config.json of the Hub.
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// Device preset or a TOML file.
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
    /// Weights: bf16, fp16, fp8, int8, int4 or mxfp4; by default as published.
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<String>,
    /// Engine whose kernels and constants are preferred: vllm, sglang or trtllm.
    #[arg(long, default_value = "vllm")]
    pub engine: String,
    /// Clients that each send their next request when the last one ends.
    #[arg(long, value_parser = quantity, conflicts_with = "rate")]
    pub concurrency: Option<f64>,
    /// Requests per second, arriving at random.
    #[arg(long, value_parser = quantity)]
    pub rate: Option<f64>,
    /// Prompt tokens per request.
    #[arg(long, default_value = "1000", value_parser = quantity)]
    pub isl: f64,
    /// Output tokens per request.
    #[arg(long, default_value = "200", value_parser = quantity)]
    pub osl: f64,
    /// Dollars per device and hour; by default the device's first published price.
    #[arg(long, value_name = "USD", value_parser = quantity)]
    pub price: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// Bad flags and files, tables that cannot answer, a model that does not fit; see [`crate::Error`].
pub fn run(args: &EstimateArgs, output: Output) -> Result<()> {
    let tables = args.profile.as_deref().map(engine_tables::read).transpose()?;
    let cache = TimesCache::new(tables.as_ref());
    let calibrations = match &args.calibrate {
        Some(path) => calibrate_all(&points::read(path)?, &cache)?,
        None => Vec::new(),
    };
    match &args.points {
        Some(path) => file::run(path, args, &cache, &calibrations, output),
        None => one::run(args, tables.as_ref(), &cache, &calibrations, output),
    }
}

/// Fits every group of rows of a file.
pub(crate) fn calibrate_all(points: &[Point], cache: &TimesCache) -> Result<Vec<Calibration>> {
    let times = |setup: &points::Setup, engine: &str| cache.get(setup, engine);
    calibrate::groups(points)
        .iter()
        .map(|(group, members)| {
            let rows: Vec<&Point> = members.iter().map(|&i| &points[i]).collect();
            calibrate::fit(group, &rows, &times)
        })
        .collect()
}

/// The constants for an engine: those fitted to the most rows of it, else the defaults.
fn costs_of<'a>(engine: &str, calibrations: &'a [Calibration]) -> Option<&'a Calibration> {
    let of_engine =
        |c: &&Calibration| c.group.split(' ').next() == Some(engine) && !c.fitted.is_empty();
    calibrations.iter().filter(of_engine).max_by_key(|c| c.rows)
}

fn file_name(path: Option<&Path>) -> Option<String> {
    path.map(|p| p.display().to_string())
}

/// Refuses tables of another device unless a transfer was asked for.
pub(crate) fn check_device(
    tables: Option<&EngineTables>,
    device: &str,
    transfer: bool,
) -> Result<()> {
    let Some(tables) = tables else { return Ok(()) };
    let own = crate::config::DeviceSpec::of_driver_name(&tables.device);
    if transfer || own.is_some_and(|d| d.name == device) {
        return Ok(());
    }
    Err(Error::unfit(
        format!("kernel times of {}", tables.device),
        format!(
            "the deployment is on {device}; --transfer carries them over by their share of the roofline"
        ),
    ))
}

/// Engine defaults with the calibration of that engine, if any.
pub(crate) fn resolve(engine: &str, calibrations: &[Calibration]) -> EngineCosts {
    costs_of(engine, calibrations).map_or_else(|| EngineCosts::of(engine), |c| c.costs.clone())
}

/// Kernel times under a name that the sub-modules share.
type Times = KernelTimes;
