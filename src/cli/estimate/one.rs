//! `estimate` of one deployment.

use serde::Serialize;

use super::{EstimateArgs, TimesCache, check_device, costs_of, file_name, resolve};
use crate::cli::Output;
use crate::config::{DeviceSpec, MoeModel, hf, preset};
use crate::latency::Source;
use crate::latency::tables::engine_tables::EngineTables;
use crate::plan::calibrate::{Calibration, Fitted};
use crate::plan::points::{
    Prediction, REPORTED_OVER_NOMINAL, RESERVE, Setup, USABLE_SHARE, predict_with, set_precision,
};
use crate::serving::{
    Breakdown, Deployment, EngineCosts, Layout, Lengths, Served, Traffic, usd_per_million_output,
    usd_per_million_split,
};
use crate::units::{TokensPerSecond, UsdPerHour};
use crate::{Error, Result};

/// Uncalibrated servers were seen to add 10-90 us a layer to their kernels, and kernels to differ by
/// 15 % between versions of an engine.
const UNCALIBRATED: [(f64, f64); 2] = [(0.85, 10e-6), (1.15, 90e-6)];

/// The document of `estimate`.
#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    model: String,
    device: String,
    gpus: usize,
    layout: Layout,
    ttft_ms: f64,
    tpot_ms: f64,
    tpot_ms_lo: f64,
    tpot_ms_hi: f64,
    requests_per_s: f64,
    output_tokens_per_s: f64,
    output_tokens_per_s_per_gpu: f64,
    mean_batch: f64,
    max_batch: f64,
    saturated: bool,
    memory: Memory,
    usd_per_million_input_tokens: Option<f64>,
    usd_per_million_output_tokens: Option<f64>,
    usd_per_million_output_tokens_all_on_output: Option<f64>,
    step: Breakdown,
    latency_source: Source,
    calibration: Calibrated,
    assumptions: Assumptions,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "fields of the document carry their unit")]
struct Memory {
    device_bytes: f64,
    weights_bytes: f64,
    cache_bytes: f64,
    reserved_bytes: f64,
}

#[derive(Debug, Serialize)]
struct Calibrated {
    state: &'static str,
    group: Option<String>,
    rows: usize,
    fitted: Vec<Fitted>,
}

#[derive(Debug, Serialize)]
struct Assumptions {
    kernel_times: Option<String>,
    engine: String,
    constants: EngineCosts,
    isl: f64,
    osl: f64,
    weights: &'static str,
    usable_memory_share: f64,
    routing: &'static str,
    usd_per_gpu_hour: Option<f64>,
    price_source: String,
    cost_basis: &'static str,
    utilisation: &'static str,
    model_assumed: Vec<String>,
}

pub(super) fn run(
    args: &EstimateArgs,
    tables: Option<&EngineTables>,
    cache: &TimesCache,
    calibrations: &[Calibration],
    output: Output,
) -> Result<()> {
    let (setup, model_assumed) = setup(args)?;
    check_device(tables, &setup.device.name, args.transfer)?;
    let times = cache.get(&setup, &args.engine)?;
    let costs = resolve(&args.engine, calibrations).on(&args.engine, &setup.device);
    let prediction = predict_with(&setup, &costs, times)?;
    let calibration = costs_of(&args.engine, calibrations);
    let range = range(&setup, &costs, calibration, times, &prediction)?;
    let deployment = Deployment { model: &setup.model, layout: setup.layout, times, costs: &costs };
    let (price, price_source) = price(args, &setup.device);
    let served = &prediction.served;
    let memory = Memory {
        device_bytes: setup.device.memory_bytes * REPORTED_OVER_NOMINAL,
        weights_bytes: deployment.weights_per_device().0,
        cache_bytes: deployment.cache_per_sequence(setup.lengths.mean_context()).0 * served.batch
            / setup.layout.attention_dp as f64,
        reserved_bytes: RESERVE.0,
    };
    let money = price.map(|price| money(price, &setup, served, prediction.output_rate));
    let gpus = setup.layout.devices();
    let document = Document {
        schema: "moe-frontier/estimate",
        schema_version: "1.0",
        model: setup.model.name.clone(),
        device: setup.device.name.clone(),
        gpus,
        layout: setup.layout,
        ttft_ms: served.ttft.as_ms(),
        tpot_ms: served.tpot.as_ms(),
        tpot_ms_lo: range.0,
        tpot_ms_hi: range.1,
        requests_per_s: served.requests_per_s,
        output_tokens_per_s: prediction.output_rate,
        output_tokens_per_s_per_gpu: prediction.output_rate / gpus as f64,
        mean_batch: served.batch,
        max_batch: served.batch_cap,
        saturated: served.saturated,
        memory,
        usd_per_million_input_tokens: money.map(|m| m.0),
        usd_per_million_output_tokens: money.map(|m| m.1),
        usd_per_million_output_tokens_all_on_output: money.map(|m| m.2),
        step: served.step,
        latency_source: prediction.source(),
        calibration: Calibrated {
            state: if calibration.is_some() { "calibrated" } else { "uncalibrated" },
            group: calibration.map(|c| c.group.clone()),
            rows: calibration.map_or(0, |c| c.rows),
            fitted: calibration.map_or_else(Vec::new, |c| c.fitted.clone()),
        },
        assumptions: Assumptions {
            kernel_times: file_name(args.profile.as_deref()),
            engine: args.engine.clone(),
            constants: costs,
            isl: setup.lengths.input,
            osl: setup.lengths.output,
            weights: setup.model.expert_dtype.label(),
            usable_memory_share: USABLE_SHARE,
            routing: "independent and uniform",
            usd_per_gpu_hour: price.map(|p| p.0),
            price_source,
            cost_basis: "split by time in prefill and in decode",
            utilisation: "at this load; idle time is not priced",
            model_assumed,
        },
    };
    output.result(&document, || text(&document))
}

fn setup(args: &EstimateArgs) -> Result<(Setup, Vec<String>)> {
    let missing = |flag: &str| Error::usage(flag, "is needed (or --points FILE)");
    let name = args.model.as_deref().ok_or_else(|| missing("--model"))?;
    let (mut model, assumed) = load_model(name)?;
    let device = args.device.as_deref().ok_or_else(|| missing("--device"))?;
    let device = DeviceSpec::load(device)?;
    if let Some(weights) = &args.weights {
        set_precision(&mut model, &weights.to_lowercase())
            .map_err(|reason| Error::usage("--weights", reason))?;
    }
    let ranks = args.tp * args.dp;
    if !ranks.is_multiple_of(args.ep) {
        let reason = format!("{} does not divide the {ranks} devices of --tp x --dp", args.ep);
        return Err(Error::usage("--ep", reason));
    }
    let layout = Layout {
        attention_tp: args.tp,
        attention_dp: args.dp,
        moe_tp: ranks / args.ep,
        moe_ep: args.ep,
    };
    let traffic = match (args.concurrency, args.rate) {
        // A long run: the first prompts no longer count.
        (Some(concurrency), None) => {
            Traffic::Closed { concurrency, requests_per_client: f64::INFINITY }
        }
        (None, Some(rate)) => Traffic::Open(rate),
        _ => return Err(Error::usage("--concurrency", "give --concurrency or --rate")),
    };
    let lengths = Lengths { input: args.isl, output: args.osl };
    if args.isl < 1.0 || args.osl < 1.0 {
        return Err(Error::usage("--isl", "lengths are at least one token"));
    }
    Ok((Setup { model, device, layout, lengths, traffic }, assumed))
}

/// A preset by name, or a `config.json` by path.
pub(crate) fn load_model(name: &str) -> Result<(MoeModel, Vec<String>)> {
    let path = std::path::Path::new(name);
    if path.extension().is_some_and(|e| e == "json") {
        let read = hf::from_hf_file(path)?;
        return Ok((read.model, read.assumed));
    }
    Ok((preset::load(name)?.model, Vec::new()))
}

/// TPOT in ms under the ends of what the constants may be.
fn range(
    setup: &Setup,
    costs: &EngineCosts,
    calibration: Option<&Calibration>,
    times: &super::Times,
    prediction: &Prediction,
) -> Result<(f64, f64)> {
    let ends: [EngineCosts; 2] = match calibration {
        None => UNCALIBRATED.map(|(factor, layer)| EngineCosts {
            kernel_factor: costs.kernel_factor * factor,
            layer_s: layer,
            ..costs.clone()
        }),
        Some(c) => [|f: &Fitted| f.lo, |f: &Fitted| f.hi].map(|end| {
            let of = |i: usize, scale: f64, otherwise: f64| {
                c.fitted.get(i).map_or(otherwise, |f| end(f) * scale)
            };
            // The factors on kernels and on what the engine adds trade against each other in a fit:
            // the kernels' own interval is the wider one and is taken alone.
            EngineCosts { kernel_factor: of(0, 1.0, costs.kernel_factor), ..costs.clone() }
        }),
    };
    let mut tpot = [prediction.served.tpot.as_ms(); 2];
    for (tpot, costs) in tpot.iter_mut().zip(&ends) {
        *tpot = predict_with(setup, costs, times)?.served.tpot.as_ms();
    }
    let middle = prediction.served.tpot.as_ms();
    Ok((tpot[0].min(middle), tpot[1].max(middle)))
}

fn price(args: &EstimateArgs, device: &DeviceSpec) -> (Option<UsdPerHour>, String) {
    match (args.price, device.price()) {
        (Some(price), _) => (Some(UsdPerHour(price)), "--price".into()),
        (None, Some((price, p))) => {
            (Some(price), format!("default: {} ({}, {})", p.source, p.tier, p.date))
        }
        (None, None) => (None, "none published; --price sets one".into()),
    }
}

/// Dollars per million prompt tokens, output tokens, and output tokens that carry everything.
fn money(price: UsdPerHour, setup: &Setup, served: &Served, rate: f64) -> (f64, f64, f64) {
    let gpus = setup.layout.devices() as f64;
    let (input, output) = usd_per_million_split(
        gpus,
        price,
        served.requests_per_s,
        setup.lengths.input,
        setup.lengths.output,
        served.prompt_share,
    );
    (input.0, output.0, usd_per_million_output(gpus, price, TokensPerSecond(rate)).0)
}

fn text(d: &Document) -> String {
    use std::fmt::Write;
    let mut text = format!("{} on {} x {} ({})\n", d.model, d.gpus, d.device, d.layout);
    let _ = writeln!(
        text,
        "TTFT {:.1} ms, TPOT {:.2} ms ({:.2} to {:.2}, {}), {:.0} output tokens/s ({:.0} per GPU), {:.2} requests/s",
        d.ttft_ms,
        d.tpot_ms,
        d.tpot_ms_lo,
        d.tpot_ms_hi,
        d.calibration.state,
        d.output_tokens_per_s,
        d.output_tokens_per_s_per_gpu,
        d.requests_per_s
    );
    let _ = writeln!(
        text,
        "batch {:.1} of at most {:.0}{}; kernel times: {}",
        d.mean_batch,
        d.max_batch,
        if d.saturated { ", SATURATED: figures are those at the cap" } else { "" },
        d.latency_source.label()
    );
    let gib = |bytes: f64| bytes / f64::from(1 << 30);
    let _ = writeln!(
        text,
        "memory per GPU: {:.1} GiB weights, {:.1} GiB cache, {:.1} GiB reserved of {:.1} GiB",
        gib(d.memory.weights_bytes),
        gib(d.memory.cache_bytes),
        gib(d.memory.reserved_bytes),
        gib(d.memory.device_bytes)
    );
    let s = &d.step;
    let _ = writeln!(
        text,
        "step: MoE {:.2} ms, dense {:.2}, attention {:.2}, communication {:.2}, engine {:.2}",
        s.moe_s * 1e3,
        s.dense_s * 1e3,
        s.attention_s * 1e3,
        s.communication_s * 1e3,
        s.overhead_s * 1e3
    );
    match (d.usd_per_million_input_tokens, d.usd_per_million_output_tokens) {
        (Some(input), Some(output)) => {
            let _ = writeln!(
                text,
                "${input:.3}/M input, ${output:.3}/M output tokens at ${}/h ({}; {})",
                d.assumptions.usd_per_gpu_hour.unwrap_or_default(),
                d.assumptions.cost_basis,
                d.assumptions.utilisation
            );
        }
        _ => {
            let _ = writeln!(text, "no price: {}", d.assumptions.price_source);
        }
    }
    text
}
