//! The document of `size`.

use serde::Serialize;

use super::interval::{ModelInterval, halves, interval, upper};
use crate::Result;
use crate::ask::{SizeOptions, Sizing};
use crate::calibrate::predict::{Halves, ends};
use crate::plan::request_trace::RequestTrace;
use crate::plan::size::{Choice, Failure, Offer, SizeAnswer, SizeInputs, Window, windows};
use crate::serving::{Percentiles, Router, usd_per_million_output};
use crate::units::TokensPerSecond;

/// The document of `size`.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    schema: &'static str,
    schema_version: &'static str,
    pub(super) model: String,
    pub(super) model_summary: String,
    pub(super) device: String,
    pub(super) gpus: usize,
    pub(super) tensor_parallel: usize,
    pub(super) expert_parallel: usize,
    pub(super) data_parallel: usize,
    pub(super) layout: String,
    pub(super) replicas: usize,
    pub(super) max_batch: usize,
    pub(super) mean_batch: f64,
    pub(super) utilisation: f64,
    pub(super) ttft_ms: Milliseconds,
    pub(super) tpot_ms: Milliseconds,
    pub(super) e2e_ms: Milliseconds,
    /// Share of the requests within the service level.
    pub(super) goodput: f64,
    /// Replicas that a recorded stream needs, by windows of time.
    pub(super) replicas_over_time: Vec<Window>,
    /// Means at the mean rate without waiting: what `estimate` says of one replica.
    steady_state: Steady,
    pub(super) usd_per_hour: f64,
    pub(super) usd_per_million_input_tokens: f64,
    pub(super) usd_per_million_output_tokens: f64,
    pub(super) usd_per_million_total_tokens: f64,
    pub(super) model_interval: ModelInterval,
    memory: Memory,
    pub(super) binding_constraint: String,
    pub(super) margins: Vec<Margin>,
    pub(super) latency_source: crate::latency::Source,
    pub(super) alternatives: Vec<Alternative>,
    pub(super) failed: Vec<Failure>,
    pub(super) assumptions: Assumptions,
}

#[derive(Debug, Serialize)]
struct Steady {
    requests_per_s_per_replica: f64,
    tpot_ms: f64,
    ttft_ms: f64,
    usd_per_million_output_tokens_all_on_output: f64,
}

/// One metric over the requests, with the interval of each value.
#[derive(Debug, Serialize)]
pub(super) struct Milliseconds {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p99_lo: f64,
    pub(super) p99_hi: f64,
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

/// A limit with the simulated value that it is on.
#[derive(Debug, Serialize)]
pub(super) struct Margin {
    pub(super) limit: String,
    pub(super) limit_ms: f64,
    pub(super) value_ms: f64,
    /// Upper end of its 95 % interval, which the limit is decided on.
    pub(super) upper_ms: f64,
    /// Share of the limit that the upper end leaves.
    pub(super) left: f64,
    /// Upper end over the serving model's interval as well.
    model_upper_ms: f64,
}

/// Another plan that keeps the limits in its simulation.
#[derive(Debug, Serialize)]
pub(super) struct Alternative {
    pub(super) device: String,
    pub(super) layout: String,
    pub(super) gpus: usize,
    pub(super) replicas: usize,
    max_batch: usize,
    pub(super) usd_per_hour: f64,
    pub(super) ttft_p99_ms: f64,
    ttft_p99_ms_lo: f64,
    ttft_p99_ms_hi: f64,
    pub(super) tpot_p99_ms: f64,
    tpot_p99_ms_lo: f64,
    tpot_p99_ms_hi: f64,
    calibration: &'static str,
    goodput: f64,
}

impl Alternative {
    fn of(sized: &Sizing, c: &Choice) -> Result<Self> {
        let halves = halves(sized, c)?;
        let (ttft, tpot) = (&c.simulated.ttft_s.p99, &c.simulated.tpot_s.p99);
        Ok(Self {
            device: c.device.clone(),
            layout: c.layout.to_string(),
            gpus: c.gpus(),
            replicas: c.replicas,
            max_batch: c.max_batch,
            usd_per_hour: c.total_price().0,
            ttft_p99_ms: ttft.value * 1e3,
            ttft_p99_ms_lo: ends(ttft.lo, halves.ttft).0 * 1e3,
            ttft_p99_ms_hi: ends(ttft.hi, halves.ttft).1 * 1e3,
            tpot_p99_ms: tpot.value * 1e3,
            tpot_p99_ms_lo: ends(tpot.lo, halves.tpot).0 * 1e3,
            tpot_p99_ms_hi: ends(tpot.hi, halves.tpot).1 * 1e3,
            calibration: sized.calibration(&c.device),
            goodput: c.goodput,
        })
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Assumptions {
    kernel_times: String,
    engine: String,
    pub(super) calibration: &'static str,
    cache: &'static str,
    accepted_drafts_from: Option<&'static str>,
    constants: crate::serving::EngineCosts,
    pub(super) model_assumed: Vec<String>,
    pub(super) trace: Option<String>,
    /// Recorded requests without a prompt or an output token, which are left out.
    pub(super) trace_left_out: Option<usize>,
    isl: f64,
    osl: f64,
    length_cv: Option<f64>,
    burstiness: Option<f64>,
    pub(super) router: Router,
    rate: f64,
    peak_over_mean: f64,
    spare_replicas: usize,
    limits_were_default: bool,
    pub(super) usd_per_gpu_hour: f64,
    pub(super) price_source: String,
    pub(super) cost_basis: &'static str,
    usable_memory_share: f64,
    routing: String,
    percentiles: &'static str,
    limits_are_decided_on: &'static str,
    goodput_is: &'static str,
    seed: u64,
    simulated_requests: usize,
}

/// The answer as it is printed.
pub(super) fn document(options: &SizeOptions, sized: &Sizing) -> Result<Document> {
    let (inputs, answer, best) = (&sized.inputs, &sized.answer, &sized.answer.best);
    let (input, output) = best.token_prices(inputs);
    let tokens = inputs.lengths.input + inputs.lengths.output;
    let all = TokensPerSecond(inputs.rate * tokens);
    let total = usd_per_million_output(best.gpus() as f64, best.price, all);
    let halves = halves(sized, best)?;
    let alternatives = answer.others.iter().map(|c| Alternative::of(sized, c));
    Ok(Document {
        schema: "moe-frontier/size",
        schema_version: "1.2",
        model: inputs.model.name.clone(),
        model_summary: inputs.model.summary(),
        device: best.device.clone(),
        gpus: best.gpus(),
        tensor_parallel: best.layout.attention_tp,
        expert_parallel: best.layout.moe_ep,
        data_parallel: best.layout.attention_dp,
        layout: best.layout.to_string(),
        replicas: best.replicas,
        max_batch: best.max_batch,
        mean_batch: best.mean_load.mean_batch,
        utilisation: best.utilisation(inputs),
        ttft_ms: Milliseconds::of(&best.simulated.ttft_s),
        tpot_ms: Milliseconds::of(&best.simulated.tpot_s),
        e2e_ms: Milliseconds::of(&best.simulated.e2e_s),
        goodput: best.goodput,
        replicas_over_time: windows(inputs, best),
        steady_state: steady(inputs, answer),
        usd_per_hour: best.total_price().0,
        usd_per_million_input_tokens: input.0,
        usd_per_million_output_tokens: output.0,
        usd_per_million_total_tokens: total.0,
        model_interval: interval(sized, best, &halves, (input, output))?,
        memory: Memory {
            weights_bytes: best.weights.0,
            cache_bytes: best.cache_per_sequence.0 * best.max_batch as f64
                / best.layout.attention_dp as f64,
            reserved_bytes: best.memory.reserve.0,
            usable_bytes: best.memory.usable().0,
        },
        binding_constraint: answer.binding.clone(),
        margins: margins(inputs, best, &halves),
        latency_source: best.source,
        alternatives: alternatives.collect::<Result<_>>()?,
        failed: answer.failures.clone(),
        assumptions: assumptions(options, sized, best)?,
    })
}

fn margins(inputs: &SizeInputs, best: &Choice, halves: &Halves) -> Vec<Margin> {
    let of = |limit: &crate::plan::size::Limit| {
        let found = limit.simulated(&best.simulated);
        Margin {
            limit: limit.to_string(),
            limit_ms: limit.most.as_ms(),
            value_ms: found.value * 1e3,
            upper_ms: found.hi * 1e3,
            left: 1.0 - found.hi / limit.most.0,
            model_upper_ms: upper(found.hi, limit, halves) * 1e3,
        }
    };
    inputs.limits.iter().map(of).collect()
}

fn assumptions(options: &SizeOptions, sized: &Sizing, best: &Choice) -> Result<Assumptions> {
    let inputs = &sized.inputs;
    let Offer { device, costs, .. } = inputs.offer(&best.device)?;
    Ok(Assumptions {
        kernel_times: sized.sources.names(device),
        engine: inputs.engine.clone(),
        calibration: sized.calibration(&best.device),
        cache: costs.cache(&inputs.model).label(),
        accepted_drafts_from: options.server.accept_source(&inputs.model.name),
        constants: costs.clone(),
        model_assumed: sized.assumed.clone(),
        trace: options.trace.as_ref().map(|p| p.display().to_string()),
        trace_left_out: inputs.trace.as_ref().map(RequestTrace::left_out),
        isl: inputs.lengths.input,
        osl: inputs.lengths.output,
        length_cv: options.trace.is_none().then_some(options.length_cv),
        burstiness: options.trace.is_none().then_some(options.burstiness),
        router: inputs.router,
        rate: options.rate,
        peak_over_mean: options.peak,
        spare_replicas: options.spare,
        limits_were_default: options.limits.is_empty(),
        usd_per_gpu_hour: best.price.0,
        price_source: sized.terms(&best.device)?.price_source.clone(),
        cost_basis: "split by time in prefill and in decode, idle time included",
        usable_memory_share: best.memory.usable_share,
        routing: options.routing.to_string(),
        percentiles: "over requests, simulated at the peak rate; TPOT excludes the first token",
        limits_are_decided_on: "the upper end of the 95 % interval of the simulated value",
        goodput_is: "share of the requests within the highest percentile promised of each metric",
        seed: options.seed,
        simulated_requests: best.simulated.requests,
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
