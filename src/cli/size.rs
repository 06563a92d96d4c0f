//! `size`: devices, layout, batch limit and replicas for a request rate under a service level.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use crate::cli::Output;
use crate::cli::estimate::{calibrate_all, resolve};
use crate::cli::parse::{duration, positive_whole, quantity};
use crate::cli::profile::{ProfileArgs, Sources, price};
use crate::config::{DeviceSpec, Loaded, load_model};
use crate::files::{ResultFolder, write_atomic};
use crate::plan::calibrate::Calibration;
use crate::plan::points::{self, set_precision};
use crate::plan::request_trace::RequestTrace;
use crate::plan::size::{Choice, Failure, Limit, Metric, SizeAnswer, SizeInputs, Statistic, size};
use crate::report::serving_plot;
use crate::serving::{Lengths, LoadModel, Percentiles, Spread, usd_per_million_output};
use crate::units::{Seconds, TokensPerSecond};
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// Sizes a deployment for a request rate under a service level.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  moe-frontier size --model mixtral-8x7b --device h100 --rate 20 --isl 1000 --osl 200 \\
      --ttft-p99 2s --tpot-p99 60ms")]
pub struct SizeArgs {
    /// Model preset or a config.json of the Hub.
    #[arg(long, value_name = "NAME|FILE")]
    pub model: String,
    /// Devices to choose from (comma-separated presets or TOML files); by default the device of the
    /// profile, else all known ones with a price.
    #[arg(long, value_name = "NAME|FILE", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Mean requests per second.
    #[arg(long, value_parser = quantity)]
    pub rate: f64,
    /// Peak over mean rate: capacity is for the peak, dollars are over the mean.
    #[arg(long, default_value = "1", value_parser = quantity)]
    pub peak: f64,
    /// CSV of recorded requests (`arrival_s,input_tokens,output_tokens`): its lengths and gaps,
    /// stretched to the rate, are simulated instead of drawn ones.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["isl", "osl", "length_cv", "burstiness", "requests", "seed"])]
    pub trace: Option<PathBuf>,
    /// Mean prompt tokens per request.
    #[arg(long, default_value = "1000", value_parser = quantity)]
    pub isl: f64,
    /// Mean output tokens per request.
    #[arg(long, default_value = "200", value_parser = quantity)]
    pub osl: f64,
    /// Coefficient of variation of log-normal lengths in the simulation; 0 makes all equal.
    #[arg(long, default_value = "0.5", value_parser = crate::cli::parse::non_negative)]
    pub length_cv: f64,
    /// Shape of the gaps between arrivals: 1 is Poisson, below is burstier.
    #[arg(long, default_value = "1", value_parser = quantity)]
    pub burstiness: f64,
    /// Maximum mean TTFT.
    #[arg(long, value_parser = duration)]
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
    #[arg(long, value_parser = duration)]
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
    /// Fit the engine's constants to a CSV of measured points first.
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Dollars per device and hour, or `tier:NAME` of the published tiers; by default the first.
    #[arg(long, value_name = "USD|tier:NAME", value_parser = crate::cli::parse::price)]
    pub price: Option<String>,
    /// Requests of each simulation.
    #[arg(long, default_value = "20000", value_parser = positive_whole)]
    pub requests: usize,
    /// Seed of the simulations.
    #[arg(long, default_value = "1")]
    pub seed: u64,
    /// Folder for size.json and the plots; an earlier result there is replaced.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Take --out even where it holds files of others; those stay.
    #[arg(long, requires = "out")]
    pub overwrite: bool,
}

/// The document of `size`.
#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    model: String,
    device: String,
    gpus: usize,
    tensor_parallel: usize,
    expert_parallel: usize,
    data_parallel: usize,
    replicas: usize,
    max_batch: usize,
    mean_batch: f64,
    utilisation: f64,
    ttft_ms: Milliseconds,
    tpot_ms: Milliseconds,
    e2e_ms: Milliseconds,
    /// Means at the mean rate without waiting: what `estimate` says of one replica.
    steady_state: Steady,
    usd_per_hour: f64,
    usd_per_million_input_tokens: f64,
    usd_per_million_output_tokens: f64,
    usd_per_million_total_tokens: f64,
    memory: Memory,
    binding_constraint: String,
    margins: Vec<Margin>,
    latency_source: crate::latency::Source,
    alternatives: Vec<Alternative>,
    failed: Vec<Failure>,
    assumptions: Assumptions,
}

#[derive(Debug, Serialize)]
struct Steady {
    requests_per_s_per_replica: f64,
    tpot_ms: f64,
    ttft_ms: f64,
    usd_per_million_output_tokens_all_on_output: f64,
}

#[derive(Debug, Serialize)]
struct Milliseconds {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_lo: f64,
    p99_hi: f64,
}

impl Milliseconds {
    fn of(p: &Percentiles) -> Self {
        let ms = |seconds: f64| seconds * 1e3;
        Self {
            mean: ms(p.mean.value),
            p50: ms(p.p50.value),
            p90: ms(p.p90.value),
            p99: ms(p.p99.value),
            p99_lo: ms(p.p99.lo),
            p99_hi: ms(p.p99.hi),
        }
    }
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "fields of the document carry their unit")]
struct Memory {
    weights_bytes: f64,
    cache_bytes: f64,
    reserved_bytes: f64,
    usable_bytes: f64,
}

#[derive(Debug, Serialize)]
struct Margin {
    limit: String,
    limit_ms: f64,
    /// Share of the limit that is left at the peak, by the chain.
    left: f64,
}

#[derive(Debug, Serialize)]
struct Alternative {
    device: String,
    layout: String,
    gpus: usize,
    replicas: usize,
    max_batch: usize,
    usd_per_hour: f64,
    ttft_p99_ms: f64,
    tpot_p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Assumptions {
    kernel_times: String,
    engine: String,
    calibration: &'static str,
    constants: crate::serving::EngineCosts,
    trace: Option<String>,
    isl: f64,
    osl: f64,
    length_cv: Option<f64>,
    burstiness: Option<f64>,
    rate: f64,
    peak_over_mean: f64,
    spare_replicas: usize,
    limits_were_default: bool,
    usd_per_gpu_hour: f64,
    price_source: String,
    cost_basis: &'static str,
    usable_memory_share: f64,
    routing: String,
    percentiles: &'static str,
    seed: u64,
    simulated_requests: usize,
}

/// Runs the command.
///
/// # Errors
/// Bad flags and files; [`Error::Infeasible`] (exit 5) with the nearest feasible service level.
pub fn run(args: &SizeArgs, output: Output) -> Result<()> {
    let folder =
        args.out.as_deref().map(|out| ResultFolder::begin(out, &["size.json"], args.overwrite));
    let folder = folder.transpose()?;
    let sources = Sources::read(&args.source)?;
    let calibrations = match &args.calibrate {
        Some(path) => calibrate_all(&points::read(path)?, &sources)?,
        None => Vec::new(),
    };
    let (inputs, prices) = inputs(args, &sources, &calibrations)?;
    let answer = size(&inputs, &sources.latency_of())?;
    let document = document(args, &sources, &inputs, &answer, &prices)?;
    if let Some(folder) = folder {
        let json = serde_json::to_vec_pretty(&document)
            .map_err(|e| Error::unfit("size.json", e.to_string()))?;
        write_atomic(&folder.path().join("size.json"), &json, true)?;
        serving_plot::write_all(folder.path(), &inputs, &answer)?;
        folder.finish()?;
    }
    output.result(&document, || text(&document))
}

fn inputs(
    args: &SizeArgs,
    sources: &Sources,
    calibrations: &[Calibration],
) -> Result<(SizeInputs, Vec<String>)> {
    let Loaded { mut model, .. } = load_model(&args.model)?;
    if let Some(weights) = &args.weights {
        set_precision(&mut model, &weights.to_lowercase())
            .map_err(|reason| Error::usage("--weights", reason))?;
    }
    if args.isl < 1.0 || args.osl < 1.0 {
        return Err(Error::usage("--isl", "lengths are at least one token"));
    }
    if args.peak < 1.0 {
        return Err(Error::usage("--peak", "the peak is at least the mean: 1 or more"));
    }
    let named: Vec<DeviceSpec> = match (args.device.is_empty(), sources.device()?) {
        (true, Some(device)) => vec![device],
        (true, None) => DeviceSpec::known()?.into_iter().filter(|d| d.price().is_some()).collect(),
        (false, _) => {
            args.device.iter().map(|name| DeviceSpec::load(name)).collect::<Result<_>>()?
        }
    };
    let mut devices = Vec::new();
    let mut prices = Vec::new();
    for device in named {
        let (price, source) = price(args.price.as_deref(), &device)?;
        prices.push(source);
        devices.push((device, price));
    }
    let trace = args.trace.as_deref().map(RequestTrace::read).transpose()?;
    let drawn = Lengths { input: args.isl, output: args.osl };
    let spread =
        if args.length_cv > 0.0 { Spread::LogNormal(args.length_cv) } else { Spread::Fixed };
    let routing = LoadModel::new(&args.routing, model.num_experts, model.top_k)?;
    let inputs = SizeInputs {
        model,
        devices,
        engine: sources.engine().to_owned(),
        costs: resolve(sources, calibrations)?,
        routing: Arc::new(routing),
        lengths: trace.as_ref().map_or(drawn, RequestTrace::lengths),
        spread: trace.as_ref().map_or(spread, RequestTrace::spread),
        trace,
        rate: args.rate,
        peak_over_mean: args.peak,
        burstiness: args.burstiness,
        limits: limits(args),
        spare: args.spare,
        max_gpus: args.max_gpus,
        requests: args.requests.max(1000),
        seed: args.seed,
    };
    Ok((inputs, prices))
}

/// The promised limits; without any flag, the rule of `MLPerf` for Mixtral servers (2 s and 200 ms at p99).
fn limits(args: &SizeArgs) -> Vec<Limit> {
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
    let given: Vec<Limit> = flags
        .into_iter()
        .filter_map(|(metric, statistic, most)| Some(Limit { metric, statistic, most: most? }))
        .collect();
    if !given.is_empty() {
        return given;
    }
    let limit = |metric, most| Limit { metric, statistic: Statistic::P99, most: Seconds(most) };
    vec![limit(Metric::Ttft, 2.0), limit(Metric::Tpot, 0.2)]
}

fn document(
    args: &SizeArgs,
    sources: &Sources,
    inputs: &SizeInputs,
    answer: &SizeAnswer,
    prices: &[String],
) -> Result<Document> {
    let best = &answer.best;
    let simulated = best
        .simulated
        .as_ref()
        .ok_or_else(|| Error::unfit("size", "the chosen plan was not simulated"))?;
    let (input, output) = best.usd_per_million(inputs);
    let total =
        best.usd_per_hour() / 3600.0 / inputs.rate / (inputs.lengths.input + inputs.lengths.output)
            * 1e6;
    let chosen = inputs.devices.iter().position(|(d, _)| d.name == best.device).unwrap_or(0);
    Ok(Document {
        schema: "moe-frontier/size",
        schema_version: "1.0",
        model: inputs.model.name.clone(),
        device: best.device.clone(),
        gpus: best.gpus(),
        tensor_parallel: best.layout.attention_tp,
        expert_parallel: best.layout.moe_ep,
        data_parallel: best.layout.attention_dp,
        replicas: best.replicas,
        max_batch: best.max_batch,
        mean_batch: best.mean_load.mean_batch,
        utilisation: best.utilisation(inputs),
        ttft_ms: Milliseconds::of(&simulated.ttft_s),
        tpot_ms: Milliseconds::of(&simulated.tpot_s),
        e2e_ms: Milliseconds::of(&simulated.e2e_s),
        steady_state: steady(inputs, answer),
        usd_per_hour: best.usd_per_hour(),
        usd_per_million_input_tokens: input,
        usd_per_million_output_tokens: output,
        usd_per_million_total_tokens: total,
        memory: Memory {
            weights_bytes: best.weights.0,
            cache_bytes: best.cache_per_sequence.0 * best.max_batch as f64
                / best.layout.attention_dp as f64,
            reserved_bytes: best.memory.reserve.0,
            usable_bytes: best.memory.usable().0,
        },
        binding_constraint: answer.binding.clone(),
        margins: inputs
            .limits
            .iter()
            .map(|l| Margin {
                limit: l.to_string(),
                limit_ms: l.most.as_ms(),
                left: 1.0 - best.load.value(l) / l.most,
            })
            .collect(),
        latency_source: best.source,
        alternatives: answer.others.iter().take(10).map(alternative).collect(),
        failed: answer.failures.clone(),
        assumptions: Assumptions {
            kernel_times: sources.names(&inputs.devices[chosen].0),
            engine: inputs.engine.clone(),
            calibration: if args.calibrate.is_none() { "uncalibrated" } else { "calibrated" },
            constants: inputs.costs.clone(),
            trace: args.trace.as_ref().map(|p| p.display().to_string()),
            isl: inputs.lengths.input,
            osl: inputs.lengths.output,
            length_cv: args.trace.is_none().then_some(args.length_cv),
            burstiness: args.trace.is_none().then_some(args.burstiness),
            rate: args.rate,
            peak_over_mean: args.peak,
            spare_replicas: args.spare,
            limits_were_default: limits_default(args),
            usd_per_gpu_hour: best.price.0,
            price_source: prices.get(chosen).cloned().unwrap_or_default(),
            cost_basis: "split by time in prefill and in decode, idle time included",
            usable_memory_share: best.memory.usable_share,
            routing: args.routing.to_string(),
            percentiles: "over requests, simulated at the peak rate of one replica; TPOT excludes the first token",
            seed: args.seed,
            simulated_requests: simulated.requests,
        },
    })
}

/// One replica at the mean rate.
fn steady(inputs: &SizeInputs, answer: &SizeAnswer) -> Steady {
    let best = &answer.best;
    let output = TokensPerSecond(inputs.rate * inputs.lengths.output);
    Steady {
        requests_per_s_per_replica: answer.steady.requests_per_s,
        tpot_ms: answer.steady.tpot.as_ms(),
        ttft_ms: answer.steady.ttft.as_ms(),
        usd_per_million_output_tokens_all_on_output: usd_per_million_output(
            best.gpus() as f64,
            best.price,
            output,
        )
        .0,
    }
}

fn limits_default(args: &SizeArgs) -> bool {
    [
        args.ttft_mean,
        args.ttft_p50,
        args.ttft_p90,
        args.ttft_p99,
        args.tpot_mean,
        args.tpot_p50,
        args.tpot_p90,
        args.tpot_p99,
    ]
    .iter()
    .all(Option::is_none)
}

fn alternative(c: &Choice) -> Alternative {
    Alternative {
        device: c.device.clone(),
        layout: c.layout.to_string(),
        gpus: c.gpus(),
        replicas: c.replicas,
        max_batch: c.max_batch,
        usd_per_hour: c.usd_per_hour(),
        ttft_p99_ms: c.load.ttft[3].as_ms(),
        tpot_p99_ms: c.load.tpot[3].as_ms(),
    }
}

fn text(d: &Document) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "{} GPUs: {} replica(s) of {} on {} (tensor parallel {}, expert parallel {}, data parallel {})\n",
        d.gpus,
        d.replicas,
        d.model,
        d.device,
        d.tensor_parallel,
        d.expert_parallel,
        d.data_parallel
    );
    let _ = writeln!(
        text,
        "batch {:.1} on average, at most {}; utilisation {:.0} %; binding: {}",
        d.mean_batch,
        d.max_batch,
        d.utilisation * 100.0,
        d.binding_constraint
    );
    for (name, v) in [("TTFT", &d.ttft_ms), ("TPOT", &d.tpot_ms), ("E2E", &d.e2e_ms)] {
        let _ = writeln!(
            text,
            "{name:>4} ms: mean {:.1}, p50 {:.1}, p90 {:.1}, p99 {:.1} ({:.1} to {:.1})",
            v.mean, v.p50, v.p90, v.p99, v.p99_lo, v.p99_hi
        );
    }
    let _ = writeln!(
        text,
        "${:.2}/h: ${:.3}/M input, ${:.3}/M output, ${:.3}/M total tokens at {:.0} % utilisation ({}; ${}/h each, {})",
        d.usd_per_hour,
        d.usd_per_million_input_tokens,
        d.usd_per_million_output_tokens,
        d.usd_per_million_total_tokens,
        d.utilisation * 100.0,
        d.assumptions.cost_basis,
        d.assumptions.usd_per_gpu_hour,
        d.assumptions.price_source
    );
    let _ = writeln!(
        text,
        "kernel times: {}, {}; {} plan(s) fail, see --json",
        d.latency_source.label(),
        d.assumptions.calibration,
        d.failed.len()
    );
    for a in d.alternatives.iter().take(4) {
        let _ = writeln!(
            text,
            "  else {} x {} {} ({} replicas): ${:.2}/h, TTFT p99 {:.0} ms, TPOT p99 {:.1} ms",
            a.gpus, a.device, a.layout, a.replicas, a.usd_per_hour, a.ttft_p99_ms, a.tpot_p99_ms
        );
    }
    text
}
