//! `estimate`: what one deployment, or every row of a file of measured points, is predicted to do.

use std::path::PathBuf;

use clap::Args;

use crate::ask::sources::Sources;
use crate::ask::{DevicePrice, EstimateOptions, calibrations};
use crate::cli::parse::{concurrency, positive_whole, rate, tokens};
use crate::cli::profile::ProfileArgs;
use crate::cli::{Output, store};
use crate::serving::Traffic;
use crate::workload::RoutingKind;
use crate::{Error, Result};

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
        "model", "device", "concurrency", "rate", "tp", "ep", "dp", "weights", "cache", "mtp", "prefix_hit",
        "redundant_experts", "overlap", "routing", "isl", "osl", "price",
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
    pub price: Option<DevicePrice>,
    /// Print the parts of a step, sources and the basis of the dollars; with --points every group.
    #[arg(long)]
    pub details: bool,
}

/// Runs the command.
///
/// # Errors
/// Bad flags and files, tables that cannot answer, a model that does not fit; see [`crate::Error`].
pub fn run(args: &EstimateArgs, output: Output) -> Result<()> {
    let Some(path) = &args.points else { return one::run(&options(args)?, args.details, output) };
    let sources = Sources::read(&args.source.options())?;
    store::warn_of_sources(&sources);
    let calibrations = match &args.calibrate {
        Some(path) => calibrations(path, &sources)?,
        None => Vec::new(),
    };
    file::run(path, args, &sources, &calibrations, output)
}

/// The question that these flags ask.
fn options(args: &EstimateArgs) -> Result<EstimateOptions> {
    let missing = |flag: &str| Error::usage(flag, "is needed (or --points FILE)");
    let traffic = match (args.concurrency, args.rate) {
        // A long run: the first prompts no longer count.
        (Some(concurrency), None) => {
            Traffic::Closed { concurrency, requests_per_client: f64::INFINITY }
        }
        (None, Some(rate)) => Traffic::Open(rate),
        _ => return Err(Error::usage("--concurrency", "give --concurrency or --rate")),
    };
    Ok(EstimateOptions {
        model: args.model.clone().ok_or_else(|| missing("--model"))?,
        device: args.device.clone(),
        tp: args.tp,
        ep: args.ep,
        dp: args.dp,
        weights: args.weights.clone(),
        source: args.source.options(),
        server: args.serving.options(),
        routing: args.routing.clone(),
        traffic,
        isl: args.isl,
        osl: args.osl,
        price: args.price.clone(),
        calibrate: args.calibrate.clone(),
    })
}
