//! `size`: devices, layout, batch limit and replicas for a request rate under a service level.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::ask::{DevicePrice, SizeOptions, size};
use crate::cli::emit::EmitArgs;
use crate::cli::estimate::ServingArgs;
use crate::cli::output::{width, write_stdout};
use crate::cli::parse::{duration, positive_whole, rate, ratio, simulated_requests, tokens};
use crate::cli::profile::ProfileArgs;
use crate::cli::{Output, store};
use crate::files::seal::sealed;
use crate::files::{ResultFolder, write_atomic};
use crate::plan::request_trace::Columns;
use crate::plan::size::{Limit, Metric, Statistic};
use crate::report::write_size_plots;
use crate::serving::Router;
use crate::units::Seconds;
use crate::workload::RoutingKind;

mod document;
mod interval;
mod text;

use document::document;
use text::text;

/// Sizes a deployment for a request rate under a service level.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  moe-frontier size --model mixtral-8x7b --device h100 --rate 20 --isl 1000 --osl 200 \\
      --ttft-p99 2s --tpot-p99 60ms
  moe-frontier size --model mixtral-8x7b --device h100 --rate 20 --emit vllm >serve.sh")]
pub struct SizeArgs {
    /// Model preset or a config.json of the Hub.
    #[arg(long, value_name = "NAME|FILE")]
    pub model: String,
    /// Devices to choose from (comma-separated presets or TOML files); by default the device of the
    /// profile, else all those with shipped tables and a published cost of owning them.
    #[arg(long, value_name = "NAME|FILE", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Mean requests per second.
    #[arg(long, value_parser = rate)]
    pub rate: f64,
    /// Peak over mean rate: capacity is for the peak, dollars are over the mean.
    #[arg(long, default_value = "1", value_parser = ratio)]
    pub peak: f64,
    /// Recorded requests (CSV with `arrival_s,input_tokens,output_tokens`, or the names of Azure,
    /// `BurstGPT` or Mooncake): their lengths and gaps, stretched to the rate, are simulated instead of
    /// drawn ones.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["isl", "osl", "length_cv", "burstiness", "requests"])]
    pub trace: Option<PathBuf>,
    /// Column of --trace under a name of its own: `arrival_s=time`, `input_tokens=prompt` or
    /// `output_tokens=completion`.
    #[arg(long = "column", value_name = "NAME=FROM", requires = "trace")]
    pub columns: Vec<Columns>,
    /// How requests find a replica: random or least-loaded.
    #[arg(long, default_value_t = Router::Random, value_name = "KIND")]
    pub router: Router,
    /// Mean prompt tokens per request.
    #[arg(long, default_value = "1000", value_parser = tokens)]
    pub isl: f64,
    /// Mean output tokens per request.
    #[arg(long, default_value = "200", value_parser = tokens)]
    pub osl: f64,
    /// Coefficient of variation of log-normal lengths in the simulation; 0 makes all equal.
    #[arg(long, default_value = "0.5", value_parser = crate::cli::parse::non_negative)]
    pub length_cv: f64,
    /// Shape of the gaps between arrivals: 1 is Poisson, below is burstier.
    #[arg(long, default_value = "1", value_parser = ratio)]
    pub burstiness: f64,
    /// Maximum mean TTFT.
    #[arg(long, visible_alias = "ttft", value_parser = duration)]
    pub ttft_mean: Option<Seconds>,
    /// Maximum median TTFT.
    #[arg(long, value_parser = duration)]
    pub ttft_p50: Option<Seconds>,
    /// Maximum p90 TTFT.
    #[arg(long, value_parser = duration)]
    pub ttft_p90: Option<Seconds>,
    /// Maximum p99 TTFT.
    #[arg(long, value_parser = duration)]
    pub ttft_p99: Option<Seconds>,
    /// Maximum mean TPOT.
    #[arg(long, visible_alias = "tpot", value_parser = duration)]
    pub tpot_mean: Option<Seconds>,
    /// Maximum median TPOT.
    #[arg(long, value_parser = duration)]
    pub tpot_p50: Option<Seconds>,
    /// Maximum p90 TPOT.
    #[arg(long, value_parser = duration)]
    pub tpot_p90: Option<Seconds>,
    /// Maximum p99 TPOT.
    #[arg(long, value_parser = duration)]
    pub tpot_p99: Option<Seconds>,
    /// Replicas beyond those needed (1 is N+1).
    #[arg(long, default_value = "0")]
    pub spare: usize,
    /// Maximum devices of the deployment.
    #[arg(long, default_value = "1024", value_parser = positive_whole)]
    pub max_gpus: usize,
    /// Weights: bf16, fp16, fp8, int8, int4, mxfp4 or nvfp4; by default as published.
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<String>,
    /// Where latencies come from.
    #[command(flatten)]
    pub source: ProfileArgs,
    /// Routing of tokens over experts: uniform, zipf:S, power-law:A, hot:SHARE, balanced, trace:FILE.
    #[arg(long, default_value_t = RoutingKind::TYPICAL, value_name = "KIND")]
    pub routing: RoutingKind,
    /// How the server is run.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Own runs: a CSV of measured points, or what `calibrate --out` wrote.
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Dollars per device and hour, or `tier:NAME` of the published tiers; by default the first.
    #[arg(long, value_name = "USD|tier:NAME", value_parser = crate::cli::parse::price)]
    pub price: Option<DevicePrice>,
    /// Requests of each simulation, from 1000: more make the intervals narrower.
    #[arg(long, default_value = "20000", value_parser = simulated_requests)]
    pub requests: usize,
    /// Seed of the simulations and of the router.
    #[arg(long, default_value = "1")]
    pub seed: u64,
    /// Folder for size.json and the plots; an earlier result there is replaced.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Take --out even where it holds files of others; those stay.
    #[arg(long, requires = "out")]
    pub overwrite: bool,
    /// Print percentiles, the basis of dollars and times, and every plan.
    #[arg(long)]
    pub details: bool,
    /// What to print instead of figures.
    #[command(flatten)]
    pub emit: EmitArgs,
}

/// Runs the command.
///
/// # Errors
/// Bad flags and files; [`crate::Error::Infeasible`] (exit 5) with the nearest feasible service level.
pub fn run(args: &SizeArgs, output: Output) -> Result<()> {
    let folder =
        args.out.as_deref().map(|out| ResultFolder::begin(out, &["size.json"], args.overwrite));
    let folder = folder.transpose()?;
    let options = options(args)?;
    let sized = size(&options)?;
    store::warn_of_sources(&sized.sources);
    let document = document(&options, &sized)?;
    let json = sealed("size.json", &document)?;
    if let Some(folder) = folder {
        write_atomic(&folder.path().join("size.json"), &json, true)?;
        write_size_plots(folder.path(), &sized.inputs, &sized.answer)?;
        folder.finish()?;
    }
    if let Some(printed) = args.emit.print(&args.model, &sized, output) {
        return printed;
    }
    if output.is_json() {
        return write_stdout(&String::from_utf8_lossy(&json));
    }
    output.result(&document, || text(&document, width(), args.details))
}

/// The question that these flags ask.
fn options(args: &SizeArgs) -> Result<SizeOptions> {
    Ok(SizeOptions {
        model: args.model.clone(),
        device: args.device.clone(),
        rate: args.rate,
        peak: args.peak,
        trace: args.trace.clone(),
        columns: Columns::joined(&args.columns),
        router: args.router,
        isl: args.isl,
        osl: args.osl,
        length_cv: args.length_cv,
        burstiness: args.burstiness,
        limits: given(args),
        spare: args.spare,
        max_gpus: args.max_gpus,
        weights: args.weights.clone(),
        source: args.emit.source(&args.source)?.options(),
        routing: args.routing.clone(),
        server: args.serving.options(),
        calibrate: args.calibrate.clone(),
        price: args.price.clone(),
        requests: args.requests,
        seed: args.seed,
    })
}

/// The limits that flags give.
fn given(args: &SizeArgs) -> Vec<Limit> {
    let flags = [
        (Metric::Ttft, Statistic::Mean, args.ttft_mean),
        (Metric::Ttft, Statistic::P50, args.ttft_p50),
        (Metric::Ttft, Statistic::P90, args.ttft_p90),
        (Metric::Ttft, Statistic::P99, args.ttft_p99),
        (Metric::Tpot, Statistic::Mean, args.tpot_mean),
        (Metric::Tpot, Statistic::P50, args.tpot_p50),
        (Metric::Tpot, Statistic::P90, args.tpot_p90),
        (Metric::Tpot, Statistic::P99, args.tpot_p99),
    ];
    let limit = |(metric, statistic, most)| Some(Limit { metric, statistic, most: most? });
    flags.into_iter().filter_map(limit).collect()
}
