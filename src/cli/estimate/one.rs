//! `estimate` of one deployment.

use serde::Serialize;

use super::{EstimateArgs, resolve};
use crate::calibrate::predict::ends;
use crate::calibrate::{Calibration, Fitted};
use crate::cli::Output;
use crate::cli::output::{model_lines, width};
use crate::cli::profile::{Sources, price};
use crate::config::{DeviceSpec, Loaded, load_model};
use crate::latency::{Operation, Source, Stack};
use crate::plan::outcome::OperationSource;
use crate::plan::points::{Prediction, Setup, deployment, set_precision};
use crate::report::grid::{Column, grid, hanging};
use crate::serving::{
    Breakdown, EngineCosts, Layout, Lengths, LoadModel, Served, Traffic, usd_per_million_output,
    usd_per_million_split,
};
use crate::units::{TokensPerSecond, UsdPerHour};
use crate::{Error, Result};

/// The document of `estimate`.
#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    schema_version: &'static str,
    model: String,
    model_summary: String,
    device: String,
    gpus: usize,
    layout: Layout,
    ttft_ms: f64,
    tpot_ms: f64,
    ttft_ms_lo: f64,
    ttft_ms_hi: f64,
    tpot_ms_lo: f64,
    tpot_ms_hi: f64,
    requests_per_s: f64,
    output_tokens_per_s: f64,
    output_tokens_per_s_lo: f64,
    output_tokens_per_s_hi: f64,
    output_tokens_per_s_per_gpu: f64,
    mean_batch: f64,
    max_batch: f64,
    saturated: bool,
    memory: Memory,
    usd_per_million_input_tokens: Option<f64>,
    usd_per_million_output_tokens: Option<f64>,
    usd_per_million_output_tokens_lo: Option<f64>,
    usd_per_million_output_tokens_hi: Option<f64>,
    usd_per_million_output_tokens_all_on_output: Option<f64>,
    step: Breakdown,
    latency_source: Source,
    latencies: Vec<OperationSource>,
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
    kernel_times: String,
    engine: String,
    constants: EngineCosts,
    isl: f64,
    osl: f64,
    weights: &'static str,
    cache: &'static str,
    accepted_drafts_from: Option<&'static str>,
    usable_memory_share: f64,
    routing: String,
    usd_per_gpu_hour: Option<f64>,
    price_source: String,
    cost_basis: &'static str,
    utilisation: &'static str,
    model_assumed: Vec<String>,
}

pub(super) fn run(
    args: &EstimateArgs,
    sources: &Sources,
    calibrations: &[Calibration],
    output: Output,
) -> Result<()> {
    let (setup, model_assumed) = setup(args, sources)?;
    let engine = sources.engine();
    let stack = sources.stack(&setup.device, engine)?;
    let named = (setup.model.name.as_str(), &setup.device);
    let chosen = resolve(sources, calibrations, &args.serving, named)?;
    let costs = chosen.costs();
    let routing = LoadModel::new(&args.routing, setup.model.num_experts, setup.model.top_k)?;
    let deployment = deployment(&setup, &costs, stack.as_ref(), &routing);
    deployment.validate()?;
    let served = deployment.serve(&setup.traffic, &setup.lengths)?;
    let calibration = calibrations.iter().find(|c| c.group == chosen.group);
    let (price, price_source) = match price(args.price.as_deref(), &setup.device) {
        Ok((price, source)) => (Some(price), source),
        Err(error) if args.price.is_some() => return Err(error),
        Err(_) => (None, "none published; --price sets one".into()),
    };
    let output_rate = served.requests_per_s * setup.lengths.output;
    let prediction = Prediction { served, output_rate };
    let halves = chosen.halves(&setup, stack.as_ref(), &prediction)?;
    let memory = Memory {
        device_bytes: deployment.memory.device.0,
        weights_bytes: deployment.weights_per_device().0,
        cache_bytes: deployment.cache_per_sequence(setup.lengths.mean_context()).0 * served.batch
            / setup.layout.attention_dp as f64,
        reserved_bytes: deployment.memory.reserve.0,
    };
    let money = price.map(|price| money(price, &setup, &served, output_rate));
    let gpus = setup.layout.devices();
    let document = Document {
        schema: "moe-frontier/estimate",
        schema_version: "1.0",
        model: setup.model.name.clone(),
        model_summary: setup.model.summary(),
        device: setup.device.name.clone(),
        gpus,
        layout: setup.layout,
        ttft_ms: served.ttft.as_ms(),
        tpot_ms: served.tpot.as_ms(),
        ttft_ms_lo: ends(served.ttft.as_ms(), halves.ttft).0,
        ttft_ms_hi: ends(served.ttft.as_ms(), halves.ttft).1,
        tpot_ms_lo: ends(served.tpot.as_ms(), halves.tpot).0,
        tpot_ms_hi: ends(served.tpot.as_ms(), halves.tpot).1,
        requests_per_s: served.requests_per_s,
        output_tokens_per_s: output_rate,
        output_tokens_per_s_lo: ends(output_rate, halves.rate).0,
        output_tokens_per_s_hi: ends(output_rate, halves.rate).1,
        output_tokens_per_s_per_gpu: output_rate / gpus as f64,
        mean_batch: served.batch,
        max_batch: served.batch_cap,
        saturated: served.saturated,
        memory,
        usd_per_million_input_tokens: money.map(|m| m.0),
        usd_per_million_output_tokens: money.map(|m| m.1),
        usd_per_million_output_tokens_lo: money.map(|m| ends(m.1, halves.rate).0),
        usd_per_million_output_tokens_hi: money.map(|m| ends(m.1, halves.rate).1),
        usd_per_million_output_tokens_all_on_output: money.map(|m| m.2),
        step: served.step,
        latency_source: served.step.source(),
        latencies: latencies(&stack, &served),
        calibration: Calibrated {
            state: if calibration.is_some() { "calibrated" } else { "uncalibrated" },
            group: calibration.map(|c| c.group.to_string()),
            rows: calibration.map_or(0, |c| c.rows),
            fitted: calibration.map_or_else(Vec::new, |c| c.fitted.clone()),
        },
        assumptions: Assumptions {
            kernel_times: sources.names(&setup.device),
            engine: engine.to_owned(),
            constants: costs.clone(),
            isl: setup.lengths.input,
            osl: setup.lengths.output,
            weights: setup.model.expert_dtype.label(),
            cache: deployment.cache().label(),
            accepted_drafts_from: args.serving.accept_source(&setup.model.name),
            usable_memory_share: deployment.memory.usable_share,
            routing: args.routing.to_string(),
            usd_per_gpu_hour: price.map(|p| p.0),
            price_source,
            cost_basis: "split by time in prefill and in decode",
            utilisation: "at this load; idle time is not priced",
            model_assumed,
        },
    };
    output.result(&document, || text(&document, width(), args.details))
}

/// Where the latencies of a step come from, by operation.
pub(crate) fn latencies(stack: &Stack, served: &Served) -> Vec<OperationSource> {
    let asked = Operation::ALL.into_iter().zip(served.step.origins);
    asked
        .filter_map(|(operation, answered)| {
            let (source, origin) = answered?;
            let from = stack.origin(operation, origin).unwrap_or_default();
            Some(OperationSource { operation: operation.label().into(), source, from })
        })
        .collect()
}

/// More devices than any deployment has.
const MOST_DEVICES: usize = 10_000_000;

fn setup(args: &EstimateArgs, sources: &Sources) -> Result<(Setup, Vec<String>)> {
    let missing = |flag: &str| Error::usage(flag, "is needed (or --points FILE)");
    let name = args.model.as_deref().ok_or_else(|| missing("--model"))?;
    let Loaded { mut model, assumed, .. } = load_model(name)?;
    let device = match &args.device {
        Some(name) => DeviceSpec::load(name)?,
        None => sources.device()?.ok_or_else(|| missing("--device"))?,
    };
    if let Some(weights) = &args.weights {
        set_precision(&mut model, &weights.to_lowercase())
            .map_err(|reason| Error::usage("--weights", reason))?;
    }
    let ranks = args
        .tp
        .checked_mul(args.dp)
        .filter(|ranks| *ranks <= MOST_DEVICES && args.ep <= MOST_DEVICES);
    let Some(ranks) = ranks else {
        let reason = format!("--tp x --dp and --ep are at most {MOST_DEVICES} devices");
        return Err(Error::usage("--tp", reason));
    };
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
    Ok((Setup { model, device, layout, lengths, traffic, pools: None }, assumed))
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

/// The figures of one deployment; what they come from with `details`.
fn text(d: &Document, width: usize, details: bool) -> String {
    let mut text = hanging("Answer  ", &answer(d), width);
    text += &figures(d, width);
    let gib = |bytes: f64| bytes / f64::from(1 << 30);
    let memory = format!(
        "{:.1} GiB weights, {:.1} GiB cache, {:.1} GiB reserved of {:.1} GiB a GPU",
        gib(d.memory.weights_bytes),
        gib(d.memory.cache_bytes),
        gib(d.memory.reserved_bytes),
        gib(d.memory.device_bytes)
    );
    text += &hanging("Memory  ", &memory, width);
    let times = format!("{}, {}", d.latency_source.label(), d.calibration.state);
    text += &hanging("Times   ", &times, width);
    text += &model_lines(&d.model_summary, &d.assumptions.model_assumed);
    if details {
        text += &more(d, width);
    } else {
        text += &hanging(
            "Next    ",
            "--details (step by operation, sources, basis of the dollars)",
            width,
        );
    }
    text
}

fn answer(d: &Document) -> String {
    let cost = d.usd_per_million_output_tokens.map_or_else(
        || format!("no price: {}", d.assumptions.price_source),
        |usd| format!("${usd:.3}/M output tokens"),
    );
    let full = if d.saturated { "; SATURATED: figures are those at the cap" } else { "" };
    format!(
        "{} on {} x {} ({}): {:.2} requests/s, batch {:.1} of at most {:.0}, {cost}{full}",
        d.model, d.gpus, d.device, d.layout, d.requests_per_s, d.mean_batch, d.max_batch
    )
}

/// Values with their intervals.
fn figures(d: &Document, width: usize) -> String {
    let row = |name: &str, value: String, interval: String| vec![name.to_owned(), value, interval];
    let mut rows = vec![
        row(
            "TPOT ms",
            format!("{:.2}", d.tpot_ms),
            format!("{:.2} to {:.2}", d.tpot_ms_lo, d.tpot_ms_hi),
        ),
        row(
            "TTFT ms",
            format!("{:.1}", d.ttft_ms),
            format!("{:.1} to {:.1}", d.ttft_ms_lo, d.ttft_ms_hi),
        ),
        row(
            "output tokens/s",
            format!("{:.0}", d.output_tokens_per_s),
            format!("{:.0} to {:.0}", d.output_tokens_per_s_lo, d.output_tokens_per_s_hi),
        ),
        row("output tokens/s per GPU", format!("{:.0}", d.output_tokens_per_s_per_gpu), "-".into()),
    ];
    if let (Some(output), Some(lo), Some(hi)) = (
        d.usd_per_million_output_tokens,
        d.usd_per_million_output_tokens_lo,
        d.usd_per_million_output_tokens_hi,
    ) {
        rows.push(row("$/M output", format!("${output:.3}"), format!("${lo:.3} to ${hi:.3}")));
    }
    if let Some(input) = d.usd_per_million_input_tokens {
        rows.push(row("$/M input", format!("${input:.3}"), "-".into()));
    }
    let columns =
        [Column::words("figure"), Column::numbers("value"), Column::numbers("95 %").left_out(1)];
    grid(&columns, &rows, width)
}

/// The step by operation, sources, and the basis of the dollars.
fn more(d: &Document, width: usize) -> String {
    let s = &d.step;
    let parts = [
        ("MoE", s.moe.seconds),
        ("dense", s.dense.seconds),
        ("attention", s.attention.seconds),
        ("communication", s.communication.seconds),
        ("engine", s.overhead_s),
    ];
    let rows: Vec<Vec<String>> = parts
        .iter()
        .map(|(name, seconds)| vec![(*name).to_owned(), format!("{:.2}", seconds * 1e3)])
        .collect();
    let columns = [Column::words("part of a step"), Column::numbers("ms")];
    let mut text = "\n".to_owned() + &grid(&columns, &rows, width);
    for l in &d.latencies {
        let from = format!("{}: {}, {}", l.operation, l.source.label(), l.from);
        text += &hanging("From    ", &from, width);
    }
    let a = &d.assumptions;
    if let Some(price) = a.usd_per_gpu_hour {
        let basis =
            format!("${price}/h each ({}); {}; {}", a.price_source, a.cost_basis, a.utilisation);
        text += &hanging("Dollars ", &basis, width);
    }
    let lengths = format!(
        "{} tokens in, {} out; weights {}, cache {}; {} routing; engine {}",
        a.isl, a.osl, a.weights, a.cache, a.routing, a.engine
    );
    text + &hanging("Asked   ", &lengths, width)
}
